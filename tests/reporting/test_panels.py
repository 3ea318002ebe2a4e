"""Figures of claims are plain data: complete, drawable by plotly, and blind to what a name says."""

import json
import math

import plotly.graph_objects as go
import pytest
from exhibited import six_claims
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.exhibits import Panel, Series
from frostline.plots import PALETTES, painted
from frostline.reporting.panels import height, heights_with_intervals, panel_figure

PANELS = [panel for claim in six_claims() for panel in claim.panels]


def panel_of(*series, **changes):
    return Panel(title="", x_name="samples", y_name="accuracy", series=series, **changes)


def lines(figure):
    return [trace for trace in figure["data"] if trace.get("showlegend", True)]


@settings(max_examples=30, deadline=None)
@given(
    points=st.lists(
        st.tuples(st.floats(1, 1e15), st.floats(-1e6, 1e6) | st.just(math.nan)), max_size=5, unique_by=lambda at: at[0]
    ),
    name=st.text(max_size=20),
    has_intervals=st.booleans(),
    is_share=st.booleans(),
    is_log=st.booleans(),
)
def test_any_panel_is_json_that_plotly_draws(points, name, has_intervals, is_share, is_log):
    x, y = zip(*sorted(points), strict=True) if points else ((), ())
    series = Series(name=name, x=x, y=y, low=y if has_intervals else (), high=y if has_intervals else ())

    figure = panel_figure(panel_of(series, is_share=is_share, is_log=is_log))

    json.dumps(figure, allow_nan=False)
    go.Figure(painted(figure, PALETTES["dark"]), skip_invalid=False)
    assert not set("<>$") & set(lines(figure)[0]["name"].replace("<br>", ""))


def test_a_line_has_a_band_and_a_lone_point_a_bar():
    line = Series(name="a", x=(1, 2), y=(0.5, 0.6), low=(0.4, 0.5), high=(0.7, 0.8))
    point = Series(name="b", x=(1,), y=(0.5,), low=(0.4,), high=(0.7,))

    band, _, bar = panel_figure(panel_of(line, point))["data"]

    assert (band["x"], band["y"]) == ([1, 2, 2, 1], [0.7, 0.8, 0.5, 0.4])
    assert bar["error_y"]["array"] == pytest.approx([0.2])
    assert bar["error_y"]["arrayminus"] == pytest.approx([0.1])


def test_lone_points_at_one_place_stand_beside_each_other_and_name_their_place():
    line = Series(name="a", x=(2, 22), y=(0.5, 0.6))
    points = [Series(name=name, x=(2,), y=(0.5,), low=(0.4,), high=(0.7,)) for name in "bcd"]

    _, *drawn = panel_figure(panel_of(line, *points))["data"]

    places = [trace["x"][0] for trace in drawn]
    assert len({2, *places}) == 4
    assert all(abs(place - 2) <= 0.5 for place in places)
    assert all("samples 2<br>" in trace["hovertext"][0] for trace in drawn)


def test_a_lone_point_without_another_one_stands_at_its_place():
    line, point = Series(name="a", x=(2, 22), y=(0.5, 0.6)), Series(name="b", x=(2,), y=(0.5,))

    _, drawn = panel_figure(panel_of(line, point))["data"]

    assert drawn["x"] == [2]


def test_a_series_without_intervals_is_one_line():
    assert len(panel_figure(panel_of(Series(name="a", x=(1, 2), y=(3, 4))))["data"]) == 1


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_lines_differ_in_colour_and_in_mark(panel):
    looks = [(trace["line"]["color"], trace["marker"]["symbol"]) for trace in lines(panel_figure(panel))]

    assert len({color for color, _ in looks}) == len({symbol for _, symbol in looks}) == len(panel.series)


def test_a_long_name_is_written_in_lines_and_each_is_escaped():
    name = "random of the same mean and spread <b> below, drawn anew above"

    (trace,) = panel_figure(panel_of(Series(name=name, x=(1, 2), y=(3, 4))))["data"]

    assert trace["name"] == "random of the same mean and spread<br>&lt;b&gt; below, drawn anew above"


@pytest.mark.parametrize(("last", "step"), [(3, 1), (18, 2), (100, 10)])
def test_whole_positions_have_at_most_eleven_ticks(last, step):
    axis = panel_figure(panel_of(Series(name="a", x=(0, last), y=(3, 4))))["layout"]["xaxis"]

    assert axis["dtick"] == step


def test_a_height_that_is_not_finite_is_a_gap():
    figure = panel_figure(panel_of(Series(name="a", x=(1, 2, 3), y=(3, math.nan, 4))))

    assert figure["data"][0]["y"] == [3, None, 4]


def test_an_interval_beyond_all_shares_makes_no_tick_there():
    series = Series(name="a", x=(1, 2), y=(0.98, 0.99), low=(0.5, 0.9), high=(1.05, 1.2))

    axis = panel_figure(panel_of(series, is_share=True))["layout"]["yaxis"]

    assert axis["ticktext"][-1] == "100 %"


def test_sizes_on_a_logarithmic_axis_are_its_ticks():
    axis = panel_figure(panel_of(Series(name="a", x=(64, 128, 1236), y=(1, 2, 3)), is_log=True))["layout"]["xaxis"]

    assert (axis["type"], axis["ticktext"]) == ("log", ["64", "128", "1,236"])


def test_pointing_at_a_point_says_name_position_height_and_interval():
    series = Series(name="<b>", x=(64, 128), y=(0.5, 0.75), low=(0.4, 0.7), high=(0.6, 0.8))

    figure = panel_figure(panel_of(series, is_share=True))

    said = "<b>&lt;b&gt;</b><br>samples 128<br>accuracy 75.0 % (70.0 % to 80.0 %)"
    assert lines(figure)[0]["hovertext"][1] == said


def test_what_is_not_finite_is_said_not_to_be_measured():
    series = Series(name="a", x=(1,), y=(1.5,), low=(math.nan,), high=(2,))

    assert list(heights_with_intervals(panel_of(series), series)) == ["1.5 (not measured to 2)"]
    assert height(panel_of(is_share=True), math.inf) == "not measured"
