"""Claim 6, resources: with a frozen part training takes less time, the pass over the samples counted."""

import itertools
import statistics
from collections.abc import Iterable, Sequence

from frostline.amounts import UNKNOWN, byte_count, duration, scaled, share
from frostline.attempts import Attempt, Outcome
from frostline.exhibits import Claim, Panel, Series, Verdict
from frostline.weighing.arms import (
    FEWEST_SEEDS,
    Outcomes,
    Setting,
    both,
    by_seed,
    good,
    together,
    undecided,
)
from frostline.weighing.deciding import LEAST_TIMES, Effect, ratio_of, times_text, verdict_of

BACKWARD_TOO = 3
"""Operations of a training step in forward passes: one forward, and two in the backward pass."""


def wanted(setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
    """Both arms at every seed, and the memory that they take."""
    rate = setting.full_rate(outcomes)
    if rate is None:
        return (*setting.tuning, *_memories(setting))
    return (*setting.tuning, *by_seed([setting.frozen_arm, setting.full_arm(rate)]), *_memories(setting))


def judge(setting: Setting, outcomes: Outcomes) -> Claim:
    """Say whether the frozen arm trains in less time than full fine-tuning, its pass over the samples counted."""
    rate = setting.full_rate(outcomes)
    if rate is None:
        return undecided("resources", setting.tuning, outcomes)
    arms = setting.frozen_arm, setting.full_arm(rate)
    frozen, full = together(arms, outcomes)
    if len(frozen) < FEWEST_SEEDS:
        return undecided("resources", [*arms[0], *arms[1]], outcomes)
    ratio = ratio_of(list(map(_seconds, full)), list(map(_seconds, frozen)))
    verdict = verdict_of(ratio, least=LEAST_TIMES, none=1.0)
    return Claim(
        name="resources",
        verdict=verdict,
        sentence=_sentence(setting, (frozen, full), ratio, verdict),
        measure="seconds of full fine-tuning, as a multiple of the frozen arm's with its pass over the samples",
        **ratio._asdict(),
        unit="times",
        control=_control(setting, (frozen, full), outcomes),
        facts=_facts(setting, (frozen, full), outcomes),
        panels=(_panel(frozen, full),),
    )


def _memories(setting: Setting) -> tuple[Attempt, Attempt, Attempt]:
    """Of the frozen arm, of the same without a store, and of full fine-tuning."""
    return setting.memory(setting.depth), setting.memory(setting.depth, is_stored=False), setting.memory(0)


def _seconds(run: Outcome) -> float:
    return run.seconds + run.pass_seconds


def _operations(run: Outcome) -> float:
    return run.flops + run.pass_flops


def _sentence(setting: Setting, arms: Sequence[Sequence[Outcome]], ratio: Effect, verdict: Verdict) -> str:
    frozen, full = (duration(_mean(map(_seconds, arm))) for arm in arms)
    said = {
        "holds": "Freezing saves time.",
        "does not hold": "Freezing saves no time that matters here.",
        "not decided": f"With {len(arms[0])} seeds that may be chance.",
    }[verdict]
    passes = "passes over the samples in every epoch" if _is_computed(setting) else "one pass over the samples"
    return (
        f"{setting.place}, training takes {frozen}, the {passes} counted; with nothing frozen "
        f"{full}, that is {times_text(ratio)} as long. {said}{setting.note}"
    )


def _mean(figures: Iterable[float]) -> float:
    return statistics.fmean(figures)


def _control(setting: Setting, arms: Sequence[Sequence[Outcome]], outcomes: Outcomes) -> str:
    frozen, full = (_mean(map(_operations, arm)) for arm in arms)
    unstored = BACKWARD_TOO / (BACKWARD_TOO - 2 * setting.evidence.graph.frozen_share(setting.depth))
    stored_peak, unstored_peak, _ = (_peak(_measured(attempt, outcomes)) for attempt in _memories(setting))
    return (
        "Freezing may save as much without keeping any rows. Counted in operations, full fine-tuning takes "
        f"{share(unstored)} times as many as freezing without a store, and {share(full / frozen)} times as many as "
        f"freezing with {'rows computed anew in every epoch' if _is_computed(setting) else 'one'}; the peak of memory "
        f"is {unstored_peak} without a store and {stored_peak} with one."
    )


def _is_computed(setting: Setting) -> bool:
    return setting.depth in setting.evidence.plan.computed


# --- what else can be seen --------------------------------------------------------------------


def _facts(setting: Setting, arms: Sequence[Sequence[Outcome]], outcomes: Outcomes) -> tuple[tuple[str, str], ...]:
    stored, unstored, full = (_measured(attempt, outcomes) for attempt in _memories(setting))
    stages, forecasts = setting.evidence.graph.stages, setting.evidence.plan.forecasts
    live = (sum(stage.parameters for stage in stages[depth:]) for depth in (setting.depth, 0))
    store = next((forecast.store_bytes for forecast in forecasts if forecast.depth == setting.depth), None)
    return (
        ("time, the pass counted", both(duration(_mean(map(_seconds, arm))) for arm in arms)),
        ("time without the pass", both(duration(_mean(run.seconds for run in arm)) for arm in arms)),
        ("operations, the pass counted", both(scaled(_mean(map(_operations, arm)), "FLOP") for arm in arms)),
        ("trained parameters", both(map(scaled, live))),
        ("gradients and optimizer", both(map(_state, (stored, full)))),
        ("peak memory", f"frozen {_peak(stored)}, without a store {_peak(unstored)}, nothing frozen {_peak(full)}"),
        ("store on disk", _bytes(store)),
        ("energy without the pass", _energy(arms)),
    )


def _measured(attempt: Attempt, outcomes: Outcomes) -> Outcome | None:
    return next(iter(good([attempt], outcomes)), None)


def _peak(run: Outcome | None) -> str:
    return _bytes(run.peak_bytes if run else None)


def _state(run: Outcome | None) -> str:
    return _bytes(run.state_bytes if run else None)


def _bytes(count: int | None) -> str:
    return UNKNOWN if count is None else byte_count(count)


def _energy(arms: Sequence[Sequence[Outcome]]) -> str:
    drawn = [[run.joules for run in arm if run.joules is not None] for arm in arms]
    # Runs of an earlier call may have had no counter; other runs of one arm than of the other would not compare.
    if [len(arm) for arm in drawn] != [len(arm) for arm in arms]:
        return UNKNOWN
    return both(scaled(_mean(arm), "J") for arm in drawn)


def _panel(frozen: Sequence[Outcome], full: Sequence[Outcome]) -> Panel:
    return Panel(
        title="Time spent by epoch: where the lines cross, the pass over the samples is paid back",
        x_name="epoch",
        y_name="seconds",
        series=(_line("frozen", frozen), _line("nothing frozen", full)),
    )


def _line(name: str, runs: Sequence[Outcome]) -> Series:
    spent = [itertools.accumulate((look.seconds for look in run.curve), initial=run.pass_seconds) for run in runs]
    _, *means = map(_mean, zip(*spent, strict=True))
    return Series(name=name, x=tuple(look.epoch for look in runs[0].curve), y=tuple(means))
