import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from frostline import tangent
from frostline.data import TensorSamples
from frostline.probing import ridge
from frostline.tangent import drawn, kernel_ridge, probe_tangent, stage_kernels
from frostline.testing.menagerie import PIECES, menagerie, network, specimen
from frostline.tracing import trace


class Rows:
    """Samples of any network: as many rows as its example has, each with a label."""

    def __init__(self, inputs, classes=3):
        self.inputs = inputs
        self.labels = torch.arange(len(inputs[0])) % classes

    def __len__(self):
        return len(self.labels)

    def read(self, rows, view=0):
        return tuple(tensor[torch.tensor(list(rows))] for tensor in self.inputs)


def by_hand(model, graph, inputs, *, directions=2):
    """Centred kernel of each stage from whole gradients, one row and one direction at a time."""
    net = copy.deepcopy(model).eval()
    weights = dict(net.named_parameters())
    homes = {key: stage.index for stage in graph.stages for key in stage.keys if key in weights}
    mixing = mixing_of(model, graph, inputs, directions=directions)
    kernels = torch.zeros(len(graph.stages), len(inputs[0]), len(inputs[0]), dtype=torch.float64)
    for column in mixing.T:
        rows = []
        for row in range(len(inputs[0])):
            args, kwargs = graph.recording.inputs.bind([tensor[row : row + 1] for tensor in inputs])
            output = net(*args, **kwargs)
            output = next(iter(output.values())) if isinstance(output, dict) else output
            score = output.flatten() @ column
            found = torch.autograd.grad(score, [weights[key] for key in homes], allow_unused=True)
            rows.append({key: gradient for key, gradient in zip(homes, found, strict=True) if gradient is not None})
        for key in rows[0]:
            table = torch.stack([each[key].flatten() for each in rows]).double()
            table = table - table.mean(0)
            kernels[homes[key]] += table @ table.T / mixing.shape[1]
    return kernels


def mixing_of(model, graph, inputs, *, directions):
    taker = tangent._Taker(copy.deepcopy(model).eval(), graph, directions, 0)
    taker.features(inputs)
    return taker._mixing


def kernels_of(model, inputs, *, rows=None, **more):
    args = inputs[0] if len(inputs) == 1 else tuple(inputs)
    graph = trace(model, args)
    samples = Rows(inputs)
    return graph, stage_kernels(model, graph, samples, chosen=rows or range(len(samples)), **more)


def assert_same_kernels(found, expected, tolerance=1e-4):
    for own, other in zip(found, expected, strict=True):
        assert (own - other).abs().max() <= tolerance * max(1e-6, float(other.abs().max()))


# --- the kernels ------------------------------------------------------------------------------

pieces = st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=4)


@settings(max_examples=12, deadline=None)
@given(pieces, st.integers(0, 20))
def test_kernels_of_random_small_networks_are_those_of_whole_gradients(names, seed):
    sewn = network(names, seed=seed)
    graph, kernels = kernels_of(sewn.model, sewn.inputs)

    expected = by_hand(sewn.model, graph, sewn.inputs)

    assert_same_kernels(kernels.stages, expected)


KINDS = [kind.name for kind in menagerie()]


@pytest.mark.parametrize("name", KINDS)
def test_kernels_of_every_kind_of_network_are_those_of_whole_gradients(name):
    kind = specimen(name)
    graph = trace(kind.model, kind.example)
    samples = Rows(kind.inputs)

    kernels = stage_kernels(kind.model, graph, samples, chosen=range(len(samples)))

    assert_same_kernels(kernels.stages, by_hand(kind.model, graph, kind.inputs))


class Layers(nn.Module):
    """One layer of each kind that has a way of its own for many rows at once."""

    def __init__(self):
        super().__init__()
        self.words = nn.Linear(9, 6)
        self.line = nn.Sequential(nn.Conv1d(6, 8, 3, padding=1, stride=2, groups=2), nn.GroupNorm(2, 8), nn.ReLU(True))
        self.alone = nn.Sequential(nn.Conv1d(8, 8, 3, groups=8), nn.InstanceNorm1d(8, affine=True))
        self.point = nn.Conv1d(8, 10, 1, bias=False)
        self.tokens = nn.Sequential(nn.Linear(10, 12), nn.LayerNorm(12), nn.RMSNorm(12), nn.Tanh())
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, ids):
        x = self.point(self.alone(self.line(self.words(ids).mT)))
        return self.head(self.norm(self.tokens(x.mT).mean(1)))


def layers(rows=6):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Layers()
        for weight in net.parameters():
            nn.init.normal_(weight, std=0.5)
        return net, torch.randn(rows, 12, 9)


def test_each_kind_of_layer_gives_the_whole_gradient():
    net, ids = layers()

    graph, kernels = kernels_of(net, (ids,))

    assert_same_kernels(kernels.stages, by_hand(net, graph, (ids,)), 1e-5)


