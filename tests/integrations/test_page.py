"""The page on freezing says of other tools what was measured."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
COLUMNS = (1, 5, 6, 7, 13)


def test_table_of_other_tools_says_what_was_measured():
    rows = json.loads((ROOT / "benchmarks/results/frozen_elsewhere.json").read_text("utf-8"))["rows"]
    measured = {(row["tool"], row["case"]): "yes" if row["holds"] else "no" for row in rows}
    tools = dict.fromkeys(row["tool"] for row in rows if row["case"] == 1)

    page = (ROOT / "docs/freezing.md").read_text("utf-8")
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in re.findall(r"^\| .*\|$", page, re.M)]
    told = {line[0]: line[1:] for line in cells if line[0] in tools}

    assert told == {tool: [measured[tool, case] for case in COLUMNS] for tool in tools}
