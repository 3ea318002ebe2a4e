"""What a lap of the race promises, and which of two is ahead."""

from collections.abc import Sequence
from typing import NamedTuple

from frostline.comparing import is_within, paired
from frostline.records import Trial

CLEAR = 2.0
"""Paired standard errors by which a depth has to be ahead to count as better."""

THIRD = 3.0
"""The same for a third learning rate, and for the second beside the first to have a third tried. On ten tasks the third
was the best one at 4 of 80 depths, by 2 points at most (`benchmarks/results/truth`)."""


class Lap(NamedTuple):
    """An arm half-way through its lap, and at its end.

    Args:
        early: Half-way.
        late: At the end.

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> spec = TrialSpec(depth=3, recipe=Recipe(learning_rate=3e-4), seed=0, epochs=1)
        >>> lap = Lap(Trial(spec=spec, losses=(0.9, 0.5)), Trial(spec=spec, losses=(0.6, 0.4)))
        >>> lap.depth, lap.rate, [round(loss, 3) for loss in lap.promises], round(lap.promise, 3)
        (3, 0.0003, [0.3, 0.3], 0.3)
    """

    early: Trial
    late: Trial

    @property
    def depth(self) -> int:
        """Number of frozen stages."""
        return self.late.spec.depth

    @property
    def rate(self) -> float:
        """Learning rate."""
        return self.late.spec.recipe.learning_rate

    @property
    def promises(self) -> list[float]:
        """By sample, the loss after twice the steps, if it falls by as much again; of where the arm is, not was best.

        What is in doubt between two arms is where they end. The larger rate begins later: on Omniglot it was .2 nats
        behind after forty steps, and right in 7 more of 100 test pictures at its end. So does the shallower depth.
        """
        ends = self.early.losses_at_the_end, self.late.losses_at_the_end
        return [2 * late - early for early, late in zip(*ends, strict=True)]

    @property
    def promise(self) -> float:
        """Their mean, in which samples count as they do in the loss."""
        return 2 * self.late.loss_at_the_end - self.early.loss_at_the_end


def is_ahead(lap: Lap | None, other: Lap | None, errors: float) -> bool:
    """Whether it alone stands, or its promise is so many paired standard errors lower.

    Args:
        lap: None where it failed.
        other: Beside it, scored on the same samples.
        errors: Standard errors.

    Example:
        >>> is_ahead(None, None, 1.0)
        False
    """
    if not lap or not other:
        return lap is not None
    difference, error = paired(other.promises, lap.promises, lap.late.sample_weights)
    return difference > errors * error


def shallowest_ahead(laps: Sequence[Lap]) -> Lap:
    """The shallowest depth within two standard errors of the lowest promise.

    Even so any deeper arm is nearer to its end, for what it trains is less, and learnt sooner: on TrashNet the arm
    that trains .87 of the operations was 3.3 errors behind after forty steps, and right in 3 more of 100 test pictures
    at its end.

    Args:
        laps: At least one.

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> trials = [
        ...     Trial(spec=TrialSpec(depth=depth, recipe=Recipe(), seed=0, epochs=1), losses=(0.5, 0.4))
        ...     for depth in (7, 3)
        ... ]
        >>> shallowest_ahead([Lap(trial, trial) for trial in trials]).depth
        3
    """
    leader = min(laps, key=lambda lap: (lap.promise, lap.depth))
    weights = leader.late.sample_weights
    tied = (lap for lap in laps if _is_tied(*paired(lap.promises, leader.promises, weights)))
    return min(tied, key=lambda lap: lap.depth)


def _is_tied(difference: float, error: float) -> bool:
    return is_within(difference, CLEAR * error)
