"""Claim 2, data: with a frozen part fewer samples do."""

import math
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from frostline.amounts import rate as written_rate
from frostline.amounts import share
from frostline.attempts import Attempt
from frostline.exhibits import Claim, Panel, Verdict
from frostline.weighing.arms import (
    FEWEST_SEEDS,
    Outcomes,
    Setting,
    accuracy_line,
    by_seed,
    good,
    hits_of,
    together,
    undecided,
    unmeasured,
)
from frostline.weighing.deciding import LEAST_TIMES, Effect, is_guessing, mean_of, times_text, verdict_of

PARTS = (8, 4, 2, 1)
"""Sizes are the training part by each of these."""

FEWEST = 16
"""Sizes below this, or below two of each class, are not tried."""

DRAWS = 1000
"""Of the bootstrap."""

_Grid = NDArray[np.float64]
"""(S, L, N): right answers by seed, by size and by test sample."""


def wanted(setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
    """Each arm at each size and seed; full fine-tuning at the best of its rates."""
    if len(_sizes(setting)) < 2:
        return ()
    rate = setting.full_rate(outcomes)
    if rate is None:
        return setting.tuning
    return (*setting.tuning, *by_seed(chain.from_iterable(_arms(setting, rate).values())))


def judge(setting: Setting, outcomes: Outcomes) -> Claim:
    """Say how many times as many samples full fine-tuning needs for the accuracy that freezing reaches."""
    sizes = _sizes(setting)
    if len(sizes) < 2:
        return unmeasured("data", f"{setting.train_samples} training samples are too few to leave any out.")
    rate = setting.full_rate(outcomes)
    if rate is None:
        return undecided("data", setting.tuning, outcomes)
    arms = _arms(setting, rate)
    rivals = [*arms["frozen"], *arms["full"]]
    answered = together(rivals, outcomes)
    if len(answered[0]) < FEWEST_SEEDS:
        return undecided("data", [*chain.from_iterable(rivals)], outcomes)
    hits = np.stack([hits_of(column) for column in answered], axis=1)
    frozen, full = np.split(hits, 2, axis=1)
    claim = Claim(
        name="data",
        verdict="does not hold",
        sentence="",
        measure="how many times as many samples full fine-tuning needs for the same test accuracy, over the range of "
        "accuracies that both reach",
        unit="times",
        control=f"Full fine-tuning had the best of {len(setting.tuning)} learning rates ({written_rate(rate)}) and its "
        "best epoch at each size.",
        facts=_facts(setting, outcomes, rate),
        panels=(_panel(setting, outcomes, rate),),
    )
    if all(is_guessing(arm[:, -1], setting.chance) for arm in (frozen, full)):
        reached = f"{share(float(frozen[:, -1].mean()))} and {share(float(full[:, -1].mean()))}"
        sentence = (
            f"Neither the frozen network nor full fine-tuning learnt anything from these labels: {reached} of the "
            f"answers are right, where guessing gives {share(setting.chance)}.{setting.note}"
        )
        return claim.model_copy(update={"sentence": sentence})
    effect = times_as_many(frozen, full, sizes)
    verdict = verdict_of(effect, least=LEAST_TIMES, none=1.0)
    return claim.model_copy(
        update={
            "verdict": verdict,
            "sentence": _sentence(setting, effect, verdict, sizes) + setting.note,
            **effect._asdict(),
        }
    )


def times_as_many(frozen: _Grid, full: _Grid, sizes: tuple[int, ...]) -> Effect:
    """How many times as many samples the one arm needs for the accuracy that the other reaches.

    Both curves, made to rise and joined by straight lines over the logarithm of the size, are read sideways: at
    each accuracy that both reach, the distance from one to the other, and the mean of it over those accuracies.
    Where they have none in common, the ratio is at least (or at most) that of the largest and the smallest size.
    The interval joins two by the root of their squares, as elsewhere: a bootstrap over test samples, which all
    curves share, and Student's t over seeds, of which each is left out in turn.

    Args:
        frozen: (S, L, N), right answers by seed, size and test sample.
        full: The same of full fine-tuning.
        sizes: L sizes, ascending.

    Returns:
        The ratio; above 1 where full fine-tuning needs more.

    Example:
        >>> hits = np.repeat(np.tri(4, 100, k=60)[None], 2, axis=0)
        >>> times_as_many(hits, hits, (10, 20, 40, 80)).value
        1.0

    Source:
        Efron and Tibshirani, An introduction to the bootstrap, 1993, chapters 11 and 13.
    """
    from scipy.special import stdtrit

    arms = np.stack([frozen, full])
    _, seeds, _, samples = arms.shape
    shift = _shift(arms.mean(axis=(1, 3)), sizes)
    draw, by_sample = np.random.default_rng(0), arms.mean(axis=1)
    drawn = [_shift(by_sample[:, :, draw.integers(samples, size=samples)].mean(axis=2), sizes) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    by_seed = arms.mean(axis=3)
    left = [_shift(np.delete(by_seed, seed, axis=1).mean(axis=1), sizes) for seed in range(seeds)]
    half = stdtrit(seeds - 1, 0.975) * math.sqrt(seeds - 1) * np.std(left)
    ends = shift - math.hypot(shift - low, half), shift + math.hypot(high - shift, half)
    return Effect(*(2.0 ** float(end) for end in (shift, *ends)))


_LEVELS = (np.arange(64) + 0.5) / 64


def _shift(curves: NDArray[np.float64], sizes: tuple[int, ...]) -> float:
    """Mean distance of two learning curves (2, L) along the logarithm of the size to base 2."""
    doublings = np.log2(np.asarray(sizes, dtype=np.float64))
    frozen, full = (_rising(curve) for curve in curves)
    bottom, top = max(frozen[0], full[0]), min(frozen[-1], full[-1])
    if bottom > top:
        return float(doublings[-1] - doublings[0]) * (1 if frozen[0] > full[-1] else -1)
    levels = bottom + (top - bottom) * _LEVELS
    return float((np.interp(levels, full, doublings) - np.interp(levels, frozen, doublings)).mean())


def _rising(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve that never falls, midway between the least one above it and the largest one below it."""
    above, below = np.maximum.accumulate(curve), np.minimum.accumulate(curve[::-1])[::-1]
    # The tilt gives every accuracy one place on the curve.
    return np.asarray((above + below) / 2 + 1e-9 * np.arange(len(curve)))


def _sentence(setting: Setting, effect: Effect, verdict: Verdict, sizes: tuple[int, ...]) -> str:
    arm, times = f"freezing up to {setting.stage_name}", times_text(effect)
    # Curves that have no accuracy in common tell no ratio, but that it is beyond what was tried.
    is_beyond = max(effect.value, 1 / effect.value) > sizes[-1] / sizes[0] * (1 - 1e-6)
    match verdict, is_beyond:
        case "holds", True:
            return f"Even {sizes[-1]} samples do not bring full fine-tuning to what {arm} reaches with {sizes[0]}."
        case "holds", False:
            return f"For the accuracy that {arm} reaches, full fine-tuning needs {times} as many samples."
        case "does not hold", True:
            return f"Even {sizes[-1]} samples do not bring {arm} to what full fine-tuning reaches with {sizes[0]}."
        case "does not hold", False:
            opening = f"Freezing up to {setting.stage_name} saves no data"
        case _:
            opening = f"It cannot be told whether {arm} saves data"
    return f"{opening}: for the same accuracy full fine-tuning needs {times} as many samples."


# --- arms, figures and the plot ---------------------------------------------------------------


def _sizes(setting: Setting) -> tuple[int, ...]:
    """Ascending; the last is the whole training part."""
    whole, least = setting.train_samples, max(2 * len(setting.evidence.data.classes), FEWEST)
    return tuple(whole // part for part in PARTS if whole // part >= least)


def _arms(setting: Setting, rate: float) -> dict[str, list[list[Attempt]]]:
    """The attempts of each arm, by size and seed; the whole training part has no size, as in the other claims."""
    sizes = [*_sizes(setting)[:-1], None]
    return {
        "frozen": [[setting.frozen(seed, samples=size) for seed in setting.seeds] for size in sizes],
        "full": [[setting.full(seed, rate, samples=size) for seed in setting.seeds] for size in sizes],
        "head": [[setting.head(seed, samples=size) for seed in setting.seeds] for size in sizes],
    }


def _curves(setting: Setting, outcomes: Outcomes, rate: float) -> dict[str, dict[int, Effect]]:
    """Accuracy by size of each arm, over the seeds that answered there."""
    head = "head only" if setting.head_depth == setting.max_depth else "all frozen that can be"
    names = {"frozen": f"frozen up to {setting.stage_name}", "full": "nothing frozen", "head": head}
    if setting.is_head_only:
        del names["head"]
    arms = _arms(setting, rate)
    curves = {}
    for arm, name in names.items():
        known = zip(_sizes(setting), (good(column, outcomes) for column in arms[arm]), strict=True)
        curves[name] = {size: mean_of(hits_of(found)) for size, found in known if found}
    return {name: curve for name, curve in curves.items() if curve}


def _facts(setting: Setting, outcomes: Outcomes, rate: float) -> tuple[tuple[str, str], ...]:
    curves = _curves(setting, outcomes, rate)
    return tuple(
        (
            f"accuracy with {size} samples",
            ", ".join(f"{name} {share(curve[size].value)}" for name, curve in curves.items() if size in curve),
        )
        for size in _sizes(setting)
    )


def _panel(setting: Setting, outcomes: Outcomes, rate: float) -> Panel:
    return Panel(
        title="Accuracy by the number of training samples",
        x_name="training samples",
        y_name="test accuracy",
        is_share=True,
        is_log=True,
        series=tuple(accuracy_line(name, curve) for name, curve in _curves(setting, outcomes, rate).items()),
    )
