"""Figures of a report, counted again from what the run kept, without frostline.

    python benchmarks/recount.py RUN [--answers]

Reads `trials.jsonl`, `attempts.jsonl`, `plan.json`, `clock.json` and the text of `report.html`, computes
accuracies, Wilson intervals, paired differences, costs and the numbers of the claims by their definitions,
and says of each whether the report shows it. Only Python's own library is used, but for `--answers`: that
reads the pictures again, lets the tuned network of `model.json` and `delta.safetensors` answer the test
part in plain torch, and compares. Ends with 1 if a figure differs.
"""

import argparse
import html
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NOISE, DECAY, SLOWER, NEARLY = 0.2, 0.1, 1 / 3, 0.98
Record = dict[str, Any]


class Figure(NamedTuple):
    """One figure: what it is, how it was computed again, and how the report writes it."""

    name: str
    written: str


# --- how the report writes numbers ------------------------------------------------------------


def share(value: float) -> str:
    if abs(value) > 1:
        return f"{value:.2f}"
    text = f"{value:.3f}"
    return text if text.startswith("1") else text.replace("0.", ".", 1)


def interval(hits: float, samples: float) -> str:
    """Share with Wilson's 95 % interval."""
    z, p = 1.959963984540054, hits / samples
    middle = (p + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples**2)) / (1 + z * z / samples)
    low, high = (0.0 if p == 0 else middle - half), (1.0 if p == 1 else middle + half)
    return f"{share(p)} ({share(low)}–{share(high)})"


