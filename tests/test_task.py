"""The door refuses what cannot work, changes nothing, and names what it holds."""

import copy

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import (
    BadArgument,
    BadInputSize,
    BadOutput,
    EmptyData,
    MetaParameters,
    NoParameters,
    OneClass,
    UnknownClass,
)


def samples(labels=(0, 1, 0, 1, 0, 1), seed=0, features=4):
    inputs = torch.randn(len(labels), features, generator=torch.Generator().manual_seed(seed))
    return fl.TensorSamples(inputs, torch.tensor(labels))


def net(outputs=2):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, outputs))


def task_of(model=None, part=None, **more):
    part = part or samples()
    return fl.Task(model or net(), part, part, part, **more)


class Odd(nn.Module):
    """A network whose output is made by a function of (B, 2)."""

    def __init__(self, change):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.change = change

    def forward(self, x):
        return self.change(self.layer(x))


# --- what it holds ----------------------------------------------------------------------------


def test_classes_are_numbered_where_none_are_named():
    assert task_of().classes == ("0", "1")
    assert task_of(classes=("cat", "dog")).classes == ("cat", "dog")


def test_example_is_the_first_rows_of_training():
    part = samples()

    assert torch.equal(task_of(part=part).example(3)[0], part.read([0, 1, 2])[0])


def test_example_repeats_rows_of_a_small_part():
    assert len(task_of(part=samples((0, 1))).example(5)[0]) == 5


def test_model_is_not_touched():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()

    task_of(model)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_values_that_a_forward_keeps_do_not_reach_the_model():
    class Keeping(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    model = Keeping(4, 2)
    model(torch.randn(3, 4))
    kept = model.last

    task_of(model)

    assert model.last is kept


# --- fingerprint ------------------------------------------------------------------------------


def test_fingerprint_is_repeatable_in_a_new_task():
    assert task_of().fingerprint == task_of().fingerprint


def flip(model):
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6


def bend(model):
    model[1].running_mean[0] += 1


def swap(model):
    model[2] = nn.Dropout(0.4)


@pytest.mark.parametrize("change", [flip, bend, swap])
def test_fingerprint_sees_weights_buffers_and_build(change):
    model = net()
    before = task_of(model).fingerprint

    change(model)

    assert task_of(model).fingerprint != before


@pytest.mark.parametrize("part", [samples(seed=1), samples((0, 1, 0, 1, 1, 0))])
def test_fingerprint_sees_content_and_labels(part):
    assert task_of(part=part).fingerprint != task_of().fingerprint


def test_fingerprint_sees_the_division():
    first, second = samples(seed=1), samples(seed=2)

    one = fl.Task(net(), first, second, first).fingerprint

    assert fl.Task(net(), first, first, second).fingerprint != one


def test_fingerprint_does_not_depend_on_addresses():
    class Printed(nn.Linear):
        def extra_repr(self):
            return repr(self.activation)

    one, two = Printed(4, 2), Printed(4, 2)
    one.activation, two.activation = object(), object()
    two.load_state_dict(one.state_dict())

    assert task_of(one).fingerprint == task_of(two).fingerprint


# --- what it refuses --------------------------------------------------------------------------


def test_unknown_goal_is_refused():
    with pytest.raises(BadArgument, match="'speed'"):
        task_of(goal="speed")


def test_one_class_is_refused():
    with pytest.raises(OneClass, match="all 3 training samples carry the label 1"):
        task_of(part=samples((1, 1, 1)))


@pytest.mark.parametrize("place", ["validation", "test"])
def test_label_that_training_lacks_is_refused(place):
    parts = {"validation": samples(), "test": samples()} | {place: samples((0, 5))}

    with pytest.raises(UnknownClass, match=f"the {place} part holds the label 5"):
        fl.Task(net(6), samples(), parts["validation"], parts["test"])


def test_empty_part_is_refused():
    class Nothing:
        views = 1
        labels = torch.zeros(0, dtype=torch.long)
        names = digests = ()
        preparation = ""

        def __len__(self):
            return 0

    with pytest.raises(EmptyData, match="the validation part has no samples"):
        fl.Task(net(), samples(), Nothing(), samples())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda y: (y, y), "tuple"),
        (lambda y: {"logits": y}, "dict"),
        (lambda y: y[:, 0], r"\(4,\)"),
        (lambda y: y[..., None], r"\(4, 2, 1\)"),
        (lambda y: y[:2], r"\(2, 2\)"),
        (lambda y: y.argmax(1, keepdim=True), "int64"),
    ],
)
def test_output_that_is_not_a_number_for_each_class_is_refused(change, found):
    with pytest.raises(BadOutput, match=found):
        task_of(Odd(change))


@pytest.mark.parametrize("outputs", [1, 3, 1000])
def test_other_number_of_outputs_than_classes_is_refused(outputs):
    with pytest.raises(BadOutput, match=f"{outputs} outputs and the samples have 2 classes"):
        task_of(net(outputs), classes=("cat", "dog"))


def test_fewer_outputs_than_labels_are_refused():
    with pytest.raises(BadOutput, match="2 outputs and the samples have 3 classes"):
        task_of(part=samples((0, 1, 2)))


def test_network_without_parameters_is_refused():
    with pytest.raises(NoParameters, match="Flatten has no parameters"):
        task_of(nn.Flatten())


def test_weights_without_values_are_refused_by_name():
    with pytest.raises(MetaParameters, match=r"4 tensors .* '0.weight'"):
        task_of(nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Linear(4, 2, device="meta")))


def test_wholly_frozen_network_is_refused():
    with pytest.raises(NoParameters, match=r"requires_grad_\(True\)"):
        task_of(net().requires_grad_(False))


def test_partly_frozen_network_is_told_what_that_does():
    model = net()
    model[0].requires_grad_(False)

    with pytest.warns(UserWarning, match=r"2 of 6 parameters .* '0.weight'\. They keep their values at every depth"):
        task_of(model)

    assert not model[0].weight.requires_grad


def test_inputs_that_the_network_refuses_are_told_with_their_shape():
    with pytest.raises(BadInputSize, match=r"\(4, 7\)") as caught:
        task_of(part=samples(features=7))

    assert caught.value.shapes == ((4, 7),)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_uneven_classes_are_told_and_a_goal_that_suits_them():
    uneven = samples(labels=(0,) * 30 + (1,) * 3)

    plain, balanced = (task_of(part=uneven, goal=goal) for goal in ("accuracy", "balanced_accuracy"))

    assert "30 training samples of 0, 3 of 1" in plain.notes[0]
    assert "balanced_accuracy" in plain.notes[0]
    assert balanced.notes == ()


def test_even_classes_need_no_word():
    assert task_of().notes == ()
