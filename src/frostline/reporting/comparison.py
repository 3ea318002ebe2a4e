"""Several finished runs against each other: their figures, and who is right where the other is wrong."""

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import PurePath
from string import ascii_uppercase

from frostline.amounts import visible
from frostline.record import Record
from frostline.records import Evidence, Score
from frostline.reporting.page import headline

UNDECIDED = "not decided"
"""Verdict where chance alone often does as much."""


class ComparedRun(Record):
    """One run as the comparison tells it.

    Args:
        letter: Its short name on the page: A, B and so on.
        run: Its folder.
        group: Number of its test part; runs of equal groups were tested on the same samples.
        data: The data as the user named it.
        network: The network's name.
        choice: The choice in a sentence.
        depth: Number of frozen stages.
        max_depth: All but the head.
        samples: Of the test part.
        accuracy: Test accuracy, 0 to 1.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        seconds: Cost in seconds.
        share_seconds: The same in full fine-tunes of this run.
        share_flops: Cost in full fine-tunes by counted operations.
        parameters_live: Trained parameter elements.
        parameters: All of them.
        epochs: Epochs that the chosen trial was trained, parents included.
        full_epochs: Epochs of a full fine-tune.
        budget: The most that the run was allowed to cost, in full fine-tunes.
        seed: Of every draw.
    """

    letter: str
    run: str
    group: int
    data: str
    network: str
    choice: str
    depth: int
    max_depth: int
    samples: int
    accuracy: float
    low: float
    high: float
    seconds: float
    share_seconds: float
    share_flops: float
    parameters_live: int
    parameters: int
    epochs: float
    full_epochs: int
    budget: float
    seed: int


class Difference(Record):
    """Two runs on the same test samples.

    Args:
        first: Letter of one run.
        second: Letter of the other.
        samples: N.
        difference: Test accuracy of the first less that of the second.
        standard_error: Of that difference, paired by sample.
        only_first: Samples that the first alone named right.
        only_second: Samples that the second alone named right.
        p_value: Chance of a split at least as uneven if both were equally good.
        verdict: In words.
    """

    first: str
    second: str
    samples: int
    difference: float
    standard_error: float
    only_first: int
    only_second: int
    p_value: float
    verdict: str


class Comparison(Record):
    """What `frostline compare` found.

    Args:
        file: The page.
        runs: As they were given, those on one test part together.
        differences: One for each two runs on the same test samples.
    """

    file: str
    runs: tuple[ComparedRun, ...]
    differences: tuple[Difference, ...]


Named = tuple[str, Evidence]
"""A run folder and what it holds."""


def comparison(found: Sequence[Named], file: str) -> tuple[Comparison, tuple[Evidence, ...]]:
    """Set finished runs against each other.

    Args:
        found: Two or more runs.
        file: Where the page will be.

    Returns:
        The record, and the evidence of its runs in its order.

    Example:
        >>> comparison([], "comparison.html")[0].differences
        ()
    """
    groups: list[list[Named]] = []
    for named in found:
        group = next((group for group in groups if is_same_test(group[0][1], named[1])), None)
        if group is None:
            groups.append([named])
        else:
            group.append(named)
    ordered = [(number, *named) for number, group in enumerate(groups, start=1) for named in group]
    letters = [_letter(place) for place in range(len(ordered))]
    runs = tuple(_compared(letter, *one) for letter, one in zip(letters, ordered, strict=True))
    evidence = tuple(one for _, _, one in ordered)
    differences = [
        _difference(runs[i], runs[j], evidence[i].test, evidence[j].test)
        for i, j in combinations(range(len(runs)), 2)
        if runs[i].group == runs[j].group
    ]
    record = Comparison(file=visible(file), runs=runs, differences=tuple(filter(None, differences)))
    return record, evidence


