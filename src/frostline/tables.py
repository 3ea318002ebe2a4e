"""What the command line lays out for people: sizes, seconds, what was read, and the tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table


def writable(text: str) -> str:
    """Text that any stream can take: undecodable bytes of a file name and control characters escaped.

    Example:
        >>> from frostline.tables import writable
        >>> writable("caf\\u00e9 \\x1b[31m")
        'café \\\\x1b[31m'
    """
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> from frostline.tables import duration
        >>> duration(0.42), duration(59.6), duration(200), duration(7300)
        ('0.4 s', '60 s', '3 min 20 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole <= 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def data_lines(summary: Any) -> Iterator[str]:
    """Say what was read, and what about it the user should know."""
    if summary is None:
        return
    train, valid, test = (sum(counts) for counts in zip(*summary.counts, strict=True))
    yield (
        f"{summary.name}: {train + valid + test:,} samples of {len(summary.classes)} classes "
        f"({train:,} train, {valid:,} validation, {test:,} test)"
    )
    if summary.duplicates:
        yield _groups("groups of files have the same bytes; each stays in one part", summary.duplicates)
    if summary.conflicts:
        yield _groups("of them carry more than one label, so one is wrong", summary.conflicts)
    if summary.skipped:
        yield f"{len(summary.skipped)} files were skipped:"
        yield from (f"  {path}: {reason}" for path, reason in summary.skipped)


def _groups(what: str, groups: Sequence[Sequence[str]]) -> str:
    shown = "; ".join(" = ".join(group) for group in groups[:3])
    rest = f"; and {len(groups) - 3} more (the report lists them)" if len(groups) > 3 else ""
    return f"{len(groups)} {what}: {shown}{rest}"


def stage_table(graph: Any) -> Table:
    """Lay out a traced network, one line a stage."""
    table = _table(f"{graph.model}: --depth N freezes stages 1 to N")
    for title in ("stage", "name", "parameters", "FLOPs", "kept a sample", "cut after it"):
        table.add_column(title, justify="left" if title in ("name", "cut after it") else "right", overflow="fold")
    entry = graph.cuts[0]
    table.add_row("0", "(the input)", "", "", decimal(entry.bytes_per_sample), entry.blocked or "open")
    for number, stage in enumerate(graph.stages, start=1):
        share = f"{100 * stage.flops / max(1, graph.flops):.1f} %"
        cut = graph.cuts[number] if number <= graph.max_depth else None
        end = (decimal(cut.bytes_per_sample), writable(cut.blocked or "open")) if cut else ("", "the head, always live")
        table.add_row(str(number), writable(stage.name), f"{stage.parameters:,}", share, *end)
    return table


def plan_tables(plan: Mapping[str, Any]) -> list[RenderableType]:
    """Lay out a plan: one line a depth, then what all of it will cost at most."""
    table = _table("The plan: predicted cost of each depth")
    columns = ("depth", "frozen up to", "trained", "store", "store fills in", "training", "full fine-tunes", "probe")
    for title in (*columns, "tried"):
        table.add_column(title, justify="left" if title == "frozen up to" else "right", overflow="fold")
    for forecast in plan["forecasts"]:
        probe = forecast["accuracy"]
        within = "" if forecast["low"] is None else f" ({forecast['low']:.3f}–{forecast['high']:.3f})"
        table.add_row(
            str(forecast["depth"]),
            writable(forecast["stage_name"]),
            f"{forecast['parameters']:,}",
            "computed anew" if forecast["depth"] in plan.get("computed", ()) else decimal(forecast["store_bytes"]),
            duration(forecast["store_seconds"]),
            duration(forecast["train_seconds"]),
            f"{forecast['full_finetunes']:.2f}",
            "" if probe is None else f"{probe:.3f}{within}",
            "yes" if forecast["is_candidate"] else "",
        )
    budget, engine = plan["budget"], plan["rates"]["engine"]
    lines = [
        f"About {duration(plan['seconds'])} and {decimal(plan['store_bytes'])} of disk; budget "
        f"{budget['limit']:.2f} full fine-tunes, of {budget['epochs']} epochs and "
        f"{duration(plan['full_finetune_seconds'])} each.",
        f"Frozen part: {engine['engine']}, {engine['precision']}. {engine['why']}".rstrip(),
        f"Live part: trained in {plan['recipe'].get('precision', 'float32')}.",
        "probe: leave-one-out accuracy of a linear fit to what each depth computes, with its 95 % interval; it says "
        "little of training.",
        *([plan["reason"]] if plan["reason"] else []),
        *plan["notes"],
    ]
    return [table, *(writable(line) for line in lines)]


def claim_table(claims: Sequence[Any]) -> Table:
    """Lay out the claims about freezing, one line each."""
    table = _table("What freezing brings on this data")
    for title in ("claim", "verdict", "number (95 % interval)", "what was found"):
        table.add_column(title, overflow="fold")
    for claim in claims:
        number = "" if claim.value is None else f"{claim.value:.2f} {claim.unit} ({claim.low:.2f} to {claim.high:.2f})"
        table.add_row(claim.name, claim.verdict, number, writable(claim.sentence))
    return table


def _table(title: str) -> Table:
    return Table(title=writable(title), title_justify="left", box=None, pad_edge=False)
