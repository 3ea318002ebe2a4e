import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from races import LITE, by_depth, carried_out, finishes, graph_of, plan_of, trial_of, votes_of

from frostline.calibration import best_temperature
from frostline.choosing import choose
from frostline.comparing import paired
from frostline.errors import AllTrialsFailed
from frostline.prices import CHEAP
from frostline.records import Doubt, Trial
from frostline.search import strategy

QUICK = settings(max_examples=25, deadline=None)


def cost_of(meant, trials):
    return sum(meant.budget.cost(trial.spec.depth, trial.spec.epochs, trial.spec.first_epoch) for trial in trials)


graphs = st.builds(
    lambda flops, blocked: graph_of(flops, blocked={depth for depth in blocked if 0 < depth < len(flops) - 1}),
    st.lists(st.integers(1, 100), min_size=2, max_size=20),
    st.sets(st.integers(1, 18), max_size=4),
)
plans = st.tuples(
    graphs,
    st.floats(0.01, 3.0),
    st.none() | st.integers(1, 30),
    st.integers(10, 20_000),
    st.integers(4, 2_000),
    st.booleans(),
    st.randoms(use_true_random=False),
)


def made(drawn):
    graph, limit, epochs, train, valid, is_fixed, draw = drawn
    depth = draw.choice(graph.open_depths) if is_fixed else None
    return graph, plan_of(graph, limit=limit, epochs=epochs, train=train, valid=valid, depth=depth), draw


def fate(draw):
    """Any outcome at all, the same whenever one spec is asked for again."""
    seed = draw.random()

    def outcome(spec):
        own = random.Random(f"{seed} {spec.key}")
        return trial_of(spec, own.uniform(0.05, 1.5), failure="nan" if own.random() < 0.25 else None, samples=20)

    return outcome


@QUICK
@given(plans)
def test_a_strategy_ends_and_keeps_its_budget(drawn):
    graph, meant, draw = made(drawn)

    trials = carried_out(graph, meant, fate(draw))

    assert trials
    assert cost_of(meant, trials) + meant.budget.reserve <= meant.budget.limit + 1e-6


@QUICK
@given(plans)
def test_a_strategy_and_a_choice_ignore_the_order_of_their_trials(drawn):
    graph, meant, draw = made(drawn)
    trials = carried_out(graph, meant, fate(draw))
    known = draw.sample(trials, draw.randint(0, len(trials)))
    shuffled = draw.sample(known, len(known))

    asked = strategy(graph, votes_of(graph), meant, known, ())

    assert strategy(graph, votes_of(graph), meant, shuffled, ()) == asked
    if any(not trial.failure for trial in known):
        assert choose(graph, shuffled) == choose(graph, known)


@QUICK
@given(plans)
def test_a_stopped_search_asks_for_the_trials_of_an_unbroken_one(drawn):
    graph, meant, draw = made(drawn)
    outcome = fate(draw)
    whole = carried_out(graph, meant, outcome)
    known = whole[: draw.randint(0, len(whole))]

    while specs := strategy(graph, votes_of(graph), meant, known, ()):
        known = [*known, outcome(specs[0])]

    assert {trial.spec.key for trial in known} == {trial.spec.key for trial in whole}


@QUICK
@given(plans)
def test_a_strategy_tolerates_failures_and_a_choice_says_when_all_failed(drawn):
    graph, meant, _ = made(drawn)

    trials = carried_out(graph, meant, lambda spec: trial_of(spec, 0, failure="the training loss is nan"))

    with pytest.raises(AllTrialsFailed, match="the training loss is nan") as caught:
        choose(graph, trials)
    assert caught.value.failures == ("the training loss is nan",)


@QUICK
@given(plans)
def test_only_a_raised_limit_exceeds_what_was_asked_for_and_the_plan_says_so(drawn):
    limit = drawn[1]
    _, meant, _ = made(drawn)

    raised = meant.budget.limit > limit

    assert not raised or (len(meant.candidates) == 1 and any("budget" in note for note in meant.notes))