def is_same_test(one: Evidence, other: Evidence) -> bool:
    """Whether two runs were tested on the same samples in the same order.

    The digest of the task says so for runs of one network. For others the record holds no digest of
    the samples: the same name, classes, counts, shares and seed must do, and no answer may contradict.

    Example:
        >>> run = Evidence.model_construct(arguments=(("task", "5f2c9c0e"), ("seed", "0")))
        >>> is_same_test(run, run)
        True
    """
    if _task(one) == _task(other) != "":
        return True
    # Samples from memory have no shares and no name of their own.
    if not one.data.asked or _division(one) != _division(other):
        return False
    right, other_right = answers(one.test), answers(other.test)
    predictions = zip(right, other_right, one.test.predictions, other.test.predictions, strict=False)
    return all(guess == other_guess for hit, other_hit, guess, other_guess in predictions if hit and other_hit)


def answers(score: Score) -> tuple[bool, ...]:
    """Which samples were named right: those whose loss is that of the predicted class.

    Returns:
        One for each sample, or none where the losses do not tell: two classes that are just as likely.

    Example:
        >>> losses = -math.log(0.9), 2.0
        >>> answers(Score.model_construct(samples=2, accuracy=0.5, losses=losses, confidences=(0.9, 0.7)))
        (True, False)
    """
    hits = tuple(
        math.isclose(math.exp(-loss), confidence, rel_tol=1e-9)
        for loss, confidence in zip(score.losses, score.confidences, strict=True)
    )
    return hits if sum(hits) == round(score.accuracy * score.samples) else ()


def sign_test(ups: int, downs: int) -> float:
    """Give the chance of a split at least as uneven where both sides are equally likely.

    Example:
        >>> sign_test(5, 0), sign_test(3, 3), sign_test(0, 0)
        (0.0625, 1.0, 1.0)

    Source:
        Q. McNemar, Note on the sampling error of the difference between correlated proportions or
        percentages, Psychometrika 12, 1947; exact, with the binomial distribution.
    """
    n = ups + downs
    tail = sum(math.comb(n, k) for k in range(min(ups, downs) + 1))
    return min(1.0, tail / float(2 ** (n - 1))) if n else 1.0


def _difference(one: ComparedRun, other: ComparedRun, score: Score, other_score: Score) -> Difference | None:
    hits, other_hits = answers(score), answers(other_score)
    if not hits or len(hits) != len(other_hits):
        return None
    gaps = [hit - other_hit for hit, other_hit in zip(hits, other_hits, strict=True)]
    ups, downs = gaps.count(1), gaps.count(-1)
    p_value = sign_test(ups, downs)
    verdict = UNDECIDED if p_value >= 0.05 else f"{one.letter if ups > downs else other.letter} is more accurate"
    return Difference(
        first=one.letter,
        second=other.letter,
        samples=len(gaps),
        difference=statistics.fmean(gaps),
        standard_error=statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf,
        only_first=ups,
        only_second=downs,
        p_value=p_value,
        verdict=verdict,
    )


def _compared(letter: str, group: int, run: str, evidence: Evidence) -> ComparedRun:
    choice, test, cost, plan = evidence.choice, evidence.test, evidence.cost, evidence.plan
    chosen = evidence.chosen_trial
    return ComparedRun(
        letter=letter,
        run=visible(run),
        group=group,
        data=visible(evidence.data.name),
        network=visible(evidence.source.name),
        choice=headline(choice),
        depth=choice.depth,
        max_depth=choice.max_depth,
        samples=test.samples,
        accuracy=test.accuracy,
        low=test.low,
        high=test.high,
        seconds=cost.seconds,
        share_seconds=cost.share_seconds,
        share_flops=cost.share_flops,
        parameters_live=evidence.parameters_live,
        parameters=evidence.graph.parameters,
        epochs=chosen.epochs if chosen else 0,
        full_epochs=plan.budget.epochs,
        budget=plan.budget.limit,
        seed=plan.seed,
    )


def _task(evidence: Evidence) -> str:
    return dict(evidence.arguments).get("task", "")


def _division(evidence: Evidence) -> tuple[object, ...]:
    data = evidence.data
    return PurePath(data.name).name, data.classes, data.counts, data.asked, evidence.plan.seed


def _letter(place: int) -> str:
    round_, letter = divmod(place, len(ascii_uppercase))
    return f"{ascii_uppercase[letter]}{round_ + 1 if round_ else ''}"
