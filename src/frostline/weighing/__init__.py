"""Claims about freezing, weighed: what is to be tried for each, what that costs, and what came of it.

Everything here is a pure function of the run's evidence and of what was tried so far; nothing is trained here.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Protocol

from frostline.attempts import Attempt, Outcome
from frostline.exhibits import Claim, ClaimName
from frostline.records import Evidence
from frostline.weighing import convergence, data, regularisation, resources, reuse, stability
from frostline.weighing.arms import Outcomes, Setting, unanswered, unmeasured


class _Weighing(Protocol):
    """What the module of a claim offers."""

    def wanted(self, setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
        """Every attempt that the claim rests on, as far as is known from what was tried so far."""

    def judge(self, setting: Setting, outcomes: Outcomes) -> Claim:
        """The claim with its verdict, or undecided where too little was answered."""


_WEIGHED: dict[ClaimName, _Weighing] = {
    "reuse": reuse,
    "data": data,
    "convergence": convergence,
    "stability": stability,
    "regularisation": regularisation,
    "resources": resources,
}

_NOT_ASKED = "This was not asked for."

_UNCUT = "This network can be cut nowhere, so that there is no frozen part to compare with."


def wanted(evidence: Evidence, claims: Sequence[ClaimName], outcomes: Outcomes, *, seeds: int) -> tuple[Attempt, ...]:
    """Say what to try next: what is missing for the first claim that misses anything.

    What a claim needs may depend on what came before, so this is asked again until it is empty.

    Args:
        evidence: Of the finished run.
        claims: Names, in the order of payment.
        outcomes: What was tried so far, by the key of the attempt.
        seeds: Seeds of each arm.

    Returns:
        Attempts that have no outcome, in the order of payment; empty when all claims have theirs.

    Example:
        >>> import inspect
        >>> list(inspect.signature(wanted).parameters)
        ['evidence', 'claims', 'outcomes', 'seeds']
    """
    setting = _setting(evidence, seeds)
    missing = (unanswered(_rests_on(name, setting, outcomes), outcomes) for name in claims)
    return next((attempts for attempts in missing if attempts), ())


def foreseen(evidence: Evidence, claims: Sequence[ClaimName], outcomes: Outcomes, *, seeds: int) -> tuple[Attempt, ...]:
    """Everything that is still to be tried, to tell beforehand what it costs.

    Where the learning rate of full fine-tuning is not known yet, one of those to be tried stands for it; the price
    is the same for all.

    Args:
        evidence: Of the finished run.
        claims: Names, in the order of payment.
        outcomes: What was tried so far, by the key of the attempt.
        seeds: Seeds of each arm.

    Returns:
        Attempts that have no outcome, in the order of payment.

    Example:
        >>> import inspect
        >>> inspect.signature(foreseen) == inspect.signature(wanted)
        True
    """
    setting = _setting(evidence, seeds)
    tuned = {attempt.key: Outcome(attempt=attempt) for attempt in setting.tuning} | dict(outcomes)
    return unanswered(chain.from_iterable(_rests_on(name, setting, tuned) for name in claims), outcomes)


def judged(evidence: Evidence, claims: Sequence[ClaimName], outcomes: Outcomes, *, seeds: int) -> tuple[Claim, ...]:
    """Give each of the six claims its verdict.

    Args:
        evidence: Of the finished run.
        claims: Those that were asked for, in the order of payment.
        outcomes: What was tried, by the key of the attempt.
        seeds: Seeds of each arm.

    Returns:
        One claim for each of `CLAIMS`, in their order; "not measured" where it was not asked or not paid for.

    Example:
        >>> import inspect
        >>> inspect.signature(judged).parameters.keys() == inspect.signature(wanted).parameters.keys()
        True
    """
    setting = _setting(evidence, seeds)
    paid: set[Attempt] = set()
    found: dict[str, Claim] = {}
    for name in claims:
        rests_on = [a for a in dict.fromkeys(_rests_on(name, setting, outcomes)) if a.key in outcomes]
        claim = _WEIGHED[name].judge(setting, outcomes) if setting.depth else unmeasured(name, _UNCUT)
        found[name] = claim.model_copy(
            update={
                "attempts": tuple(attempt.key for attempt in rests_on),
                "cost": sum(price(evidence, attempt) for attempt in rests_on if attempt not in paid),
            }
        )
        paid.update(rests_on)
    return tuple(found.get(name) or unmeasured(name, _NOT_ASKED) for name in _WEIGHED)


def price(evidence: Evidence, attempt: Attempt) -> float:
    """Predicted cost of an attempt, counted in operations.

    Args:
        evidence: Of the finished run, whose plan holds the prices.
        attempt: What would be tried.

    Returns:
        Cost in full fine-tunes: training on its samples and the pass over them where rows are kept, a further
        pass for the head of weights drawn anew, one pass for a probe; nothing for a look at memory, which takes a few
        steps.

    Example:
        >>> import inspect
        >>> list(inspect.signature(price).parameters)
        ['evidence', 'attempt']
    """
    budget = evidence.plan.budget
    forward = 1 / (3 * budget.epochs)
    match attempt.kind:
        case "memory":
            return 0.0
        case "probe":
            return forward
    trial, whole = attempt.trial, Setting(evidence, ()).train_samples
    is_altered = attempt.prefix != "pretrained" or attempt.rest != "pretrained"
    is_kept = trial.depth not in evidence.plan.computed
    passes = is_kept * (1 - budget.live_shares[trial.depth]) + is_altered
    return (attempt.samples or whole) / whole * (budget.cost(trial.depth, trial.epochs) + passes * forward)


def _setting(evidence: Evidence, seeds: int) -> Setting:
    # Not the seed of the search itself, which the chosen depth has been picked with.
    first = evidence.plan.seed + 1
    return Setting(evidence, tuple(range(first, first + seeds)))


def _rests_on(name: ClaimName, setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
    return _WEIGHED[name].wanted(setting, outcomes) if setting.depth else ()
