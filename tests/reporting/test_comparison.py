"""Runs are compared answer by answer, and only where the samples are the same."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.records import Score
from frostline.reporting.comparison import answers, comparison, is_same_test, sign_test


def of(evidence, *, task="a", hits=None, **data):
    """The same run with another task, other data or other right answers."""
    changed = {
        "arguments": (("task", task), *evidence.arguments[1:]),
        "data": evidence.data.model_copy(update=data),
    }
    if hits is not None:
        changed["test"] = score_of(hits, classes=len(evidence.data.classes))
    return evidence.model_copy(update=changed)


def score_of(hits, *, classes=10, labels=None):
    labels = labels or [k % classes for k in range(len(hits))]
    guesses = [label if hit else (label + 1) % classes for hit, label in zip(hits, labels, strict=True)]
    confusion = [[0] * classes for _ in range(classes)]
    for label, guess in zip(labels, guesses, strict=True):
        confusion[label][guess] += 1
    return Score(
        samples=len(hits),
        accuracy=sum(hits) / len(hits),
        low=0.1,
        high=0.9,
        balanced_accuracy=0.5,
        loss=0.5,
        confusion=tuple(map(tuple, confusion)),
        losses=tuple(-math.log(0.9 if hit else 0.05) for hit in hits),
        predictions=tuple(guesses),
        confidences=(0.9,) * len(hits),
    )


def differences(*runs):
    return comparison([(f"runs/{k}", run) for k, run in enumerate(runs)], "page.html")[0].differences


# --- who was right ----------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_answers_are_read_back_from_losses_and_confidences(hits):
    assert answers(score_of(hits)) == tuple(hits)


def test_answers_are_not_guessed_where_two_classes_are_just_as_likely():
    score = score_of([True, False, True])
    tied = score.model_copy(update={"losses": (score.losses[0],) * 3})

    assert answers(tied) == ()


# --- the same samples -------------------------------------------------------------------------


def test_one_task_has_one_test_part(fake_evidence):
    assert is_same_test(fake_evidence(seed=0), fake_evidence(seed=1))


def test_another_network_on_the_same_division_has_the_same_test_part(fake_evidence):
    asked = (("valid", "0.2"), ("test", "0.2"))
    one, other = (of(fake_evidence(), task=task, asked=asked) for task in "ab")

    assert is_same_test(one, other)
    assert is_same_test(one, of(other, task="b", name="/elsewhere/sign digits"))


@pytest.mark.parametrize(
    "data", [{"name": "photos/other"}, {"asked": (("valid", "0.1"),)}, {"counts": ((1, 1, 1),) * 10}]
)
def test_other_data_of_another_task_is_another_test_part(fake_evidence, data):
    asked = {"asked": (("valid", "0.2"),)}

    assert not is_same_test(of(fake_evidence(), **asked), of(fake_evidence(), task="b", **(asked | data)))


def test_samples_from_memory_are_the_same_only_within_a_task(fake_evidence):
    one, other = (of(fake_evidence(), task=task, name="tensors", asked=()) for task in "ab")

    assert is_same_test(one, one)
    assert not is_same_test(one, other)


def test_another_seed_divides_otherwise(fake_evidence):
    asked = (("valid", "0.2"),)
    one, other = (of(fake_evidence(), task=task, asked=asked) for task in "ab")
    seeded = other.model_copy(update={"plan": other.plan.model_copy(update={"seed": 1})})

    assert not is_same_test(one, seeded)


def test_answers_that_contradict_are_of_another_test_part(fake_evidence):
    asked = (("valid", "0.2"),)
    one, other = (of(fake_evidence(), task=task, asked=asked, hits=[True] * 20) for task in "ab")
    turned = score_of([True] * 20, labels=[(k + 1) % 10 for k in range(20)])

    assert is_same_test(one, other)
    assert not is_same_test(one, other.model_copy(update={"test": turned}))


# --- the difference ---------------------------------------------------------------------------


def test_difference_and_its_error_are_those_of_the_paired_answers(fake_evidence):
    draw = random.Random(0)
    hits, other_hits = ([draw.random() < rate for _ in range(200)] for rate in (0.9, 0.7))

    (found,) = differences(of(fake_evidence(), hits=hits), of(fake_evidence(), hits=other_hits))

    gaps = [int(a) - int(b) for a, b in zip(hits, other_hits, strict=True)]
    mean = sum(gaps) / 200
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 199 / 200)
    assert (found.first, found.second, found.samples) == ("A", "B", 200)
    assert found.difference == pytest.approx(mean)
    assert found.standard_error == pytest.approx(error)
    assert (found.only_first, found.only_second) == (gaps.count(1), gaps.count(-1))


@pytest.mark.parametrize(
    ("only_first", "only_second", "verdict"),
    [(0, 0, "not decided"), (5, 0, "not decided"), (6, 0, "A is more accurate"), (1, 9, "B is more accurate")],
)
def test_verdict_needs_more_than_chance(fake_evidence, only_first, only_second, verdict):
    both = [True] * 50
    one = of(fake_evidence(), hits=both + [True] * only_first + [False] * only_second)
    other = of(fake_evidence(), hits=both + [False] * only_first + [True] * only_second)

    assert differences(one, other)[0].verdict == verdict


@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_test_is_the_two_tails_of_a_fair_coin(ups, downs):
    n = ups + downs
    uneven = [k for k in range(n + 1) if abs(2 * k - n) >= abs(ups - downs)]

    assert sign_test(ups, downs) == pytest.approx(sum(math.comb(n, k) for k in uneven) / 2**n)


def test_runs_on_other_data_get_no_difference(fake_evidence):
    one, other = of(fake_evidence(), task="a"), of(fake_evidence(), task="b", name="other")

    assert differences(one, other) == ()


def test_runs_whose_answers_are_not_known_get_no_difference(fake_evidence):
    score = score_of([True, False, True])
    tied = score.model_copy(update={"losses": (score.losses[0],) * 3})

    assert differences(*[fake_evidence().model_copy(update={"test": tied})] * 2) == ()


# --- the record -------------------------------------------------------------------------------


def test_runs_on_one_test_part_stand_together_and_every_pair_of_them_is_compared(fake_evidence):
    runs = [of(fake_evidence(), task=task, name=task) for task in "abaa"]

    record, evidence = comparison([(f"runs/{k}", run) for k, run in enumerate(runs)], "page.html")

    assert [(run.letter, run.run, run.group) for run in record.runs] == [
        ("A", "runs/0", 1),
        ("B", "runs/2", 1),
        ("C", "runs/3", 1),
        ("D", "runs/1", 2),
    ]
    assert [one.data.name for one in evidence] == list("aaab")
    assert [(one.first, one.second) for one in record.differences] == [("A", "B"), ("A", "C"), ("B", "C")]


def test_figures_of_a_run_are_those_of_its_evidence(fake_evidence):
    evidence = fake_evidence()

    run = comparison([("runs/a", evidence)] * 2, "page.html")[0].runs[0]

    assert (run.accuracy, run.low, run.high) == (evidence.test.accuracy, evidence.test.low, evidence.test.high)
    assert (run.share_seconds, run.share_flops) == (evidence.cost.share_seconds, evidence.cost.share_flops)
    assert (run.epochs, run.full_epochs, run.budget, run.seed) == (10, 10, 1.0, 0)
    assert (run.parameters_live, run.parameters) == (evidence.parameters_live, evidence.graph.parameters)


def test_letters_go_on_after_the_last(fake_evidence):
    record, _ = comparison([("runs/a", fake_evidence(stages=4, depth=1))] * 28, "page.html")

    assert [run.letter for run in record.runs[-3:]] == ["Z", "A2", "B2"]


def test_record_hashes_and_survives_json(fake_evidence):
    record, _ = comparison([(b"caf\xe9".decode("utf-8", "surrogateescape"), fake_evidence())] * 2, "page.html")

    assert type(record).model_validate_json(record.model_dump_json()) == record
    assert hash(record)
