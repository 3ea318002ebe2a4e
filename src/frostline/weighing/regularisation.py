"""Claim 5, regularisation: what is frozen cannot learn noise, so that wrong labels do less harm."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from frostline.amounts import UNKNOWN, decimal, share
from frostline.attempts import Attempt, Outcome
from frostline.exhibits import Claim, Panel, Series, Verdict
from frostline.weighing.arms import (
    FEWEST_SEEDS,
    Outcomes,
    Setting,
    both,
    by_seed,
    hits_of,
    together,
    undecided,
)
from frostline.weighing.deciding import (
    LEAST_POINTS,
    Effect,
    Rows,
    is_guessing,
    mean_of,
    points_of,
    points_text,
    verdict_of,
)

NOISE = 0.2
"""Share of the training labels that is made wrong."""

DECAY = 0.1
"""Weight decay of the control; ten times that of the recipe."""

BINS = 15
"""Of equal width, in which confidence is compared with accuracy."""


def wanted(setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
    """Both arms with right and with wrong labels at every seed, full fine-tuning also with more weight decay."""
    rate = setting.full_rate(outcomes)
    if rate is None:
        return setting.tuning
    return (*setting.tuning, *by_seed(_arms(setting, rate)))


def judge(setting: Setting, outcomes: Outcomes) -> Claim:
    """Say whether wrong labels cost full fine-tuning more accuracy than the frozen arm.

    Both stop at their epoch of lowest validation loss. Full fine-tuning is given the better of two weight decays
    where labels are wrong, so that weight decay that does what freezing does refutes the claim.
    """
    rate = setting.full_rate(outcomes)
    if rate is None:
        return undecided("regularisation", setting.tuning, outcomes)
    arms = _arms(setting, rate)
    paired = together(arms, outcomes)
    if len(paired[0]) < FEWEST_SEEDS:
        return undecided("regularisation", [attempt for arm in arms for attempt in arm], outcomes)
    frozen, frozen_noisy, full, plain, decayed = map(hits_of, paired)
    saved = points_of((full - max(plain, decayed, key=np.mean)) - (frozen - frozen_noisy))
    costs = [100 * float(loss.mean()) for loss in (frozen - frozen_noisy, full - plain, full - decayed)]
    # What learnt nothing has nothing to lose, which must not pass for a guard against losing it.
    if is_guessing(frozen, setting.chance):
        verdict: Verdict = "does not hold"
        who = "Neither arm learnt anything" if is_guessing(full, setting.chance) else "The frozen arm learnt nothing"
        sentence = f"{who} from these labels, so there was nothing to guard.{setting.note}"
    else:
        verdict = verdict_of(saved, least=LEAST_POINTS)
        sentence = _sentence(setting, costs, saved, verdict)
    return Claim(
        name="regularisation",
        verdict=verdict,
        sentence=sentence,
        measure="accuracy that wrong labels cost full fine-tuning at the better of two weight decays, less what they "
        "cost the frozen arm",
        **saved._asdict(),
        unit="points",
        control=_control(setting, costs),
        facts=_facts(setting, paired),
        panels=(_panel(frozen, frozen_noisy, full, plain, decayed),),
    )


def _arms(setting: Setting, rate: float) -> tuple[list[Attempt], ...]:
    """The frozen arm without and with wrong labels, the full one likewise, and with wrong labels and more decay."""
    return (
        setting.frozen_arm,
        [setting.frozen(seed, noise=NOISE) for seed in setting.seeds],
        setting.full_arm(rate),
        [setting.full(seed, rate, noise=NOISE) for seed in setting.seeds],
        [setting.full(seed, rate, noise=NOISE, weight_decay=DECAY) for seed in setting.seeds],
    )


def _sentence(setting: Setting, costs: Sequence[float], saved: Effect, verdict: Verdict) -> str:
    frozen, *full = costs
    said = {
        "holds": f"Freezing saves {points_text(saved)}.",
        "does not hold": f"Freezing saves {points_text(saved)}, so it guards against nothing here.",
        "not decided": f"What freezing saves, {points_text(saved)}, may be chance.",
    }[verdict]
    return (
        f"{setting.place}, a fifth of wrong training labels costs {frozen:.1f} points of accuracy; with nothing "
        f"frozen {min(full):.1f}. {said}{setting.note}"
    )


def _control(setting: Setting, costs: Sequence[float]) -> str:
    _, plain, decayed = costs
    usual = setting.evidence.plan.recipe.weight_decay
    return (
        f"Weight decay and stopping early may guard full fine-tuning as well. It stops at its best epoch, and wrong "
        f"labels cost it {plain:.1f} points with a weight decay of {usual:g} and {decayed:.1f} with {DECAY:g}; "
        "freezing is compared with the better of the two."
    )


# --- what else can be seen --------------------------------------------------------------------


def _facts(setting: Setting, paired: Sequence[Sequence[Outcome]]) -> tuple[tuple[str, str], ...]:
    frozen, frozen_noisy, full, plain, _ = paired
    return (
        ("seeds compared", f"{len(frozen)} of {len(setting.seeds)}"),
        ("test accuracy, right labels", both(map(_accuracy, (frozen, full)))),
        ("test accuracy, a fifth wrong", both(map(_accuracy, (frozen_noisy, plain)))),
        ("training less test accuracy, points", both(map(_gap, (frozen, full)))),
        ("validation less training loss at the same training loss, nats", _matched_gaps(frozen, full)),
        ("calibration error, right labels", both(map(_calibration, (frozen, full)))),
        ("calibration error, a fifth wrong", both(map(_calibration, (frozen_noisy, plain)))),
    )


def _accuracy(runs: Sequence[Outcome]) -> str:
    return share(float(np.mean([run.accuracy for run in runs])))


def _gap(runs: Sequence[Outcome]) -> str:
    gaps = [100 * (run.train_accuracy - run.accuracy) for run in runs if run.train_accuracy is not None]
    return f"{np.mean(gaps):.1f}" if gaps else UNKNOWN


def _matched_gaps(frozen: Sequence[Outcome], full: Sequence[Outcome]) -> str:
    """Both arms where they fit the training samples equally well: at the lowest training loss that both reach."""
    curves = [[_losses(run) for run in pair] for pair in zip(frozen, full, strict=True)]
    curves = [pair for pair in curves if all(pair)]
    if not curves:
        return UNKNOWN
    levels = [max(min(train for train, _ in curve) for curve in pair) for pair in curves]
    gaps = [
        [_valid_loss_at(level, curve) - level for curve in pair] for pair, level in zip(curves, levels, strict=True)
    ]
    return f"{both(map(decimal, np.mean(gaps, axis=0).tolist()))} (at {decimal(float(np.mean(levels)))})"


def _losses(run: Outcome) -> list[tuple[float, float]]:
    return [(point.train_loss, point.valid_loss) for point in run.curve if point.train_loss is not None]


def _valid_loss_at(level: float, curve: Sequence[tuple[float, float]]) -> float:
    """Validation loss where the training loss first comes down to that level, in proportion between two looks."""
    at = next(k for k, (train, _) in enumerate(curve) if train <= level)
    (before, valid_before), (train, valid) = curve[max(0, at - 1)], curve[at]
    part = (before - level) / (before - train) if before > train else 1.0
    return valid_before + part * (valid - valid_before)


def _calibration(runs: Sequence[Outcome]) -> str:
    return share(float(np.mean([calibration_error(run.test_confidences, run.test_hits) for run in runs])))


def calibration_error(confidences: ArrayLike, hits: ArrayLike) -> float:
    """How far confidence is from accuracy, on average over the answers.

    Args:
        confidences: (N,) probability given to each answer, 0 to 1.
        hits: (N,) whether it was right.

    Returns:
        0 where of the answers given with 80 % confidence 80 % are right, and so on; 1 where all are sure and wrong.

    Example:
        >>> calibration_error([1.0, 1.0], [True, True]), calibration_error([1.0, 1.0], [False, False])
        (0.0, 1.0)

    Source:
        Guo et al., On calibration of modern neural networks, 2017, section 2: expected calibration error, 15 bins.
    """
    sure = np.asarray(confidences, dtype=np.float64)
    bins = np.clip(np.ceil(sure * BINS), 1, BINS).astype(int)
    excess = np.bincount(bins, weights=sure - np.asarray(hits, dtype=np.float64))
    return float(np.abs(excess).sum() / max(1, len(sure)))


def _panel(frozen: Rows, frozen_noisy: Rows, full: Rows, plain: Rows, decayed: Rows) -> Panel:
    return Panel(
        title="What wrong labels do to the accuracy on the test part",
        x_name="wrong training labels, percent",
        y_name="test accuracy",
        series=(
            _line("frozen", {0.0: frozen, 100 * NOISE: frozen_noisy}),
            _line("nothing frozen", {0.0: full, 100 * NOISE: plain}),
            _line(f"nothing frozen, weight decay {DECAY:g}", {100 * NOISE: decayed}),
        ),
        is_share=True,
    )


def _line(name: str, at: dict[float, Rows]) -> Series:
    values, lows, highs = zip(*(mean_of(hits) for hits in at.values()), strict=True)
    return Series(name=name, x=tuple(at), y=values, low=lows, high=highs)
