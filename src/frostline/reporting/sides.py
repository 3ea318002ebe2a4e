"""What the comparison of several runs says, as text: every figure written out, every table a tuple of rows."""

import shlex
from collections.abc import Callable, Sequence
from itertools import groupby

from frostline.amounts import duration, interval, scaled, share, visible
from frostline.records import Evidence, Score
from frostline.reporting.comparison import UNDECIDED, ComparedRun, Comparison, Difference
from frostline.reporting.curves import color_of
from frostline.reporting.page import Row, chosen_score, strip, when


def sides(comparison: Comparison, evidence: Sequence[Evidence]) -> Row:
    """Say everything that the template lays out.

    Args:
        comparison: The record.
        evidence: Of each of its runs.

    Returns:
        Texts, and rows of texts, by the names that the template uses.

    Example:
        >>> sides(Comparison(file="", runs=(), differences=()), ())["headline"]
        '0 runs on 0 test parts, side by side'
    """
    return {
        "headline": headline(comparison),
        "lead": lead(comparison),
        "notice": notice(comparison),
        "groups": groups(comparison, evidence),
        "differences": tuple(map(_difference, comparison.differences)),
        "figures": figures(comparison, evidence),
        "letters": tuple((run.letter, color(place)) for place, run in enumerate(comparison.runs)),
        "caveats": caveats(comparison, evidence),
        "said": said(comparison),
        "command": " ".join(["frostline", "compare", *(shlex.quote(run.run) for run in comparison.runs)]),
        "when": "",
    }


def headline(comparison: Comparison) -> str:
    """Say what is compared, in a few words."""
    runs = comparison.runs
    parts = len({run.group for run in runs})
    on = _last(runs[0].data) if parts == 1 else f"{parts} test parts"
    return f"{len(runs)} runs on {on}, side by side"


def lead(comparison: Comparison) -> str:
    """Say which runs are told apart by their answers, and which are not."""
    runs, differences = comparison.runs, comparison.differences
    parts = len({run.group for run in runs})
    said = [f"All were tested on the same {runs[0].samples:,} samples."] if parts == 1 else []
    decided = [one for one in differences if one.verdict != UNDECIDED]
    said += [f"{_winner(one)} by {_amount(one, is_signed=False)} (standard error)." for one in decided[:3]]
    if len(decided) > 3:
        said.append(f"The table below holds {len(decided) - 3} more that are told apart.")
    if open_ := [f"{one.first} and {one.second}" for one in differences if one.verdict == UNDECIDED]:
        said.append(f"Not told apart by their answers: {'; '.join(open_[:6])}{' and more' if len(open_) > 6 else ''}.")
    return " ".join(said)


def notice(comparison: Comparison) -> str:
    """Warn of runs on different data; empty where there are none."""
    parts = len({run.group for run in comparison.runs})
    if parts < 2:
        return ""
    return f"These runs were tested on {parts} different sets of samples. Compare accuracies within one set only."


def _winner(one: Difference) -> str:
    better, worse = (one.first, one.second) if one.difference > 0 else (one.second, one.first)
    return f"{better} is more accurate than {worse}"


def groups(comparison: Comparison, evidence: Sequence[Evidence]) -> tuple[Row, ...]:
    """The runs by test part: what the data is, and a card for each run."""
    placed = list(enumerate(zip(comparison.runs, evidence, strict=True)))
    found = []
    for number, members in groupby(placed, key=lambda one: one[1][0].group):
        cards = [(run, one, color(place)) for place, (run, one) in members]
        run, one, _ = cards[0]
        totals = [f"{sum(counts[part] for counts in one.data.counts):,}" for part in range(3)]
        found.append(
            {
                "number": number,
                "name": _last(run.data),
                "note": f"{len(one.data.classes)} classes; {totals[0]} samples to train, {totals[1]} to validate, "
                f"{totals[2]} for the test",
                "cards": tuple(_card(*card) for card in cards),
            }
        )
    return tuple(found)


def _card(run: ComparedRun, evidence: Evidence, painted: str) -> Row:
    return {
        "letter": run.letter,
        "color": painted,
        "name": _last(run.run),
        "network": run.network,
        "choice": run.choice,
        "strip": strip(evidence),
        "strip_said": f"{run.depth} of {run.max_depth + 1} stages frozen, each as wide as its share of the operations.",
        "figures": (
            ("Test accuracy", share(run.accuracy), f"({share(run.low)}–{share(run.high)})"),
            ("Cost", share(run.share_seconds), f"full fine-tunes; {share(run.share_flops)} by operations"),
            ("Live parameters", scaled(run.parameters_live), f"of {scaled(run.parameters)}"),
        ),
    }


def _difference(one: Difference) -> Row:
    return {
        "pair": f"{one.first} less {one.second}",
        "amount": _amount(one, is_signed=True),
        "only_first": f"{one.only_first:,}",
        "only_second": f"{one.only_second:,}",
        "samples": f"{one.samples:,}",
        "p_value": share(one.p_value) if one.p_value >= 0.001 else "below .001",
        "verdict": one.verdict,
        "is_decided": one.verdict != UNDECIDED,
    }


