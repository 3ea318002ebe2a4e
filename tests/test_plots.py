"""Figures are plain data: complete, drawable by plotly, and blind to what a name says."""

import itertools
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.plots import (
    MOST_WRITTEN,
    PALETTES,
    chain_names,
    chains,
    confusion,
    confusion_overview,
    depth_curve,
    learning_curves,
    painted,
)
from frostline.records import Prior, Score

MANY = tuple(f"character {k:03d}" for k in range(136))


def figures_of(evidence):
    loss, accuracy = learning_curves(evidence.trials, evidence.choice)
    curve = depth_curve(evidence.graph, evidence.prior, evidence.plan, choice=evidence.choice, valid=evidence.valid)
    return [curve, loss, accuracy, confusion(evidence.data.classes, evidence.test)]


def texts(value):
    """Every string of a figure that is not a colour."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not key.endswith(("color", "colorscale")):
                yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def contrast(one, other):
    """Contrast ratio of WCAG 2."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


# --- laws -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=2, max_size=6, unique=True))
def test_a_class_name_is_never_markup_in_a_label(names):
    matrix = tuple(tuple(1 + (i == j) for j in range(len(names))) for i in range(len(names)))
    score = Score.model_construct(confusion=matrix)

    figure = confusion(names, score)

    ours = ("<b>", "</b>", "<br>")
    for text in texts(figure["data"]):
        rest = text
        for tag in ours:
            rest = rest.replace(tag, "")
        assert not set(rest) & set("<>$") or text == "%{text}"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab<", min_size=20, max_size=60), min_size=2, max_size=8, unique=True))
def test_cut_names_stay_apart(names):
    matrix = tuple((0,) * len(names) for _ in names)

    axis = confusion(names, Score.model_construct(confusion=matrix))["data"][0]["x"]

    assert len(set(axis)) == len(names)


@pytest.mark.parametrize("classes", [("cat", "dog"), MANY[:10], MANY])
@pytest.mark.parametrize("palette", ["light", "dark"])
def test_plotly_can_draw_every_figure_in_every_palette(fake_evidence, classes, palette):
    objects = pytest.importorskip("plotly.graph_objects")

    for figure in figures_of(fake_evidence(classes)):
        drawable = painted(figure, PALETTES[palette])

        objects.Figure(drawable)
        assert '"@' not in json.dumps(drawable, allow_nan=False)


def test_a_class_named_like_a_colour_stays_text():
    figure = confusion(("@frozen", "@nothing"), Score.model_construct(confusion=((1, 1), (0, 2))))

    assert painted(figure, PALETTES["light"])["data"][0]["x"] == ["@frozen", "@nothing"]


# --- palettes ---------------------------------------------------------------------------------


def test_both_palettes_know_the_same_colours():
    assert PALETTES["light"].keys() == PALETTES["dark"].keys()


@pytest.mark.parametrize(
    ("palette", "ink", "ground"),
    [
        *itertools.product(PALETTES, ["text", "muted", "frozen", "live"], ["card", "page"]),
        *itertools.product(PALETTES, ["text", "live"], ["live-soft"]),
        *itertools.product(PALETTES, ["card"], ["frozen", *(f"series-{k}" for k in range(8))]),
    ],
)
def test_text_can_be_read_on_its_ground(palette, ink, ground):
    colors = PALETTES[palette]

    assert contrast(colors[ink], colors[ground]) >= 4.5


@pytest.mark.parametrize("palette", PALETTES)
def test_lines_and_marks_stand_out_from_the_card(palette):
    colors = PALETTES[palette]

    for name in ("probe", *(f"series-{k}" for k in range(8))):
        assert contrast(colors[name], colors["card"]) >= 3, name


# --- the depth curve --------------------------------------------------------------------------


