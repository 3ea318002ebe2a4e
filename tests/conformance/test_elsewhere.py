"""What the published comparison with other tools says of ours."""

import json
from pathlib import Path

ROWS = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "frozen_elsewhere.json").read_text())["rows"]


def test_frostline_holds_every_case_of_the_comparison():
    ours = {row["case"]: row["holds"] for row in ROWS if row["tool"] == "frostline"}

    assert ours == dict.fromkeys({row["case"] for row in ROWS}, True)


def test_every_row_names_a_version_and_what_was_seen():
    assert all(row["version"] and row["note"] and isinstance(row["holds"], bool) for row in ROWS)


def test_no_tool_is_shown_only_where_it_fails():
    tools = {row["tool"].split(",")[0] for row in ROWS}

    assert {row["tool"].split(",")[0] for row in ROWS if row["holds"]} == tools
