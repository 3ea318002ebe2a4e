import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss
from torch import nn

from frostline.data import TensorSamples
from frostline.errors import BadOutput
from frostline.scoring import outputs_of, score


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 1000))
def test_a_score_agrees_with_scikit_learn(classes, samples, seed):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(samples, classes, generator=generator)
    # Every class occurs, since scikit-learn warns of those that are predicted only.
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (samples,), generator=generator)])
    outputs = torch.cat([torch.randn(classes, classes, generator=generator), outputs])

    found = score(outputs, labels)

    own, chances = outputs.argmax(1).numpy(), outputs.double().softmax(1).numpy()
    assert found.samples == len(labels)
    assert found.confusion == tuple(map(tuple, confusion_matrix(labels, own, labels=range(classes)).tolist()))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, own))
    assert found.loss == pytest.approx(log_loss(labels, chances, labels=range(classes)))
    assert found.low <= found.accuracy <= found.high
    assert found.confidences == pytest.approx(chances.max(1).tolist())


def test_a_class_without_samples_leaves_the_balanced_accuracy_alone():
    found = score(torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([0, 1]))

    assert found.balanced_accuracy == 1.0


def test_outputs_that_are_no_table_are_refused():
    with pytest.raises(BadOutput, match=r"\(3, 2, 2\)") as caught:
        score(torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.int64))

    assert caught.value.shape == (3, 2, 2)


def test_outputs_are_those_of_one_batch():
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))

    found = outputs_of(net, TensorSamples(x, torch.zeros(10, dtype=torch.int64)), batch_size=3)

    torch.testing.assert_close(found, net[0](x).detach())


def test_scoring_leaves_modes_and_statistics_as_they_were():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    net[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    outputs_of(net, TensorSamples(torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)))

    assert [module.training for module in net.modules()] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_outputs_can_be_trained_on_afterwards():
    outputs = outputs_of(nn.Linear(2, 2), TensorSamples(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)))
    factor = torch.ones((), requires_grad=True)

    (outputs * factor).sum().backward()

    assert factor.grad is not None