@QUICK
@given(plans)
def test_a_plan_tries_open_depths_only(drawn):
    graph, meant, _ = made(drawn)

    assert set(meant.candidates) <= set(graph.open_depths)
    assert [forecast.depth for forecast in meant.forecasts] == list(graph.open_depths)


def test_a_plan_takes_a_shallow_a_middle_and_the_deepest_depth():
    meant = plan_of(LITE)

    assert meant.candidates[-1] == LITE.max_depth
    assert 0 < meant.candidates[0] <= 3
    assert len(meant.candidates) == 3
    assert 0.3 < 1 - LITE.frozen_share(meant.candidates[1]) < 0.5


def test_the_probe_picks_among_depths_of_about_the_same_cost():
    plain = plan_of(LITE).candidates[1]
    liked = plain - 1

    meant = plan_of(LITE, prior=votes_of(LITE, {liked: 0.9}))

    assert meant.candidates[1] == liked


def test_default_epochs_take_about_six_hundred_steps():
    assert plan_of(LITE, train=1237).budget.epochs == 16
    assert plan_of(LITE, train=100_000).budget.epochs == 4
    assert plan_of(LITE, train=64).budget.epochs == 60


# --- views ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "views"), [(64, 4), (900, 2), (1200, 1)])
def test_several_views_are_kept_where_their_passes_cost_next_to_nothing_and_the_plan_says_so(train, views):
    meant = plan_of(LITE, train=train, views=None, most=99)

    assert meant.views == views
    said = f"Of each training sample {views} views are kept, {views - 1} of them augmented"
    assert any(said in note for note in meant.notes) == (views > 1)


@pytest.mark.parametrize(("most", "views"), [(1, 1), (2, 2), (3, 2), (4, 4)])
def test_no_more_views_are_planned_than_there_can_be(most, views):
    assert plan_of(LITE, train=64, views=None, most=most).views == views


@pytest.mark.parametrize("views", [1, 2, 8])
def test_views_that_were_asked_for_are_kept_whatever_they_cost(views):
    assert plan_of(LITE, views=views, most=99).views == views


def test_views_do_not_drive_rows_off_the_disk():
    def planned(disk):
        return plan_of(LITE, train=64, valid=10, views=None, most=99, disk=disk)

    # Three depths are kept, of eight bytes a row; the test part has ten rows, too.
    needed = {views: 3 * 8 * (64 * views + 20) for views in (1, 2, 4)}
    found = [planned(needed[views] - less) for views in (4, 2, 1) for less in (0, 1)]

    assert [(meant.views, bool(meant.computed)) for meant in found] == [
        (4, False), (2, False), (2, False), (1, False), (1, False), (1, True)
    ]  # fmt: skip


def test_where_nothing_is_frozen_no_view_is_stored():
    assert plan_of(LITE, train=64, depth=0, views=None, most=99).views == 1


@QUICK
@given(plans, st.sampled_from([None, 0, 10_000, 1_000_000]))
def test_views_by_the_plan_leave_its_race_as_it_is(drawn, disk):
    graph, limit, epochs, train, valid, _, _ = drawn
    asked = {"limit": limit, "epochs": epochs, "train": train, "valid": valid, "disk": disk, "most": 99}

    one, chosen = (plan_of(graph, **asked, views=views) for views in (1, None))

    assert [chosen.candidates, chosen.learning_rates, chosen.budget.race_epochs, chosen.computed] == [
        one.candidates, one.learning_rates, one.budget.race_epochs, one.computed
    ]  # fmt: skip


def test_a_budget_below_the_race_trains_the_deepest_cut_alone_and_says_so():
    meant = plan_of(LITE, limit=0.12)

    trials = carried_out(LITE, meant, lambda spec: trial_of(spec, 0.3))

    assert [trial.spec.depth for trial in trials] == [LITE.max_depth]
    assert any("less than a race" in note for note in meant.notes)


def test_a_tight_budget_makes_the_race_smaller_and_says_so():
    meant = plan_of(LITE, limit=0.45)

    assert len(meant.candidates) > 1
    assert any("smaller race" in note for note in meant.notes)


def test_a_few_validation_samples_are_said_to_be_few():
    notes = plan_of(LITE, valid=40).notes

    assert any("40 validation samples" in note and "5 points" in note for note in notes)


