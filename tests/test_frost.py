import pickle

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import BadArgument
from frostline.freezing import freeze, layer_status, unfreeze
from frostline.frost import course_of, frost_of
from frostline.records import CutGraph
from frostline.testing import breach, menagerie, snapshot, specimen


def chain():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


X = torch.ones(4, 5)


def below(name, depth):
    one = specimen(name)
    return course_of(one.model, one.example).below(one.model, depth)


def test_modules_that_run_before_the_cut_are_frozen_and_those_around_it_mixed():
    found = below("attention", 2)

    assert {"patches", "blocks.0", "blocks.0.attention.out_proj"} <= set(found.frozen)
    assert set(found.mixed) == set(found.across) == {"", "blocks"}
    assert (found.last, found.turns) == ("blocks.0", 1)


def test_a_module_that_is_used_on_both_sides_is_mixed_and_may_end_the_frozen_part():
    found = below("shared_activation", 2)

    assert found.mixed == ("", "act")
    assert found.across == ("",)
    assert (found.last, found.turns) == ("act", 2)


def test_a_module_of_which_others_read_the_weights_goes_with_its_readers():
    class Borrowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = nn.Linear(5, 6), nn.Linear(6, 6)
            self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.middle(x @ self.early.weight.T)
            return self.head(x @ self.late.weight.T)

    net = Borrowing()
    found = course_of(net, X).below(net, 1)

    assert set(found.frozen) == {"early", "middle"}


def test_a_tensor_that_is_never_read_is_frozen_inside_frozen_modules_only():
    net = chain()
    net[0].unused, net.unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    freeze(net, 1, X)

    assert not net[0].unused.requires_grad
    assert net.unused.requires_grad


@pytest.mark.parametrize("name", [one.name for one in menagerie()])
def test_a_frozen_network_is_traced_like_the_network(name):
    one = specimen(name)
    graph = fl.trace(one.model, one.example)
    for depth in graph.open_depths:
        freeze(one.model, depth, graph)

        assert fl.trace(one.model, one.example) == graph
        found, known = course_of(one.model, one.example), course_of(one.model, graph)
        assert all(found.below(one.model, at) == known.below(one.model, at) for at in graph.open_depths[1:])


@pytest.mark.parametrize("name", [one.name for one in menagerie()])
def test_a_frozen_network_is_split_at_any_depth_and_stays_frozen(name):
    one = specimen(name)
    graph = fl.trace(one.model, one.example)
    freeze(one.model, graph.open_depths[-1], graph)
    before = snapshot(one.model)

    for depth in graph.open_depths:
        assert breach(one, graph, depth) is None
        assert all(part.training for part in fl.split(one.model, graph, depth).live.train().modules())

    assert snapshot(one.model) == before


def test_a_network_that_was_never_frozen_needs_an_example():
    with pytest.raises(BadArgument, match="never frozen"):
        freeze(chain(), 1)


def test_a_network_that_was_frozen_before_needs_none():
    net = chain()
    freeze(net, 1, X)
    unfreeze(net)

    status = freeze(net, 2)

    assert status.depth == 2


def test_a_graph_of_another_network_is_refused():
    with pytest.raises(BadArgument, match="another network"):
        freeze(chain(), 1, fl.trace(specimen("residual").model, specimen("residual").example))


def test_a_graph_from_a_file_is_refused():
    graph = CutGraph.model_validate_json(fl.trace(chain(), X).model_dump_json())

    with pytest.raises(BadArgument, match="holds no recording"):
        freeze(chain(), 1, graph)


def test_a_network_that_was_changed_since_is_traced_anew_from_an_example():
    net = chain()
    freeze(net, 2, X)
    net[4] = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(BadArgument, match="another network"):
        freeze(net, 3)

    status = freeze(net, 3, X)

    assert [stage.state for stage in status.stages] == ["frozen"] * 3 + ["live"]


def test_a_frozen_module_that_was_replaced_is_frozen_when_asked_again():
    net = chain()
    freeze(net, 1, X)
    net[0] = nn.Linear(5, 6)

    freeze(net, 1)

    assert not net.train()[0].training


def test_freezing_a_whole_takes_over_what_was_frozen_of_its_parts():
    net = nn.Sequential(chain(), nn.ReLU(), nn.Linear(3, 2))
    freeze(net[0], 2, X)

    freeze(net, 1, X)

    assert [weight.requires_grad for weight in net.parameters()] == [False] * 2 + [True] * 6
    assert net.train()[0][2].training


def test_freezing_anew_at_the_same_depth_keeps_what_holds_and_sets_flags_again():
    net = chain()
    freeze(net, 2, X)
    hold = frost_of(net).hold
    net.requires_grad_(True)

    freeze(net, 2, X)

    assert frost_of(net).hold is hold
    assert layer_status(net).stages[1].trainable == 0


def test_what_a_network_carries_is_small():
    one = specimen("attention")
    before = len(pickle.dumps(one.model))
    freeze(one.model, 2, one.example)

    assert len(pickle.dumps(one.model)) - before < 20_000