def test_depth_curve_shows_votes_rivals_and_the_choice_with_their_intervals(fake_evidence):
    evidence = fake_evidence()

    curve = figures_of(evidence)[0]

    by_name = {trace.get("name"): trace for trace in curve["data"]}
    assert by_name["probe, untrained"]["y"] == [vote.accuracy for vote in evidence.prior.votes]
    assert by_name["chosen"]["x"] == [evidence.choice.depth]
    rivals = by_name["rivals"]
    assert rivals["x"] == [rival.depth for rival in evidence.choice.rivals]
    ends = [y + up for y, up in zip(rivals["y"], rivals["error_y"]["array"], strict=True)]
    assert ends == pytest.approx([rival.high for rival in evidence.choice.rivals])


def test_depth_curve_shows_predicted_cost_on_an_axis_of_its_own(fake_evidence):
    evidence = fake_evidence()

    curve = figures_of(evidence)[0]

    bars = next(trace for trace in curve["data"] if trace.get("type") == "bar")
    assert bars["yaxis"] == "y2"
    assert bars["y"] == [forecast.full_finetunes for forecast in evidence.plan.forecasts]
    assert bars["marker"]["color"].count("@frozen") == 1


def test_depth_curve_needs_no_votes_and_no_rivals(fake_evidence):
    evidence = fake_evidence()
    alone = evidence.choice.model_copy(update={"rivals": ()})

    curve = depth_curve(evidence.graph, Prior(votes=(), samples=1), evidence.plan, choice=alone, valid=evidence.valid)

    assert [trace["name"] for trace in curve["data"] if trace.get("type") != "bar"] == ["chosen"]


# --- learning curves --------------------------------------------------------------------------


def test_a_chain_is_one_line_from_the_warm_head_to_its_last_epoch(fake_evidence):
    evidence = fake_evidence()

    loss, accuracy = learning_curves(evidence.trials, evidence.choice)

    chosen = next(trace for trace in accuracy["data"] if trace["name"].endswith("chosen"))
    assert chosen["x"] == list(range(11))
    assert chosen["line"]["width"] > 2
    assert len(loss["data"]) == 2 * len(chains(evidence.trials))


def test_a_loss_that_is_no_number_leaves_a_gap(fake_evidence):
    evidence = fake_evidence()

    loss, _ = learning_curves(evidence.trials, evidence.choice)

    failed = next(trace for trace in loss["data"] if "failed" in trace["name"])
    assert math.isnan(evidence.trials[-1].curve[-1].valid_loss)
    assert failed["y"][-1] is None


def test_chains_do_not_depend_on_the_order_of_trials(fake_evidence):
    trials = fake_evidence().trials

    assert chains(trials) == chains(trials[::-1])


def test_every_chain_has_a_name_of_its_own(fake_evidence):
    names = chain_names(chains(fake_evidence().trials))

    assert len(set(names)) == len(names)


# --- the confusion matrix ---------------------------------------------------------------------


def test_every_cell_carries_its_count(fake_evidence):
    evidence = fake_evidence()

    figure = confusion(evidence.data.classes, evidence.test)

    counts = [int(text or 0) for trace in figure["data"] for row in trace["text"] for text in row]
    assert sum(counts) == evidence.test.samples


def test_of_many_classes_those_in_most_mistakes_are_shown(fake_evidence):
    evidence = fake_evidence(MANY)
    matrix = evidence.test.confusion
    wrong = {k for k, row in enumerate(matrix) for j, count in enumerate(row) if j != k and count}

    shown = confusion(MANY, evidence.test)["data"][0]["x"]

    assert len(shown) <= MOST_WRITTEN
    assert {MANY[k] for k in wrong} <= set(shown)


def test_overview_shows_every_class_and_names_it_on_pointing(fake_evidence):
    evidence = fake_evidence(MANY)

    right, _ = confusion_overview(MANY, evidence.test)["data"]

    assert len(right["z"]) == len(MANY)
    assert MANY[7] in right["hovertext"][7][7]


# --- the module -------------------------------------------------------------------------------


def test_import_loads_neither_plotly_nor_torch():
    code = "import sys, frostline.plots; print([name for name in ('plotly', 'torch') if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