def test_a_given_depth_is_trained_for_all_its_epochs():
    meant = plan_of(LITE, depth=9)

    trials = carried_out(LITE, meant, lambda spec: trial_of(spec, 0.3))

    assert {trial.spec.depth for trial in trials} == {9}
    assert max(trial.spec.first_epoch + trial.spec.epochs for trial in trials) == meant.budget.epochs


def test_the_head_alone_needs_no_race_of_rates():
    meant = plan_of(LITE, depth=LITE.max_depth)

    trials = carried_out(LITE, meant, lambda spec: trial_of(spec, 0.3))

    assert len(trials) == 1
    assert trials[0].spec.epochs == meant.budget.epochs


def test_smaller_learning_rates_are_tried_only_while_they_win_and_at_the_shallowest_depth():
    meant = plan_of(LITE)

    def raced(losses):
        trials = carried_out(LITE, meant, lambda spec: trial_of(spec, losses[spec.recipe.learning_rate]))
        begun = [trial.spec for trial in trials if not trial.spec.parent]
        return [[spec.recipe.learning_rate for spec in begun if spec.depth == depth] for depth in meant.candidates]

    assert raced({1e-3: 0.2, 3e-4: 0.5, 1e-4: 0.1}) == [[1e-3, 3e-4], [1e-3], [1e-3]]
    assert raced({1e-3: 0.5, 3e-4: 0.2, 1e-4: 0.0}) == [[1e-3, 3e-4, 1e-4], [1e-4], [1e-4]]
    # Trials of different specs have noise of their own: .2 nats on 400 samples.
    assert raced({1e-3: 0.503, 3e-4: 0.5, 1e-4: 0.1})[0] == [1e-3, 3e-4]


@pytest.mark.parametrize(
    ("rate", "loss", "is_taken"), [(3e-4, 1.01, False), (3e-4, 0.99, True), (1e-4, 0.97, False), (1e-4, 0.9, True)]
)
def test_the_third_rate_is_taken_only_where_clearly_ahead_and_of_two_the_one_that_promises_more(rate, loss, is_taken):
    meant = plan_of(LITE)
    above = {3e-4: 1e-3, 1e-4: 3e-4}[rate]
    losses = {1e-3: (1.5, 1.5), 1e-4: (2.0, 2.0)} | {above: (1.0, 1.0), rate: (loss + 0.3, loss - 0.3)}

    def outcome(spec):
        own = losses[spec.recipe.learning_rate] if spec.depth != LITE.max_depth else (2.0, 2.0)
        return Trial(spec=spec, losses=own * 200, hits=(True,) * 400, weights="w")

    trials = carried_out(LITE, meant, outcome)

    assert {trial.spec.recipe.learning_rate for trial in finishes(trials)} == {rate if is_taken else above}


def test_where_the_two_largest_rates_fail_a_smaller_one_is_tried():
    meant = plan_of(LITE)

    trials = carried_out(
        LITE, meant, lambda spec: trial_of(spec, 0.3, failure="nan" if spec.recipe.learning_rate > 1e-4 else None)
    )

    assert {trial.spec.depth for trial in finishes(trials)} == {meant.candidates[0], LITE.max_depth}
    assert {trial.spec.recipe.learning_rate for trial in finishes(trials)} == {1e-4}


@pytest.mark.parametrize(("middle_at", "goes_on"), [(0.41, "shallow"), (0.2, "middle")])
def test_depths_are_compared_at_the_rate_that_suits_the_shallowest(middle_at, goes_on):
    meant = plan_of(LITE)
    shallow, middle, deepest = meant.candidates
    losses = {(shallow, 1e-3): 0.6, (shallow, 3e-4): 0.4, (middle, 3e-4): middle_at}

    trials = carried_out(
        LITE, meant, lambda spec: trial_of(spec, losses.get((spec.depth, spec.recipe.learning_rate), 1))
    )

    assert {trial.spec.recipe.learning_rate for trial in trials if trial.spec.depth == middle} == {3e-4}
    assert {(trial.spec.depth, trial.spec.recipe.learning_rate) for trial in finishes(trials)} == {
        ({"shallow": shallow, "middle": middle}[goes_on], 3e-4),
        (deepest, 3e-4),
    }


