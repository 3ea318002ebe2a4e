import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.laps import CLEAR, Lap, is_ahead, shallowest_ahead
from frostline.records import Recipe, Trial, TrialSpec

losses = st.lists(st.floats(0, 5), min_size=8, max_size=8)


def lap_of(early, late, *, depth=3, last=(), weights=()):
    spec = TrialSpec(depth=depth, recipe=Recipe(), seed=0, epochs=1)
    first, second = (
        Trial(spec=spec, losses=tuple(each), hits=(True,) * len(each), sample_weights=weights) for each in (early, late)
    )
    return Lap(first, second.model_copy(update={"last_losses": tuple(last)}))


@given(losses, losses)
def test_a_promise_goes_on_by_as_much_again_and_is_the_mean_over_the_samples(early, late):
    lap = lap_of(early, late)

    assert lap.promises == pytest.approx([b + (b - a) for a, b in zip(early, late, strict=True)])
    assert lap.promise == pytest.approx(sum(lap.promises) / len(early))


def test_an_arm_promises_from_where_it_is_and_not_from_where_it_was_best():
    lap = lap_of([1.0, 1.0], [1.0, 1.0], last=[1.5, 1.1])

    assert lap.promises == pytest.approx([2.0, 1.2])
    assert lap.promise == pytest.approx(1.6)


def test_samples_count_in_a_promise_as_they_do_in_the_loss():
    assert lap_of([1.0, 1.0], [1.0, 0.0], weights=(1.5, 0.5)).promise == pytest.approx(0.5)


@given(losses, losses, st.floats(0, 4))
def test_of_two_laps_at_most_one_is_ahead_and_one_that_stands_is_ahead_of_one_that_failed(one, other, errors):
    first, second = lap_of(one, one), lap_of(other, other)

    assert not (is_ahead(first, second, errors) and is_ahead(second, first, errors))
    assert (is_ahead(first, None, errors), is_ahead(None, first, errors)) == (True, False)


@given(st.floats(0.01, 0.2))
def test_the_shallower_of_two_goes_on_unless_it_is_clearly_behind(gap):
    noise = [0.1, -0.1] * 50
    shallow = lap_of([1.0] * 100, [1.0 + gap + each for each in noise], depth=3)
    deep = lap_of([1.0] * 100, [1.0] * 100, depth=9)
    # A promise has twice the noise and twice the gap; a hundred samples a tenth of it.
    is_clear = 2 * gap > CLEAR * 2 * 0.1 / 99**0.5

    assert shallowest_ahead([deep, shallow]).depth == (9 if is_clear else 3)
