"""Claim 3, convergence: with a frozen part training gets where it is going sooner."""

import math
from statistics import fmean
from typing import NamedTuple

from frostline.amounts import duration, scaled, share
from frostline.amounts import rate as written_rate
from frostline.attempts import Attempt, Outcome
from frostline.exhibits import Claim, Panel, Series, Verdict
from frostline.weighing.arms import (
    FEWEST_SEEDS,
    Outcomes,
    Setting,
    both,
    by_seed,
    together,
    undecided,
)
from frostline.weighing.deciding import LEAST_TIMES, Effect, ratio_of, times_text, verdict_of

NEARLY = 0.98
"""Share of the smaller of two final accuracies that both trainings are to reach."""

OWN = 0.95
"""Share of its own final accuracy that a training is to reach."""


class Reach(NamedTuple):
    """What a training had spent when it first reached a target, the pass over the samples included."""

    epochs: float
    seconds: float
    flops: float


def wanted(setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
    """The frozen arm and full fine-tuning at the best of its rates, at every seed."""
    rate = setting.full_rate(outcomes)
    if rate is None:
        return setting.tuning
    return (*setting.tuning, *by_seed([setting.frozen_arm, setting.full_arm(rate)]))


def judge(setting: Setting, outcomes: Outcomes) -> Claim:
    """Say how many times as many operations full fine-tuning takes to a validation accuracy that both reach."""
    rate = setting.full_rate(outcomes)
    if rate is None:
        return undecided("convergence", setting.tuning, outcomes)
    arms = setting.frozen_arm, setting.full_arm(rate)
    frozen, full = together(arms, outcomes)
    if len(frozen) < FEWEST_SEEDS:
        return undecided("convergence", [*arms[0], *arms[1]], outcomes)
    targets = [NEARLY * min(_final(one), _final(other)) for one, other in zip(frozen, full, strict=True)]
    ours, theirs = (
        [reach(setting, outcome, target) for outcome, target in zip(arm, targets, strict=True)]
        for arm in (frozen, full)
    )
    claim = Claim(
        name="convergence",
        verdict="not decided",
        sentence="Both start where they end: the head that is fitted before training reaches the common target "
        f"already, so there is no way to compare.{setting.note}",
        measure=f"operations to {100 * NEARLY:.0f} % of the smaller final validation accuracy, full fine-tuning by "
        "frozen, the pass of the frozen part counted",
        unit="times",
        control=f"Full fine-tuning had the best of {len(setting.tuning)} learning rates ({written_rate(rate)}), as the "
        f"frozen arm had its search.{_in_epochs(ours, theirs)}",
        facts=_facts(setting, (frozen, full), (ours, theirs), targets),
        panels=(_panel(setting, (frozen, full)),),
    )
    moving = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.epochs or other.epochs]
    if len(moving) < FEWEST_SEEDS:
        return claim
    effect = ratio_of(
        [other.flops for _, other in moving], [one.flops for one, _ in moving], grain=_grain(ours, theirs)
    )
    verdict = verdict_of(effect, least=LEAST_TIMES, none=1.0)
    return claim.model_copy(
        update={
            "verdict": verdict,
            "sentence": _sentence(setting, effect, verdict) + setting.note,
            **effect._asdict(),
        }
    )


def reach(setting: Setting, outcome: Outcome, target: float) -> Reach:
    """What a training had spent at its first look that reached a validation accuracy.

    Args:
        setting: Sizes of the parts.
        outcome: The training.
        target: An accuracy that its last look, at least, reaches.

    Returns:
        Epochs, seconds and operations; the latter two with the pass of the frozen part.

    Example:
        >>> import inspect
        >>> list(inspect.signature(reach).parameters)
        ['setting', 'outcome', 'target']
    """
    place = next(i for i, point in enumerate(outcome.curve) if point.valid_accuracy >= target)
    return _spent(setting, outcome, place)