def test_a_depth_that_is_behind_and_catching_up_wins():
    meant = plan_of(LITE)
    shallow, middle, _ = meant.candidates
    losses = {(shallow, False): 2.0, (shallow, True): 1.2, (middle, False): 1.2, (middle, True): 0.9}

    trials = carried_out(
        LITE, meant, lambda spec: trial_of(spec, losses.get((spec.depth, spec.parent is not None), 1.2))
    )

    assert {trial.spec.depth for trial in finishes(trials)} == {shallow, LITE.max_depth}


def test_where_no_rate_works_at_the_shallowest_depth_the_next_one_races_them():
    meant = plan_of(LITE)
    shallow, middle, deepest = meant.candidates
    losses = {1e-3: 0.6, 3e-4: 0.3}

    def outcome(spec):
        return trial_of(
            spec, losses.get(spec.recipe.learning_rate, 0.5), failure="nan" if spec.depth == shallow else None
        )

    trials = carried_out(LITE, meant, outcome)

    assert {trial.spec.recipe.learning_rate for trial in trials if trial.spec.depth == middle} >= {1e-3, 3e-4}
    assert {(trial.spec.depth, trial.spec.recipe.learning_rate) for trial in finishes(trials)} == {
        (middle, 3e-4),
        (deepest, 3e-4),
    }


def test_a_depth_that_fails_at_one_rate_goes_on_at_another():
    meant = plan_of(LITE)
    shallow, *_ = meant.candidates

    def outcome(spec):
        fails = spec.depth == shallow and spec.recipe.learning_rate == 1e-3
        return trial_of(spec, 0.5 + spec.depth / 50, failure="nan" if fails else None)

    trials = carried_out(LITE, meant, outcome)

    assert {(trial.spec.depth, trial.spec.recipe.learning_rate) for trial in finishes(trials)} == {
        (shallow, 3e-4),
        (LITE.max_depth, 3e-4),
    }


def test_labels_in_doubt_are_counted_before_anything_is_paid():
    doubt = Doubt(sample=3, label=0, prediction=1, confidence=0.99)
    prior = votes_of(LITE).model_copy(update={"doubts": (doubt, doubt)})

    assert any("another class" in note and ": 2." in note for note in plan_of(LITE, prior=prior).notes)
    assert not any("another class" in note for note in plan_of(LITE).notes)


def test_where_no_rate_works_at_one_depth_the_others_still_race():
    meant = plan_of(LITE)
    middle = meant.candidates[1]

    trials = carried_out(
        LITE, meant, lambda spec: trial_of(spec, 0.2 + spec.depth / 50, failure="nan" if spec.depth == middle else None)
    )

    assert {trial.spec.depth for trial in finishes(trials)} == {meant.candidates[0], LITE.max_depth}
    assert len({trial.spec.recipe.learning_rate for trial in finishes(trials)}) == 1


def test_every_arm_runs_one_lap_and_is_scored_half_way():
    meant = plan_of(LITE)
    shallow, middle, deepest = meant.candidates

    trials = carried_out(LITE, meant, by_depth(dict(zip(meant.candidates, (0.30, 0.301, 0.6), strict=True))))

    shares = {}
    for trial in trials:
        if trial not in finishes(trials):
            arm = trial.spec.depth, trial.spec.recipe.learning_rate
            shares.setdefault(arm, []).append(trial.epochs / meant.budget.race_epochs)
    (rate,) = {trial.spec.recipe.learning_rate for trial in trials if trial.spec.depth == middle}
    assert shares == {
        (shallow, 1e-3): [0.5, 1.0],
        (shallow, 3e-4): [0.5, 1.0],
        (middle, rate): [0.5, 1.0],
        (deepest, rate): [1.0],
    }


