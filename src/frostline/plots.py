"""Figures as plain plotly dictionaries: pure data.

Nothing here draws and plotly is not imported. Colours are names, "@frozen", that `painted`
looks up in a palette, so that one figure serves light and dark pages.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from frostline.amounts import axis_share, byte_count, decimal, duration, even_ticks, interval, label, rate, share
from frostline.comparing import chain_of
from frostline.records import Choice, CutGraph, Plan, Prior, Score, Trial

Figure = dict[str, Any]
"""Two keys, "data" and "layout", as plotly.js takes them."""

PALETTES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "page": "#f7f8fa",
        "card": "#ffffff",
        "text": "#17202b",
        "muted": "#56616e",
        "line": "#dfe4ea",
        "frozen": "#1f6fb2",
        "frozen-soft": "#d8e8f6",
        "live": "#a84909",
        "live-soft": "#fbe4d1",
        "probe": "#7b8794",
        "probe-soft": "#7b879426",
        "cost": "#c3ccd6",
        "half": "#909ba7",
        "series-0": "#1f6fb2",
        "series-1": "#b8500a",
        "series-2": "#2f7d4f",
        "series-3": "#7d4cb0",
        "series-4": "#96700a",
        "series-5": "#b8326a",
        "series-6": "#167a86",
        "series-7": "#5f6a76",
    },
    "dark": {
        "page": "#0f1419",
        "card": "#171e26",
        "text": "#e4e9ef",
        "muted": "#9daab8",
        "line": "#2b3540",
        "frozen": "#6fb4ee",
        "frozen-soft": "#1d3a55",
        "live": "#f2a065",
        "live-soft": "#4a2f1b",
        "probe": "#8795a4",
        "probe-soft": "#8795a42e",
        "cost": "#465361",
        "half": "#6d7a88",
        "series-0": "#6fb4ee",
        "series-1": "#f2a065",
        "series-2": "#6fc894",
        "series-3": "#bb97e6",
        "series-4": "#d9b650",
        "series-5": "#ee86ae",
        "series-6": "#5cc3cf",
        "series-7": "#a5b0bc",
    },
}
"""Colours by name for a light and a dark page; text on card and page keeps a contrast of 4.5."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
MOST_WRITTEN = 40
"""Classes up to which a confusion matrix shows all of them, each cell with its count."""
MOST_DRAWN = 200
"""Classes up to which the whole matrix is drawn at all: one cell is then three pixels wide."""
_SHOWN_OF_MANY = 30
"""Classes shown with counts where there are too many for all."""


def depth_curve(graph: CutGraph, prior: Prior, plan: Plan, *, choice: Choice, valid: Score) -> Figure:
    """Draw accuracy and predicted cost over the number of frozen stages.

    Args:
        graph: Stages and cuts, for the names.
        prior: Votes of the probe by depth: a line with its interval.
        plan: Predicted cost by depth: bars on a second axis below.
        choice: Chosen depth, marked, and its rivals: points with 95 % intervals.
        valid: Validation score of the chosen depth.

    Returns:
        The figure; its accuracies are shares from 0 to 1, its costs full fine-tunes.

    Example:
        >>> graph = CutGraph(model="Tiny", batch=2, cuts=(), stages=())
        >>> plan = Plan.model_construct(forecasts=())
        >>> choice = Choice(depth=0, stage_name="nothing", max_depth=2, trial="", rule="", reason="")
        >>> score = Score.model_construct(accuracy=0.5, low=0.15, high=0.85)
        >>> figure = depth_curve(graph, Prior(votes=(), samples=8), plan, choice=choice, valid=score)
        >>> [trace["name"] for trace in figure["data"] if trace.get("showlegend", True)]
        ['chosen']
    """
    data: list[Figure] = [*_probe_traces(graph, prior), *_raced_traces(choice, valid), _cost_trace(plan, choice)]
    seen = [bound for vote in prior.votes for bound in (vote.low, vote.high)]
    seen += [valid.low, valid.high]
    seen += [bound for rival in choice.rivals for bound in (rival.low, rival.high)]
    ticks = even_ticks(min(seen), max(seen))
    costs = even_ticks(0.0, max([forecast.full_finetunes for forecast in plan.forecasts], default=1.0), about=3)
    layout = blank_layout()
    layout["xaxis"] |= {
        "title": axis_title("number of frozen stages"),
        "range": [-0.6, choice.max_depth + 0.6],
        "dtick": max(1, math.ceil((choice.max_depth + 1) / 20)),
        "anchor": "y2",
        "showgrid": False,
    }
    layout["yaxis"] |= {
        "domain": [0.36, 0.95],
        "range": [ticks[0], ticks[-1] + (ticks[1] - ticks[0]) * 0.25],
        "tickvals": ticks,
        "ticktext": [axis_share(tick) for tick in ticks],
    }
    layout["yaxis2"] = layout["yaxis"] | {
        "domain": [0.0, 0.21],
        "range": [0, costs[-1]],
        "tickvals": costs,
        "ticktext": [axis_share(tick) for tick in costs],
        "anchor": "x",
    }
    layout["annotations"] = [
        _panel_title("accuracy", 1.0),
        _panel_title("predicted cost, full fine-tunes", 0.29),
    ]
    layout["shapes"] = [
        {
            "type": "line",
            "x0": choice.depth,
            "x1": choice.depth,
            "yref": "paper",
            "y0": 0.36,
            "y1": 0.95,
            "layer": "below",
            "line": {"color": "@frozen", "width": 1, "dash": "dot"},
        }
    ]
    return {"data": data, "layout": layout}


