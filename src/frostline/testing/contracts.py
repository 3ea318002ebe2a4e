"""What every tracer, executor and strategy has to keep; a plugin inherits the suite."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import frostline as fl
from frostline.records import (
    Budget,
    Cut,
    CutGraph,
    EngineReport,
    EpochPoint,
    Plan,
    Prior,
    Rates,
    Recipe,
    Stage,
    Trial,
    TrialSpec,
    Vote,
)
from frostline.testing.laws import breach, snapshot
from frostline.testing.menagerie import Specimen, menagerie


class TracerContract:
    """What every `tracer(model, example) -> CutGraph` has to keep; inherit it and give `tracer`.

    Example:
        >>> class TestTrace(TracerContract):
        ...     def tracer(self, model, example):
        ...         return fl.trace(model, example)
    """

    def tracer(self, model: nn.Module, example: Any) -> CutGraph:
        """The tracer under test."""
        raise NotImplementedError

    def graphs(self) -> Iterator[tuple[Specimen, CutGraph]]:
        """The menagerie, traced."""
        for one in menagerie():
            yield one, self.tracer(one.model, one.example)

    def test_has_one_cut_for_each_depth(self) -> None:
        for _, graph in self.graphs():
            assert [stage.index for stage in graph.stages] == list(range(len(graph.stages)))
            assert [cut.depth for cut in graph.cuts] == list(range(graph.max_depth + 1))
            assert [cut.name for cut in graph.cuts] == ["", *(stage.name for stage in graph.stages[:-1])]

    def test_gives_each_tensor_to_one_stage(self) -> None:
        for one, graph in self.graphs():
            keys = [key for stage in graph.stages for key in stage.keys]
            assert len(keys) == len(set(keys))
            assert set(keys) <= one.model.state_dict().keys()
            assert graph.parameters == sum(weight.numel() for weight in one.model.parameters())

    def test_is_a_record(self) -> None:
        for _, graph in self.graphs():
            assert CutGraph.model_validate_json(graph.model_dump_json()) == graph
            assert isinstance(hash(graph), int)

    def test_leaves_the_network_as_it_was(self) -> None:
        for one in menagerie():
            before = snapshot(one.model)
            self.tracer(one.model, one.example)
            assert snapshot(one.model) == before

    def test_open_cuts_keep_the_law(self) -> None:
        for one, graph in self.graphs():
            for depth in graph.open_depths:
                assert breach(one, graph, depth) is None, f"{one.name} at depth {depth}"
                assert fl.prove(one.model, graph, depth, example=one.example) is None, f"{one.name} at depth {depth}"


class ExecutorContract:
    """What every `executor(worker, specs) -> Iterator[Trial]` has to keep; inherit it and give `executor`.

    Example:
        >>> class TestInTurn(ExecutorContract):
        ...     def executor(self, worker, specs):
        ...         return (worker(spec) for spec in specs)
    """

    def executor(self, worker: Callable[[TrialSpec], Trial], specs: tuple[TrialSpec, ...]) -> Iterator[Trial]:
        """The executor under test."""
        raise NotImplementedError

    def test_yields_one_trial_for_each_spec(self) -> None:
        specs = tuple(TrialSpec(depth=depth, recipe=Recipe(), seed=0, epochs=1) for depth in (3, 1, 2))

        trials = list(self.executor(lambda spec: Trial(spec=spec, best_epoch=spec.depth), specs))

        assert {trial.spec for trial in trials} == set(specs)
        assert len(trials) == len(specs)
        assert all(trial.best_epoch == trial.spec.depth for trial in trials)

    def test_failed_trial_does_not_end_the_others(self) -> None:
        specs = tuple(TrialSpec(depth=depth, recipe=Recipe(), seed=0, epochs=1) for depth in (1, 2))

        trials = list(self.executor(lambda spec: Trial(spec=spec, failure="NaN" if spec.depth == 1 else None), specs))

        assert sorted((trial.failure or "") for trial in trials) == ["", "NaN"]

    def test_nothing_asked_is_nothing_done(self) -> None:
        assert list(self.executor(lambda spec: Trial(spec=spec), ())) == []


Ask = Callable[[tuple[Trial, ...], tuple[TrialSpec, ...]], tuple[TrialSpec, ...]]


class StrategyContract:
    """What every strategy has to keep; inherit it and give `prepare`.

    Example:
        >>> class TestNothing(StrategyContract):
        ...     def prepare(self, graph, prior, plan):
        ...         return lambda trials, pending: ()
    """

    def prepare(self, graph: CutGraph, prior: Prior, plan: Plan) -> Ask:
        """The strategy under test, bound to a network, its votes and a plan: `ask(trials, pending)`."""
        raise NotImplementedError

    def test_ends(self) -> None:
        for best in range(7):
            trials = _played(self.prepare(*_world()), best)
            assert len({trial.spec for trial in trials}) == len(trials), "a spec was asked for twice"

    def test_keeps_its_budget(self) -> None:
        graph, prior, plan = _world()
        for best in range(7):
            trials = _played(self.prepare(graph, prior, plan), best)
            spent = sum(
                plan.budget.cost(trial.spec.depth, trial.spec.epochs, trial.spec.first_epoch) for trial in trials
            )
            assert spent <= plan.budget.limit + 1e-9

    def test_asks_for_open_depths_only(self) -> None:
        graph, prior, plan = _world()
        for best in range(7):
            for trial in _played(self.prepare(graph, prior, plan), best):
                assert trial.spec.depth in graph.open_depths

    def test_ignores_the_order_of_its_trials(self) -> None:
        ask = self.prepare(*_world())
        trials = _played(ask, 3)
        for count in range(len(trials) + 1):
            history = tuple(trials[:count])
            assert ask(history, ()) == ask(history[::-1], ())

    def test_continues_after_a_failed_trial(self) -> None:
        ask = self.prepare(*_world())
        first = ask((), ())
        if first:
            failed = tuple(Trial(spec=spec, failure="loss was NaN") for spec in first[:1])
            rest = tuple(_fake_trial(spec, 3) for spec in first[1:])
            _played(ask, 3, (*failed, *rest))

    def test_asks_for_nothing_that_is_under_way(self) -> None:
        ask = self.prepare(*_world())
        pending = ask((), ())
        assert not set(ask((), pending)) & set(pending)


def _played(ask: Ask, best: int, trials: tuple[Trial, ...] = ()) -> tuple[Trial, ...]:
    """The whole search in a world where that depth is best."""
    for _ in range(200):
        specs = ask(trials, ())
        if not specs:
            return trials
        trials += tuple(_fake_trial(spec, best) for spec in specs)
    raise AssertionError("the strategy still asks for more after 200 rounds")


def _fake_trial(spec: TrialSpec, best: int) -> Trial:
    generator = torch.Generator().manual_seed(int(spec.key, 16) % 2**31)
    epochs = spec.first_epoch + spec.epochs
    level = 0.2 + 0.08 * abs(spec.depth - best) + 0.5 * 0.6**epochs
    losses = (level + 0.1 * torch.randn(80, generator=generator)).abs().tolist()
    looks = (*range(math.floor(spec.first_epoch) + 1, math.ceil(epochs)), epochs)
    points = tuple(
        EpochPoint(
            epoch=epoch,
            train_loss=level,
            valid_loss=0.2 + 0.08 * abs(spec.depth - best) + 0.5 * 0.6**epoch,
            valid_accuracy=0.9,
            learning_rate=1e-3,
            seconds=1.0,
        )
        for epoch in looks
    )
    return Trial(
        spec=spec,
        curve=points,
        best_epoch=epochs,
        losses=tuple(losses),
        hits=tuple(loss < 0.69 for loss in losses),
        seconds=1.0,
        weights=f"{spec.key}.safetensors",
    )


def _world(stages: int = 8, epochs: int = 10) -> tuple[CutGraph, Prior, Plan]:
    """A network of equal stages whose depth 4 is blocked, votes that rise and fall, and a plan."""
    graph = CutGraph(
        model="Fake",
        batch=4,
        stages=tuple(
            Stage(index=i, name=f"s{i}", keys=(f"s{i}.weight",), parameters=100, flops=1000) for i in range(stages)
        ),
        cuts=tuple(
            Cut(
                depth=depth,
                name=f"s{depth - 1}" if depth else "",
                wires=(),
                bytes_per_sample=64,
                blocked="tied" if depth == 4 else None,
            )
            for depth in range(stages)
        ),
        head=f"s{stages - 1}",
        outputs=3,
    )
    votes = tuple(
        Vote(depth=depth, accuracy=0.5 + 0.05 * depth, low=0.4, high=0.95, loss=1 - 0.1 * depth, penalty=1, features=8)
        for depth in graph.open_depths[1:]
    )
    shares = tuple(1 - graph.frozen_share(depth) for depth in range(stages))
    plan = Plan(
        budget=Budget(limit=1.0, reserve=0.1, epochs=epochs, race_epochs=1, live_shares=shares),
        rates=Rates(
            step_seconds=0.1,
            step_low=0.1,
            step_high=0.1,
            stage_seconds=(1 / stages,) * stages,
            score_seconds=0.001,
            engine=EngineReport(engine="torch"),
            threads=1,
            torch=torch.__version__,
        ),
        recipe=Recipe(),
        candidates=(1, 3, 6),
        learning_rates=(3e-4, 1e-3),
        forecasts=(),
        seconds=10.0,
        store_bytes=1000,
        full_finetune_seconds=10.0,
        seed=0,
    )
    return graph, Prior(votes=votes, samples=200, head="warm.safetensors"), plan