def test_layers_of_known_kinds_need_no_pass_for_each_row(monkeypatch):
    net, ids = layers(rows=20)
    alone = []
    own = tangent._Taker._of_row
    monkeypatch.setattr(
        tangent._Taker, "_of_row", lambda self, inputs, row: alone.append(row) or own(self, inputs, row)
    )

    kernels_of(net, (ids,), batch_size=10)

    # The two that prove the rest.
    assert sorted(alone) == [0, 9]


class Scaled(nn.Module):
    """A weight that no layer owns."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)) * self.scale)


def test_a_weight_outside_every_layer_counts():
    net, x = Scaled(), torch.randn(7, 4)

    graph, kernels = kernels_of(net, (x,))

    assert_same_kernels(kernels.stages, by_hand(net, graph, (x,)))


class Folded(nn.Module):
    """A layer whose rows are not the samples, though there are as many."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).transpose(0, 1)).transpose(0, 1).tanh().mean(1))


def test_rows_that_are_not_samples_are_not_taken_for_them():
    net, x = Folded(), torch.randn(6, 6, 4)

    graph, kernels = kernels_of(net, (x,), batch_size=6)

    assert_same_kernels(kernels.stages, by_hand(net, graph, (x,)))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_kernels_are_symmetric_and_never_negative(seed):
    net, ids = layers(rows=10)

    _, kernels = kernels_of(net, (ids,), seed=seed)

    for kernel in kernels.stages:
        torch.testing.assert_close(kernel, kernel.T)
        assert torch.linalg.eigvalsh(kernel).min() >= -1e-5 * kernel.diagonal().max()


@pytest.mark.parametrize("normalisation", ["none", "trace", "squared weight norm"])
def test_the_kernel_of_a_depth_is_that_of_a_deeper_one_and_the_stages_between(normalisation):
    net, ids = layers(rows=10)
    graph, kernels = kernels_of(net, (ids,))

    shallow, deep = kernels.above(1, normalisation), kernels.above(3, normalisation)
    alone = [kernels.above(at, normalisation) - kernels.above(at + 1, normalisation) for at in (1, 2)]

    torch.testing.assert_close(shallow - deep, alone[0] + alone[1])
    assert len(graph.stages) > 3


def test_each_stage_weighs_the_same_by_trace():
    net, ids = layers(rows=10)
    _, kernels = kernels_of(net, (ids,))

    traces = [float(kernels.above(depth, "trace").trace()) for depth in range(len(kernels.stages))]

    assert traces == pytest.approx([10.0 * (len(traces) - depth) for depth in range(len(traces))])


def test_a_stage_weighs_by_the_square_of_its_weights():
    net, ids = layers(rows=10)
    graph, kernels = kernels_of(net, (ids,))

    tensors = net.state_dict()
    expected = sum(float(tensors[key].square().sum()) for key in graph.stages[-1].keys if key != "head.bias")

    assert float(kernels.weight_norms[-1]) == pytest.approx(expected)


def wide(width=160):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))
        return net, torch.randn(40, 20)


def test_projections_keep_a_wide_stage_within_tolerance():
    net, x = wide()
    graph, kernels = kernels_of(net, (x,))

    expected = by_hand(net, graph, (x,))

    for own, other in zip(kernels.stages, expected, strict=True):
        assert float((own - other).norm() / other.norm()) < 0.35


def test_projections_are_right_on_average():
    net, x = wide()
    graph, _ = kernels_of(net, (x,))
    expected = by_hand(net, graph, (x,), directions=4)

    # As many directions as there are leave nothing but the projections to chance.
    mean = torch.stack([kernels_of(net, (x,), seed=seed, directions=4)[1].stages for seed in range(30)]).mean(0)

    for own, other in zip(mean, expected, strict=True):
        assert float((own - other).norm() / other.norm()) < 0.06


def test_projections_are_the_same_for_one_row_and_for_many(monkeypatch):
    net, x = wide()
    _, together = kernels_of(net, (x,))
    monkeypatch.setattr(tangent._Taker, "_of_batch", lambda self, inputs: None)

    _, alone = kernels_of(net, (x,))

    assert_same_kernels(together.stages, alone.stages)


def test_directions_leave_out_the_one_that_softmax_does_not_see():
    mixing = tangent._mixing(5, 9, torch.Generator().manual_seed(0))

    torch.testing.assert_close(mixing.T @ mixing, torch.eye(4))
    torch.testing.assert_close(mixing.sum(0), torch.zeros(4), atol=1e-6, rtol=0)


# --- the vote ---------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(5, 20), st.integers(21, 30), st.integers(0, 100))
def test_kernel_ridge_says_what_the_ridge_probe_says_of_the_same_features(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, 2, generator=generator, dtype=torch.float64)

    z = x - x.mean(0)
    left_out, penalty = kernel_ridge(z @ z.T, y)

    fit = ridge(x, y)
    assert penalty == pytest.approx(fit.penalty)
    torch.testing.assert_close(left_out, fit.left_out, rtol=1e-6, atol=1e-6)


