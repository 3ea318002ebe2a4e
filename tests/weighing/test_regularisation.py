"""Whether freezing guards against wrong labels: planted losses of accuracy, and calibration whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weighing.planted import carried_out, failed, look, trained

from frostline.weighing.arms import Setting
from frostline.weighing.regularisation import calibration_error, judge, wanted


@pytest.fixture(scope="module")
def setting(fake_evidence):
    return Setting(fake_evidence(), seeds=(1, 2, 3))


def judged(setting, *, frozen, full, decayed, **more):
    """The claim where arms have these accuracies without and with wrong labels, and so with more weight decay."""

    def respond(attempt):
        if attempt.trial.depth:
            accuracy = frozen[attempt.noise > 0]
        else:
            accuracy = decayed if attempt.trial.recipe.weight_decay == 0.1 else full[attempt.noise > 0]
        return failed(attempt) if accuracy is None else trained(attempt, accuracy, **more)

    return judge(setting, carried_out(wanted, setting, respond))


# --- what is asked for ------------------------------------------------------------------------


def test_rates_are_asked_for_before_anything_that_depends_on_them(setting):
    assert wanted(setting, {}) == setting.tuning


def test_each_seed_is_paid_for_whole_before_the_next(setting):
    outcomes = carried_out(wanted, setting, lambda attempt: trained(attempt, 0.9))

    rows = wanted(setting, outcomes)[len(setting.tuning) :]

    assert [attempt.trial.seed for attempt in rows] == [1] * 5 + [2] * 5 + [3] * 5
    assert [(bool(a.trial.depth), a.noise) for a in rows[:5]] == [
        (True, 0.0),
        (True, 0.2),
        (False, 0.0),
        (False, 0.2),
        (False, 0.2),
    ]


# --- verdicts ---------------------------------------------------------------------------------


def test_frozen_arm_that_loses_less_holds(setting):
    claim = judged(setting, frozen=(0.95, 0.94), full=(0.95, 0.85), decayed=0.86)

    assert claim.verdict == "holds"
    assert claim.value == pytest.approx(8.0)
    assert "costs 1.0 points of accuracy; with nothing frozen 9.0. Freezing saves 8.0 points" in claim.sentence


def test_weight_decay_that_guards_as_well_refutes(setting):
    claim = judged(setting, frozen=(0.95, 0.94), full=(0.95, 0.85), decayed=0.94)

    assert claim.verdict == "does not hold"


def test_weight_decay_that_does_harm_does_not_help_the_claim(setting):
    claim = judged(setting, frozen=(0.95, 0.94), full=(0.95, 0.94), decayed=0.5)

    assert claim.verdict == "does not hold"


def test_shuffled_labels_refute(setting):
    claim = judged(setting, frozen=(0.1, 0.11), full=(0.1, 0.09), decayed=0.1)

    assert claim.verdict == "does not hold"
    assert claim.sentence.startswith("Neither arm learnt anything from these labels")


def test_frozen_arm_that_learnt_nothing_does_not_pass_for_robust(setting):
    claim = judged(setting, frozen=(0.1, 0.1), full=(0.95, 0.85), decayed=0.85)

    assert claim.verdict == "does not hold"


def test_answers_that_change_sides_widen_the_interval(setting):
    def respond(attempt):
        odds = np.random.default_rng([attempt.trial.seed, attempt.trial.depth, int(10 * attempt.noise)])
        return trained(attempt, 0.9, test_hits=tuple((odds.random(400) < 0.9).tolist()))

    claim = judge(setting, carried_out(wanted, setting, respond))

    assert claim.verdict == "not decided"


def test_training_that_failed_at_one_seed_leaves_the_other_two(setting):
    def respond(attempt):
        return failed(attempt) if attempt.noise and attempt.trial.seed == 2 else trained(attempt, 0.9)

    claim = judge(setting, carried_out(wanted, setting, respond))

    assert dict(claim.facts)["seeds compared"] == "2 of 3"


def test_failure_at_all_seeds_is_not_decided(setting):
    claim = judged(setting, frozen=(0.95, 0.94), full=(0.95, None), decayed=0.9)

    assert claim.verdict == "not decided"


def test_nothing_paid_is_not_measured(setting):
    assert judge(setting, {}).verdict == "not measured"


@settings(max_examples=20)
@given(frozen=st.tuples(*[st.floats(0, 1)] * 2), full=st.tuples(*[st.floats(0, 1)] * 2), decayed=st.floats(0, 1))
def test_claim_never_holds_where_more_weight_decay_bears_noise_as_well_as_freezing(setting, frozen, full, decayed):
    as_good = max(decayed, frozen[1] + full[0] - frozen[0])

    claim = judged(setting, frozen=frozen, full=full, decayed=min(1.0, as_good))

    assert claim.verdict != "holds" or as_good > 1


# --- what else is told ------------------------------------------------------------------------


def test_gap_between_training_and_test_is_in_points(setting):
    claim = judged(setting, frozen=(0.9, 0.9), full=(0.9, 0.9), decayed=0.9, train_accuracy=0.97)

    assert dict(claim.facts)["training less test accuracy, points"] == "frozen 7.0, nothing frozen 7.0"


def test_losses_are_compared_where_both_arms_fit_equally_well(setting):
    shallow = (look(0, 0.9), look(1, 0.6, train_loss=0.8), look(2, 0.5, train_loss=0.4))
    steep = (look(0, 0.9), look(1, 0.6, train_loss=0.6), look(2, 1.0, train_loss=0.2))

    def respond(attempt):
        return trained(attempt, 0.9, curve=shallow if attempt.trial.depth else steep)

    facts = dict(judge(setting, carried_out(wanted, setting, respond)).facts)

    # The frozen arm comes no lower than 0.4; the full one passes it half way between its two looks, at 0.8.
    told = facts["validation less training loss at the same training loss, nats"]
    assert told == "frozen 0.100, nothing frozen 0.400 (at 0.400)"


def test_plot_shows_each_arm_with_its_interval(setting):
    (panel,) = judged(setting, frozen=(0.95, 0.94), full=(0.95, 0.85), decayed=0.86).panels

    frozen, full, decayed = panel.series

    assert (frozen.x, full.x, decayed.x) == ((0.0, 20.0), (0.0, 20.0), (20.0,))
    assert full.y == (0.95, 0.85)
    assert full.low[1] < 0.85 < full.high[1]


# --- calibration ------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_answers_as_sure_as_they_are_right_are_calibrated(seed):
    odds = np.random.default_rng(seed)
    confidences = odds.uniform(0.1, 1, 20_000)

    error = calibration_error(confidences, odds.random(20_000) < confidences)

    assert error < 0.02


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1))
def test_calibration_error_is_at_least_the_overall_excess_of_confidence(answers):
    confidences, hits = np.array(answers).T

    error = calibration_error(confidences, hits)

    assert abs(confidences.mean() - hits.mean()) - 1e-9 <= error <= 1


@given(st.integers(1, 50))
def test_sure_and_wrong_is_the_largest_error(samples):
    assert calibration_error([1.0] * samples, [False] * samples) == 1


def test_calibration_error_within_one_bin_is_the_difference_of_the_means():
    assert calibration_error([0.9, 0.9, 0.92, 0.92], [True, True, True, False]) == pytest.approx(0.16)


def test_errors_of_two_bins_do_not_cancel():
    assert calibration_error([0.5, 1.0], [True, False]) == pytest.approx(0.75)
