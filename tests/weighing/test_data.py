"""Claim 2: how many samples do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weighing.planted import SAMPLES, answers, carried_out, failed, trained

from frostline.weighing.arms import Setting
from frostline.weighing.data import judge, times_as_many, wanted

SIZES = (100, 200, 400, 800)
WOBBLE = {1: 0.0, 2: 0.005, 3: -0.005}


@pytest.fixture
def setting(fake_evidence):
    return Setting(fake_evidence(), (1, 2, 3))


def grid(accuracies, seeds=3, samples=SAMPLES):
    return np.array([[answers(accuracy, samples) for accuracy in accuracies]] * seeds, dtype=float)


def respond(setting, *, frozen, full, wobble=WOBBLE):
    """Accuracies that follow from the number of samples."""

    def answer(attempt):
        accuracy = full if attempt.trial.depth == 0 else frozen
        return trained(attempt, accuracy(attempt.samples or setting.train_samples) + wobble[attempt.trial.seed])

    return answer


def learning(factor):
    """A straight line over the logarithm of the size; as good as with so many times as many samples."""
    return lambda samples: 0.2 + 0.06 * np.log2(factor * samples)


def judged(setting, answer):
    return judge(setting, carried_out(wanted, setting, answer))


# --- the ratio --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 3.0])
def test_ratio_of_shifted_curves_is_their_shift(factor):
    frozen, full = (grid([learning(times)(size) for size in SIZES], samples=2000) for times in (factor, 1))

    assert times_as_many(frozen, full, SIZES).value == pytest.approx(factor, rel=0.03)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.1, 0.9), min_size=4, max_size=4))
def test_equal_curves_need_equally_many(accuracies):
    hits = grid(accuracies, samples=50)

    assert times_as_many(hits, hits, SIZES) == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize(("frozen", "full", "ratio"), [(0.9, 0.5, 8.0), (0.5, 0.9, 0.125)])
def test_curves_with_nothing_in_common_give_the_ratio_of_the_sizes(frozen, full, ratio):
    assert times_as_many(grid([frozen] * 4), grid([full] * 4), SIZES).value == pytest.approx(ratio)


def test_seeds_that_disagree_widen_the_interval():
    agreed, apart = (
        np.concatenate([grid([learning(1)(size) + shift for size in SIZES], seeds=1) for shift in shifts])
        for shifts in ((0, 0, 0), (-0.05, 0, 0.05))
    )
    full = grid([learning(1)(size) for size in SIZES])

    narrow, wide = (times_as_many(frozen, full, SIZES) for frozen in (agreed, apart))

    assert wide.high / wide.low > 1.2 * narrow.high / narrow.low


# --- the verdict ------------------------------------------------------------------------------


def test_half_the_data_for_the_same_accuracy_holds(setting):
    assert judged(setting, respond(setting, frozen=learning(2), full=learning(1))).verdict == "holds"


def test_more_data_for_the_same_accuracy_does_not_hold(setting):
    assert judged(setting, respond(setting, frozen=learning(0.5), full=learning(1))).verdict == "does not hold"


def test_curves_closer_than_their_error_are_not_decided(setting):
    def answer(attempt):
        sign = 1 if attempt.trial.depth else -1
        return respond(
            setting, frozen=learning(1), full=learning(1), wobble={s: sign * w * 4 for s, w in WOBBLE.items()}
        )(attempt)

    assert judged(setting, answer).verdict == "not decided"


def test_shuffled_labels_refute_the_claim(setting):
    claim = judged(setting, respond(setting, frozen=lambda _: 0.11, full=lambda _: 0.09))

    assert (claim.verdict, claim.sentence[:7]) == ("does not hold", "Neither")


def test_one_arm_that_learns_is_enough_to_compare(setting):
    claim = judged(setting, respond(setting, frozen=lambda _: 0.6, full=lambda _: 0.1))

    assert (claim.verdict, claim.sentence[:4]) == ("holds", "Even")


def test_sentence_says_how_many_times_as_many(setting):
    sentence = judged(setting, respond(setting, frozen=learning(2), full=learning(1))).sentence

    assert sentence.startswith("For the accuracy that freezing up to blocks.3.0 reaches, full fine-tuning needs 2.0")


def test_verdict_rests_on_whole_curves(setting):
    answer = respond(setting, frozen=learning(2), full=learning(1))
    least = setting.train_samples // 8

    claim = judged(setting, lambda a: failed(a) if a.samples == least and a.trial.seed > 1 else answer(a))

    assert claim.verdict == "not decided"


# --- what is asked for ------------------------------------------------------------------------


def test_rates_are_tried_first(setting):
    assert wanted(setting, {}) == setting.tuning


def test_arms_are_asked_for_seed_by_seed(setting):
    outcomes = {attempt.key: trained(attempt, 0.9) for attempt in setting.tuning}

    seeds = [attempt.trial.seed for attempt in wanted(setting, outcomes)[len(setting.tuning) :]]

    assert seeds == [1] * 12 + [2] * 12 + [3] * 12


def test_too_few_samples_to_leave_any_out_are_not_measured(fake_evidence):
    evidence = fake_evidence()
    counts = ((2, 9, 9),) * 10
    setting = Setting(evidence.model_copy(update={"data": evidence.data.model_copy(update={"counts": counts})}), (1, 2))

    assert (wanted(setting, {}), judge(setting, {}).verdict) == ((), "not measured")


def test_budget_that_ended_before_the_rates_is_not_measured(setting):
    assert judge(setting, {}).verdict == "not measured"


def test_panel_has_a_line_for_each_arm(setting):
    (panel,) = judged(setting, respond(setting, frozen=learning(2), full=learning(1))).panels

    assert [series.name for series in panel.series] == ["frozen up to blocks.3.0", "nothing frozen", "head only"]


def test_panel_shows_the_head_once_where_it_is_the_frozen_arm(setting):
    choice = setting.evidence.choice.model_copy(update={"depth": 18})
    setting = Setting(setting.evidence.model_copy(update={"choice": choice}), (1, 2))

    (panel,) = judged(setting, respond(setting, frozen=learning(2), full=learning(1))).panels

    assert [series.name for series in panel.series] == ["frozen up to conv_head", "nothing frozen"]
