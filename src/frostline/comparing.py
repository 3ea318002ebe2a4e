"""Trials side by side: which of two runs of a spec counts, what a trial stands on, how far apart two are."""

import math
from collections.abc import Iterable, Mapping, Sequence

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


def paired(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean difference of two lists over the same samples, and its standard error.

    Args:
        ones: N figures.
        others: N figures of the same samples.

    Returns:
        Mean of ones less others, and the standard error of that mean.

    Example:
        >>> paired([1.0, 2.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0])
        (1.0, 0.408248290463863)
    """
    differences = [float(a) - float(b) for a, b in zip(ones, others, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    spread = sum((d - mean) ** 2 for d in differences) / (n - 1) if n > 1 else 0.0
    return mean, math.sqrt(spread / n)


def is_within(difference: float, error: float) -> bool:
    """Whether a difference is at most one standard error.

    Example:
        >>> is_within(0.1, 0.2), is_within(-3.0, 0.2), is_within(0.3, 0.2)
        (True, True, False)
    """
    return difference <= error + 1e-12
