"""Claim 4, stability: with a frozen part training is steadier, and another seed gives as good a network."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from frostline.amounts import UNKNOWN, share
from frostline.amounts import rate as rate_text
from frostline.attempts import Attempt, Outcome
from frostline.exhibits import Claim, Panel, Series, Verdict
from frostline.weighing.arms import (
    FEWEST_SEEDS,
    Outcomes,
    Setting,
    by_seed,
    good,
    undecided,
)
from frostline.weighing.deciding import (
    LEAST_POINTS,
    LEAST_TIMES,
    is_guessing,
    seeds_to_decide,
    spread_ratio_of,
    times_text,
    verdict_of,
)

SLOWER = 1 / 3
"""Share of the tuned learning rate at which full fine-tuning is tried again, as a control."""

RARE = 0.05
"""Probability up to which a difference in lost runs is not put down to chance."""


def wanted(setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
    """Both arms at every seed, full fine-tuning also at a lower rate, and the frozen arm at every rate."""
    rate = setting.full_rate(outcomes)
    if rate is None:
        return setting.tuning
    arms = setting.frozen_arm, setting.full_arm(rate), setting.full_arm(rate * SLOWER)
    return (*setting.tuning, *by_seed(arms), *_frozen_tuning(setting))


def judge(setting: Setting, outcomes: Outcomes) -> Claim:
    """Say whether the frozen arm scatters less from seed to seed than full fine-tuning.

    Full fine-tuning is given the better of two learning rates: the slower one takes the place of the tuned one
    where it loses fewer runs or scatters less, unless it is less accurate by more than a point. So a lower
    learning rate that steadies as well as freezing does refutes the claim. Runs are lost that failed or ended no
    better than guessing; where the arms differ in them, their number decides before the scatter of the others.
    """
    rate = setting.full_rate(outcomes)
    if rate is None:
        return undecided("stability", setting.tuning, outcomes)
    frozen = _arm("frozen", setting.frozen_arm, setting, outcomes)
    full = _arm("nothing frozen", setting.full_arm(rate), setting, outcomes)
    slower = _arm("nothing frozen at a third of the rate", setting.full_arm(rate * SLOWER), setting, outcomes)
    if min(len(frozen.runs), len(full.runs)) < FEWEST_SEEDS:
        return undecided("stability", (*setting.frozen_arm, *setting.full_arm(rate)), outcomes)
    rival = slower if _is_steadier(slower, full) and _is_as_accurate(slower, full) else full
    verdict = _verdict_of_lost(frozen, rival)
    if verdict or min(len(frozen.kept), len(rival.kept)) < FEWEST_SEEDS:
        claim = _by_lost(setting, frozen, rival, verdict or "not decided")
    else:
        claim = _by_spread(setting, frozen, rival)
    arms = [arm for arm in (frozen, full, slower) if arm.runs]
    more = {"control": _control(slower, full, rival), "facts": _facts(setting, arms, outcomes)}
    return claim.model_copy(update=more | {"panels": (_panel(arms),)})


# --- the arms ---------------------------------------------------------------------------------


def _frozen_tuning(setting: Setting) -> tuple[Attempt, ...]:
    """The frozen arm at each rate of the plan, with the first seed; none where only the head has a rate."""
    if setting.is_head_only:
        return ()
    arm = setting.frozen(setting.seeds[0])
    recipes = [arm.trial.recipe.model_copy(update={"learning_rate": r}) for r in setting.evidence.plan.learning_rates]
    return tuple(arm.model_copy(update={"trial": arm.trial.model_copy(update={"recipe": r})}) for r in recipes)


class _Arm(NamedTuple):
    """Trainings that differ in their seed alone: all that were answered, and those that were not lost."""

    name: str
    runs: tuple[Outcome, ...]
    kept: tuple[Outcome, ...]

    @property
    def lost(self) -> int:
        return len(self.runs) - len(self.kept)

    @property
    def accuracies(self) -> list[float]:
        return [run.accuracy for run in self.kept]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies) if self.kept else 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of the test accuracy over seeds, in points; nan with fewer than two of them."""
        return 100 * statistics.stdev(self.accuracies) if len(self.kept) > 1 else math.nan