def _panel_title(text: str, y: float) -> Figure:
    where = {"x": 0, "xref": "paper", "xanchor": "left", "y": y, "yref": "paper", "yanchor": "top"}
    return where | {"text": text, "showarrow": False, "font": {"color": "@muted", "size": 12}}


def _probe_traces(graph: CutGraph, prior: Prior) -> list[Figure]:
    if not prior.votes:
        return []
    depths = [vote.depth for vote in prior.votes]
    band = {
        "x": depths + depths[::-1],
        "y": [vote.high for vote in prior.votes] + [vote.low for vote in reversed(prior.votes)],
        "fill": "toself",
        "fillcolor": "@probe-soft",
        "line": {"width": 0, "color": "@probe-soft"},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": "probe",
        "name": "interval of the probe",
    }
    names = [graph.stage_name(depth) if depth <= len(graph.stages) else "" for depth in depths]
    line = {
        "x": depths,
        "y": [vote.accuracy for vote in prior.votes],
        "mode": "lines+markers",
        "line": {"color": "@probe", "width": 1.5},
        "marker": {"color": "@probe", "size": 4},
        "name": "probe, untrained",
        "legendgroup": "probe",
        "hoverinfo": "text",
        "hovertext": [
            f"<b>depth {vote.depth}</b>, after {label(name)}<br>probe {interval(vote.accuracy, vote.low, vote.high)}"
            for vote, name in zip(prior.votes, names, strict=True)
        ],
    }
    return [band, line]


def _raced_traces(choice: Choice, valid: Score) -> list[Figure]:
    chosen = _points("chosen", [(choice.depth, choice.stage_name, valid)], "@frozen", 11, "diamond")
    if not choice.rivals:
        return [chosen]
    rivals = [(rival.depth, rival.stage_name, rival) for rival in choice.rivals]
    return [_points("rivals", rivals, "@text", 8, "circle"), chosen]


def _points(name: str, points: Sequence[tuple[int, str, Any]], color: str, size: int, symbol: str) -> Figure:
    return {
        "x": [depth for depth, _, _ in points],
        "y": [one.accuracy for _, _, one in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, one.high - one.accuracy) for _, _, one in points],
            "arrayminus": [max(0.0, one.accuracy - one.low) for _, _, one in points],
            "color": color,
            "thickness": 1.5,
            "width": 4,
        },
        "mode": "markers",
        "cliponaxis": False,
        "marker": {"color": color, "size": size, "symbol": symbol, "line": {"color": "@card", "width": 1.5}},
        "name": name,
        "hoverinfo": "text",
        "hovertext": [
            f"<b>depth {depth}</b>, after {label(stage)}<br>validation {interval(one.accuracy, one.low, one.high)}"
            for depth, stage, one in points
        ],
    }