def test_a_rate_that_is_behind_and_catching_up_wins():
    meant = plan_of(LITE)
    losses = {(1e-3, False): 2.0, (1e-3, True): 1.2, (3e-4, False): 1.2, (3e-4, True): 1.1, (1e-4, False): 1.2}

    def outcome(spec):
        return trial_of(spec, losses.get((spec.recipe.learning_rate, spec.parent is not None), 1.2))

    trials = carried_out(LITE, meant, outcome)

    assert {trial.spec.recipe.learning_rate for trial in finishes(trials)} == {1e-3}


def test_a_rate_that_is_past_its_best_is_judged_by_where_it_is_and_goes_on_from():
    meant = plan_of(LITE)

    def outcome(spec):
        trial = trial_of(spec, {1e-3: 0.9, 3e-4: 1.0}.get(spec.recipe.learning_rate, 2.0))
        is_rising = spec.recipe.learning_rate == 1e-3 and spec.parent is not None
        return trial.model_copy(update={"last_losses": tuple(loss + 0.6 for loss in trial.losses) if is_rising else ()})

    trials = carried_out(LITE, meant, outcome)

    assert {trial.spec.recipe.learning_rate for trial in finishes(trials)} == {3e-4}


def test_a_rate_that_fails_is_out():
    meant = plan_of(LITE)

    losses = {3e-4: 0.3, 1e-4: 0.6}

    def outcome(spec):
        rate = spec.recipe.learning_rate
        return trial_of(spec, losses[rate]) if rate in losses else trial_of(spec, 0, failure="nan")

    trials = carried_out(LITE, meant, outcome)

    assert {trial.spec.recipe.learning_rate for trial in finishes(trials)} == {3e-4}


def finishers(losses):
    meant = plan_of(LITE)
    keyed = dict(zip(meant.candidates, losses, strict=True))
    trials = carried_out(LITE, meant, by_depth(keyed))
    places = {depth: place for place, depth in enumerate(meant.candidates)}
    return sorted(places[trial.spec.depth] for trial in finishes(trials))


def test_the_best_arm_and_head_only_go_on():
    assert finishers([0.4, 0.2, 0.5]) == [1, 2]


@pytest.mark.parametrize(("behind", "goes_on"), [(0.058, 0), (0.062, 1)])
def test_the_shallowest_arm_that_is_within_two_standard_errors_goes_on(behind, goes_on):
    meant = plan_of(LITE)
    # The standard error of the difference between the first two is .03.
    shallow = 1 + behind + 0.6, 1 + behind - 0.6
    losses = dict(zip(meant.candidates, [shallow, (1.0, 1.0), (1.5, 1.5)], strict=True))

    trials = carried_out(
        LITE, meant, lambda spec: Trial(spec=spec, losses=losses[spec.depth] * 200, hits=(True,) * 400, weights="w")
    )

    assert {trial.spec.depth for trial in finishes(trials)} == {meant.candidates[goes_on], meant.candidates[2]}


def test_of_arms_with_one_loss_the_shallower_goes_on():
    meant = plan_of(LITE)
    losses = dict(zip(meant.candidates, (1.0, 1.0, 1.5), strict=True))

    trials = carried_out(
        LITE, meant, lambda spec: Trial(spec=spec, losses=(losses[spec.depth],) * 400, hits=(True,) * 400, weights="w")
    )

    assert {trial.spec.depth for trial in finishes(trials)} == {meant.candidates[0], meant.candidates[2]}


def test_an_arm_goes_on_even_where_head_only_is_far_ahead_so_early():
    assert finishers([0.6, 0.5, 0.1]) == [1, 2]


def test_the_winner_goes_on_from_its_race():
    meant = plan_of(LITE)

    trials = carried_out(LITE, meant, lambda spec: trial_of(spec, 0.1 + spec.depth / 20))

    keys = {trial.spec.key: trial for trial in trials}
    for trial in trials:
        if trial.spec.parent:
            parent = keys[trial.spec.parent]
            assert parent.spec.depth == trial.spec.depth
            assert parent.spec.recipe.learning_rate == trial.spec.recipe.learning_rate
            assert trial.spec.first_epoch == pytest.approx(parent.epochs)
    assert {trial.spec.depth for trial in finishes(trials)} == {meant.candidates[0], LITE.max_depth}


