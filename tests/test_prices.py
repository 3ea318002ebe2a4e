import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.prices import (
    OVERHEAD,
    SAVING_SECONDS,
    Prices,
    Race,
    affordable_epochs,
    apart,
    most_cost,
    race_cost,
    worth_keeping,
)
from frostline.records import Budget, Cut, CutGraph, EngineReport, Rates, Recipe, Stage, Vote


def prices_of(
    flops=(60, 30, 10),
    *,
    seconds=(0.5, 0.4, 0.1),
    views=1,
    train=320,
    step=0.5,
    score=0.01,
    quick=100.0,
    disk=None,
    test=0,
    **rates,
):
    stages = tuple(Stage(index=i, name=f"s{i}", keys=(), parameters=10 * i, flops=each) for i, each in enumerate(flops))
    cuts = tuple(Cut(depth=depth, name="", wires=(), bytes_per_sample=8) for depth in range(len(flops)))
    rates = Rates(
        step_seconds=step,
        step_low=step,
        step_high=step,
        stage_seconds=seconds,
        score_seconds=score,
        engine=EngineReport(engine="torch", rows_per_second=quick),
        threads=1,
        torch="2.8",
        **rates,
    )
    graph = CutGraph(model="Net", batch=4, stages=stages, cuts=cuts)
    samples = {"train_samples": train, "valid_samples": 96, "test_samples": test}
    return Prices(graph, rates, Recipe(), epochs=10, **samples, views=views, disk=disk)


def race_of(*depths, computed=()):
    return Race(depths, rates=(1e-3,), epochs=1, computed=computed)


def test_a_full_fine_tune_costs_one_and_its_scoring_on_top():
    budget = prices_of(score=0.0).budget(race_of(0), limit=1.0)

    assert budget.cost(0, 10) == pytest.approx(1.0 + 96 / (3 * 320))


shares = st.lists(st.integers(1, 20), min_size=3, max_size=3).map(lambda parts: tuple(p / sum(parts) for p in parts))


@given(shares, st.integers(0, 2), st.integers(1, 10), st.floats(0.0, 0.05))
def test_a_price_covers_the_operations_and_the_seconds(seconds, depth, epochs, score):
    prices = prices_of(seconds=seconds, score=score)

    cost = prices.budget(race_of(depth), limit=1.0).cost(depth, epochs)

    counted = (1 - prices.graph.frozen_share(depth)) * epochs * (1 + 96 / (3 * 320)) / 10
    timed = prices.epoch_seconds(depth) * epochs / prices.full_seconds
    assert cost >= max(counted, timed) - 1e-9


@given(shares, st.integers(1, 2), st.integers(1, 10), st.floats(0.0, 0.05), st.floats(10.0, 1e4))
def test_a_price_covers_what_is_computed_anew_too(seconds, depth, epochs, score, quick):
    prices = prices_of(seconds=seconds, score=score, quick=quick)

    cost = prices.budget(race_of(depth, computed=(depth,)), limit=1.0).cost(depth, epochs)

    passes = prices.graph.frozen_share(depth) * (320 + 96) / (3 * 320)
    counted = (1 - prices.graph.frozen_share(depth)) * (1 + 96 / (3 * 320)) + passes
    timed = prices.epoch_seconds(depth) + sum(seconds[:depth]) * (320 + 96) / quick
    assert cost >= max(counted * epochs / 10, timed * epochs / prices.full_seconds) - 1e-9


def test_what_is_computed_anew_costs_next_to_nothing_nowhere():
    prices = prices_of(flops=(60, 39, 1), seconds=(0.6, 0.39, 0.01))
    kept, computed = (prices.budget(race_of(1, 2, computed=depths), limit=1.0) for depths in ((), (2,)))

    assert apart(kept, (1, 2)) == ([2], [1])
    assert apart(computed, (1, 2)) == ([], [1, 2])


def test_the_reserve_has_no_pass_for_stores_that_are_not_filled():
    none, shallow, all_computed = (
        prices_of(quick=1e9).budget(race_of(1, 2, computed=depths), limit=1.0).reserve for depths in ((), (2,), (1, 2))
    )

    # The validation part is computed once more, when the choice is scored.
    assert none - shallow == pytest.approx((0.3 * (320 + 96) - 0.9 * 96) / (3 * 320 * 10))
    assert shallow - all_computed == pytest.approx(0.6 * (320 + 96) / (3 * 320 * 10))


@given(shares)
def test_seconds_that_differ_by_less_than_their_rounding_plan_the_same(seconds):
    nearly = (seconds[0] - 1e-9, seconds[1] + 1e-9, seconds[2])

    one, other = (prices_of(seconds=each).budget(race_of(1, 2), limit=1.0).live_shares for each in (seconds, nearly))

    assert one == pytest.approx(other)