def _arm(name: str, attempts: Sequence[Attempt], setting: Setting, outcomes: Outcomes) -> _Arm:
    runs = tuple(outcomes[attempt.key] for attempt in attempts if attempt.key in outcomes)
    kept = tuple(run for run in runs if not run.failure and not is_guessing([run.test_hits], setting.chance))
    return _Arm(name, runs, kept)


def _is_steadier(slower: _Arm, full: _Arm) -> bool:
    if len(slower.runs) < FEWEST_SEEDS:
        return False
    lost = slower.lost / len(slower.runs), full.lost / len(full.runs)
    return lost[0] < lost[1] or (lost[0] == lost[1] and slower.spread < full.spread)


def _is_as_accurate(slower: _Arm, full: _Arm) -> bool:
    return 100 * slower.mean >= 100 * full.mean - LEAST_POINTS


# --- the verdict ------------------------------------------------------------------------------


def _verdict_of_lost(frozen: _Arm, rival: _Arm) -> Verdict | None:
    """What the lost runs decide; None where chance explains their difference."""
    if lost_by_chance((rival.lost, len(rival.runs)), (frozen.lost, len(frozen.runs))) <= RARE:
        return "holds"
    if lost_by_chance((frozen.lost, len(frozen.runs)), (rival.lost, len(rival.runs))) <= RARE:
        return "does not hold"
    return None