def _cost_trace(plan: Plan, choice: Choice) -> Figure:
    def color(depth: int, is_candidate: bool) -> str:
        if depth == choice.depth:
            return "@frozen"
        return "@muted" if is_candidate else "@cost"

    return {
        "type": "bar",
        "x": [forecast.depth for forecast in plan.forecasts],
        "y": [forecast.full_finetunes for forecast in plan.forecasts],
        "yaxis": "y2",
        "width": 0.62,
        "marker": {"color": [color(forecast.depth, forecast.is_candidate) for forecast in plan.forecasts]},
        "name": "predicted cost of this depth alone",
        "showlegend": False,
        "hoverinfo": "text",
        "hovertext": [
            f"<b>depth {forecast.depth}</b>, after {label(forecast.stage_name)}<br>"
            f"predicted {share(forecast.full_finetunes)} full fine-tunes<br>"
            f"store {byte_count(forecast.store_bytes)}, {duration(forecast.store_seconds)}<br>"
            f"training {duration(forecast.train_seconds)}"
            for forecast in plan.forecasts
        ],
    }


def chains(trials: Sequence[Trial]) -> tuple[tuple[Trial, ...], ...]:
    """Follow each trial that nobody continued back to the pretrained weights.

    Args:
        trials: In any order; a parent that is missing ends its chain.

    Returns:
        One tuple for each chain, oldest trial first, ordered by depth.

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> first = Trial(spec=TrialSpec(depth=3, recipe=Recipe(), seed=0, epochs=1))
        >>> next_spec = TrialSpec(depth=3, recipe=Recipe(), seed=0, epochs=4, parent=first.spec.key, first_epoch=1)
        >>> [len(chain) for chain in chains([Trial(spec=next_spec), first])]
        [2]
    """
    by_key = {trial.spec.key: trial for trial in trials}
    parents = {trial.spec.parent for trial in trials}
    found = []
    for key, leaf in by_key.items():
        if key not in parents:
            found.append(chain_of(leaf, by_key))
    return tuple(sorted(found, key=lambda chain: (chain[-1].spec.depth, chain[-1].spec.key)))


def chain_names(found: Sequence[Sequence[Trial]]) -> tuple[str, ...]:
    """Name chains by their depth, and by what else tells them apart.

    Args:
        found: Chains of trials, as `chains` gives them.

    Returns:
        One name for each, such as "depth 9" or "depth 9, rate 3e-4".

    Example:
        >>> from frostline.records import Recipe, TrialSpec
        >>> specs = [TrialSpec(depth=9, recipe=Recipe(learning_rate=rate), seed=0, epochs=1) for rate in (3e-4, 1e-3)]
        >>> chain_names([(Trial(spec=spec),) for spec in specs])
        ('depth 9, rate 3e-4', 'depth 9, rate 1e-3')
    """
    leaves = [chain[-1] for chain in found]
    names = []
    for leaf in leaves:
        same = [other.spec for other in leaves if other.spec.depth == leaf.spec.depth]
        parts = [f"depth {leaf.spec.depth}"]
        if len({spec.recipe.learning_rate for spec in same}) > 1:
            parts.append(f"rate {rate(leaf.spec.recipe.learning_rate)}")
        if len({spec.recipe.norm_mode for spec in same}) > 1:
            parts.append(f"norms in {leaf.spec.recipe.norm_mode} mode")
        if len({spec.seed for spec in same}) > 1:
            parts.append(f"seed {leaf.spec.seed}")
        if leaf.failure:
            parts.append("failed")
        names.append(", ".join(parts))
    return tuple(names)


def learning_curves(trials: Sequence[Trial], choice: Choice) -> tuple[Figure, Figure]:
    """Draw loss and accuracy by epoch, one colour for each chain of trials.

    Args:
        trials: All that were trained, failed ones included.
        choice: Whose chain is drawn thick.

    Returns:
        Loss in nats (validation solid, training dashed) and validation accuracy (0 to 1).

    Example:
        >>> choice = Choice(depth=0, stage_name="nothing", max_depth=2, trial="", rule="", reason="")
        >>> loss, accuracy = learning_curves([], choice)
        >>> loss["layout"]["yaxis"]["title"]["text"]
        'loss, nats'
    """
    found = chains(trials)
    losses: list[Figure] = []
    accuracies: list[Figure] = []
    rivals = itertools.cycle(range(1, 8))
    for chain, name in zip(found, chain_names(found), strict=True):
        points = [point for trial in chain for point in trial.curve]
        is_chosen = any(trial.spec.key == choice.trial for trial in chain)
        color = "@series-0" if is_chosen else f"@series-{next(rivals)}"
        shared = {
            "x": [point.epoch for point in points],
            "mode": "lines+markers",
            "line": {"color": color, "width": 3 if is_chosen else 1.5},
            "marker": {"color": color, "size": 6 if is_chosen else 4},
            "name": f"{name}, chosen" if is_chosen else name,
            "legendgroup": name,
            "hoverinfo": "text",
        }
        thin = {"mode": "lines", "line": {"color": color, "width": 1, "dash": "dash"}, "showlegend": False}
        epochs = [f"<b>{name}</b>, epoch {point.epoch:.3g}<br>" for point in points]

        def curve(
            values: Sequence[float | None], what: str, shared: Figure = shared, epochs: list[str] = epochs
        ) -> Figure:
            hover = [f"{epoch}{what} {decimal(value)}" for epoch, value in zip(epochs, values, strict=True)]
            return shared | {"y": [_finite(value) for value in values], "hovertext": hover}

        losses.append(curve([point.valid_loss for point in points], "validation loss, nats"))
        losses.append(curve([point.train_loss for point in points], "training loss, nats") | thin)
        accuracies.append(curve([point.valid_accuracy for point in points], "validation accuracy"))
    return _epoch_figure(losses, "loss, nats"), _epoch_figure(accuracies, "validation accuracy")