def test_all_arms_share_the_seed_and_so_the_mini_batches():
    meant = plan_of(LITE, seed=7)

    trials = carried_out(LITE, meant, lambda spec: trial_of(spec, 0.3))

    assert {trial.spec.seed for trial in trials} == {7}


def test_what_is_pending_is_not_asked_for_again():
    meant = plan_of(LITE)
    first = strategy(LITE, votes_of(LITE), meant, (), ())

    assert strategy(LITE, votes_of(LITE), meant, (), first[:1]) == first[1:]
    assert strategy(LITE, votes_of(LITE), meant, (), first) == ()


@QUICK
@given(st.floats(0.2, 1.0), st.randoms(use_true_random=False))
def test_a_plan_of_somebody_elses_is_kept_within_its_limit(limit, draw):
    meant = plan_of(LITE)
    tight = meant.model_copy(update={"budget": meant.budget.model_copy(update={"limit": limit})})

    trials = carried_out(LITE, tight, fate(draw))

    assert cost_of(tight, trials) + tight.budget.reserve <= limit + 1e-6


def test_of_a_spec_that_was_run_twice_the_same_trial_counts_in_either_order():
    meant = plan_of(LITE)
    specs = strategy(LITE, votes_of(LITE), meant, (), ())
    failed, fine, better = (
        trial_of(specs[0], 0.0, failure="killed"),
        trial_of(specs[0], 0.4, noise=1),
        trial_of(specs[0], 0.2, noise=2),
    )
    other = trial_of(specs[1], 0.3)

    asked = {
        strategy(LITE, votes_of(LITE), meant, [*order, other], ())
        for order in ((failed, fine, better), (better, fine, failed), (fine, better, failed))
    }

    assert len(asked) == 1


def test_a_network_whose_head_is_dear_races_it_like_any_other_depth():
    graph = graph_of([10, 10, 10])
    meant = plan_of(graph)

    trials = carried_out(graph, meant, lambda spec: trial_of(spec, 0.1 + 0.2 * spec.depth))

    assert meant.budget.live_shares[graph.max_depth] > CHEAP
    assert {trial.spec.depth for trial in finishes(trials)} == {1}


# --- few samples, wrong labels, words ---------------------------------------------------------


def test_below_ten_labelled_samples_a_class_only_the_head_is_trained_and_the_plan_says_why():
    # LITE has three classes.
    few, enough = (plan_of(LITE, train=train, valid=9) for train in (20, 21))

    trials = carried_out(LITE, few, lambda spec: trial_of(spec, 0.3))

    assert (few.candidates, {trial.spec.depth for trial in trials}) == ((LITE.max_depth,), {LITE.max_depth})
    assert "9.7 labelled samples a class" in few.notes[0]
    assert len(enough.candidates) > 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99))
def test_a_fifth_of_wrong_labels_does_not_turn_the_race(seed):
    # Two networks, .95 and .85 right, as sure as networks are; a fifth of the validation labels is wrong.
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(10, (400,), generator=generator)
    labels = torch.where(torch.rand(400, generator=generator) < 0.2, (truth + 3) % 10, truth)
    losses = []
    for wrong in (20, 60):
        answers = torch.where(torch.randperm(400, generator=generator) < wrong, (truth + 1) % 10, truth)
        outputs = 8 * torch.nn.functional.one_hot(answers, 10) + torch.randn(400, 10, generator=generator)
        factor = best_temperature(outputs, labels)
        losses.append(torch.nn.functional.cross_entropy(outputs * factor, labels, reduction="none").tolist())

    difference, error = paired(losses[1], losses[0])

    assert difference > 2 * error


def test_the_plan_says_in_words_what_the_votes_say_and_what_is_tried():
    votes = votes_of(LITE, {9: 0.9})

    meant = plan_of(LITE, prior=votes)

    assert "best on what depth 9 computes, .900" in meant.reason
    assert f"depths {meant.candidates[0]}, " in meant.reason
    assert f" and {meant.candidates[-1]} are tried" in meant.reason


def test_a_depth_that_is_given_needs_no_reason():
    assert plan_of(LITE, depth=9).reason == ""
