"""Whether training is steadier: planted spreads, planted failures, and a control that must be able to refute."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weighing.planted import carried_out, failed, look, trained

from frostline.weighing.arms import Setting
from frostline.weighing.stability import judge, lost_by_chance, wanted

STEADY = (0.95, 0.9525, 0.9475)
WILD = (0.95, 0.6, 0.8)


@pytest.fixture(scope="module")
def setting(fake_evidence):
    return Setting(fake_evidence(), seeds=(1, 2, 3))


def judged(setting, *, frozen=STEADY, full=WILD, slower=WILD):
    """The claim where each arm has these accuracies by seed, None being a failure."""

    def respond(attempt):
        trial = attempt.trial
        arm = frozen if trial.depth else slower if trial.recipe.learning_rate == pytest.approx(1e-3 / 3) else full
        accuracy = arm[trial.seed - 1]
        return failed(attempt) if accuracy is None else trained(attempt, accuracy)

    return judge(setting, carried_out(wanted, setting, respond))


# --- what is asked for ------------------------------------------------------------------------


def test_rates_are_asked_for_before_anything_that_depends_on_them(setting):
    assert wanted(setting, {}) == setting.tuning


def test_every_seed_trains_all_three_arms(setting):
    outcomes = carried_out(wanted, setting, lambda attempt: trained(attempt, 0.9))

    arms = {(a.trial.depth, round(a.trial.recipe.learning_rate, 6), a.trial.seed) for a in wanted(setting, outcomes)}

    assert {(0, 1e-3, seed) for seed in (1, 2, 3)} <= arms
    assert {(0, 3.33e-4, seed) for seed in (1, 2, 3)} <= arms
    assert {(7, 1e-3, seed) for seed in (1, 2, 3)} <= arms


def test_frozen_arm_is_tried_at_every_rate_that_full_fine_tuning_was(setting):
    outcomes = carried_out(wanted, setting, lambda attempt: trained(attempt, 0.9))

    asked = [attempt.trial for attempt in wanted(setting, outcomes) if attempt.trial.seed == 1]

    rates = {trial.recipe.learning_rate for trial in asked if trial.depth}
    assert rates == set(setting.evidence.plan.learning_rates)


# --- spread -----------------------------------------------------------------------------------


def test_unstable_recipe_shows(setting):
    claim = judged(setting, full=WILD, slower=WILD)

    assert claim.verdict == "holds"
    assert claim.low > 1


def test_lower_rate_that_is_as_steady_refutes(setting):
    claim = judged(setting, frozen=STEADY, full=WILD, slower=STEADY)

    assert claim.verdict != "holds"
    assert claim.value == pytest.approx(1.0)
    assert "with nothing frozen at a third of the rate by" in claim.sentence
    assert "freezing is compared with it" in claim.control


def test_lower_rate_that_costs_accuracy_does_not_count(setting):
    claim = judged(setting, full=WILD, slower=(0.7, 0.7025, 0.6975))

    assert claim.verdict == "holds"
    assert "does not count" in claim.control


def test_equal_spreads_of_few_seeds_decide_nothing(setting):
    claim = judged(setting, full=STEADY, slower=STEADY)

    assert claim.verdict == "not decided"


def test_undecided_ratio_tells_how_many_seeds_would_decide_it(setting):
    claim = judged(setting, full=(0.95, 0.955, 0.945), slower=WILD)

    assert claim.value == pytest.approx(2, abs=0.1)
    assert "if the ratio stays, 11 would decide it" in claim.sentence


def test_frozen_arm_that_scatters_far_more_refutes(setting):
    claim = judged(setting, frozen=WILD, full=STEADY, slower=STEADY)

    assert claim.verdict == "does not hold"


def test_arms_that_answer_all_alike_have_no_infinite_ratio(setting):
    claim = judged(setting, frozen=(0.9,) * 3, full=(0.9,) * 3, slower=(0.9,) * 3)

    assert claim.value == 1.0
    assert claim.verdict == "not decided"


@settings(max_examples=40)
@given(*[st.tuples(*[st.none() | st.floats(0, 1)] * 3)] * 3)
def test_whatever_came_of_the_trainings_all_that_is_said_is_known(setting, frozen, full, slower):
    claim = judged(setting, frozen=frozen, full=full, slower=slower)

    known = (claim.value, claim.low, claim.high)
    assert known == (None,) * 3 or claim.low <= claim.value <= claim.high
    assert "nan" not in claim.model_dump_json().lower()


# --- lost runs --------------------------------------------------------------------------------


def test_failure_at_every_seed_of_full_fine_tuning_alone_holds(setting):
    claim = judged(setting, full=(None,) * 3, slower=(None,) * 3)

    assert claim.verdict == "holds"
    assert "0 of 3 trainings failed or ended no better than guessing; with nothing frozen 3 of 3" in claim.sentence


def test_fall_to_chance_is_a_lost_run(setting):
    claim = judged(setting, full=(0.1,) * 3, slower=(0.1,) * 3)

    assert claim.verdict == "holds"


def test_failure_at_every_seed_of_the_frozen_arm_alone_refutes(setting):
    claim = judged(setting, frozen=(None,) * 3, full=STEADY, slower=STEADY)

    assert claim.verdict == "does not hold"


def test_two_failures_of_three_leave_too_few(setting):
    claim = judged(setting, full=(0.95, None, None), slower=(0.95, None, None))

    assert claim.verdict == "not decided"


def test_one_failure_of_full_fine_tuning_forbids_to_refute(setting):
    steady_but_one = (0.95, 0.95, None)
    claim = judged(setting, frozen=WILD, full=steady_but_one, slower=steady_but_one)

    assert claim.verdict == "not decided"


def test_lower_rate_that_never_fails_takes_the_place_of_one_that_does(setting):
    claim = judged(setting, full=(None,) * 3, slower=STEADY)

    assert claim.verdict == "not decided"
    assert claim.value == pytest.approx(1.0)


def test_nothing_learnt_by_either_is_not_decided(setting):
    claim = judged(setting, frozen=(0.1,) * 3, full=(0.1,) * 3, slower=(0.1,) * 3)

    assert claim.verdict == "not decided"


def arms_of(most):
    return st.integers(1, most).flatmap(lambda runs: st.tuples(st.integers(0, runs), st.just(runs)))


@given(arms_of(4), arms_of(4))
def test_probability_is_that_of_dealing_the_lost_runs_at_random(one, other):
    (lost, runs), (others_lost, others) = one, other
    dealt = list(itertools.combinations(range(runs + others), lost + others_lost))

    as_many = sum(sum(place < runs for place in places) >= lost for places in dealt)

    assert lost_by_chance(one, other) == pytest.approx(as_many / len(dealt))


# --- what was not paid for --------------------------------------------------------------------


def test_nothing_paid_is_not_measured(setting):
    assert judge(setting, {}).verdict == "not measured"


def test_one_seed_is_not_measured(setting):
    def respond(attempt):
        return trained(attempt, 0.9)

    paid = {
        attempt.key: respond(attempt)
        for attempt in (*setting.tuning, setting.frozen(1), setting.full(1, 1e-3), setting.full(1, 1e-3 / 3))
    }

    assert judge(setting, paid).verdict == "not measured"


# --- facts ------------------------------------------------------------------------------------


def facts_of(setting, curve):
    outcomes = carried_out(wanted, setting, lambda attempt: trained(attempt, 0.9, curve=curve))
    return dict(judge(setting, outcomes).facts)


def test_fall_from_the_best_to_the_last_epoch_is_told(setting):
    facts = facts_of(setting, (look(0, 0.5, 0.90), look(1, 0.4, 0.94), look(2, 0.6, 0.91)))

    told = facts["best less last epoch, validation points"]

    assert told == "frozen 3.00, nothing frozen 3.00, nothing frozen at a third of the rate 3.00"


def test_unrest_of_the_gradient_is_its_deviation_over_its_mean(setting):
    looks = [look(k, 0.4, gradient_norm=2.0, gradient_spread=spread) for k, spread in enumerate((0.5, 1.5))]
    facts = facts_of(setting, (look(0, 0.5), *looks))

    told = facts["gradient norm, deviation over mean"]

    assert told.startswith("frozen 0.50, ")


def test_rates_within_a_point_of_the_best_are_listed(setting):
    def respond(attempt):
        return trained(attempt, 0.9 if attempt.trial.depth or attempt.trial.recipe.learning_rate > 5e-4 else 0.8)

    facts = dict(judge(setting, carried_out(wanted, setting, respond)).facts)

    told = facts["learning rates within a point of the best"]

    assert told == "frozen 2 of 2 (3e-4, 1e-3), nothing frozen 1 of 2 (1e-3)"


def test_plot_shows_each_seed_of_each_arm(setting):
    (panel,) = judged(setting).panels

    assert [series.x for series in panel.series] == [(1.0, 2.0, 3.0)] * 3
    assert panel.series[1].y == WILD
