"""From numbers to a verdict: effects with their 95 % intervals, and one rule for all claims."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frostline.cost import wilson
from frostline.exhibits import Verdict

Rows = NDArray[np.float64]
"""(S, N): a row for each seed, a column for each test sample."""

LEAST_POINTS = 1.0
"""Points of accuracy below which a difference does not matter."""

LEAST_TIMES = 1.1
"""Ratio below which one thing is not worth calling more than another."""

GUESSING = 0.1
"""How far above chance an accuracy that was guessed may seem to be at most, as a share."""


class Effect(NamedTuple):
    """A number with its 95 % interval; more of it speaks for the claim."""

    value: float
    low: float
    high: float


def verdict_of(effect: Effect, *, least: float, none: float = 0.0) -> Verdict:
    """Say whether a claim holds, by the one rule for all claims.

    It holds where the interval excludes that there is no effect, and the effect is large enough to matter. It
    does not hold where the interval excludes an effect that matters.

    Args:
        effect: What was measured.
        least: The smallest effect that matters.
        none: What would be no effect: 0 for a difference, 1 for a ratio.

    Returns:
        The verdict.

    Example:
        >>> [verdict_of(effect, least=1.0) for effect in (Effect(3, 1, 5), Effect(0, -0.5, 0.5), Effect(1, -1, 3))]
        ['holds', 'does not hold', 'not decided']
    """
    if effect.low > none and effect.value >= least:
        return "holds"
    return "does not hold" if effect.high < least else "not decided"


def mean_of(rows: ArrayLike) -> Effect:
    """Mean over seeds and samples, with an interval for other seeds and other samples of the same kind.

    Its half-width joins two by the root of their squares: Student's t interval over samples, each averaged over the
    seeds, and that over seeds, each averaged over the samples. What varies with both is counted twice, which errs
    on the safe side. One disagreement more than was seen is counted, so that equal answers on few samples prove
    little. With one seed the interval is for other samples only.

    Args:
        rows: (S, N) figures, as answers that are right (1) or wrong (0), or differences of them.

    Returns:
        The mean, in the unit of the rows.

    Example:
        >>> effect = mean_of([[1, 0, 1, 1, 1, 0, 1, 1]] * 3)
        >>> round(effect.value, 2), round(effect.low, 2), round(effect.high, 2)
        (0.75, 0.25, 1.25)

    Source:
        The added disagreement after Agresti and Min, Simple improved confidence intervals for comparing matched
        proportions, 2005.
    """
    rows = np.asarray(rows, dtype=np.float64)
    mean = float(rows.mean())
    seeds, samples = rows.shape
    freedom = max(1, samples - 1)
    scatter = (np.square(rows.mean(axis=0) - mean).sum() + 1) / freedom
    half = _half(scatter, samples, freedom)
    if seeds > 1:
        half = math.hypot(half, _half(float(rows.mean(axis=1).var(ddof=1)), seeds, seeds - 1))
    return Effect(mean, mean - half, mean + half)


def _half(variance: float, count: int, freedom: int) -> float:
    """Half of the t interval of a mean."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975) * math.sqrt(variance / count))


def points_of(rows: ArrayLike) -> Effect:
    """The same in points: hundred times the mean over seeds and samples.

    Args:
        rows: (S, N), mostly right answers of one arm less those of another on the same samples.

    Returns:
        The mean in points.

    Example:
        >>> round(points_of([[1, 0, 0, 0], [1, 0, 0, 0]]).value, 6)
        25.0
    """
    return Effect(*(100 * part for part in mean_of(rows)))


