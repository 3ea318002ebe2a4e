"""Figures of several runs on common axes: accuracy by depth, and what the test accuracy cost."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from frostline.amounts import axis_share, even_ticks, interval, label, share
from frostline.plots import Figure, axis_title, blank_layout
from frostline.records import Evidence, Vote
from frostline.reporting.comparison import ComparedRun
from frostline.reporting.page import chosen_score

_DASHES = ("solid", "dash", "dashdot", "longdash")
"""One for each test part, in turn, so that runs on different data look different."""


class _Axis(NamedTuple):
    """Where a depth stands: by its number, or by the share of the work below it where the networks differ."""

    is_shared: bool
    deepest: int

    def at(self, evidence: Evidence, depth: int) -> float:
        return depth if self.is_shared else evidence.graph.frozen_share(depth)


def depth_curves(runs: Sequence[ComparedRun], evidence: Sequence[Evidence]) -> Figure:
    """Draw the validation accuracy of every trained depth of every run, over the probes as thin lines.

    Args:
        runs: In the order of their colours.
        evidence: Of each of them.

    Returns:
        The figure. Across networks of other stages the axis is the share of the work that is frozen.

    Example:
        >>> depth_curves((), ())["layout"]["xaxis"]["title"]["text"]
        'number of frozen stages'
    """
    networks = {tuple(stage.name for stage in one.graph.stages) for one in evidence}
    axis = _Axis(len(networks) < 2, max([one.graph.max_depth for one in evidence], default=1))
    data: list[Figure] = []
    drawn: list[tuple[int, tuple[Vote, ...]]] = []
    for place, (run, one) in enumerate(zip(runs, evidence, strict=True)):
        # Runs of one network on one division have the same probe to the last bit.
        if one.prior.votes and (run.group, one.prior.votes) not in drawn:
            data.append(_probe(run, one, color_of(place), axis))
            drawn.append((run.group, one.prior.votes))
        aside = (place - (len(runs) - 1) / 2) * min(0.16, 0.6 / len(runs))
        data.append(_trained(run, one, color_of(place), axis, aside if axis.is_shared else aside * 0.04))
    layout = blank_layout()
    if axis.is_shared:
        span: Figure = {"range": [-0.6, axis.deepest + 0.6], "dtick": max(1, math.ceil((axis.deepest + 1) / 20))}
    else:
        ticks = even_ticks(0.0, 1.0)
        span = {"range": [-0.04, 1.04], "tickvals": ticks, "ticktext": [axis_share(tick) for tick in ticks]}
    title = "number of frozen stages" if axis.is_shared else "share of the network's work that is frozen"
    layout["xaxis"] |= span | {"title": axis_title(title), "showgrid": False}
    seen = [vote.accuracy for one in evidence for vote in one.prior.votes]
    chosen = [chosen_score(one) for one in evidence]
    seen += [bound for one in chosen for bound in (one.low, one.high)]
    seen += [bound for one in evidence for rival in one.choice.rivals for bound in (rival.low, rival.high)]
    layout["yaxis"] |= _accuracies(seen) | {"title": axis_title("accuracy")}
    return {"data": data, "layout": layout}


def cost_points(runs: Sequence[ComparedRun]) -> Figure:
    """Draw the test accuracy of every run over its cost: by seconds filled, by operations hollow.

    Args:
        runs: In the order of their colours.

    Returns:
        The figure; costs are in full fine-tunes of the run itself.

    Example:
        >>> cost_points(())["layout"]["yaxis"]["title"]["text"]
        'test accuracy'
    """
    data = [_cost(run, color_of(place)) for place, run in enumerate(runs)]
    layout = blank_layout()
    costs = even_ticks(
        0.0, max([cost for run in runs for cost in (run.share_seconds, run.share_flops, 1.0)], default=1)
    )
    layout["xaxis"] |= {
        "title": axis_title("cost, full fine-tunes"),
        "showgrid": False,
        "range": [-0.06 * costs[-1], 1.06 * costs[-1]],
        "tickvals": costs,
        "ticktext": [axis_share(tick) for tick in costs],
    }
    layout["yaxis"] |= _accuracies([bound for run in runs for bound in (run.low, run.high)])
    layout["yaxis"] |= {"title": axis_title("test accuracy")}
    one = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    layout["shapes"] = [one | {"line": {"color": "@muted", "width": 1, "dash": "dot"}}]
    return {"data": data, "layout": layout}


def color_of(place: int) -> str:
    """Name the colour of a run by its place.

    Example:
        >>> color_of(0), color_of(9)
        ('@series-0', '@series-1')
    """
    return f"@series-{place % 8}"


def _probe(run: ComparedRun, evidence: Evidence, color: str, axis: _Axis) -> Figure:
    votes = evidence.prior.votes
    return {
        "x": [axis.at(evidence, vote.depth) for vote in votes],
        "y": [vote.accuracy for vote in votes],
        "mode": "lines",
        "opacity": 0.55,
        "line": {"color": color, "width": 1.2, "dash": "dot"},
        "name": f"probe of {run.letter}",
        "showlegend": False,
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{run.letter}</b>, depth {vote.depth}<br>probe {interval(vote.accuracy, vote.low, vote.high)}"
            for vote in votes
        ],
    }


def _trained(run: ComparedRun, evidence: Evidence, color: str, axis: _Axis, aside: float) -> Figure:
    choice = evidence.choice
    points: list[tuple[int, str, Any]] = [(rival.depth, rival.stage_name, rival) for rival in choice.rivals]
    points = sorted([*points, (choice.depth, choice.stage_name, chosen_score(evidence))], key=lambda point: point[0])
    is_chosen = [depth == choice.depth for depth, _, _ in points]
    return {
        "x": [axis.at(evidence, depth) + aside for depth, _, _ in points],
        "y": [one.accuracy for _, _, one in points],
        "error_y": _spread([one for _, _, one in points], color),
        "mode": "lines+markers",
        "cliponaxis": False,
        "line": {"color": color, "width": 2, "dash": _DASHES[(run.group - 1) % len(_DASHES)]},
        "marker": {
            "color": color,
            "size": [12 if chosen else 7 for chosen in is_chosen],
            "opacity": 1,
            "symbol": ["diamond" if chosen else "circle" for chosen in is_chosen],
            "line": {"color": "@card", "width": 1.5},
        },
        "name": _name(run),
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{run.letter}</b>, depth {depth}, after {label(stage)}<br>"
            f"validation {interval(one.accuracy, one.low, one.high)}"
            for depth, stage, one in points
        ],
    }


def _cost(run: ComparedRun, color: str) -> Figure:
    costs = [("seconds", run.share_seconds), ("operations", run.share_flops)]
    return {
        "x": [cost for _, cost in costs],
        "y": [run.accuracy] * 2,
        "error_y": _spread([run, None], color),
        "mode": "lines+markers+text",
        "cliponaxis": False,
        "text": [run.letter, ""],
        "textposition": "middle right" if run.share_seconds >= run.share_flops else "middle left",
        "textfont": {"color": color, "size": 14},
        "line": {"color": color, "width": 1},
        "marker": {
            "color": [color, "@card"],
            "size": [12, 9],
            "opacity": 1,
            "line": {"color": color, "width": 2},
        },
        "name": _name(run),
        "showlegend": False,
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{run.letter}</b>, test {interval(run.accuracy, run.low, run.high)}<br>"
            f"{share(cost)} full fine-tunes by {unit}"
            for unit, cost in costs
        ],
    }


def _spread(points: Sequence[Any], color: str) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, one.high - one.accuracy) if one else 0.0 for one in points],
        "arrayminus": [max(0.0, one.accuracy - one.low) if one else 0.0 for one in points],
        "color": color,
        "thickness": 1.5,
        "width": 4,
    }


def _accuracies(seen: Sequence[float]) -> Figure:
    ticks = even_ticks(min(seen, default=0.0), max(seen, default=1.0))
    room = (ticks[1] - ticks[0]) * 0.25
    return {
        "range": [ticks[0], ticks[-1] + room],
        "tickvals": ticks,
        "ticktext": [axis_share(tick) for tick in ticks],
    }


def _name(run: ComparedRun) -> str:
    name = run.run.rstrip("/").rsplit("/", 1)[-1]
    short = name if len(name) <= 26 else f"{name[:14]}…{name[-11:]}"
    return f"{run.letter}  {label(short)}"
