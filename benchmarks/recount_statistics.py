"""Intervals by their definitions: Wilson's, Student's and Fisher's F, on nothing but Python and numpy."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
"""(S, N): a row for each seed, a column for each sample."""


class Effect(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: float, samples: float) -> tuple[float, float]:
    z, p = 1.959963984540054, hits / samples
    middle = p + z * z / (2 * samples)
    half = z * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples**2))
    below = 1 + z * z / samples
    return (0.0 if p == 0 else (middle - half) / below), (1.0 if p == 1 else (middle + half) / below)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised; by its continued fraction, after Lentz."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    logged = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny, fraction, c = 1e-300, 1.0, 1.0
    d = 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + step * d) or tiny)
            c = (1 + step / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(logged) * fraction / a


def where(grows: Callable[[float], float], target: float) -> float:
    """Where a function that grows from 0 reaches a target."""
    low, high = 0.0, 1.0
    while grows(high) < target:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if grows(middle) < target else (low, middle)
    return (low + high) / 2


@functools.cache
def t_975(freedom: float) -> float:
    return where(lambda t: 1 - incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2, 0.975)


@functools.cache
def f_975(first: float, second: float) -> float:
    return where(lambda f: incomplete_beta(first * f / (first * f + second), first / 2, second / 2), 0.975)


# --- numbers of the claims --------------------------------------------------------------------


def mean_of(rows: Rows) -> Effect:
    """Mean with an interval for other seeds and other samples.

    Its half is the root of two squares: Student's t over samples, each averaged over the seeds, with one
    disagreement more than was seen; and over seeds, each averaged over the samples.
    """
    seeds, samples = rows.shape
    mean = rows.mean()
    freedom = max(1, samples - 1)
    by_sample = (((rows.mean(axis=0) - mean) ** 2).sum() + 1) / freedom
    square = t_975(freedom) ** 2 * by_sample / samples
    if seeds > 1:
        square += t_975(seeds - 1) ** 2 * np.var(rows.mean(axis=1), ddof=1) / seeds
    half = math.sqrt(square)
    return Effect(float(mean), float(mean - half), float(mean + half))


def points_of(rows: Rows) -> Effect:
    return Effect(*(100 * part for part in mean_of(rows)))


def ratio_of(ones: Sequence[float], others: Sequence[float], grain: float = 0.0) -> Effect:
    """Geometric mean of paired ratios, with the t interval of their logarithm; a grain adds its variance."""
    logs = [math.log(one / other) for one, other in zip(ones, others, strict=True)]
    middle = sum(logs) / len(logs)
    variance = sum((each - middle) ** 2 for each in logs) / (len(logs) - 1) + grain**2 / 12
    half = t_975(len(logs) - 1) * math.sqrt(variance / len(logs))
    return Effect(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def spread_ratio_of(ones: Sequence[float], others: Sequence[float], grain: float) -> Effect:
    """Ratio of standard deviations, with the F interval of the ratio of variances."""
    first, second = (float(np.var(each, ddof=1)) + grain**2 / 12 for each in (ones, others))
    ratio = math.sqrt(first / second)
    freedoms = len(ones) - 1, len(others) - 1
    return Effect(ratio, ratio / math.sqrt(f_975(*freedoms)), ratio * math.sqrt(f_975(*reversed(freedoms))))


def by_chance(ours: tuple[int, int], theirs: tuple[int, int]) -> float:
    """Probability of so many or more lost of ours, given all that were lost: Fisher's exact test, one-sided."""
    (lost, runs), (others_lost, others) = ours, theirs
    both = lost + others_lost
    ways = [math.comb(runs, k) * math.comb(others, both - k) for k in range(lost, min(runs, both) + 1)]
    return sum(ways) / math.comb(runs + others, both)


def is_guessing(rows: Rows, chance: float) -> bool:
    """Whether the interval of an accuracy reaches down to chance, and not more than .1 above it."""
    samples = rows.shape[1]
    low, high = wilson(round(float(rows.mean()) * samples), samples)
    return low <= chance and high <= chance + 0.1


# --- how many times as many samples -----------------------------------------------------------


def times_as_many(frozen: NDArray[np.float64], full: NDArray[np.float64], sizes: Sequence[int]) -> Effect:
    """Two learning curves (S, L, N) read sideways, over the accuracies that both reach.

    Interval: the root of two squares, a bootstrap over test samples that all curves share (1,000 draws of numpy's
    default generator at seed 0), and Student's t over seeds, of which each is left out in turn.
    """
    doublings = np.log2(np.array(sizes, dtype=float))
    arms = np.stack((frozen, full))
    seeds, samples = arms.shape[1], arms.shape[3]
    middle = sideways(arms.mean(axis=(1, 3)), doublings)
    generator, each = np.random.default_rng(0), arms.mean(axis=1)
    again = [
        sideways(each[..., generator.integers(samples, size=samples)].mean(axis=-1), doublings) for _ in range(1000)
    ]
    low, high = np.percentile(again, [2.5, 97.5])
    curves = arms.mean(axis=3)
    left = [
        sideways(curves[:, [k for k in range(seeds) if k != seed]].mean(axis=1), doublings) for seed in range(seeds)
    ]
    half = t_975(seeds - 1) * math.sqrt((seeds - 1) / seeds * sum((shift - np.mean(left)) ** 2 for shift in left))
    ends = middle - math.hypot(middle - low, half), middle + math.hypot(high - middle, half)
    return Effect(2.0**middle, 2.0 ** float(ends[0]), 2.0 ** float(ends[1]))


def sideways(curves: NDArray[np.float64], doublings: NDArray[np.float64]) -> float:
    """Mean distance of full fine-tuning's curve from the frozen one's, in doublings, at 64 accuracies in the middle of
    equal steps between the larger beginning and the smaller end; without common accuracies the whole range."""
    frozen, full = (rising(curve) for curve in curves)
    least, most = max(frozen[0], full[0]), min(frozen[-1], full[-1])
    if least > most:
        return float(doublings[-1] - doublings[0]) * (1.0 if frozen[0] > full[-1] else -1.0)
    levels = least + (most - least) * (np.arange(64) + 0.5) / 64
    return float(np.mean(np.interp(levels, full, doublings) - np.interp(levels, frozen, doublings)))


def rising(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Midway between the highest so far and the lowest from here on, tilted by a billionth a step."""
    places = range(len(curve))
    return np.array([(curve[: k + 1].max() + curve[k:].min()) / 2 + 1e-9 * k for k in places])