def ratio_of(ones: Sequence[float], others: Sequence[float], *, grain: float = 0.0) -> Effect:
    """How many times as much the ones are as the others, paired by seed.

    Args:
        ones: A figure above 0 for each of at least two seeds.
        others: The same of the other arm.
        grain: The least step of a figure as a share of it, both arms' joined by the root of their squares. Rounding
            to it adds its own small variance, so that equal ratios are not taken for certain.

    Returns:
        Geometric mean of the ratios, with the t interval of their logarithm.

    Example:
        >>> effect = ratio_of([2.0, 2.2, 1.8], [1.0, 1.0, 1.0])
        >>> round(effect.value, 2), round(effect.low, 2), round(effect.high, 2)
        (1.99, 1.55, 2.56)
    """
    logs = np.log(np.asarray(ones, dtype=np.float64) / np.asarray(others, dtype=np.float64))
    half = _half(float(logs.var(ddof=1)) + grain**2 / 12, len(logs), len(logs) - 1)
    return Effect(*(math.exp(logs.mean() + shift) for shift in (0.0, -half, half)))


def spread_ratio_of(ones: Sequence[float], others: Sequence[float], *, grain: float) -> Effect:
    """How many times as far the ones scatter as the others.

    Args:
        ones: A figure for each of at least two seeds.
        others: The same of the other arm.
        grain: The least step of a figure, as 1 / N for an accuracy over N samples. Rounding to it adds its own
            small variance, so that equal figures are not taken for no spread at all.

    Returns:
        Ratio of the standard deviations, with the F interval of the ratio of variances.

    Example:
        >>> effect = spread_ratio_of([0.90, 0.94, 0.98], [0.95, 0.96, 0.97], grain=0.001)
        >>> round(effect.value, 2), round(effect.low, 2), round(effect.high, 2)
        (4.0, 0.64, 24.97)
    """
    from scipy.special import fdtri

    first, second = (float(np.var(figures, ddof=1)) + grain**2 / 12 for figures in (ones, others))
    ratio = math.sqrt(first / second)
    above = math.sqrt(fdtri(len(ones) - 1, len(others) - 1, 0.975))
    below = math.sqrt(fdtri(len(others) - 1, len(ones) - 1, 0.975))
    return Effect(ratio, ratio / above, ratio * below)


def seeds_to_decide(ratio: float, *, most: int = 1000) -> int | None:
    """Seeds of each arm from which on a ratio of spreads would be told from 1, if it stays what it is.

    Args:
        ratio: Of the standard deviations.
        most: Where the search for it ends.

    Returns:
        A number from 2, or None where more than `most` are needed.

    Example:
        >>> seeds_to_decide(4.0), seeds_to_decide(2.0), seeds_to_decide(1.0)
        (4, 11, None)
    """
    from scipy.special import fdtri

    square = max(ratio, 1 / ratio) ** 2 if ratio else math.inf
    return next((n for n in range(2, most + 1) if square > fdtri(n - 1, n - 1, 0.975)), None)


def is_guessing(hits: ArrayLike, chance: float) -> bool:
    """Whether answers are no better than those of one who always says the commonest class.

    Args:
        hits: (S, N), right (1) or wrong (0).
        chance: Share of the commonest class.

    Returns:
        True where the 95 % interval of the accuracy reaches down to chance, and not far above it; few samples
        whose interval is wide say neither.

    Example:
        >>> is_guessing([[True] * 12 + [False] * 88], chance=0.1), is_guessing([[True] * 60 + [False] * 40], chance=0.1)
        (True, False)
    """
    rows = np.asarray(hits, dtype=np.float64)
    samples = rows.shape[1]
    low, high = wilson(round(float(rows.mean()) * samples), samples)
    return low <= chance and high <= chance + GUESSING


def points_text(effect: Effect) -> str:
    """Write points for people.

    Example:
        >>> points_text(Effect(31.04, 28.2, 33.9))
        '31.0 points (28.2 to 33.9)'
    """
    return f"{effect.value:.1f} points ({effect.low:.1f} to {effect.high:.1f})".replace("-", "−")


def times_text(effect: Effect) -> str:
    """Write a ratio for people.

    Example:
        >>> times_text(Effect(2.304, 0.81, 11.0))
        '2.30 times (0.81 to 11.00)'
    """
    return f"{effect.value:.2f} times ({effect.low:.2f} to {effect.high:.2f})"
