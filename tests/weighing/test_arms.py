"""The arms that claims compare."""

import pytest
from weighing.planted import failed, look, trained

from frostline.records import Trial
from frostline.weighing.arms import (
    Setting,
    good,
    hits_of,
    together,
    unanswered,
    undecided,
    unmeasured,
    valid_loss,
)


@pytest.fixture
def setting(fake_evidence):
    return Setting(fake_evidence(), (1, 2, 3))


def losses_by_rate(setting, losses):
    """Full fine-tuning at each rate, at the first seed, with such validation losses."""
    answered = zip(setting.tuning, losses, strict=True)
    return {attempt.key: trained(attempt, 0.9, curve=(look(0, 1.0), look(1, loss))) for attempt, loss in answered}


def fixed_at(evidence, depth, **plan):
    """The same run, as if it had chosen another depth."""
    changes = {"choice": evidence.choice.model_copy(update={"depth": depth})}
    return evidence.model_copy(update=changes | {"plan": evidence.plan.model_copy(update=plan)})


# --- depths -----------------------------------------------------------------------------------


def test_frozen_arm_is_what_the_search_chose(setting):
    assert (setting.depth, setting.is_chosen) == (setting.evidence.choice.depth, True)


def test_frozen_arm_where_nothing_was_frozen_is_the_deepest_raced_beside_the_head(fake_evidence):
    setting = Setting(fixed_at(fake_evidence(), 0, candidates=(0, 4, 9, 18)), (1,))

    assert (setting.depth, setting.is_chosen) == (9, False)


def test_a_frozen_arm_that_was_not_chosen_is_said_so(fake_evidence):
    setting = Setting(fixed_at(fake_evidence(), 0, candidates=(0, 4, 9, 18)), (1,))

    assert "chose to freeze nothing" in setting.note


def test_frozen_arm_is_the_head_alone_where_only_that_was_raced(fake_evidence):
    setting = Setting(fixed_at(fake_evidence(), 0, candidates=(0, 18)), (1,))

    assert setting.is_head_only


def test_a_chosen_depth_needs_no_note(setting):
    assert setting.note == ""


# --- equal attempts ---------------------------------------------------------------------------


def test_head_is_the_frozen_arm_where_that_trains_no_more(fake_evidence):
    setting = Setting(fixed_at(fake_evidence(), 18), (1,))

    assert setting.head(1) == setting.frozen(1)


def test_head_is_trained_alike_whatever_rate_the_race_found(setting):
    spec = setting.evidence.trials[0].spec
    slow = spec.recipe.model_copy(update={"learning_rate": 1e-5})
    trial = Trial(spec=spec.model_copy(update={"depth": 18, "recipe": slow}), losses=(0.1,), hits=(True,))
    evidence = fixed_at(setting.evidence, 18)
    choice = evidence.choice.model_copy(update={"trial": trial.spec.key})

    head = Setting(evidence.model_copy(update={"choice": choice, "trials": (trial,)}), (1,)).head(1)

    assert head == setting.head(1)


def test_layers_above_the_deepest_cut_are_not_drawn_anew(setting):
    assert setting.frozen(1, depth=18, rest="random") == setting.head(1)


def test_stages_drawn_anew_learn_the_statistics_of_their_norms(setting):
    anew, kept = (setting.frozen(1, rest=rest).trial.recipe for rest in ("random", "pretrained"))

    assert (anew.norm_mode, kept.norm_mode) == ("train", "eval")


def test_frozen_arm_is_trained_as_the_race_found_best(setting):
    chosen = next(trial for trial in setting.evidence.trials if trial.spec.key == setting.evidence.choice.trial)

    assert setting.frozen(1).trial.recipe.learning_rate == chosen.spec.recipe.learning_rate


def test_frozen_arm_that_was_not_chosen_has_the_rate_of_its_longest_training(fake_evidence):
    evidence = fixed_at(fake_evidence(), 0, candidates=(0, 4, 9, 18))
    spec = evidence.trials[0].spec
    at = [
        spec.model_copy(
            update={"depth": 9, "epochs": epochs, "recipe": spec.recipe.model_copy(update={"learning_rate": rate})}
        )
        for epochs, rate in ((1, 1e-2), (3, 2e-4))
    ]
    evidence = evidence.model_copy(
        update={"trials": tuple(Trial(spec=each, losses=(0.1,), hits=(True,)) for each in at)}
    )

    assert Setting(evidence, (1,)).frozen_rate == 2e-4