def _spent(setting: Setting, outcome: Outcome, place: int) -> Reach:
    """Spent up to a look: a sample trained on is three forward passes, one looked at is one."""
    curve = outcome.curve

    def passes(looks: int) -> float:
        samples = outcome.attempt.samples or setting.train_samples
        return 3 * samples * curve[looks].epoch + setting.valid_samples * (looks + 1)

    return Reach(
        epochs=curve[place].epoch,
        seconds=outcome.pass_seconds + sum(point.seconds for point in curve[: place + 1]),
        flops=outcome.pass_flops + outcome.flops * passes(place) / passes(len(curve) - 1),
    )


def _final(outcome: Outcome) -> float:
    return outcome.curve[-1].valid_accuracy


# --- words and the plot -----------------------------------------------------------------------


def _sentence(setting: Setting, effect: Effect, verdict: Verdict) -> str:
    times, arm = times_text(effect), f"freezing up to {setting.stage_name}"
    match verdict:
        case "holds":
            return f"To an accuracy that both reach, full fine-tuning takes {times} as many operations as {arm}."
        case "does not hold":
            opening = f"Freezing up to {setting.stage_name} gets there no sooner"
        case _:
            opening = f"It cannot be told whether {arm} gets there sooner"
    return f"{opening}: to an accuracy that both reach, full fine-tuning takes {times} as many operations."


def _grain(ours: list[Reach], theirs: list[Reach]) -> float:
    """A look is taken once an epoch, so what was spent is known to an epoch."""
    return math.hypot(*(fmean(1 / max(1.0, each.epochs) for each in arm) for arm in (ours, theirs)))


def _in_epochs(ours: list[Reach], theirs: list[Reach]) -> str:
    """The ratio without what makes a frozen epoch cheap."""
    if any(not each.epochs for each in (*ours, *theirs)):
        return ""
    effect = ratio_of([each.epochs for each in theirs], [each.epochs for each in ours], grain=_grain(ours, theirs))
    return f" Counted in epochs, which leaves out that frozen ones are cheaper, it takes {times_text(effect)} as many."


def _facts(
    setting: Setting,
    arms: tuple[tuple[Outcome, ...], ...],
    reached: tuple[list[Reach], ...],
    targets: list[float],
) -> tuple[tuple[str, str], ...]:
    own = [[reach(setting, outcome, OWN * _final(outcome)) for outcome in arm] for arm in arms]
    return (
        ("seeds", str(len(targets))),
        ("common target, validation accuracy", share(fmean(targets))),
        ("epochs to it", both(f"{fmean(each.epochs for each in arm):.1f}" for arm in reached)),
        ("operations to it", both(scaled(fmean(each.flops for each in arm), "FLOP") for arm in reached)),
        ("seconds to it, pass counted", both(duration(fmean(each.seconds for each in arm)) for arm in reached)),
        (
            f"epochs to {100 * OWN:.0f} % of its own end",
            both(f"{fmean(each.epochs for each in arm):.1f}" for arm in own),
        ),
        (
            f"operations to {100 * OWN:.0f} % of its own end",
            both(scaled(fmean(e.flops for e in arm), "FLOP") for arm in own),
        ),
    )


def _panel(setting: Setting, arms: tuple[tuple[Outcome, ...], ...]) -> Panel:
    names = (f"frozen up to {setting.stage_name}", "nothing frozen")
    return Panel(
        title="Validation accuracy by what was spent",
        x_name="operations (TFLOP)",
        y_name="validation accuracy",
        is_share=True,
        series=tuple(_line(setting, name, arm) for name, arm in zip(names, arms, strict=True)),
    )


def _line(setting: Setting, name: str, arm: tuple[Outcome, ...]) -> Series:
    looks = range(min(len(outcome.curve) for outcome in arm))
    return Series(
        name=name,
        x=tuple(fmean(_spent(setting, outcome, look).flops for outcome in arm) / 1e12 for look in looks),
        y=tuple(fmean(outcome.curve[look].valid_accuracy for outcome in arm) for look in looks),
    )