def _epoch_figure(data: list[Figure], title: str) -> Figure:
    layout = blank_layout()
    last = max([epoch for trace in data for epoch in trace["x"]], default=1)
    layout["xaxis"] |= {
        "title": axis_title("epoch; 0 is the warm head"),
        "range": [-0.4, last + 0.4],
        "dtick": max(1, math.ceil(last / 10)),
    }
    layout["yaxis"] |= {"title": axis_title(title)}
    values = [value for trace in data for value in trace["y"] if value is not None]
    if values:
        ticks = even_ticks(min(values), max(values))
        layout["yaxis"] |= {
            "range": [ticks[0], ticks[-1] + (ticks[1] - ticks[0]) * 0.15],
            "tickvals": ticks,
            "ticktext": [axis_share(tick) for tick in ticks],
        }
    return {"data": data, "layout": layout}


def confusion(classes: Sequence[str], score: Score) -> Figure:
    """Draw which class was taken for which: right answers in one colour, mistakes in another.

    Colour is the share of the row, and every cell carries its count. Of more than 40 classes
    the 30 that occur in most mistakes are drawn.

    Args:
        classes: K names.
        score: Its confusion matrix is drawn: row the label, column the prediction.

    Returns:
        The figure; class names in it are escaped, since plotly reads some HTML in labels.

    Example:
        >>> score = Score.model_construct(confusion=((2, 0), (1, 1)))
        >>> confusion(("cat", "<b>dog</b>"), score)["data"][0]["y"]
        ['cat', '&lt;b&gt;dog&lt;/b&gt;']
    """
    shown = list(range(len(classes)))
    if len(classes) > MOST_WRITTEN:
        matrix = score.confusion
        mistakes = [sum(matrix[k]) + sum(row[k] for row in matrix) - 2 * matrix[k][k] for k in shown]
        shown = sorted(sorted(shown, key=lambda k: -mistakes[k])[:_SHOWN_OF_MANY])
    figure = _matrix(classes, score, shown, is_written=True)
    small = {"size": 13 if len(shown) <= 12 else 11}
    figure["layout"]["xaxis"] |= {"dtick": 1, "tickfont": small, "tickangle": -40}
    figure["layout"]["yaxis"] |= {"dtick": 1, "tickfont": small}
    return figure


def confusion_overview(classes: Sequence[str], score: Score) -> Figure:
    """Draw the whole matrix of many classes as a pattern; names and counts appear on pointing.

    Args:
        classes: K names, at most `MOST_DRAWN`.
        score: Its confusion matrix is drawn: row the label, column the prediction.

    Returns:
        The figure; class names in it are escaped.

    Example:
        >>> score = Score.model_construct(confusion=((2, 0), (1, 1)))
        >>> confusion_overview(("cat", "dog"), score)["layout"]["xaxis"]["showticklabels"]
        False
    """
    figure = _matrix(classes, score, list(range(len(classes))), is_written=False)
    for axis in ("xaxis", "yaxis"):
        figure["layout"][axis] |= {"showticklabels": False, "ticks": "", "mirror": True, "showline": True}
    return figure