def test_every_training_has_all_epochs_and_a_falling_rate(setting):
    specs = [attempt.trial for attempt in (setting.frozen(1), setting.head(1), *setting.tuning)]

    assert {(spec.epochs, spec.recipe.schedule, spec.recipe.averaging) for spec in specs} == {(10, "cosine", 0.0)}


def test_warm_head_is_softened_where_more_is_trained(setting):
    attempts = (setting.full(1, 1e-3), setting.frozen(1), setting.head(1))

    assert [attempt.trial.recipe.head_scale for attempt in attempts] == [0.3, 0.3, 1.0]


def test_weight_decay_is_changed_only_where_asked(setting):
    decays = [setting.full(1, 1e-3, weight_decay=decay).trial.recipe.weight_decay for decay in (None, 0.1)]

    assert decays == [setting.evidence.plan.recipe.weight_decay, 0.1]


def test_a_probe_differs_by_its_weights_alone(setting):
    random, matched = setting.probe("random"), setting.probe("matched")

    assert random.model_copy(update={"prefix": "matched"}) == matched


def test_memory_without_the_store_is_another_attempt(setting):
    assert setting.memory(7).key != setting.memory(7, is_stored=False).key


# --- the rate of full fine-tuning -------------------------------------------------------------


def test_rate_is_unknown_until_all_were_tried(setting):
    first = setting.tuning[0]

    assert setting.full_rate({first.key: trained(first, 0.9)}) is None


@pytest.mark.parametrize(("losses", "best"), [((0.3, 0.2), 1e-3), ((0.2, 0.3), 3e-4)])
def test_rate_is_the_one_of_lowest_validation_loss(setting, losses, best):
    assert setting.full_rate(losses_by_rate(setting, losses)) == best


def test_rate_that_failed_is_not_taken(setting):
    outcomes = losses_by_rate(setting, (0.3, 0.2))
    broken = setting.tuning[1]

    assert setting.full_rate(outcomes | {broken.key: failed(broken)}) == 3e-4


def test_validation_loss_is_the_lowest_of_the_curve(setting):
    assert valid_loss(trained(setting.head(1), 0.9, curve=(look(0, 0.3), look(1, 0.1), look(2, 0.2)))) == 0.1


# --- reading outcomes -------------------------------------------------------------------------


def test_an_attempt_asked_for_twice_is_missing_once(setting):
    assert unanswered([setting.head(1), setting.head(1)], {}) == (setting.head(1),)


def test_a_failed_attempt_is_answered(setting):
    attempt = setting.head(1)

    assert unanswered([attempt], {attempt.key: failed(attempt)}) == ()


def test_a_failed_attempt_is_not_good(setting):
    attempt = setting.head(1)

    assert good([attempt], {attempt.key: failed(attempt)}) == ()


def test_seeds_that_one_arm_misses_are_left_out_of_both(setting):
    arms = [[setting.frozen(seed) for seed in (1, 2, 3)], [setting.head(seed) for seed in (1, 2, 3)]]
    outcomes = {attempt.key: trained(attempt, 0.9) for arm in arms for attempt in arm}
    outcomes |= {arms[0][1].key: failed(arms[0][1])}
    del outcomes[arms[1][2].key]

    found = together(arms, outcomes)

    assert [[outcome.attempt.trial.seed for outcome in arm] for arm in found] == [[1], [1]]


def test_hits_have_a_row_for_each_seed(setting):
    outcomes = [trained(setting.head(seed), accuracy) for seed, accuracy in ((1, 0.5), (2, 0.75))]

    assert hits_of(outcomes).mean(axis=1).tolist() == [0.5, 0.75]


def test_too_few_answers_are_not_measured(setting):
    assert undecided("data", [setting.head(1)], {}).verdict == "not measured"


def test_failures_that_leave_too_few_are_named(setting):
    attempt = setting.head(1)

    claim = undecided("data", [attempt, setting.head(2)], {attempt.key: failed(attempt)})

    assert (claim.verdict, claim.sentence[:26]) == ("not decided", "1 of the 2 trainings faile")


def test_what_was_not_measured_says_why():
    assert unmeasured("reuse", "Nobody asked.").sentence == "Nobody asked."


def test_chance_is_the_share_of_the_commonest_class(fake_evidence):
    evidence = fake_evidence()
    data = evidence.data.model_copy(update={"counts": ((5, 5, 30), (5, 5, 10))})

    assert Setting(evidence.model_copy(update={"data": data}), (1,)).chance == 0.75
