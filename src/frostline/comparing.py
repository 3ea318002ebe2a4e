"""Trials side by side: which of two runs of a spec counts, what a trial stands on, how far apart two are."""

import math
from collections.abc import Iterable, Mapping, Sequence

from frostline.cost import effective, wilson
from frostline.records import Trial


def by_key(trials: Iterable[Trial]) -> dict[str, Trial]:
    """The trial of each spec; of two, the one that did not fail, then the one with the lower loss.

    Args:
        trials: What happened, in any order, which plays no part.

    Returns:
        Trials by the key of their spec.

    Example:
        >>> by_key([])
        {}
    """
    ordered = sorted(trials, key=lambda trial: (trial.failure is None, -trial.loss, trial.key))
    return {trial.spec.key: trial for trial in ordered}


def chain_of(trial: Trial, trials: Mapping[str, Trial]) -> tuple[Trial, ...]:
    """A trial and what it was trained on top of, the oldest first.

    Args:
        trial: The last of the chain.
        trials: By the key of their spec; a parent that is missing ends the chain.

    Returns:
        The chain.

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> trial = Trial(spec=TrialSpec(depth=3, recipe=Recipe(), seed=0, epochs=1))
        >>> len(chain_of(trial, {}))
        1
    """
    chain = [trial]
    while (parent := chain[-1].spec.parent) in trials:
        chain.append(trials[str(parent)])
    return tuple(reversed(chain))


def loss_gap(one: Trial, other: Trial) -> tuple[float, float]:
    """How much higher the loss of one trial is than that of another, and the standard error of it.

    Args:
        one: A trial.
        other: Another, scored on the same samples.

    Returns:
        Mean difference in nats, and its standard error, paired by sample.

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> spec = TrialSpec(depth=3, recipe=Recipe(), seed=0, epochs=1)
        >>> loss_gap(Trial(spec=spec, losses=(0.5, 0.5)), Trial(spec=spec, losses=(0.25, 0.25)))
        (0.25, 0.0)
    """
    return paired(one.losses, other.losses, one.sample_weights)


def hit_gap(one: Trial, other: Trial) -> tuple[float, float]:
    """How much more accurate one trial is than another, and the standard error of it.

    Args:
        one: A trial.
        other: Another, scored on the same samples.

    Returns:
        Difference of the accuracies, 0 to 1, and its standard error, paired by sample.

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> spec = TrialSpec(depth=3, recipe=Recipe(), seed=0, epochs=1)
        >>> hit_gap(Trial(spec=spec, hits=(True, True)), Trial(spec=spec, hits=(False, False)))
        (1.0, 0.0)
    """
    return paired(one.hits, other.hits, one.sample_weights)


def paired(ones: Sequence[float], others: Sequence[float], weights: Sequence[float] = ()) -> tuple[float, float]:
    """Mean difference of two lists over the same samples, and its standard error.

    Args:
        ones: N figures.
        others: N figures of the same samples.
        weights: What each sample counts, 1 in the mean; empty where all count alike.

    Returns:
        Mean of ones less others, and the standard error of that mean.

    Example:
        >>> paired([1.0, 2.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0])
        (1.0, 0.408248290463863)
    """
    n = len(ones)
    counts = weights or (1.0,) * n
    differences = [float(a) - float(b) for a, b in zip(ones, others, strict=True)]
    mean = sum(w * d for w, d in zip(counts, differences, strict=True)) / n
    spread = sum((w * (d - mean)) ** 2 for w, d in zip(counts, differences, strict=True))
    return mean, math.sqrt(spread / (n - 1) / n) if n > 1 else 0.0


def accuracy_interval(trial: Trial) -> tuple[float, float]:
    """Give the 95 % interval of a trial's validation accuracy.

    Args:
        trial: A trial that has answers.

    Returns:
        Lower and upper end, 0 to 1. Weighted samples count as so many equal ones as tell as much.

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> spec = TrialSpec(depth=3, recipe=Recipe(), seed=0, epochs=1)
        >>> low, high = accuracy_interval(Trial(spec=spec, hits=(True,) * 90 + (False,) * 10))
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)

    Source:
        Wilson, 1927, and Kish, 1965, as in `cost`.
    """
    count = effective(trial.sample_weights) if trial.sample_weights else float(len(trial.hits))
    return wilson(min(trial.accuracy, 1.0) * count, count)


def is_within(difference: float, error: float) -> bool:
    """Whether a difference is at most one standard error.

    Example:
        >>> is_within(0.1, 0.2), is_within(-3.0, 0.2), is_within(0.3, 0.2)
        (True, True, False)
    """
    return difference <= error + 1e-12