def test_the_reserve_counts_one_pass_for_the_votes_and_one_for_the_stores_of_all_depths():
    none, one, both = (
        prices_of(quick=1e9).budget(race_of(*depths), limit=1.0).reserve for depths in ((0,), (1,), (1, 2))
    )

    assert none > OVERHEAD + 1 / 30
    assert one - none == pytest.approx(0.6 * (320 + 96) / (3 * 320 * 10))
    assert both - none == pytest.approx(0.9 * (320 + 96) / (3 * 320 * 10))


def test_the_reserve_holds_what_was_spent_and_will_be_where_that_is_more():
    rates = {"spent_seconds": 20.0, "proof_seconds": 1.0}

    reserve = prices_of(**rates).budget(race_of(1, 2), limit=1.0).reserve

    stores = 0.9 * (320 + 96) / 100
    assert reserve == pytest.approx((20 + 2 * 1 + stores) / 50 + OVERHEAD)


@given(shares, st.floats(0.0, 20.0))
def test_stages_that_stores_share_are_priced_once(seconds, spent):
    prices = prices_of(seconds=seconds, step=0.0, score=0.0, spent_seconds=spent)

    deepest, both = (prices.budget(race_of(*depths), limit=9.0) for depths in ((2,), (1, 2)))

    assert both.reserve == pytest.approx(deepest.reserve)
    # Both run a lap of two rungs, and one goes on.
    assert prices.search_seconds(race_of(1, 2), both) == pytest.approx(prices.store_seconds(2) + 5 * SAVING_SECONDS)


def test_a_forecast_counts_a_scoring_and_a_saving_at_the_end_of_every_rung():
    prices = prices_of(step=0.0, score=0.01)
    budget = prices.budget(race_of(1, 2), limit=1.0)
    # Nothing is left to go on for.
    budget = budget.model_copy(update={"limit": race_cost(budget, race_of(1, 2))})

    seconds = prices.search_seconds(race_of(1, 2), budget)

    scored = 2 * 0.01 * 96 * sum(prices.rates.live_seconds_share(depth) for depth in (1, 2))
    assert seconds == pytest.approx(prices.store_seconds(2) + scored + 4 * SAVING_SECONDS)


def test_a_forecast_is_of_the_number_of_rates_that_takes_longest():
    # Scoring takes nothing and is paid for by its operations: a lap less leaves more than a lap to go on for.
    prices, race = prices_of(step=50.0, score=0.0), race_of(1, 2)._replace(rates=(1e-3, 3e-4, 1e-4))
    budget = prices.budget(race, limit=0.6)

    two = prices.search_seconds(race._replace(rates=race.rates[:2]), budget)

    assert prices.search_seconds(race, budget) >= two > 0


def test_a_network_that_trains_in_no_time_is_not_kept_from_training():
    reserve = prices_of(step=1e-4, quick=1e6, spent_seconds=0.5).budget(race_of(1, 2), limit=1.0).reserve

    assert reserve < 0.3


def test_views_are_paid_for_once_each():
    assert prices_of(views=3).store_bytes(1) == 8 * (3 * 320 + 96)
    assert prices_of(views=3).store_seconds(1) == pytest.approx(0.5 * (3 * 320 + 96) / 100)


def test_nothing_is_stored_where_nothing_is_frozen():
    assert (prices_of().store_bytes(0), prices_of().store_seconds(0)) == (0, 0)


def test_a_forecast_counts_the_live_parameters_and_both_costs():
    vote = Vote(depth=1, accuracy=0.8, low=0.7, high=0.9, loss=1, penalty=1, features=8)

    forecast = prices_of().forecast(1, vote, race_of(1))

    assert (forecast.parameters, forecast.low, forecast.accuracy, forecast.high) == (10 + 20, 0.7, 0.8, 0.9)
    assert forecast.full_finetunes == pytest.approx((forecast.store_seconds + forecast.train_seconds) / 50.0)


def test_a_forecast_of_what_is_computed_anew_has_no_store_and_longer_epochs():
    prices = prices_of()

    kept, computed = (prices.forecast(1, None, race_of(1, computed=depths)) for depths in ((), (1,)))

    assert (computed.store_bytes, computed.store_seconds) == (0, 0.0)
    assert computed.train_seconds - kept.train_seconds == pytest.approx(10 * 0.5 * (320 + 96) / 100)
    assert computed.full_finetunes == pytest.approx(computed.train_seconds / 50.0)


def test_a_search_takes_longer_where_rows_are_computed_anew():
    prices = prices_of()
    races = [race_of(1, 2, computed=depths) for depths in ((), (2,), (1, 2))]

    seconds = [prices.search_seconds(race, prices.budget(race, limit=9.0)) for race in races]

    assert seconds == sorted(set(seconds))


