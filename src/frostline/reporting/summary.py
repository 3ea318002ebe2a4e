"""The report in short, as Markdown for a pull request."""

import re

from frostline.amounts import axis_share, byte_count, interval, scaled, share, visible
from frostline.exhibits import CLAIMS
from frostline.records import Evidence
from frostline.reporting.claimed import measured, number, title
from frostline.reporting.page import chosen_score, depths, headline, usage

_WIDTH = 20
"""Letters of the longest bar."""


def summary(evidence: Evidence) -> str:
    """Say the choice, the key figures, the depth curve and how to use the network, in Markdown.

    Names are text: none of them makes a link, a mention or an element.

    Args:
        evidence: The record.

    Returns:
        Text that ends in a line break.

    Example:
        >>> import inspect
        >>> list(inspect.signature(summary).parameters)
        ['evidence']
    """
    choice, test, cost, graph = evidence.choice, evidence.test, evidence.cost, evidence.graph
    rows = [
        ("test accuracy", f"{interval(test.accuracy, test.low, test.high)}, {test.samples:,} samples"),
        ("cost", f"{share(cost.share_seconds)} full fine-tunes by seconds, {share(cost.share_flops)} by operations"),
        ("frozen stages", f"{choice.depth} of {graph.max_depth} before the head"),
        ("live parameters", f"{scaled(evidence.parameters_live)} of {scaled(graph.parameters)}"),
        ("delta file", byte_count(evidence.delta.bytes)),
        ("data", f"{escaped(evidence.data.name)}, {len(evidence.data.classes)} classes"),
        ("network", escaped(evidence.source.name)),
    ]
    lines = [
        f"### {escaped(headline(choice))}",
        "",
        escaped(choice.reason),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "Accuracy by number of frozen stages: █ trained (validation, 95 % interval), ░ only probed (leave-one-out). "
        "Cost: predicted, in full fine-tunes.",
        "",
        "```text",
        *curve(evidence),
        "```",
        "",
        *claims_table(evidence),
        "```python",
        usage(evidence)["python"],
        "```",
        "",
        f"`report.html` beside this file holds the rest. Written by frostline {escaped(evidence.frostline)}.",
    ]
    return "\n".join(lines) + "\n"


def curve(evidence: Evidence) -> tuple[str, ...]:
    """The depth curve as lines of text: a bar for the best that is known of each depth.

    A depth that was trained has a full bar of its validation accuracy, another one a hollow bar of its probe.
    """
    trained = {rival.depth: rival.accuracy for rival in evidence.choice.rivals}
    trained[evidence.choice.depth] = chosen_score(evidence).accuracy
    probed = {vote.depth: vote.accuracy for vote in evidence.prior.votes}
    rows = [row for row in depths(evidence) if row["depth"] in trained or row["depth"] in probed]
    floor = min([*trained.values(), *probed.values()]) // 0.1 / 10
    lines = [
        ("depth", f"{axis_share(floor)}{'1':>{_WIDTH - len(axis_share(floor))}}", "probe", "validation", "cost", "")
    ]
    for row in rows:
        depth = row["depth"]
        value, letter = (trained[depth], "█") if depth in trained else (probed[depth], "░")
        bar = letter * max(1, round((value - floor) / max(1e-9, 1 - floor) * _WIDTH))
        mark = "chosen" if row["is_chosen"] else ""
        lines.append((str(depth), bar, row["probe"].split(" ")[0], row["valid"], row["cost"], mark))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    right = (True, False, True, True, True, False)
    return tuple(
        "  ".join(
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def claims_table(evidence: Evidence) -> tuple[str, ...]:
    """The claims that were measured as lines of a table, and what measures the rest; nothing without any.

    Example:
        >>> claims_table(Evidence.model_construct(claims=()))
        ()
    """
    found = measured(evidence)
    if not found:
        return ()
    rows = [f"| {title(one)} | **{one.verdict}** | {number(one)} |" for one in found]
    missing = [name for name in CLAIMS if name not in {claim.name for claim in found}]
    rest = f"Not measured: `frostline evidence RUN --claims {','.join(missing)}` does it."
    heading = "| what freezing is said to bring | on this data | number, 95 % interval |"
    return (heading, "| --- | --- | --- |", *rows, "", *([rest, ""] if missing else []))


def escaped(text: str) -> str:
    """Write a name so that Markdown shows it and does nothing else with it.

    Example:
        >>> escaped("a|b_c <i> @all")
        'a\\\\|b\\\\_c \\\\<i\\\\> @<!-- -->all'
    """
    shown = re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", visible(text))
    # A backslash does not keep a name behind an @ from being called.
    return shown.replace("@", "@<!-- -->")
