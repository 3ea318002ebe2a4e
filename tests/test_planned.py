"""What is meant before anything is trained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.planned import Budget, EngineReport, Rates, Recipe
from frostline.records import TrialSpec


def test_full_finetune_costs_one():
    budget = Budget(limit=1.0, reserve=0.1, epochs=10, race_epochs=1, live_shares=(1.0, 0.5))

    assert (budget.cost(0, 10), budget.cost(1, 10)) == (1.0, 0.5)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8))
def test_less_of_a_step_is_live_the_deeper_the_cut(seconds):
    shares = tuple(each / sum(seconds) for each in seconds)
    step = {"step_seconds": 1.0, "step_low": 1.0, "step_high": 1.0, "score_seconds": 0.1}
    rates = Rates(**step, stage_seconds=shares, engine=EngineReport(engine="torch"), threads=1, torch="2.8")

    live = [rates.live_seconds_share(depth) for depth in range(len(shares) + 1)]

    assert live == sorted(live, reverse=True)
    assert (live[0], live[-1]) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))


def test_a_trial_in_float32_has_the_name_that_it_had_before_there_was_a_precision():
    spec = TrialSpec(depth=3, recipe=Recipe(), seed=1, epochs=4)

    assert spec.key == "f4ddf808f6a034f3"


def test_a_recipe_names_its_precision_where_it_is_not_the_usual_one():
    usual, fewer = Recipe(), Recipe(precision="bfloat16")

    assert "precision" not in usual.model_dump_json()
    assert Recipe.model_validate_json(fewer.model_dump_json()) == fewer
    assert fewer.key != usual.key