# --- what is kept -----------------------------------------------------------------------------

cuts = st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 100)), max_size=6).map(
    lambda pairs: tuple(dict(enumerate(column, start=1)) for column in zip(*pairs, strict=True)) or ({}, {})
)


def spared(kept, seconds):
    return math.fsum(seconds[depth] for depth in kept)


@given(cuts, st.integers(0, 500))
def test_kept_rows_fit_and_leave_no_room_for_a_cut_that_is_not_kept(pair, disk):
    seconds, row_bytes = pair

    kept = worth_keeping(seconds, row_bytes, disk)

    left = disk - sum(row_bytes[depth] for depth in kept)
    assert left >= 0
    assert all(row_bytes[depth] > left for depth in seconds if depth not in kept)


@given(cuts, st.integers(0, 500), st.integers(0, 500))
def test_more_disk_never_spares_fewer_seconds(pair, disk, more):
    seconds, row_bytes = pair

    less, rather = (spared(worth_keeping(seconds, row_bytes, room), seconds) for room in (disk, disk + more))

    assert rather >= less


@given(cuts)
def test_all_rows_are_kept_where_all_fit(pair):
    seconds, row_bytes = pair

    assert worth_keeping(seconds, row_bytes, sum(row_bytes.values())) == tuple(seconds)


def test_the_cut_that_spares_more_is_kept_where_only_one_fits():
    assert worth_keeping({1: 1.0, 2: 3.0, 3: 2.0}, {1: 10, 2: 10, 3: 10}, 10) == (2,)
    assert worth_keeping({1: 2.0, 2: 3.0, 3: 2.0}, {1: 5, 2: 10, 3: 5}, 10) == (1, 3)


def test_what_may_be_kept_counts_the_rows_of_the_test_part():
    needed = 2 * 8 * (320 + 96 + 50)

    found = [prices_of(disk=disk, test=50).computed((0, 1, 2)) for disk in (None, needed, needed - 1, 0)]

    assert found == [(), (), (1,), (1, 2)]


BUDGET = Budget(limit=1, reserve=0.1, epochs=10, race_epochs=1, live_shares=(1.0, 0.6, 0.3, 0.01), scoring=0.1)

laps = st.lists(st.floats(0.05, 3.0), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 2), st.integers(0, 3), st.floats(0, 9))
def test_affordable_epochs_are_paid_for_and_half_an_epoch_more_would_not_be(left, depth, first):
    epochs = affordable_epochs(left, depth, BUDGET, first)

    assert BUDGET.cost(depth, epochs, first) <= left + 1e-6
    assert first + epochs > 9.49 or BUDGET.cost(depth, epochs + 1.0, first) > left


@settings(max_examples=50, deadline=None)
@given(laps)
def test_a_training_in_pieces_costs_what_it_costs_whole_and_one_more_score_for_each_end_within_an_epoch(pieces):
    firsts = [sum(pieces[:place]) for place in range(len(pieces))]

    apart = sum(BUDGET.cost(0, epochs, first) for epochs, first in zip(pieces, firsts, strict=True))

    whole = BUDGET.cost(0, sum(pieces))
    assert whole - 1e-9 <= apart <= whole + 0.01 * (len(pieces) - 1) + 1e-9


def test_an_end_within_an_epoch_is_scored_too():
    assert BUDGET.cost(0, 0.25) == pytest.approx((0.25 + 0.1) / 10)
    assert BUDGET.cost(0, 0.75, 0.25) == pytest.approx((0.75 + 0.1) / 10)


def test_a_race_costs_a_lap_at_each_rate_of_the_shallowest_and_one_of_the_others_scored_half_way_unless_cheap():
    race = Race(depths=(1, 2, 3), rates=(1e-3, 3e-4), epochs=1)

    cost = race_cost(BUDGET, race)

    assert cost == pytest.approx(0.1 + (2 * 0.6 + 0.3) * 0.12 + 0.01 * 0.11)


def test_a_winner_goes_on_and_head_only_beside_it():
    race = Race(depths=(1, 2, 3), rates=(1e-3, 3e-4), epochs=1)

    cost = most_cost(BUDGET, race, finish=5)

    assert cost == pytest.approx(race_cost(BUDGET, race) + 0.01 * 9 * 0.11 + 0.6 * 4 * 0.11)


def test_a_single_depth_pays_for_its_rates_and_for_the_rest_of_the_best():
    race = Race(depths=(1,), rates=(1e-3, 3e-4), epochs=1)

    assert most_cost(BUDGET, race, finish=10) == pytest.approx(0.1 + 0.6 * (2 * 0.12 + 9 * 0.11))
