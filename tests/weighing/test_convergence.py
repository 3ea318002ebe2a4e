"""Claim 3: how soon training gets there."""

import pytest
from weighing.planted import carried_out, failed, look, trained

from frostline.weighing.arms import Setting
from frostline.weighing.convergence import judge, reach, wanted

EPOCHS = 10
FULL, FROZEN, PASS = 1e12, 5e11, 2e10


@pytest.fixture
def setting(fake_evidence):
    return Setting(fake_evidence(), (1, 2, 3))


def curve_of(*accuracies):
    return tuple(look(epoch, 1 - accuracy, accuracy) for epoch, accuracy in enumerate(accuracies))


def rising(reached, *, start=0.5, final=0.9):
    """At its end from that epoch on."""
    return curve_of(*[start] * reached, *[final] * (EPOCHS + 1 - reached))


def respond(*, frozen, full, flops=FROZEN):
    """Epoch at which each arm is where it is going, by seed."""

    def answer(attempt):
        if attempt.trial.depth == 0:
            return trained(attempt, 0.9, curve=rising(full[attempt.trial.seed - 1]), flops=FULL)
        curve = rising(frozen[attempt.trial.seed - 1])
        return trained(attempt, 0.9, curve=curve, flops=flops, pass_flops=PASS, pass_seconds=2.0)

    return answer


def judged(setting, answer):
    return judge(setting, carried_out(wanted, setting, answer))


def test_fewer_epochs_at_half_the_price_hold(setting):
    assert judged(setting, respond(frozen=(3, 3, 3), full=(5, 6, 5))).verdict == "holds"


def test_as_many_epochs_at_the_same_price_are_known_to_an_epoch_only(setting):
    claim = judged(setting, respond(frozen=(5, 5, 5), full=(5, 5, 5), flops=FULL))

    assert claim.verdict == "not decided"
    assert claim.low < 0.9 < 1.1 < claim.high


def test_more_epochs_than_half_the_price_makes_up_for_do_not_hold(setting):
    assert judged(setting, respond(frozen=(8, 8, 9), full=(2, 2, 2))).verdict == "does not hold"


def test_seeds_that_disagree_are_not_decided(setting):
    assert judged(setting, respond(frozen=(2, 5, 9), full=(5, 5, 5))).verdict == "not decided"


def test_a_target_that_both_start_beyond_is_not_decided(setting):
    claim = judged(setting, respond(frozen=(0, 0, 0), full=(0, 0, 0)))

    assert (claim.verdict, claim.value) == ("not decided", None)


def test_value_counts_the_pass(setting):
    claim = judged(setting, respond(frozen=(5, 5, 5), full=(5, 5, 5)))

    samples, valid = setting.train_samples, setting.valid_samples
    share = (15 * samples + 6 * valid) / (30 * samples + 11 * valid)
    assert claim.value == pytest.approx(FULL * share / (FROZEN * share + PASS))


def test_ratio_without_the_price_of_an_epoch_is_told(setting):
    assert "1.00 times (0.82 to 1.22)" in judged(setting, respond(frozen=(5, 5, 5), full=(5, 5, 5))).control


def test_the_less_accurate_arm_sets_the_target(setting):
    def answer(attempt):
        final = 0.9 if attempt.trial.depth == 0 else 0.6
        return trained(attempt, 0.9, curve=rising(4, start=0.3, final=final), flops=FULL, pass_flops=PASS)

    assert dict(judged(setting, answer).facts)["common target, validation accuracy"] == ".588"


def test_reach_is_the_first_look_at_the_target(setting):
    outcome = trained(setting.frozen(1), 0.9, curve=curve_of(0.5, 0.9, 0.7, 0.95), flops=1.0, pass_seconds=3.0)

    assert reach(setting, outcome, 0.8)[:2] == (1, 5.0)


def test_reach_at_the_end_costs_everything(setting):
    outcome = trained(setting.frozen(1), 0.9, curve=curve_of(0.5, 0.6, 0.9), flops=7.0, pass_flops=2.0)

    assert reach(setting, outcome, 0.9).flops == pytest.approx(9.0)


def test_sentence_says_how_many_times_as_many_operations(setting):
    sentence = judged(setting, respond(frozen=(3, 3, 3), full=(6, 6, 6))).sentence

    assert sentence.startswith("To an accuracy that both reach, full fine-tuning takes 3.")


def test_trainings_that_failed_decide_nothing(setting):
    answer = respond(frozen=(3, 3, 3), full=(6, 6, 6))

    claim = judged(setting, lambda attempt: failed(attempt) if attempt.trial.depth else answer(attempt))

    assert claim.verdict == "not decided"


def test_lines_end_at_all_that_was_spent(setting):
    (panel,) = judged(setting, respond(frozen=(3, 3, 3), full=(6, 6, 6))).panels

    frozen, full = (series.x for series in panel.series)
    assert frozen[-1] == pytest.approx((FROZEN + PASS) / 1e12)
    assert full[-1] == pytest.approx(FULL / 1e12)
