import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.executors import in_turn
from frostline.records import Trial, TrialSpec
from frostline.search import strategy
from frostline.testing import (
    CLOSE,
    PIECES,
    ROUGH,
    SAME,
    ExecutorContract,
    StrategyContract,
    TracerContract,
    breach,
    false_cuts,
    menagerie,
    network,
    opened,
    snapshot,
    specimen,
    without_wire,
)


class TestInTurn(ExecutorContract):
    def executor(self, worker, specs):
        return in_turn(worker, specs)


class TestStrategy(StrategyContract):
    def prepare(self, graph, prior, plan):
        return lambda trials, pending: strategy(graph, prior, plan, trials, pending)


# --- tolerances -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerance", "passes", "fails"), [(SAME, 0.0, 1e-7), (CLOSE, 1e-5, 1e-3), (ROUGH, 1e-2, 1e-1)]
)
def test_tolerance_lets_through_what_it_is_for(tolerance, passes, fails):
    value = torch.ones(3)

    torch.testing.assert_close(value + passes, value, **tolerance)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(value + fails, value, **tolerance)


# --- the menagerie ----------------------------------------------------------------------------


def test_specimen_is_the_same_every_time_and_draws_nothing_from_the_global_state():
    before = torch.get_rng_state()

    first, second = specimen("attention"), specimen("attention")

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.example, second.example)
    assert torch.equal(first.output(), second.output())


def test_every_specimen_runs_and_names_are_unique():
    names = [one.name for one in menagerie()]

    assert len(set(names)) == len(names)
    assert all(value.shape[0] == 4 for one in menagerie() for value in values(one.output()))


def values(output):
    return output.values() if isinstance(output, dict) else [output]


def test_output_leaves_the_mode_alone():
    one = specimen("dropout")
    one.model.train()

    one.output()

    assert one.model.training


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(PIECES)), max_size=7), st.integers(0, 99))
def test_random_network_is_the_same_for_the_same_seed(pieces, seed):
    first, second = network(pieces, seed=seed), network(pieces, seed=seed)

    assert first.output().isfinite().all()
    assert torch.equal(first.output(), second.output())


# --- laws and liars ---------------------------------------------------------------------------


def test_snapshot_sees_every_change_that_matters():
    changes = {
        "a weight": lambda net: net[0].weight.data.add_(1),
        "a buffer": lambda net: net[1].running_mean.add_(1),
        "a flag": lambda net: net[0].weight.requires_grad_(False),
        "a mode": lambda net: net[1].eval(),
        "a hook": lambda net: net[0].register_forward_hook(lambda *_: None),
        "a gradient": lambda net: setattr(net[0].weight, "grad", torch.ones_like(net[0].weight)),
        "a forward": lambda net: setattr(net[0], "forward", lambda x: x),
        "a parameter object": lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.detach().clone())),
    }

    for what, change in changes.items():
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        before = snapshot(net)
        assert snapshot(net) == before
        change(net)
        assert snapshot(net) != before, what


def test_left_out_wire_is_left_out_of_the_copy_only():
    one = specimen("branching")
    graph = fl.trace(one.model, one.example)

    liar = without_wire(graph, 2, "left")

    assert [wire.name for wire in liar.cuts[2].wires] == ["stem"]
    assert liar.cuts[2].bytes_per_sample == 4 * 6
    assert [wire.name for wire in graph.cuts[2].wires] == ["stem", "left"]
    assert breach(one, graph, 2) is None
    assert breach(one, liar, 2) == "the outputs differ"


def test_opened_cut_is_open_in_the_copy_only():
    one = specimen("tied")
    graph = fl.trace(one.model, one.example)

    liar = opened(graph, 1)

    assert liar.open_depths == (0, 1, 3)
    assert graph.open_depths == (0, 3)


def test_false_cuts_are_of_more_than_ten_kinds():
    names = [liar.specimen.name for liar in false_cuts()]

    assert len(set(names)) == len(names) > 10


def test_false_cuts_look_open():
    for liar in false_cuts():
        assert liar.depth in liar.graph.open_depths


# --- contracts can fail -----------------------------------------------------------------------


def claims(suite):
    return [name for name in dir(suite) if name.startswith("test_")]


def broken(suite):
    """The claims that the suite does not keep."""
    found = []
    for name in claims(suite):
        try:
            getattr(suite, name)()
        except AssertionError:
            found.append(name)
    return found


def test_tracer_contract_catches_a_tracer_that_flips_the_mode():
    class Flipping(TracerContract):
        def tracer(self, model, example):
            return fl.trace(model.eval(), example)

    assert broken(Flipping()) == ["test_leaves_the_network_as_it_was"]


def test_tracer_contract_catches_a_forgotten_wire():
    class Forgetful(TracerContract):
        def tracer(self, model, example):
            graph = fl.trace(model, example)
            wide = [cut for cut in graph.cuts if len(cut.wires) > 1]
            return without_wire(graph, wide[-1].depth, wide[-1].wires[-1].name) if wide else graph

    assert "test_open_cuts_keep_the_law" in broken(Forgetful())


def test_executor_contract_catches_one_that_stops_at_a_failure():
    class Stopping(ExecutorContract):
        def executor(self, worker, specs):
            for spec in specs:
                trial = worker(spec)
                yield trial
                if trial.failure:
                    return

    assert broken(Stopping()) == ["test_failed_trial_does_not_end_the_others"]


def test_strategy_contract_catches_endless_dear_and_forgetful_ones():
    class Endless(StrategyContract):
        def prepare(self, graph, prior, plan):
            def ask(trials, pending):
                return (TrialSpec(depth=0, recipe=plan.recipe, seed=len(trials), epochs=1),)

            return ask

    class Blocked(StrategyContract):
        def prepare(self, graph, prior, plan):
            spec = TrialSpec(depth=4, recipe=plan.recipe, seed=0, epochs=1)
            return lambda trials, pending: () if trials or pending else (spec,)

    class LastTrial(StrategyContract):
        def prepare(self, graph, prior, plan):
            def ask(trials: tuple[Trial, ...], pending):
                count = len(trials)
                last = trials[-1].spec.depth if trials else 0
                spec = TrialSpec(depth=7, recipe=plan.recipe, seed=10 * count + last, epochs=1)
                first = TrialSpec(depth=6, recipe=plan.recipe, seed=0, epochs=1)
                return () if count > 2 or pending else (spec if count else first,)

            return ask

    assert {"test_ends", "test_keeps_its_budget"} <= set(broken(Endless()))
    assert "test_asks_for_open_depths_only" in broken(Blocked())
    assert "test_ignores_the_order_of_its_trials" in broken(LastTrial())
