import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.prices import OVERHEAD, Prices, Race, affordable_epochs, most_cost
from frostline.records import Budget, Cut, CutGraph, EngineReport, Rates, Recipe, Stage


def prices_of(flops=(60, 30, 10), *, seconds=(0.5, 0.4, 0.1), views=1, train=320):
    stages = tuple(Stage(index=i, name=f"s{i}", keys=(), parameters=10 * i, flops=each) for i, each in enumerate(flops))
    cuts = tuple(Cut(depth=depth, name="", wires=(), bytes_per_sample=8) for depth in range(len(flops)))
    rates = Rates(
        step_seconds=0.5,
        step_low=0.5,
        step_high=0.5,
        stage_seconds=seconds,
        score_seconds=0.01,
        engine=EngineReport(engine="torch", rows_per_second=100.0),
        threads=1,
        torch="2.8",
    )
    graph = CutGraph(model="Net", batch=4, stages=stages, cuts=cuts)
    return Prices(graph, rates, Recipe(), epochs=10, train_samples=train, valid_samples=96, test_samples=0, views=views)


def test_a_full_fine_tune_costs_one_and_its_scoring_on_top():
    budget = prices_of().budget((0,), 1, limit=1.0)

    assert budget.cost(0, 10) == pytest.approx(1.0 + 96 / (3 * 320))


def test_decisions_do_not_depend_on_the_clock():
    slow, fast = (prices_of(seconds=seconds) for seconds in ((0.9, 0.05, 0.05), (0.1, 0.1, 0.8)))

    assert slow.budget((1, 2), 1, limit=1.0) == fast.budget((1, 2), 1, limit=1.0)


def test_the_reserve_counts_one_pass_for_the_votes_and_one_for_each_store():
    none, one, both = (prices_of().budget(depths, 1, limit=1.0).reserve for depths in ((0,), (1,), (1, 2)))

    assert none > OVERHEAD + 1 / 30
    assert one - none == pytest.approx(0.6 * (320 + 96) / (3 * 320 * 10))
    assert both - one == pytest.approx(0.9 * (320 + 96) / (3 * 320 * 10))


def test_views_are_paid_for_once_each():
    assert prices_of(views=3).store_bytes(1) == 8 * (3 * 320 + 96)
    assert prices_of(views=3).store_seconds(1) == pytest.approx(0.5 * (3 * 320 + 96) / 100)


def test_nothing_is_stored_where_nothing_is_frozen():
    assert (prices_of().store_bytes(0), prices_of().store_seconds(0)) == (0, 0)


def test_a_forecast_counts_the_live_parameters_and_both_costs():
    forecast = prices_of().forecast(1, 0.8, is_candidate=True)

    assert forecast.parameters == 10 + 20
    assert forecast.full_finetunes == pytest.approx((forecast.store_seconds + forecast.train_seconds) / 50.0)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 2), st.integers(0, 2), st.integers(1, 9))
def test_affordable_epochs_are_paid_for_and_one_more_would_not_be(left, depth, race_epochs):
    budget = Budget(limit=1, reserve=0, epochs=10, race_epochs=race_epochs, live_shares=(1.0, 0.4, 0.1), scoring=0.1)

    epochs = affordable_epochs(left, depth, budget)

    assert budget.cost(depth, epochs) <= left + 1e-6
    assert epochs == 10 - race_epochs or budget.cost(depth, epochs + 1) > left


def test_a_race_costs_its_arms_its_rates_and_its_dearest_finish():
    budget = Budget(limit=1, reserve=0.1, epochs=10, race_epochs=1, live_shares=(1.0, 0.6, 0.3, 0.01))

    cost = most_cost(budget, Race(depths=(1, 2, 3), rates=(1e-3, 3e-4), epochs=1), finish=5)

    arms, rates, head_only, finish = 0.06 + 0.03 + 0.001, 0.03, 0.01, 0.3
    assert cost == pytest.approx(0.1 + arms + rates + head_only + finish)
