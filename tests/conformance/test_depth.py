"""A depth means what it says: that many stages, in the order in which they run."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import CutBlocked, UnknownStage
from frostline.testing import SAME, menagerie, specimen

STAGES = ("stem", "one", "two", "three", "head")


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inner = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(3)]
        layers = [nn.Linear(5, 6), *inner, nn.Linear(6, 3)]
        return nn.Sequential(OrderedDict(zip(STAGES, layers, strict=True)))


def batch(seed=0):
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))


def train(net):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    net.train()
    for step in range(3):
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        optimizer.step()


def bits(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def live(net):
    """Names of the children that train, each wholly or not at all."""
    flags = {name: {weight.requires_grad for weight in child.parameters()} for name, child in net.named_children()}
    assert all(len(found) == 1 for found in flags.values()), flags
    return [name for name, found in flags.items() if found == {True}]


# --- the ends ---------------------------------------------------------------------------------


def test_case_35_depth_0_is_plain_fine_tuning_bit_for_bit(freezing):
    plain, frozen = network(), network()
    freezing.freeze(frozen, 0, batch())

    train(plain)
    train(frozen)

    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(frozen.state_dict()[name], tensor, **SAME)


def test_case_35_the_largest_depth_is_a_linear_probe(freezing):
    net = network()
    freezing.freeze(net, 4, batch())
    before = bits(net)
    features = net[:4].eval()(batch()).detach()
    probe = nn.Linear(6, 3)
    probe.load_state_dict(net.head.state_dict())

    train(net)

    assert {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])} == {
        "head.weight",
        "head.bias",
    }
    assert torch.equal(net[:4].eval()(batch()), features)


@pytest.mark.parametrize("depth", [5, -6, math.nan, 1.5, "five", True])
def test_case_35_a_depth_that_does_not_exist_is_refused_and_nothing_is_frozen(freezing, depth):
    net = network()

    with pytest.raises(UnknownStage, match=r"0 to 4|Near names"):
        freezing.freeze(net, depth, batch())

    assert live(net) == list(STAGES)


def test_case_35_freezing_the_head_too_is_refused_with_what_to_do(freezing):
    with pytest.raises(UnknownStage, match="the head, the last one, is always live"):
        freezing.freeze(network(), len(STAGES), batch())


# --- numbers and names ------------------------------------------------------------------------


def test_case_36_a_number_freezes_that_many_stages_and_counts_from_the_end_below_zero(freezing):
    found = {}

    for depth in (0, 1, 3, 4, -1, -3):
        net = network()
        freezing.freeze_to(net, depth, batch())
        found[depth] = live(net)

    assert found == {depth: list(STAGES[depth:] if depth >= 0 else STAGES[5 + depth :]) for depth in found}


def test_case_36_a_name_freezes_up_to_and_including_its_stage(freezing):
    net = network()

    freezing.freeze_to(net, "one", batch())

    assert live(net) == ["two", "three", "head"]


def test_case_36_the_same_call_twice_is_the_call_once(freezing):
    net = network()

    for _ in range(2):
        freezing.freeze_to(net, 2, batch())

    assert live(net) == ["two", "three", "head"]
    freezing.unfreeze(net)
    assert live(net) == list(STAGES)


def test_case_36_a_smaller_depth_thaws_what_the_larger_one_froze(freezing):
    net = network()
    freezing.freeze_to(net, 3, batch())

    freezing.freeze_to(net, 1, batch())

    before = bits(net)
    train(net)
    still = [name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])]
    assert live(net) == ["one", "two", "three", "head"]
    assert still == ["stem.weight", "stem.bias"]


# --- order and shape --------------------------------------------------------------------------


def test_case_37_stages_are_frozen_in_the_order_in_which_they_run(freezing):
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.middle, self.stem = nn.Linear(6, 3), nn.Linear(6, 6), nn.Linear(5, 6)

        def forward(self, x):
            return self.head(self.middle(self.stem(x)))

    net = Reversed()

    freezing.freeze(net, 1, batch())

    assert live(net) == ["head", "middle"]


def values(output):
    return list(output.values()) if isinstance(output, dict) else [output]


@pytest.mark.parametrize("name", [one.name for one in menagerie()])
def test_case_38_every_open_depth_of_any_shape_of_network_leaves_its_output_alone(freezing, name):
    depths = fl.trace(specimen(name).model, specimen(name).example).open_depths

    for depth in depths:
        one = specimen(name)
        before = values(one.output())
        freezing.freeze(one.model, depth, one.example)
        for mine, theirs in zip(values(one.output()), before, strict=True):
            torch.testing.assert_close(mine, theirs, **SAME)


@pytest.mark.parametrize("name", ["tied", "value_check"])
def test_case_38_a_depth_that_is_no_legal_cut_is_refused_with_its_reason(freezing, name):
    one = specimen(name)
    graph = fl.trace(one.model, one.example)
    blocked = [cut for cut in graph.cuts if cut.blocked]

    for cut in blocked:
        with pytest.raises(CutBlocked) as caught:
            freezing.freeze(one.model, cut.depth, one.example)
        assert caught.value.reason == cut.blocked

    assert blocked


# --- choosing among few, uneven and wrong labels ----------------------------------------------


def part(counts, seed, *, wrong=False):
    """Points around the number of their class; wrong labels are drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    x = torch.randn(len(labels), 5, generator=draw) + labels[:, None]
    return fl.TensorSamples(x, labels[torch.randperm(len(labels), generator=draw)] if wrong else labels)


@pytest.mark.parametrize(
    ("counts", "wrong"),
    [((10, 10, 10), False), ((30, 4, 2), False), ((10, 10, 10), True)],
    ids=["few", "uneven", "wrong"],
)
def test_case_40_a_search_on_few_uneven_or_wrong_labels_runs_and_gives_its_reason(tmp_path, counts, wrong):
    task = fl.Task(network(), *(part(counts, seed, wrong=wrong) for seed in range(3)))

    result = fl.fit(task, epochs=2, engine="torch", out=tmp_path / "run")

    assert 0 <= result.depth <= 4
    assert result.choice.reason


# --- each case can fail -----------------------------------------------------------------------

BROKEN = {"Flags": {35, 36}, "Modes": {35, 36, 37}}


def test_broken_freeze_fails_exactly_the_cases_that_it_should(broken, cases_failed_by):
    assert cases_failed_by(globals(), broken) == BROKEN[broken.__name__]
