"""The six claims as the report tells them: verdict, number with its interval, control, and figures."""

import math
import shlex
from collections import Counter
from typing import Any, NamedTuple

from frostline.amounts import UNKNOWN, visible
from frostline.exhibits import Claim, ClaimName, Panel, Verdict
from frostline.plots import Figure
from frostline.records import Evidence
from frostline.reporting.page import run_folder
from frostline.reporting.panels import heights_with_intervals, panel_figure, position

Row = dict[str, Any]


class _Said(NamedTuple):
    """A claim in plain words."""

    title: str
    statement: str


_SAID: dict[ClaimName, _Said] = {
    "reuse": _Said("Reuse of features", "What the frozen stages learnt elsewhere is of use here."),
    "data": _Said("Less data", "Fewer labelled samples give the same accuracy."),
    "convergence": _Said("Faster convergence", "Training gets to the same accuracy with less work."),
    "stability": _Said("More stable training", "Another seed changes the result less."),
    "regularisation": _Said("Less overfitting", "Wrong labels do less harm."),
    "resources": _Said("Fewer resources", "Training takes less time, work and memory."),
}

_BADGES: dict[Verdict, tuple[str, str]] = {
    "holds": ("✓", "good"),
    "does not hold": ("✗", "bad"),
    "not decided": ("?", "open"),
    "not measured": ("–", "none"),
}
"""Sign and kind of each verdict's badge."""

_MOST_NARROW = 3
"""Lines up to which a plot has room for its legend where two plots stand side by side."""

_COUNTED: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "not decided": ("is not decided", "are not decided"),
    "not measured": ("is not measured", "are not measured"),
}
"""What is said of one claim, and of several."""


def claimed(evidence: Evidence) -> Row:
    """Say each claim: those that were measured as cards, the others with the command that measures them.

    Args:
        evidence: The record.

    Returns:
        Texts, and rows of texts, by the names that the template uses.

    Example:
        >>> import inspect
        >>> list(inspect.signature(claimed).parameters)
        ['evidence']
    """
    found = measured(evidence)
    reasons = {claim.name: visible(claim.sentence) for claim in evidence.claims}
    run = shlex.quote(run_folder(evidence))
    return {
        "lead": _lead(found),
        "cards": tuple(map(_card, found)),
        "missing": tuple(
            {
                "title": _SAID[name].title,
                "statement": _SAID[name].statement,
                "reason": reasons.get(name, ""),
                "badge": _badge("not measured"),
                "command": f"frostline evidence {run} --claims {name}",
            }
            for name in _SAID
            if name not in {claim.name for claim in found}
        ),
    }


def measured(evidence: Evidence) -> tuple[Claim, ...]:
    """The claims that were paid for, in the order of the six.

    Example:
        >>> measured(Evidence.model_construct(claims=(Claim(name="data", verdict="not measured", sentence=""),)))
        ()
    """
    judged = {claim.name: claim for claim in evidence.claims if claim.verdict != "not measured"}
    return tuple(judged[name] for name in _SAID if name in judged)


def claim_figures(evidence: Evidence) -> dict[str, Figure]:
    """Every plot of every claim that was measured, by the name under which its card asks for it.

    Example:
        >>> claim_figures(Evidence.model_construct(claims=()))
        {}
    """
    return {
        _figure_name(claim, place): panel_figure(panel)
        for claim in measured(evidence)
        for place, panel in enumerate(claim.panels)
    }


def title(claim: Claim) -> str:
    """Name a claim in plain words.

    Example:
        >>> title(Claim(name="data", verdict="holds", sentence=""))
        'Less data'
    """
    return _SAID[claim.name].title


def number(claim: Claim) -> str:
    """Write the number of a claim with its unit and its interval, of which an end that is not known is left open.

    Example:
        >>> claim = Claim(name="data", verdict="holds", sentence="", value=2, low=1.5, high=float("inf"), unit="times")
        >>> number(claim)
        '2.00 times (1.50 or more)'
    """
    return " ".join(filter(None, _number(claim)))


def _number(claim: Claim) -> tuple[str, str]:
    if claim.value is None or math.isnan(claim.value):
        return "no number", ""
    return f"{_amount(claim, claim.value)} {claim.unit}".rstrip(), f"({_spread(claim)})"


def _spread(claim: Claim) -> str:
    low, high = (
        _amount(claim, end) if end is not None and math.isfinite(end) else "" for end in (claim.low, claim.high)
    )
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if low else f"{high} or less" if high else UNKNOWN


def _amount(claim: Claim, value: float) -> str:
    if math.isinf(value):
        return "without limit"
    # As the sentence writes it, which stands below.
    return (f"{value:.1f}" if claim.unit == "points" else f"{value:.2f}").replace("-", "−")


def _lead(found: tuple[Claim, ...]) -> str:
    if not found:
        return "Freezing is said to bring six things. None of them has been measured on this data yet."
    counts = Counter(claim.verdict for claim in found)
    counts["not measured"] = len(_SAID) - len(found)
    told = [f"{count} {_COUNTED[verdict][count > 1]}" for verdict in _COUNTED if (count := counts[verdict])]
    *first, last = told
    return f"Freezing is said to bring six things. On this data {', '.join(first)}{' and ' if first else ''}{last}."


def _card(claim: Claim) -> Row:
    value, spread = _number(claim)
    return {
        "name": claim.name,
        "title": title(claim),
        "statement": _SAID[claim.name].statement,
        "badge": _badge(claim.verdict),
        "number": value,
        "spread": spread,
        "measure": visible(claim.measure),
        "sentence": visible(claim.sentence),
        "control": visible(claim.control),
        "facts": (
            *((visible(name), visible(value)) for name, value in claim.facts),
            ("cost of this claim", f"{claim.cost:.2f} full fine-tunes"),
        ),
        "panels": tuple(_panel(claim, place) for place in range(len(claim.panels))),
    }


def _badge(verdict: Verdict) -> Row:
    sign, kind = _BADGES[verdict]
    return {"verdict": verdict, "sign": sign, "kind": kind}


def _panel(claim: Claim, place: int) -> Row:
    panel = claim.panels[place]
    return {
        "figure": _figure_name(claim, place),
        "title": visible(panel.title),
        "said": _said(panel),
        "x_name": visible(panel.x_name),
        "y_name": visible(panel.y_name),
        "is_wide": len(panel.series) > _MOST_NARROW,
        "has_intervals": any(series.low and series.high for series in panel.series),
        "rows": tuple(
            {"series": visible(series.name), "x": position(x), "y": y}
            for series in panel.series
            for x, y in zip(series.x, heights_with_intervals(panel, series), strict=True)
        ),
    }


def _said(panel: Panel) -> str:
    """What a plot shows, for those who cannot see it."""
    lines = []
    for series in panel.series:
        ys = [*heights_with_intervals(panel, series)]
        if len(ys) == 1:
            lines.append(f"{visible(series.name)}: {ys[0]} at {position(series.x[0])}")
        elif ys:
            ends = f"from {ys[0]} at {position(series.x[0])} to {ys[-1]} at {position(series.x[-1])}"
            lines.append(f"{visible(series.name)}: {ends}")
    axes = f"{visible(panel.y_name)} by {visible(panel.x_name)}"
    return f"{visible(panel.title)}: {axes}. {'; '.join(lines)}. The table below holds the figures."


def _figure_name(claim: Claim, place: int) -> str:
    return f"{claim.name}-{place}"
