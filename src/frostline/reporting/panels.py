"""Figures of the claims: each line in a colour and a mark of its own, with its 95 % intervals."""

import math
import textwrap
from collections.abc import Iterator, Sequence

from frostline.amounts import even_ticks, label, scaled, visible
from frostline.exhibits import Panel, Series
from frostline.plots import Figure, axis_title, blank_layout

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_MOST_TICKS = 6
"""Positions up to which each has a tick on a logarithmic axis."""
_WIDEST = 36
"""Letters in a line of a legend, which plotly would cut off on a phone."""
_ASIDE = 0.015
"""Share of the axis by which a lone point is moved aside from another one at the same place."""


def panel_figure(panel: Panel) -> Figure:
    """Draw one plot of a claim: a band where a line has an interval, a bar where a lone point has one.

    Args:
        panel: What is to be seen. Names in it may hold anything; heights that are not finite are gaps.

    Returns:
        The figure.

    Example:
        >>> accuracy = Series(name="frozen", x=(64, 128), y=(0.5, 0.75))
        >>> panel = Panel(title="", x_name="samples", y_name="accuracy", series=(accuracy,), is_share=True)
        >>> panel_figure(panel)["data"][0]["hovertext"][0]
        '<b>frozen</b><br>samples 64<br>accuracy 50.0 %'
    """
    data = [trace for place, series in enumerate(panel.series) for trace in _traces(panel, series, place)]
    layout = blank_layout()
    layout["xaxis"] |= {"title": axis_title(label(panel.x_name)), "showgrid": False} | _positions(panel)
    layout["yaxis"] |= {"title": axis_title(label(panel.y_name))} | _heights(panel)
    layout["showlegend"] = True
    return {"data": data, "layout": layout}


def height(panel: Panel, value: float) -> str:
    """Write a height as its axis does.

    Example:
        >>> height(Panel(title="", x_name="", y_name="", series=(), is_share=True), 0.9721)
        '97.2 %'
    """
    if not math.isfinite(value):
        return "not measured"
    return f"{100 * value:.1f} %" if panel.is_share else position(value)


def position(value: float) -> str:
    """Write a figure of any size with three digits, and a whole number in full.

    Example:
        >>> position(1024), position(0.25), position(2.41e13), position(5e12)
        ('1,024', '0.25', '24.1 T', '5 T')
    """
    if abs(value) < 100_000 and value != round(value):
        return f"{value:.3g}"
    digits, _, prefix = scaled(value).partition(" ")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} {prefix}".rstrip()


def heights_with_intervals(panel: Panel, series: Series) -> Iterator[str]:
    """Write each height of a line with its interval, where it has one.

    Example:
        >>> lone = Series(name="", x=(1,), y=(2,), low=(1.5,), high=(2.5,))
        >>> list(heights_with_intervals(Panel(title="", x_name="", y_name="", series=(lone,)), lone))
        ['2 (1.5 to 2.5)']
    """
    for at, y in enumerate(series.y):
        written = height(panel, y)
        if series.low and series.high:
            written += f" ({height(panel, series.low[at])} to {height(panel, series.high[at])})"
        yield written


def _traces(panel: Panel, series: Series, place: int) -> list[Figure]:
    color = f"@series-{place % 8}"
    name = "<br>".join(map(label, textwrap.wrap(visible(series.name), _WIDEST)))
    line = {
        "x": [x + _aside(panel, series) for x in series.x],
        "y": [y if math.isfinite(y) else None for y in series.y],
        "mode": "lines+markers",
        "line": {"color": color, "width": 2},
        "marker": {"color": color, "size": 7, "symbol": _SYMBOLS[place % len(_SYMBOLS)]},
        "name": name,
        "legendgroup": str(place),
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{name}</b><br>{label(panel.x_name)} {position(x)}<br>{label(panel.y_name)} {y}"
            for x, y in zip(series.x, heights_with_intervals(panel, series), strict=True)
        ],
    }
    if not (series.low and series.high):
        return [line]
    return [line | {"error_y": _bars(series, color)}] if len(series.x) == 1 else [_band(series, color, place), line]


def _aside(panel: Panel, series: Series) -> float:
    """How far a lone point stands from its place, so that its interval does not cover that of another lone one."""
    lone = [one for one in panel.series if len(one.x) == 1 and one.x == series.x]
    if len(series.x) != 1 or len(lone) == 1 or panel.is_log:
        return 0.0
    seen = [x for one in panel.series for x in one.x]
    rank = lone.index(series)
    # A line may pass in the middle; beyond a quarter of a step a point would belong to its neighbour.
    step = min(0.25, _ASIDE * (max(seen) - min(seen)))
    return step * (rank // 2 + 1) * (-1 if rank % 2 else 1)


def _bars(series: Series, color: str) -> Figure:
    ends = zip(series.low, series.y, series.high, strict=True)
    lower, upper = zip(*((max(0.0, y - low), max(0.0, high - y)) for low, y, high in ends), strict=True)
    return {
        "type": "data",
        "symmetric": False,
        "array": list(upper),
        "arrayminus": list(lower),
        "color": color,
        "thickness": 1.5,
        "width": 4,
    }


def _band(series: Series, color: str, place: int) -> Figure:
    ends = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low, series.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    return {
        "x": [x for x, _, _ in ends] + [x for x, _, _ in reversed(ends)],
        "y": [high for _, _, high in ends] + [low for _, low, _ in reversed(ends)],
        "fill": "toself",
        "fillcolor": color,
        "opacity": 0.16,
        "line": {"width": 0, "color": color},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": str(place),
        "name": "interval",
    }


def _positions(panel: Panel) -> Figure:
    found = sorted({x for series in panel.series for x in series.x if math.isfinite(x)})
    if panel.is_log:
        ticks = found if len(found) <= _MOST_TICKS else found[:: math.ceil(len(found) / _MOST_TICKS)]
        return {"type": "log", "tickvals": ticks, "ticktext": [position(tick) for tick in ticks]}
    if found and all(x == round(x) for x in found) and found[-1] - found[0] <= 100:
        # The page widens a step that leaves no room for its numbers.
        return {"range": [found[0] - 0.4, found[-1] + 0.4], "dtick": max(1, math.ceil((found[-1] - found[0]) / 10))}
    room = (found[-1] - found[0]) * 0.03 if found else 0.0
    return _ticks(found) | ({"range": [found[0] - room, found[-1] + room]} if room else {})


def _heights(panel: Panel) -> Figure:
    seen = [y for series in panel.series for y in (*series.y, *series.low, *series.high) if math.isfinite(y)]
    if not panel.is_share:
        return _ticks(seen)
    # An interval may reach beyond the shares that there are.
    axis = _ticks([min(1.0, max(0.0, y)) for y in seen])
    return axis | {"ticktext": [f"{100 * tick:.4g} %" for tick in axis.get("tickvals", ())]}


def _ticks(seen: Sequence[float]) -> Figure:
    if not seen:
        return {}
    ticks = even_ticks(min(seen), max(seen), about=4)
    room = (ticks[-1] - ticks[0]) * 0.04
    return {
        "range": [ticks[0] - room, ticks[-1] + room],
        "tickvals": ticks,
        "ticktext": [position(tick) for tick in ticks],
    }
