"""What the command line lays out: plans, stages, and tables that fit where they are shown."""

import io

import pytest
from rich.console import Console
from small_plan import GRAPH, PLAN

from frostline.tables import plan_tables, stage_table


def test_a_plan_of_before_rows_were_computed_anew_is_shown():
    plan = PLAN.model_dump()
    del plan["computed"]

    assert plan_tables(plan)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_plan_says_in_which_precision_is_trained(precision):
    recipe = PLAN.recipe.model_copy(update={"precision": precision})

    lines = plan_tables(PLAN.model_copy(update={"recipe": recipe}).model_dump(mode="json"))

    assert f"Live part: trained in {precision}." in lines


def test_table_fits_a_narrow_terminal():
    stream = io.StringIO()

    Console(file=stream, width=60, markup=False).print(stage_table(GRAPH))

    assert max(map(len, stream.getvalue().splitlines())) <= 60
