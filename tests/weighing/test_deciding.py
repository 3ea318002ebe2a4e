"""Effects, their intervals, and the one rule."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.weighing.deciding import (
    Effect,
    is_guessing,
    mean_of,
    points_of,
    points_text,
    ratio_of,
    seeds_to_decide,
    spread_ratio_of,
    times_text,
    verdict_of,
)

figures = st.floats(-50, 50)
effects = st.tuples(figures, figures, figures).map(lambda three: Effect(*(sorted(three)[place] for place in (1, 0, 2))))
positive = st.lists(st.floats(0.1, 10), min_size=3, max_size=3)
answers = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4)


# --- the rule ---------------------------------------------------------------------------------


@given(effects, st.floats(0.1, 5))
def test_a_claim_that_holds_has_an_interval_above_none_and_an_effect_that_matters(effect, least):
    assert (verdict_of(effect, least=least) == "holds") == (effect.low > 0 and effect.value >= least)


@given(effects, st.floats(0.1, 5))
def test_a_claim_that_does_not_hold_has_an_interval_below_what_matters(effect, least):
    assert (verdict_of(effect, least=least) == "does not hold") == (effect.high < least)


def test_a_ratio_is_judged_against_one():
    assert verdict_of(Effect(1.5, 0.9, 2.0), least=1.1, none=1.0) == "not decided"


def test_a_sure_effect_too_small_to_matter_is_not_decided():
    assert verdict_of(Effect(0.8, 0.5, 1.1), least=1.0) == "not decided"


def test_numbers_that_are_no_numbers_decide_nothing():
    assert verdict_of(Effect(math.nan, math.nan, math.nan), least=1.0) == "not decided"


# --- means ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.8])
def test_interval_of_three_seeds_covers_the_truth_in_93_of_100(spread):
    draw = np.random.default_rng(5)

    def chances(gain, difficulty, seeds):
        return 1 / (1 + np.exp(-(1 + gain + difficulty + draw.normal(0, spread, (seeds, 1)))))

    def differences(samples, seeds):
        difficulty = draw.normal(0, 2, samples)
        ones, others = (draw.random((seeds, samples)) < chances(gain, difficulty, seeds) for gain in (0.5, 0))
        return ones.astype(float) - others

    truth = 100 * np.mean([differences(20, 1).mean() for _ in range(20_000)])
    effects = [points_of(differences(300, 3)) for _ in range(400)]

    assert np.mean([effect.low <= truth <= effect.high for effect in effects]) >= 0.93


@given(answers)
def test_interval_holds_the_mean_in_its_middle(rows):
    effect = mean_of(rows)

    assert effect.value == pytest.approx(np.mean(rows))
    assert effect.high - effect.value == pytest.approx(effect.value - effect.low)


@given(answers, st.randoms())
def test_order_of_seeds_and_samples_plays_no_part(rows, random):
    shuffled = random.sample(rows, len(rows))
    columns = random.sample(range(9), 9)

    assert mean_of([[row[k] for k in columns] for row in shuffled]) == pytest.approx(mean_of(rows))


def test_equal_answers_on_few_samples_prove_little():
    assert points_of(np.zeros((3, 20))).high > 5


def test_equal_answers_on_many_samples_prove_equality():
    assert points_of(np.zeros((3, 1000))).high < 1


def test_seeds_that_disagree_widen_the_interval():
    agreed, apart = np.zeros((3, 300)), np.zeros((3, 300))
    apart[0, :30], apart[1, 30:60] = 1, -1

    assert points_of(apart).high > 2 * points_of(agreed).high


# --- ratios -----------------------------------------------------------------------------------


@given(positive, positive)
def test_ratio_turned_round_is_its_inverse(ones, others):
    ratio, turned = ratio_of(ones, others), ratio_of(others, ones)

    assert ratio == pytest.approx((1 / turned.value, 1 / turned.high, 1 / turned.low))


def test_ratio_of_equal_shares_is_sure():
    assert ratio_of([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0, 2.0))


@given(positive, positive)
def test_spread_ratio_turned_round_is_its_inverse(ones, others):
    ratio, turned = (spread_ratio_of(*pair, grain=0.01) for pair in ((ones, others), (others, ones)))

    assert ratio == pytest.approx((1 / turned.value, 1 / turned.high, 1 / turned.low))


def test_spread_ratio_knows_no_spread_below_a_grain():
    assert spread_ratio_of([0.9, 0.9, 0.91], [0.8, 0.8, 0.8], grain=0.01).value < 3


def test_spread_interval_covers_the_truth():
    draw = np.random.default_rng(0)

    def covers():
        effect = spread_ratio_of(draw.normal(0, 2, 4).tolist(), draw.normal(0, 1, 4).tolist(), grain=1e-6)
        return effect.low <= 2 <= effect.high

    assert 0.93 < np.mean([covers() for _ in range(1000)]) < 0.97


@given(st.floats(1.5, 20))
def test_seeds_to_decide_are_just_enough(ratio):
    seeds = seeds_to_decide(ratio)

    def low(count):
        return spread_ratio_of(_scattered(count, ratio), _scattered(count, 1), grain=0).low

    assert low(seeds) > 1
    assert seeds == 2 or low(seeds - 1) <= 1


def _scattered(count, spread):
    figures = np.arange(count)
    return (spread * (figures - figures.mean()) / figures.std(ddof=1)).tolist()


# --- guessing ---------------------------------------------------------------------------------


def test_answers_at_chance_are_guesses():
    assert is_guessing([[True] * 31 + [False] * 269] * 3, chance=0.1)


def test_answers_above_chance_are_no_guesses():
    assert not is_guessing([[True] * 60 + [False] * 240], chance=0.1)


def test_few_answers_are_not_called_guesses():
    assert not is_guessing([[True] * 7 + [False] * 5], chance=0.5)


# --- words ------------------------------------------------------------------------------------


def test_points_are_written_with_their_interval():
    assert points_text(Effect(-1.04, -2.0, 0.1)) == "−1.0 points (−2.0 to 0.1)"


def test_times_are_written_with_their_interval():
    assert times_text(Effect(2.3, 1.6, 3.1)) == "2.30 times (1.60 to 3.10)"


@given(st.floats(1.05, 3.0), st.floats(0.1, 1.0), st.integers(2, 6))
def test_equal_ratios_of_coarse_figures_are_not_certain(ratio, grain, seeds):
    exact, coarse = (ratio_of([ratio] * seeds, [1.0] * seeds, grain=step) for step in (0.0, grain))

    assert exact.low == pytest.approx(exact.high)
    assert coarse.low < ratio * (1 - grain / 10) < ratio < coarse.high
