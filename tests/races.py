"""Made-up races: networks, plans, and trials with any outcome."""

import random

from frostline.records import Cut, CutGraph, EngineReport, Prior, Rates, Recipe, Stage, Trial, Vote
from frostline.search import plan, strategy


def graph_of(flops, *, blocked=(), head="head"):
    stages = tuple(
        Stage(index=i, name=f"s{i}", keys=(f"s{i}.weight",), parameters=10, flops=each) for i, each in enumerate(flops)
    )
    cuts = tuple(
        Cut(
            depth=depth,
            name=f"s{depth - 1}" if depth else "",
            wires=(),
            bytes_per_sample=8,
            blocked="tied" if depth in blocked else None,
        )
        for depth in range(len(stages))
    )
    return CutGraph(model="Net", batch=4, stages=stages, cuts=cuts, head=head, outputs=3)


def rates_of(graph):
    return Rates(
        step_seconds=0.2,
        step_low=0.2,
        step_high=0.2,
        stage_seconds=tuple(stage.flops / graph.flops for stage in graph.stages),
        score_seconds=0.001,
        engine=EngineReport(engine="torch", rows_per_second=500.0),
        threads=2,
        torch="2.8",
    )


def votes_of(graph, accuracies=None):
    accuracies = accuracies or dict.fromkeys(graph.open_depths, 0.5)
    return Prior(
        votes=tuple(
            Vote(depth=depth, accuracy=accuracies.get(depth, 0.5), low=0, high=1, loss=1, penalty=1, features=8)
            for depth in graph.open_depths
            if depth
        ),
        samples=1000,
        head="head.safetensors",
    )


def plan_of(
    graph, *, limit=1.0, epochs=None, train=1200, valid=400, depth=None, prior=None, seed=0, views=1, most=1, disk=None
):
    return plan(
        graph,
        prior or votes_of(graph),
        rates_of(graph),
        limit=limit,
        epochs=epochs,
        train_samples=train,
        valid_samples=valid,
        test_samples=valid,
        seed=seed,
        views=views,
        most_views=most,
        depth=depth,
        recipe=Recipe(),
        disk=disk,
    )


LITE = graph_of([60] * 18 + [1])
"""Eighteen stages of one cost, and a head that costs next to nothing."""


def trial_of(spec, loss, *, accuracy=None, failure=None, samples=400, noise=0):
    if failure:
        return Trial(spec=spec, failure=failure)
    draw = random.Random(f"{spec.key} {noise}")
    losses = tuple(max(0.0, loss + 0.2 * draw.gauss(0, 1)) for _ in range(samples))
    hits = tuple(draw.random() < (1 - loss / 2 if accuracy is None else accuracy) for _ in range(samples))
    return Trial(spec=spec, best_epoch=spec.first_epoch + spec.epochs, losses=losses, hits=hits, weights="w")


def carried_out(graph, meant, outcome):
    trials = []
    for _ in range(50):
        specs = strategy(graph, votes_of(graph), meant, trials, ())
        if not specs:
            return trials
        trials += [outcome(spec) for spec in specs]
    raise AssertionError("the strategy does not end")


def by_depth(losses):
    return lambda spec: trial_of(spec, losses[spec.depth] * (0.8 if spec.recipe.schedule == "cosine" else 1.0))


def finishes(trials):
    """The trials whose rate was brought down to zero."""
    return [trial for trial in trials if trial.spec.recipe.schedule == "cosine"]