def text_of(page: Path) -> str:
    """The words of a page, without its markup and its data."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def lines_of(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


# --- the run itself ---------------------------------------------------------------------------


def of_the_run(run: Path, evidence: Record) -> Iterator[Figure]:
    trials = [trial for trial in lines_of(run / "trials.jsonl") if not trial["failure"]]
    depth = evidence["choice"]["depth"]
    chosen = max(
        (trial for trial in trials if trial["spec"]["depth"] == depth),
        key=lambda trial: trial["spec"]["first_epoch"] + trial["spec"]["epochs"],
    )
    yield Figure("validation accuracy of the choice", interval(sum(chosen["hits"]), len(chosen["hits"])))
    for other in sorted({trial["spec"]["depth"] for trial in trials} - {depth}):
        last = max(
            (trial for trial in trials if trial["spec"]["depth"] == other),
            key=lambda trial: (
                trial["spec"]["first_epoch"] + trial["spec"]["epochs"],
                -statistics.fmean(trial["losses"]),
            ),
        )
        yield Figure(f"validation accuracy at depth {other}", interval(sum(last["hits"]), len(last["hits"])))
    confusion = evidence["test"]["confusion"]
    right, all_of_it = sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion))
    yield Figure("test accuracy", share(right / all_of_it))
    by_class = [row[i] / sum(row) for i, row in enumerate(confusion) if sum(row)]
    yield Figure("mean over classes", share(statistics.fmean(by_class)))
    yield from of_the_cost(run, evidence, trials)


def of_the_cost(run: Path, evidence: Record, trials: Sequence[Record]) -> Iterator[Figure]:
    plan, graph = json.loads((run / "plan.json").read_text()), evidence["graph"]
    train, valid, test = (sum(row[part] for row in evidence["data"]["counts"]) for part in range(3))
    flops = [stage["flops"] for stage in graph["stages"]]
    batch = plan["recipe"]["batch_size"]
    whole = sum(flops)
    full = 3 * whole * train * plan["budget"]["epochs"]
    spent = whole * train + 5 * 3 * whole * batch + sum(trial["flops"] for trial in lines_of(run / "trials.jsonl"))
    spent += sum(
        sum(flops[:depth]) * (train * plan["views"] + valid) for depth in {trial["spec"]["depth"] for trial in trials}
    )
    spent += test * (whole + sum(flops[: evidence["choice"]["depth"]]))
    yield Figure("cost by operations", share(spent / full))
    steps = plan["budget"]["epochs"] * math.ceil(train / batch)
    seconds = dict(evidence["cost"]["by_phase"]) | {"train": sum(trial["seconds"] for trial in trials)}
    counted = sum(seconds.get(name, 0) for name in ("trace", "probe", "measure", "prove", "store", "train", "test"))
    yield Figure("cost by seconds", share(counted / (plan["rates"]["step_seconds"] * steps)))


# --- the claims -------------------------------------------------------------------------------


class Arms:
    """Outcomes by what was asked for, as the definitions of the claims need them."""

    def __init__(self, run: Path, evidence: Record) -> None:
        self.evidence = evidence
        outcomes = [row for row in lines_of(run / "attempts.jsonl") if row["attempt"]["kind"] == "train"]
        self.outcomes = [row for row in outcomes if not row["failure"]]
        rates = evidence["plan"]["learning_rates"]
        first = min((row["attempt"]["trial"]["seed"] for row in self.outcomes), default=0)
        tuned = [
            row for rate in rates for row in self.of(depth=0, rate=rate) if row["attempt"]["trial"]["seed"] == first
        ]
        lowest = min(tuned, key=lambda row: min(point["valid_loss"] for point in row["curve"]), default=None)
        self.rate = lowest["attempt"]["trial"]["recipe"]["learning_rate"] if lowest else math.nan
        self.depth = evidence["choice"]["depth"]

    def of(self, *, depth: int, rate: float | None = None, decay: float | None = None, **asked: Any) -> list[Record]:
        """Outcomes by seed."""
        wanted = {"prefix": "pretrained", "rest": "pretrained", "samples": None, "noise": 0.0, **asked}
        usual = self.evidence["plan"]["recipe"]["weight_decay"]
        found = [
            row
            for row in self.outcomes
            if all(row["attempt"][name] == value for name, value in wanted.items())
            and row["attempt"]["trial"]["depth"] == depth
            and (rate is None or math.isclose(row["attempt"]["trial"]["recipe"]["learning_rate"], rate))
            and row["attempt"]["trial"]["recipe"]["weight_decay"] == (usual if decay is None else decay)
        ]
        return sorted(found, key=lambda row: row["attempt"]["trial"]["seed"])

    @property
    def frozen_rate(self) -> float:
        chosen = [t for t in self.evidence["trials"] if t["spec"]["depth"] == self.depth and not t["failure"]]
        last = max(chosen, key=lambda trial: trial["spec"]["first_epoch"] + trial["spec"]["epochs"])
        return last["spec"]["recipe"]["learning_rate"]

    def frozen(self, **asked: Any) -> list[Record]:
        return self.of(depth=self.depth, rate=self.frozen_rate, **asked)

    def full(self, *, rate: float | None = None, **asked: Any) -> list[Record]:
        return self.of(depth=0, rate=self.rate if rate is None else rate, **asked)


def accuracy(rows: Sequence[Record]) -> float:
    return statistics.fmean(statistics.fmean(row["test_hits"]) for row in rows)


def reuse(arms: Arms) -> float:
    learnt, *controls = (accuracy(arms.frozen(prefix=p, rest="random")) for p in ("pretrained", "random", "matched"))
    return 100 * (learnt - max(controls))


def convergence(arms: Arms) -> float:
    ratios = []
    for frozen, full in zip(arms.frozen(), arms.full(), strict=True):
        target = NEARLY * min(row["curve"][-1]["valid_accuracy"] for row in (frozen, full))
        ratios.append(math.log(spent(arms, full, target) / spent(arms, frozen, target)))
    return math.exp(statistics.fmean(ratios))


def spent(arms: Arms, row: Record, target: float) -> float:
    """Operations at the first look that reached the target, the pass included."""
    train, valid, _ = (sum(counts[part] for counts in arms.evidence["data"]["counts"]) for part in range(3))
    curve = row["curve"]
    passes = [3 * train * point["epoch"] + valid * number for number, point in enumerate(curve, 1)]
    place = next(number for number, point in enumerate(curve) if point["valid_accuracy"] >= target)
    return row["pass_flops"] + row["flops"] * passes[place] / passes[-1]


def stability(arms: Arms) -> float:
    def spread(rows: Sequence[Record]) -> float:
        return statistics.stdev(statistics.fmean(row["test_hits"]) for row in rows)

    full, slower = arms.full(), arms.full(rate=arms.rate * SLOWER)
    takes_slower = spread(slower) < spread(full) and 100 * accuracy(slower) >= 100 * accuracy(full) - 1
    grain = 1 / len(full[0]["test_hits"])
    squares = [spread(rows) ** 2 + grain**2 / 12 for rows in (slower if takes_slower else full, arms.frozen())]
    return math.sqrt(squares[0] / squares[1])


def regularisation(arms: Arms) -> float:
    frozen = accuracy(arms.frozen()) - accuracy(arms.frozen(noise=NOISE))
    noisy = max(accuracy(arms.full(noise=NOISE)), accuracy(arms.full(noise=NOISE, decay=DECAY)))
    return 100 * (accuracy(arms.full()) - noisy - frozen)


def resources(arms: Arms) -> float:
    ratios = [
        math.log((full["seconds"] + full["pass_seconds"]) / (frozen["seconds"] + frozen["pass_seconds"]))
        for frozen, full in zip(arms.frozen(), arms.full(), strict=True)
    ]
    return math.exp(statistics.fmean(ratios))


CLAIMS = {
    "reuse": reuse,
    "convergence": convergence,
    "stability": stability,
    "regularisation": regularisation,
    "resources": resources,
}
"""Claims whose number follows from the outcomes alone; that of the second is the mean of a bootstrap."""


def of_the_claims(run: Path, evidence: Record) -> Iterator[Figure]:
    arms = Arms(run, evidence)
    for claim in evidence["claims"]:
        if claim["value"] is not None and claim["name"] in CLAIMS:
            value = CLAIMS[claim["name"]](arms)
            written = f"{value:.1f} points".replace("-", "−") if claim["unit"] == "points" else f"{share(value)} times"
            yield Figure(f"claim of {claim['name']}", written)


# --- answers anew -----------------------------------------------------------------------------


def answers(run: Path) -> Figure:
    """Test accuracy of the network that the run left, on the pictures as they are read now."""
    import torch

    import frostline as fl
    from frostline.events import silent
    from frostline.files import read_record
    from frostline.records import Evidence
    from frostline.trying import task_of

    task = task_of(read_record(run / "evidence.json", Evidence), run, silent)
    network = fl.load_tuned(run).model.eval()
    right = 0
    with torch.no_grad():
        for first in range(0, len(task.test), 32):
            rows = range(first, min(first + 32, len(task.test)))
            right += int((network(*task.test.read(rows)).argmax(1) == task.test.labels[rows.start : rows.stop]).sum())
    return Figure("test accuracy, answered anew", share(right / len(task.test)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--answers", action="store_true")
    options = parser.parse_args()
    evidence = json.loads((options.run / "evidence.json").read_text("utf-8"))
    shown = text_of(options.run / "report.html")
    figures = [*of_the_run(options.run, evidence), *of_the_claims(options.run, evidence)]
    if options.answers:
        figures.append(answers(options.run))
    missing = [figure for figure in figures if figure.written not in shown]
    for figure in figures:
        print(f"{'not shown' if figure in missing else 'shown':10} {figure.name}: {figure.written}")
    print(f"{len(figures) - len(missing)} of {len(figures)} figures are those of the report")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
