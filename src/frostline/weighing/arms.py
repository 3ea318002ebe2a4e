"""The arms that claims compare: equal trainings are equal records, so that each is paid for once.

A claim is a module of this room with two functions. `wanted(setting, outcomes)` names every attempt that the
claim rests on, answered or not, as far as is known by now, in the order of payment: seed by seed, so that what is
paid for is whole pairs. `judge(setting, outcomes)` gives the claim from whatever was answered; the registry adds
its `attempts` and its `cost`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from frostline.attempts import Attempt, Outcome, Weights
from frostline.exhibits import Claim, ClaimName, Series
from frostline.prices import head_scale
from frostline.records import Evidence, Trial, TrialSpec
from frostline.weighing.deciding import Effect, Rows

HEAD_RATE = 1e-3
"""Learning rate where the head alone is trained."""

FEWEST_SEEDS = 2
"""Below so many seeds with an answer from both arms there is no interval, hence no verdict."""

Outcomes = Mapping[str, Outcome]
"""Outcomes by the key of their attempt."""


@dataclass(frozen=True)
class Setting:
    """What all claims share: the frozen arm, nothing frozen, and the head alone, on this run's data.

    The frozen arm is the chosen depth. Where the search chose to freeze nothing, it is the deepest that was raced
    beside the head, since a comparison needs something frozen.

    Args:
        evidence: Of the finished run.
        seeds: Of the attempts; the first is also that of learning rates and probes.
    """

    evidence: Evidence
    seeds: tuple[int, ...]

    # --- depths and words --------------------------------------------------------------------

    @property
    def max_depth(self) -> int:
        """All but the head."""
        return self.evidence.graph.max_depth

    @property
    def head_depth(self) -> int:
        """The deepest open depth: all but the head, where that cut is open."""
        return self.evidence.graph.open_depths[-1]

    @cached_property
    def depth(self) -> int:
        """Depth of the frozen arm; 0 where the network can be cut nowhere."""
        if self.evidence.choice.depth:
            return self.evidence.choice.depth
        raced = [depth for depth in self.evidence.plan.candidates if 0 < depth < self.head_depth]
        return max(raced, default=self.head_depth)

    @property
    def is_chosen(self) -> bool:
        """Whether the frozen arm is what the search chose."""
        return self.depth == self.evidence.choice.depth

    @property
    def is_head_only(self) -> bool:
        """Whether the frozen arm freezes all that can be frozen, as the head alone does."""
        return self.depth == self.head_depth

    @property
    def stage_name(self) -> str:
        """Name of the last stage that the frozen arm freezes."""
        return self.evidence.graph.stage_name(self.depth)

    @property
    def place(self) -> str:
        """The frozen arm as a sentence begins: "Frozen up to layer3.0"."""
        return f"Frozen up to {self.stage_name}"

    @property
    def note(self) -> str:
        """What a reader must know of the arms, as a sentence with a blank before it, or ""."""
        if not self.is_chosen:
            return f" The search chose to freeze nothing; what is compared here is freezing {self.depth} stages."
        return " Here all that can be frozen is." if self.is_head_only else ""

    # --- the data ----------------------------------------------------------------------------

    @property
    def train_samples(self) -> int:
        """N of the training part."""
        return sum(train for train, _, _ in self.evidence.data.counts)

    @property
    def valid_samples(self) -> int:
        """N of the validation part."""
        return sum(valid for _, valid, _ in self.evidence.data.counts)

    @property
    def chance(self) -> float:
        """Test accuracy of one who always says the commonest class."""
        counts = [test for _, _, test in self.evidence.data.counts]
        return max(counts) / max(1, sum(counts))

    # --- attempts ----------------------------------------------------------------------------

    def frozen(
        self,
        seed: int,
        *,
        depth: int | None = None,
        prefix: Weights = "pretrained",
        rest: Literal["pretrained", "random"] = "pretrained",
        samples: int | None = None,
        noise: float = 0.0,
    ) -> Attempt:
        """Train the frozen arm, or another depth at the same rate."""
        depth = self.depth if depth is None else depth
        # Behind all stages but the head there is nothing left to draw anew.
        rest = "pretrained" if depth == self.max_depth else rest
        # Weights drawn anew outgrow the statistics that their norms start with: with those kept, 16 epochs on sign
        # digits ended between .16 and .95 from seed to seed, and above random stages always near chance.
        changes = {"norm_mode": "train"} if rest == "random" else {}
        trial = self._trial(depth, self.frozen_rate, seed, changes)
        return Attempt(trial=trial, prefix=prefix, rest=rest, samples=samples, noise=noise)

    def full(
        self,
        seed: int,
        rate: float,
        *,
        samples: int | None = None,
        noise: float = 0.0,
        weight_decay: float | None = None,
    ) -> Attempt:
        """Train with nothing frozen at that rate, which `full_rate` tells."""
        changes = {} if weight_decay is None else {"weight_decay": weight_decay}
        return Attempt(trial=self._trial(0, rate, seed, changes), samples=samples, noise=noise)

    def head(self, seed: int, *, samples: int | None = None, noise: float = 0.0) -> Attempt:
        """Train the head alone; the frozen arm itself where that trains no more."""
        return self.frozen(seed, depth=self.head_depth, samples=samples, noise=noise)

    def probe(self, prefix: Weights) -> Attempt:
        """Ask for the votes of a network whose weights are drawn anew."""
        spec = TrialSpec(depth=0, recipe=self.evidence.plan.recipe, seed=self.seeds[0], epochs=0)
        return Attempt(kind="probe", trial=spec, prefix=prefix)

    def memory(self, depth: int, *, is_stored: bool = True) -> Attempt:
        """Measure the memory of a few steps at that depth."""
        spec = self._trial(depth, self.frozen_rate, self.seeds[0])
        return Attempt(kind="memory", trial=spec, is_stored=is_stored)

    # --- arms, seed by seed ------------------------------------------------------------------

    @property
    def frozen_arm(self) -> list[Attempt]:
        """The frozen arm at every seed."""
        return [self.frozen(seed) for seed in self.seeds]

    def full_arm(self, rate: float) -> list[Attempt]:
        """Nothing frozen, at that rate and every seed."""
        return [self.full(seed, rate) for seed in self.seeds]

    # --- learning rates ----------------------------------------------------------------------

    @cached_property
    def frozen_rate(self) -> float:
        """The rate that the search settled on for the frozen arm."""
        trials = self.evidence.trials
        own = [trial for trial in trials if trial.spec.depth == self.depth and not trial.failure]
        chosen = [trial for trial in trials if trial.spec.key == self.evidence.choice.trial]
        candidates = chosen if self.is_chosen or not own else own
        best = max(candidates, key=_finish, default=None)
        return best.spec.recipe.learning_rate if best else self.evidence.plan.recipe.learning_rate

    @property
    def tuning(self) -> tuple[Attempt, ...]:
        """Nothing frozen at each rate of the plan, with the first seed: the search that the frozen arm had, too."""
        return tuple(self.full(self.seeds[0], rate) for rate in self.evidence.plan.learning_rates)

    def full_rate(self, outcomes: Outcomes) -> float | None:
        """The rate of lowest validation loss with nothing frozen; None until all were tried."""
        if unanswered(self.tuning, outcomes):
            return None
        best = min(self.tuning, key=lambda attempt: (valid_loss(outcomes[attempt.key]), -_rate(attempt)))
        return _rate(best)

    def _trial(self, depth: int, rate: float, seed: int, more: Mapping[str, object] | None = None) -> TrialSpec:
        is_head = depth == self.max_depth
        changes = {
            "learning_rate": HEAD_RATE if is_head else rate,
            "head_scale": head_scale(depth, self.max_depth),
            "schedule": "cosine",
            "averaging": 0.0,
            **(more or {}),
        }
        plan = self.evidence.plan
        return TrialSpec(
            depth=depth, recipe=plan.recipe.model_copy(update=changes), seed=seed, epochs=plan.budget.epochs
        )


def _finish(trial: Trial) -> tuple[float, float]:
    return trial.epochs, -trial.loss


def _rate(attempt: Attempt) -> float:
    return attempt.trial.recipe.learning_rate


# --- reading outcomes -------------------------------------------------------------------------


def valid_loss(outcome: Outcome) -> float:
    """Lowest validation loss of a training; infinite where it failed.

    Example:
        >>> from frostline.records import Recipe
        >>> attempt = Attempt(trial=TrialSpec(depth=0, recipe=Recipe(), seed=1, epochs=1))
        >>> valid_loss(Outcome(attempt=attempt, failure="the loss is nan"))
        inf
    """
    if outcome.failure:
        return float("inf")
    return min((point.valid_loss for point in outcome.curve), default=float("inf"))


def unanswered(attempts: Iterable[Attempt], outcomes: Outcomes) -> tuple[Attempt, ...]:
    """Attempts that have no outcome yet, each once; one that failed is answered.

    Example:
        >>> unanswered((), {})
        ()
    """
    return tuple(attempt for attempt in dict.fromkeys(attempts) if attempt.key not in outcomes)


def good(attempts: Iterable[Attempt], outcomes: Outcomes) -> tuple[Outcome, ...]:
    """Outcomes of those attempts that were answered and did not fail, in the order of the attempts.

    Example:
        >>> good((), {})
        ()
    """
    known = (outcomes.get(attempt.key) for attempt in attempts)
    return tuple(outcome for outcome in known if outcome is not None and not outcome.failure)


def together(arms: Sequence[Sequence[Attempt]], outcomes: Outcomes) -> tuple[tuple[Outcome, ...], ...]:
    """Outcomes of several arms at the seeds where none of them failed or is missing.

    Args:
        arms: The attempts of each arm, seed by seed in the same order.
        outcomes: What came of them.

    Returns:
        As many tuples as there are arms, all of one length, so that they pair.

    Example:
        >>> together([(), ()], {})
        ((), ())
    """
    whole = [known for known in (good(row, outcomes) for row in zip(*arms, strict=True)) if len(known) == len(arms)]
    return tuple(tuple(row[arm] for row in whole) for arm in range(len(arms)))


def by_seed(arms: Iterable[Sequence[Attempt]]) -> tuple[Attempt, ...]:
    """The attempts of several arms in the order of payment, so that what is paid for is whole pairs.

    Example:
        >>> by_seed([(), ()])
        ()
    """
    return tuple(attempt for row in zip(*arms, strict=True) for attempt in row)


def failures(attempts: Iterable[Attempt], outcomes: Outcomes) -> int:
    """How many of those attempts failed.

    Example:
        >>> failures((), {})
        0
    """
    return sum(bool(outcomes[attempt.key].failure) for attempt in attempts if attempt.key in outcomes)


def hits_of(outcomes: Sequence[Outcome]) -> Rows:
    """Right answers on the test part as numbers (S, N), a row for each outcome.

    Example:
        >>> from frostline.records import Recipe
        >>> attempt = Attempt(trial=TrialSpec(depth=0, recipe=Recipe(), seed=1, epochs=1))
        >>> hits_of([Outcome(attempt=attempt, test_hits=(True, False))]).tolist()
        [[1.0, 0.0]]
    """
    return np.array([outcome.test_hits for outcome in outcomes], dtype=np.float64)


def accuracy_line(name: str, effects: Mapping[int, Effect]) -> Series:
    """A line of accuracies over whole numbers, with intervals that stay among the shares that there are.

    Example:
        >>> accuracy_line("frozen", {64: Effect(0.9, 0.7, 1.1)}).high
        (1.0,)
    """
    return Series(
        name=name,
        x=tuple(float(place) for place in effects),
        y=tuple(effect.value for effect in effects.values()),
        low=tuple(max(0.0, effect.low) for effect in effects.values()),
        high=tuple(min(1.0, effect.high) for effect in effects.values()),
    )


def both(texts: Iterable[str]) -> str:
    """Write a figure of both arms, the frozen one first.

    Example:
        >>> both(["1 s", "2 s"])
        'frozen 1 s, nothing frozen 2 s'
    """
    return "frozen {}, nothing frozen {}".format(*texts)


def unmeasured(name: ClaimName, why: str) -> Claim:
    """A claim of which nothing is said, and why, as a sentence.

    Example:
        >>> unmeasured("data", "This was not asked for.").verdict
        'not measured'
    """
    return Claim(name=name, verdict="not measured", sentence=why)


def undecided(name: ClaimName, attempts: Sequence[Attempt], outcomes: Outcomes) -> Claim:
    """A claim that too few trainings speak to: not paid for, or failed.

    Args:
        name: Of the claim.
        attempts: The trainings that its number needs.
        outcomes: What came of them.

    Returns:
        "not decided" where trainings failed, else "not measured".

    Example:
        >>> undecided("data", (), {}).verdict
        'not measured'
    """
    if failed := failures(attempts, outcomes):
        sentence = f"{failed} of the {len(set(attempts))} trainings failed, too many to compare the others."
        return Claim(name=name, verdict="not decided", sentence=sentence)
    return unmeasured(name, f"The budget did not pay for trainings with at least {FEWEST_SEEDS} seeds of each arm.")