def test_a_kernel_of_nothing_predicts_the_mean_of_the_others():
    y = torch.tensor([[0.0], [0.0], [3.0]], dtype=torch.float64)

    left_out, _ = kernel_ridge(torch.zeros(3, 3, dtype=torch.float64), y)

    torch.testing.assert_close(left_out.flatten(), torch.tensor([1.5, 1.5, 0.0], dtype=torch.float64))


def separable(rows=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    return torch.randn(rows, 6, generator=generator) * 0.3 + 2 * F.one_hot(labels, 6), labels


def chain(*, lower=8):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, lower), nn.Tanh(), nn.Linear(lower, 8), nn.Tanh(), nn.Linear(8, 3))


def voted(net, x, labels, **more):
    samples = TensorSamples(x, labels)
    return probe_tangent(net, trace(net, x[:4]), samples, **more)


def test_every_open_depth_votes():
    x, labels = separable()

    votes = voted(chain(), x, labels)

    assert [vote.depth for vote in votes] == [0, 1, 2]
    assert all(0 <= vote.low <= vote.accuracy <= vote.high <= 1 and vote.loss >= 0 for vote in votes)


def test_on_a_separable_set_the_head_alone_is_enough():
    x, labels = separable()

    *_, head_only = voted(chain(), x, labels)

    assert head_only.accuracy > 0.95


@pytest.mark.parametrize("normalisation", ["none", "trace", "squared weight norm"])
def test_where_the_features_say_nothing_a_live_stage_is_asked_for(normalisation):
    x, labels = separable()
    net = chain()
    with torch.no_grad():
        # The second layer lets through one sum only, in which no class stands out.
        net[2].weight.copy_(1e-3 * torch.ones(8, 1) @ torch.randn(1, 8, generator=torch.Generator().manual_seed(5)))
        net[0].weight[:, 3:] *= 5
        net[0].weight[:, :3] *= 0.05

    votes = {vote.depth: vote for vote in voted(net, x, labels, normalisation=normalisation)}

    assert votes[2].accuracy < 0.7
    assert votes[0].accuracy > 0.9
    assert votes[0].loss < votes[2].loss


@settings(max_examples=6, deadline=None)
@given(st.permutations(range(30)))
def test_the_order_of_the_samples_does_not_matter(order):
    x, labels = separable(30)

    one, other = voted(chain(), x, labels), voted(chain(), x[order], labels[order])

    for mine, theirs in zip(one, other, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-2)
        assert mine.accuracy == pytest.approx(theirs.accuracy, abs=1 / 30 + 1e-9)


def test_the_size_of_the_batches_does_not_matter():
    x, labels = separable(40)

    small, large = voted(chain(), x, labels, batch_size=3), voted(chain(), x, labels, batch_size=40)

    assert [vote.loss for vote in small] == pytest.approx([vote.loss for vote in large], rel=1e-3)


def test_the_same_seed_gives_the_same_votes():
    net, x = wide()
    labels = torch.arange(40) % 5

    assert voted(net, x, labels, seed=4) == voted(net, x, labels, seed=4)


def test_the_warm_head_is_what_gradients_flow_through():
    net, x = wide()
    labels, weight = torch.arange(40) % 5, torch.randn(5, 160, generator=torch.Generator().manual_seed(1))
    warm = copy.deepcopy(net)
    with torch.no_grad():
        warm[-1].weight.copy_(weight)

    assert voted(net, x, labels, head_weight=weight) == voted(warm, x, labels)
    assert voted(net, x, labels, head_weight=weight) != voted(net, x, labels)


def test_a_network_without_a_linear_head_votes_too():
    x, labels = separable()
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Hardtanh())

    votes = voted(net, x, labels)

    assert trace(net, x[:4]).head is None
    assert max(vote.accuracy for vote in votes) > 0.9


def test_many_classes_vote():
    labels = torch.arange(272) % 136
    x = F.one_hot(labels, 136).float() + 0.05 * torch.randn(272, 136, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(136, 150), nn.ReLU(), nn.Linear(150, 136))

    *_, head_only = voted(net, x, labels)

    assert head_only.accuracy > 0.8


def test_the_network_is_left_alone():
    net, ids = layers()
    net.train()
    net.words.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())

    kernels_of(net, (ids,), head_weight=torch.zeros(4, 12))

    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert [name for name, weight in net.named_parameters() if not weight.requires_grad] == ["words.weight"]
    assert all(weight.grad is None for weight in net.parameters())


def test_the_callers_randomness_is_left_alone():
    x, labels = separable(30)
    before = torch.get_rng_state()

    voted(chain(), x, labels)

    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(4, 40), st.integers(0, 9))
def test_drawn_rows_keep_each_class_by_its_share(classes, rows, seed):
    labels = torch.tensor(classes)

    chosen = drawn(labels, rows, seed)

    kept = min(rows, len(labels))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == kept
    for label in range(4):
        share = classes.count(label) * kept / len(classes)
        assert abs(int((labels[chosen] == label).sum()) - share) <= 1.5


def test_every_batch_is_heard():
    x, labels = separable(40)
    heard = []

    voted(chain(), x, labels, batch_size=10, listener=heard.append)

    assert [event.done for event in heard] == [0, 1, 2, 3, 4]