def _amount(one: Difference, *, is_signed: bool) -> str:
    amount = f"{one.difference:+.3f}".replace("-", "−") if is_signed else f"{abs(one.difference):.3f}"
    return f"{amount} ± {one.standard_error:.3f}"


def figures(comparison: Comparison, evidence: Sequence[Evidence]) -> tuple[Row, ...]:
    """Every figure of every run: one row a figure, one value a run."""
    pairs = tuple(zip(comparison.runs, evidence, strict=True))
    told: list[tuple[str, Callable[[ComparedRun, Evidence], str]]] = [
        ("Data", lambda run, one: run.data),
        ("Test part", lambda run, one: f"{run.group}, of {run.samples:,} samples"),
        ("Network", lambda run, one: run.network),
        ("Picture", lambda run, one: f"{one.preprocessing.image_size} px" if one.preprocessing else "none"),
        ("Choice", lambda run, one: run.choice),
        ("Frozen stages", lambda run, one: f"{run.depth} of {run.max_depth}"),
        ("Test accuracy", lambda run, one: interval(run.accuracy, run.low, run.high)),
        ("Validation accuracy", lambda run, one: _validation(chosen_score(one))),
        ("Cost by seconds, full fine-tunes", lambda run, one: share(run.share_seconds)),
        ("Cost by operations, full fine-tunes", lambda run, one: share(run.share_flops)),
        ("Seconds", lambda run, one: duration(run.seconds)),
        ("Seconds of one full fine-tune", lambda run, one: duration(one.cost.full_finetune_seconds)),
        ("Live parameters", lambda run, one: f"{run.parameters_live:,} of {run.parameters:,}"),
        ("Epochs of the chosen trial", lambda run, one: f"{run.epochs:.3g}"),
        ("Epochs of a full fine-tune", lambda run, one: str(run.full_epochs)),
        ("Depths tried", lambda run, one: _tried(one)),
        ("Budget, full fine-tunes", lambda run, one: f"{run.budget:.3g}"),
        ("Seed", lambda run, one: str(run.seed)),
        ("Processor", lambda run, one: visible(dict(one.machine).get("processor", "not recorded"))),
        ("Written", lambda run, one: f"{when(one.created)}, frostline {one.frostline}"),
        ("Run folder", lambda run, one: run.run),
    ]
    rows = []
    for name, tell in told:
        values = tuple(tell(run, one) for run, one in pairs)
        rows.append({"name": name, "values": values, "is_same": len(set(values)) == 1})
    return tuple(rows)


def _validation(score: Score) -> str:
    return interval(score.accuracy, score.low, score.high)


def _tried(evidence: Evidence) -> str:
    return ", ".join(map(str, sorted({evidence.choice.depth, *(rival.depth for rival in evidence.choice.rivals)})))


def caveats(comparison: Comparison, evidence: Sequence[Evidence]) -> tuple[str, ...]:
    """What a reader could misread, in words."""
    found = []
    if len({run.group for run in comparison.runs}) > 1:
        found.append(
            "A higher accuracy on other samples says nothing: only runs on the same test part can be better or worse. "
            "A full fine-tune is that of the run itself, so costs of different data are shares of different wholes."
        )
    if len({dict(one.machine).get("processor") for one in evidence}) > 1:
        found.append("These runs were made on different processors: compare operations, not seconds.")
    found.append(
        "A verdict speaks of these trained networks on these test samples. Another seed would train others, so a "
        "difference between settings needs several seeds of each."
    )
    found.append(
        "Each run read its test part once. Picking the best of several runs by it flatters the picked one a little."
    )
    if len(comparison.differences) > 1:
        found.append(
            f"Of {len(comparison.differences)} comparisons, each one is called decided by chance alone in at most one "
            "case in twenty."
        )
    return tuple(found)


def said(comparison: Comparison) -> Row:
    """What each plot shows, for those who cannot see it."""
    runs = comparison.runs
    accuracies = "; ".join(f"{run.letter} depth {run.depth} of {run.max_depth}" for run in runs)
    costs = "; ".join(
        f"{run.letter} {interval(run.accuracy, run.low, run.high)} for {share(run.share_seconds)} by seconds and "
        f"{share(run.share_flops)} by operations"
        for run in runs
    )
    return {
        "depths": f"Validation accuracy by frozen part of each run. Chosen: {accuracies}. The tables below hold the "
        "figures.",
        "costs": f"Test accuracy and cost in full fine-tunes: {costs}.",
    }


def color(place: int) -> str:
    """The colour of a run as a style sheet names it.

    Example:
        >>> color(1)
        'var(--series-1)'
    """
    return f"var(--{color_of(place).removeprefix('@')})"


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] or path