def lost_by_chance(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Probability that at least so many of all lost runs are the one arm's, were both equally likely to lose.

    Args:
        one: Runs that the one arm lost, and all its runs.
        other: The same of the other arm.

    Returns:
        A probability.

    Example:
        >>> lost_by_chance((3, 3), (0, 3)), lost_by_chance((1, 3), (0, 3))
        (0.05, 0.5)

    Source:
        R. A. Fisher, The design of experiments, 1935: the exact test, one-sided.
    """
    (lost, runs), (others_lost, others) = one, other
    both = lost + others_lost
    ways = sum(math.comb(runs, k) * math.comb(others, both - k) for k in range(lost, min(runs, both) + 1))
    return ways / math.comb(runs + others, both)


def _by_lost(setting: Setting, frozen: _Arm, rival: _Arm, verdict: Verdict) -> Claim:
    said = {
        "holds": "Were both equally steady, that would be a rare chance.",
        "does not hold": "Freezing makes the training less steady here.",
        "not decided": "Too few are left to tell which is steadier.",
    }
    sentence = (
        f"{setting.place}, {frozen.lost} of {len(frozen.runs)} trainings failed or ended no better than guessing; "
        f"with {rival.name} {rival.lost} of {len(rival.runs)}. {said[verdict]}{setting.note}"
    )
    return Claim(name="stability", verdict=verdict, sentence=sentence)


def _by_spread(setting: Setting, frozen: _Arm, rival: _Arm) -> Claim:
    grain = 1 / len(frozen.kept[0].test_hits)
    ratio = spread_ratio_of(rival.accuracies, frozen.accuracies, grain=grain)
    verdict = verdict_of(ratio, least=LEAST_TIMES, none=1.0)
    # A few lost runs decide nothing by themselves, but nothing is decided against them either.
    if frozen.lost != rival.lost and verdict == ("holds" if frozen.lost > rival.lost else "does not hold"):
        verdict = "not decided"
    said = {
        "holds": "Freezing steadies the training.",
        "does not hold": "Freezing does not steady the training here.",
        "not decided": f"With {len(rival.kept)} seeds that may be chance{_outlook(ratio.value)}.",
    }
    sentence = (
        f"{setting.place}, the accuracy scatters by {frozen.spread:.2f} points from seed to seed; with {rival.name} "
        f"by {rival.spread:.2f}, that is {times_text(ratio)} as much. {said[verdict]}{setting.note}"
    )
    return Claim(
        name="stability",
        verdict=verdict,
        sentence=sentence,
        measure="scatter of the test accuracy over seeds with nothing frozen, at the better of two learning rates, as "
        "a multiple of the frozen arm's",
        **ratio._asdict(),
        unit="times",
    )


def _outlook(ratio: float) -> str:
    enough = seeds_to_decide(ratio)
    return f"; if the ratio stays, {enough} would decide it" if enough else ", and a thousand would hardly decide it"


def _control(slower: _Arm, full: _Arm, rival: _Arm) -> str:
    tried = "A third of the learning rate may steady full fine-tuning as well"
    if len(slower.runs) < FEWEST_SEEDS:
        return f"{tried}; that was not paid for."
    lost = f"{slower.lost} of {len(slower.runs)} trainings failed or ended no better than guessing"
    if len(slower.kept) < FEWEST_SEEDS:
        return f"{tried}. There {lost}."
    scatter = f"the accuracy scatters by {slower.spread:.2f} points around {share(slower.mean)}"
    told = f"{tried}. There {scatter}{f', and {lost}' if slower.lost else ''}: "
    if rival is slower:
        return f"{told}that is steadier, so freezing is compared with it."
    if _is_as_accurate(slower, full):
        return f"{told}no steadier than at the tuned rate."
    return f"{told}less accurate by more than a point, so it does not count."


# --- what else can be seen --------------------------------------------------------------------


def _facts(setting: Setting, arms: Sequence[_Arm], outcomes: Outcomes) -> tuple[tuple[str, str], ...]:
    told = {
        "scatter over seeds, points": [f"{arm.spread:.2f}" if len(arm.kept) > 1 else UNKNOWN for arm in arms],
        "mean test accuracy": [share(arm.mean) if arm.kept else UNKNOWN for arm in arms],
        "runs failed or no better than guessing": [f"{arm.lost} of {len(arm.runs)}" for arm in arms],
        "best less last epoch, validation points": [_mean(map(_fall, arm.kept)) for arm in arms],
        "gradient norm, deviation over mean": [_mean(map(_unrest, arm.kept)) for arm in arms],
    }
    facts = [
        (name, ", ".join(f"{arm.name} {text}" for arm, text in zip(arms, texts, strict=True)))
        for name, texts in told.items()
    ]
    widths = f"nothing frozen {_width(setting.tuning, outcomes)}"
    if tuning := _frozen_tuning(setting):
        widths = f"frozen {_width(tuning, outcomes)}, {widths}"
    return (*facts, ("learning rates within a point of the best", widths))


def _mean(figures: Iterable[float | None]) -> str:
    known = [figure for figure in figures if figure is not None]
    return f"{statistics.fmean(known):.2f}" if known else UNKNOWN


def _fall(run: Outcome) -> float | None:
    return 100 * (_best(run) - run.curve[-1].valid_accuracy) if run.curve else None


def _best(run: Outcome) -> float:
    return max((point.valid_accuracy for point in run.curve), default=0.0)


def _unrest(run: Outcome) -> float | None:
    looks = [(point.gradient_spread, point.gradient_norm) for point in run.curve]
    ratios = [spread / norm for spread, norm in looks if spread is not None and norm]
    return statistics.fmean(ratios) if ratios else None


def _width(attempts: Sequence[Attempt], outcomes: Outcomes) -> str:
    tried = good(attempts, outcomes)
    if len(tried) < 2:
        return UNKNOWN
    least = 100 * max(map(_best, tried)) - LEAST_POINTS
    near = [rate_text(run.attempt.trial.recipe.learning_rate) for run in tried if 100 * _best(run) >= least]
    return f"{len(near)} of {len(attempts)} ({', '.join(near)})"


def _panel(arms: Sequence[_Arm]) -> Panel:
    lines = [
        Series(name=arm.name, x=tuple(float(run.attempt.trial.seed) for run in arm.kept), y=tuple(arm.accuracies))
        for arm in arms
        if arm.kept
    ]
    return Panel(
        title="Accuracy on the test part from seed to seed",
        x_name="seed",
        y_name="test accuracy",
        series=tuple(lines),
        is_share=True,
    )
