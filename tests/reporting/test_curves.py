"""Runs on common axes, drawable by plotly and blind to what a name says."""

import json

import plotly.graph_objects as go
import pytest

from frostline.plots import PALETTES, painted
from frostline.reporting.comparison import comparison
from frostline.reporting.curves import cost_points, depth_curves


def compared(*evidence, names="abcdefghij"):
    record, ordered = comparison([(f"runs/{name}", one) for name, one in zip(names, evidence, strict=False)], "")
    return record.runs, ordered


def other_task(evidence, task):
    return evidence.model_copy(update={"arguments": (("task", task),)})


def trained(figure):
    return [trace for trace in figure["data"] if trace.get("showlegend", True)]


@pytest.mark.parametrize("palette", list(PALETTES))
def test_figures_are_json_that_plotly_draws(fake_evidence, palette):
    runs, evidence = compared(fake_evidence(), fake_evidence(depth=3), other_task(fake_evidence(depth=0), "b"))

    for figure in (depth_curves(runs, evidence), cost_points(runs)):
        json.dumps(figure, allow_nan=False)
        go.Figure(painted(figure, PALETTES[palette]))


def test_every_trained_depth_of_every_run_is_a_point(fake_evidence):
    runs, evidence = compared(fake_evidence(), fake_evidence(depth=3))

    figure = depth_curves(runs, evidence)

    for trace, one in zip(trained(figure), evidence, strict=True):
        depths = sorted([one.choice.depth, *(rival.depth for rival in one.choice.rivals)])
        assert [round(x) for x in trace["x"]] == depths
        assert trace["marker"]["symbol"].index("diamond") == depths.index(one.choice.depth)


def test_points_of_one_depth_stand_side_by_side(fake_evidence):
    runs, evidence = compared(*[fake_evidence()] * 3)

    one, two, three = ([*trace["x"]] for trace in trained(depth_curves(runs, evidence)))

    assert one[0] < two[0] < three[0]
    assert three[0] - one[0] < 0.6


def test_networks_of_other_stages_share_the_axis_of_work(fake_evidence):
    runs, evidence = compared(fake_evidence(), other_task(fake_evidence(stages=9, depth=3), "b"))

    figure = depth_curves(runs, evidence)

    assert figure["layout"]["xaxis"]["title"]["text"] == "share of the network's work that is frozen"
    assert all(-0.05 < x < 1.05 for trace in figure["data"] for x in trace["x"])


def test_one_probe_is_drawn_once(fake_evidence):
    runs, evidence = compared(fake_evidence(), fake_evidence(), other_task(fake_evidence(seed=3), "b"))

    probes = [trace["name"] for trace in depth_curves(runs, evidence)["data"] if not trace.get("showlegend", True)]

    assert probes == ["probe of A", "probe of C"]


def test_each_test_part_has_its_own_line(fake_evidence):
    runs, evidence = compared(fake_evidence(), fake_evidence(), other_task(fake_evidence(), "b"))

    dashes = [trace["line"]["dash"] for trace in trained(depth_curves(runs, evidence))]

    assert dashes[0] == dashes[1] != dashes[2]
    assert "dot" not in dashes, "dots are those of the probes"


def test_cost_points_stand_at_seconds_and_at_operations(fake_evidence):
    runs, _ = compared(fake_evidence(), fake_evidence(depth=3))

    figure = cost_points(runs)

    for trace, run in zip(figure["data"], runs, strict=True):
        assert trace["x"] == [run.share_seconds, run.share_flops]
        assert trace["error_y"]["array"][0] == pytest.approx(run.high - run.accuracy)


def test_names_of_runs_are_escaped(fake_evidence):
    runs, evidence = compared(fake_evidence(), fake_evidence(), names=["<b>x", "$x^2$"])

    names = [trace["name"] for trace in trained(depth_curves(runs, evidence))]

    assert names == ["A  &lt;b&gt;x", "B  &#36;x^2&#36;"]