def _matrix(classes: Sequence[str], score: Score, shown: Sequence[int], *, is_written: bool) -> Figure:
    names = _short_names([classes[k] for k in shown])
    data = [_cells(classes, score, shown, names, is_diagonal=is_diagonal) for is_diagonal in (True, False)]
    if is_written:
        for figure in data:
            figure |= {"texttemplate": "%{text}", "xgap": 1, "ygap": 1}
    layout = blank_layout()
    axis = {"type": "category", "showgrid": False, "constrain": "domain"}
    layout["xaxis"] |= axis | {"title": axis_title("predicted"), "constraintoward": "left"}
    layout["yaxis"] |= axis | {"title": axis_title("true class"), "constraintoward": "top"}
    layout["yaxis"] |= {"autorange": "reversed", "scaleanchor": "x"}
    return {"data": data, "layout": layout}


def _cells(
    classes: Sequence[str], score: Score, shown: Sequence[int], names: Sequence[str], *, is_diagonal: bool
) -> Figure:
    z: list[list[float | None]] = []
    text: list[list[str]] = []
    hover: list[list[str]] = []
    for i in shown:
        total = sum(score.confusion[i])
        counts = [score.confusion[i][j] if (i == j) == is_diagonal else 0 for j in shown]
        z.append([count / total if count else None for count in counts])
        text.append([str(count) if count else "" for count in counts])
        hover.append(
            [
                f"<b>{count} of {total}</b> {label(classes[i])}<br>taken for {label(classes[j])}" if count else ""
                for count, j in zip(counts, shown, strict=True)
            ]
        )
    soft, strong = ("@frozen-soft", "@frozen") if is_diagonal else ("@live-soft", "@live")
    return {
        "type": "heatmap",
        "x": list(names),
        "y": list(names),
        "z": z,
        "text": text,
        "zmin": 0,
        "zmax": 1 if is_diagonal else 0.5,
        "colorscale": [[0, soft], [1, strong]],
        "showscale": False,
        "hoverongaps": False,
        "hoverinfo": "text",
        "hovertext": hover,
        "name": "right" if is_diagonal else "mistaken",
    }


def _short_names(classes: Sequence[str], longest: int = 22) -> list[str]:
    """Cut long names, keep them apart, and escape them."""
    found: list[str] = []
    for name in classes:
        short = name if len(name) <= longest else f"{name[: longest - 6]}…{name[-5:]}"
        if label(short) in found:
            short = f"{short} ({len(found)})"
        found.append(label(short))
    return found


def axis_title(text: str) -> Figure:
    """The title of an axis, in the quiet colour.

    Example:
        >>> axis_title("epoch")["text"]
        'epoch'
    """
    return {"text": text, "standoff": 12, "font": {"size": 12, "color": "@muted"}}


def blank_layout() -> Figure:
    """The layout that every figure starts from: colours by name, room for a legend, no drag.

    Example:
        >>> blank_layout()["paper_bgcolor"]
        '@card'
    """
    axis = {
        "color": "@muted",
        "gridcolor": "@line",
        "linecolor": "@line",
        "zeroline": False,
        "automargin": True,
        "fixedrange": False,
        "title": axis_title(""),
    }
    return {
        "autosize": True,
        "paper_bgcolor": "@card",
        "plot_bgcolor": "@card",
        "font": {"family": _FONT, "size": 13, "color": "@text"},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"color": "@text", "size": 12},
        },
        "hoverlabel": {
            "align": "left",
            "bgcolor": "@card",
            "bordercolor": "@line",
            "font": {"color": "@text", "size": 13, "family": _FONT},
        },
        "hovermode": "closest",
        "dragmode": False,
    }


def painted(figure: Figure, palette: Mapping[str, str]) -> Figure:
    """Look up the colours of a figure in a palette.

    Only what stands under a key that ends in "color" or "colorscale" is looked up, so a class
    named "@frozen" stays text.

    Args:
        figure: As made here, with colours such as "@frozen".
        palette: Colours by name, for instance `PALETTES["dark"]`.

    Returns:
        A new figure that plotly can draw.

    Example:
        >>> painted({"marker": {"color": "@a"}, "name": "@a"}, {"a": "#fff"})
        {'marker': {'color': '#fff'}, 'name': '@a'}
    """

    def walk(value: Any, is_color: bool) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, key.endswith(("color", "colorscale"))) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, is_color) for item in value]
        if is_color and isinstance(value, str) and value.startswith("@"):
            return palette[value[1:]]
        return value

    return dict(walk(figure, False))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
