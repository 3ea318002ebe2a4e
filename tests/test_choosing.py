from itertools import count

import pytest
from races import LITE, by_depth, carried_out, plan_of, trial_of

from frostline.choosing import choose
from frostline.errors import AllTrialsFailed
from frostline.records import Recipe, Trial, TrialSpec

numbers = count()


def finished(depth, *, right, loss, epochs=10, samples=400, parent=None):
    """A trial whose first samples are wrong, so that two of them disagree on as few as their counts allow."""
    spec = TrialSpec(depth=depth, recipe=Recipe(), seed=next(numbers), epochs=epochs, parent=parent)
    hits = tuple(place >= samples - right for place in range(samples))
    losses = tuple(loss + 0.01 * (place % 3) for place in range(samples))
    return Trial(spec=spec, hits=hits, losses=losses, best_epoch=epochs, weights="w")


def finished_as(spec, *, right, loss):
    return finished(spec.depth, right=right, loss=loss).model_copy(update={"spec": spec})


def test_the_more_accurate_depth_is_chosen_though_its_loss_is_worse():
    sure = finished(5, right=390, loss=0.5)
    careful = finished(9, right=370, loss=0.2)

    assert choose(LITE, [sure, careful]).depth == 5


@pytest.mark.parametrize("right", [390, 391, 392])
def test_a_tie_in_accuracy_and_loss_goes_to_what_trains_more(right):
    shallow = finished(5, right=390, loss=0.1)
    deep = finished(9, right=right, loss=0.1)

    # One sample more is within one standard error of none, two are 1.4 of them.
    assert choose(LITE, [shallow, deep]).depth == (5 if right < 392 else 9)


def test_a_clearly_worse_loss_breaks_a_tie_in_accuracy():
    shallow = finished(5, right=390, loss=0.3)
    deep = finished(9, right=391, loss=0.1)

    assert choose(LITE, [shallow, deep]).depth == 9


def test_an_arm_that_left_the_race_is_no_candidate():
    meant = plan_of(LITE)
    trials = carried_out(LITE, meant, by_depth(dict(zip(meant.candidates, [0.1, 0.3, 0.6], strict=True))))

    choice = choose(LITE, trials)

    assert choice.depth == meant.candidates[0]
    assert {rival.depth for rival in choice.rivals} == set(meant.candidates[1:])


def test_an_arm_that_left_the_race_is_not_chosen_in_a_tie_either():
    meant = plan_of(LITE)
    shallowest, *others = meant.candidates
    raced = {shallowest: 0.1, **dict.fromkeys(others, 0.2), LITE.max_depth: 0.5}
    ended = {**raced, shallowest: 0.2}

    trials = carried_out(
        LITE,
        meant,
        lambda spec: finished_as(
            spec, right=390, loss=(ended if spec.recipe.schedule == "cosine" else raced)[spec.depth]
        ),
    )

    assert choose(LITE, trials).depth == shallowest


def test_rivals_that_left_the_race_are_compared_after_equal_epochs():
    meant = plan_of(LITE)
    trials = carried_out(LITE, meant, by_depth(dict(zip(meant.candidates, [0.1, 0.3, 0.6], strict=True))))

    choice = choose(LITE, trials)

    left = next(rival for rival in choice.rivals if rival.depth == meant.candidates[1])
    assert left.epochs == meant.budget.race_epochs
    assert left.verdict.startswith("after 1 epoch each")
    assert left.loss_difference == pytest.approx(0.2, abs=0.05)


def test_a_winner_whose_last_training_failed_is_still_chosen_from_its_race_trial():
    meant = plan_of(LITE)
    losses = dict(zip(meant.candidates, [0.3, 0.05, 0.6], strict=True))

    def outcome(spec):
        ended = spec.recipe.schedule == "cosine" and spec.depth != LITE.max_depth
        return trial_of(spec, losses[spec.depth], failure="nan" if ended else None)

    assert choose(LITE, carried_out(LITE, meant, outcome)).depth == meant.candidates[1]


def test_the_reason_names_depth_accuracy_and_what_the_rivals_lose():
    chosen, deeper, shallower = (
        finished(depth, right=right, loss=loss, parent="raced")
        for depth, right, loss in ((9, 390, 0.1), (14, 360, 0.3), (3, 390, 0.3))
    )

    choice = choose(LITE, [chosen, deeper, shallower])

    assert choice.reason == (
        "Freeze 9 of 18 stages: validation accuracy .975 (.955–.986); freezing more loses 7.5 points; "
        "freezing less gains nothing measurable and costs 1.7 times as much."
    )


def test_the_reason_says_what_was_judged_before_the_end():
    meant = plan_of(LITE)
    trials = carried_out(LITE, meant, by_depth(dict(zip(meant.candidates, [0.1, 0.3, 0.6], strict=True))))

    reason = choose(LITE, trials).reason

    assert "in part judged after 1 epoch)" in reason


def test_no_trial_at_all_is_an_error_in_words():
    with pytest.raises(AllTrialsFailed, match="none was run"):
        choose(LITE, [])


def test_where_every_class_counts_alike_the_depth_that_is_right_on_the_small_one_is_chosen():
    # 380 samples of the large class, 20 of the small one.
    weights = (400 / (2 * 20),) * 20 + (400 / (2 * 380),) * 380
    large = finished(5, right=380, loss=0.1)
    small = large.model_copy(
        update={
            "spec": finished(9, right=0, loss=0).spec,
            "hits": (True,) * 20 + (False,) * 40 + (True,) * 340,
        }
    )
    balanced = [trial.model_copy(update={"sample_weights": weights}) for trial in (large, small)]

    plain, by_class = choose(LITE, [large, small]), choose(LITE, balanced)

    assert (plain.depth, by_class.depth) == (5, 9)
    assert "balanced" not in plain.reason
    assert "balanced validation accuracy .947" in by_class.reason
