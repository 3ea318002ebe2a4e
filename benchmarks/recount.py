"""Figures of a report, counted again from what the run kept, without frostline.

    python benchmarks/recount.py RUN [--answers] [--json]

Reads `trials.jsonl`, `attempts.jsonl`, `plan.json`, `evidence.json` and the rows in `store/`, counts again by the
definitions in words, and says of each figure what stands in its place in `report.html`: accuracies, losses and paired
differences of the depths; costs; number, interval, verdict and facts of the six claims; bytes and checksums of every
store; the leave-one-out votes at the depths whose rows are kept. Only Python's own library and numpy are used, but for
`--answers`: that reads the pictures again, lets the tuned network of `model.json` and `delta.safetensors` answer the
test part in plain torch, and compares. Ends with 1 if a figure differs.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from recount_claims import epochs_of, keyed_lines, of_the_claims
from recount_page import Figure, Node, Texts, byte_count, decimal, duration, interval, page_of, scaled, share, written
from recount_rows import LeftOut, of_the_stores, of_the_votes
from recount_statistics import wilson

Record = dict[str, Any]


# --- the depths -------------------------------------------------------------------------------


def of_the_depths(run: Path, evidence: Record, page: dict[str, Node]) -> Iterator[Figure]:
    """Every depth that was trained: accuracy, loss, and how far that lies from the chosen one's."""
    by_key = keyed_lines(run / "trials.jsonl", "spec")
    trials = [trial for trial in by_key.values() if not trial["failure"] and trial["losses"]]
    chosen = by_key[evidence["choice"]["trial"]]
    rivals = page["why"].rows("Depths that were trained")
    depths = page[""].rows("Accuracy with 95 % intervals, and predicted cost")
    for depth in sorted({trial["spec"]["depth"] for trial in trials}):
        own = [trial for trial in trials if trial["spec"]["depth"] == depth]
        last = chosen if depth == chosen["spec"]["depth"] else max(own, key=lambda t: (epochs_of(t), -loss(t)))
        row, text = rivals.get(str(depth), [None] * 6), accuracy_text(last)
        yield Figure(f"validation accuracy at depth {depth}", text, row[2])
        yield Figure(
            f"validation accuracy at depth {depth}, beside the vote", text, depths.get(str(depth), [None] * 3)[2]
        )
        yield Figure(f"validation loss at depth {depth}", written(decimal, loss(last)), row[3])
        if last is not chosen:
            yield Figure(f"difference of losses at depth {depth}", difference_text(last, chosen, trials), row[4])


def weighted(figures: Sequence[float], trial: Record) -> float:
    weights = trial["sample_weights"] or [1.0] * len(figures)
    return sum(figure * weight for figure, weight in zip(figures, weights, strict=True)) / len(figures)


def loss(trial: Record) -> float:
    return weighted(trial["losses"], trial)


def accuracy_text(trial: Record) -> Texts:
    weights = trial["sample_weights"] or [1.0] * len(trial["hits"])
    number = sum(weights) ** 2 / sum(weight * weight for weight in weights)
    accuracy = min(1.0, weighted(trial["hits"], trial))
    return written(interval, accuracy, *wilson(accuracy * number, number))


def difference_text(rival: Record, chosen: Record, trials: Sequence[Record]) -> Texts:
    """Paired by sample, after equally many epochs where the rival left the race early and the chosen depth has such."""
    peers = [
        trial
        for trial in trials
        if trial["spec"]["depth"] == chosen["spec"]["depth"] and abs(epochs_of(trial) - epochs_of(rival)) < 1e-6
    ]
    is_early = epochs_of(rival) < epochs_of(chosen) and rival["spec"]["recipe"]["schedule"] != "cosine"
    peer = min(peers, key=loss) if is_early and peers else chosen
    gaps = [one - other for one, other in zip(rival["losses"], peer["losses"], strict=True)]
    mean, weights = weighted(gaps, rival), rival["sample_weights"] or [1.0] * len(gaps)
    squares = sum((weight * (gap - mean)) ** 2 for weight, gap in zip(weights, gaps, strict=True))
    error = math.sqrt(squares / (len(gaps) - 1) / len(gaps))
    return written(lambda gap, error: f"{gap:+.3f} ± {error:.3f}".replace("-", "−", 1), mean, error)


# --- the test part ----------------------------------------------------------------------------


def of_the_test(evidence: Record, page: dict[str, Node]) -> Iterator[Figure]:
    confusion, names = evidence["test"]["confusion"], evidence["data"]["classes"]
    right, samples = sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion))
    low, high = wilson(right, samples)
    text, section = interval(right / samples, low, high), page["test"].text
    yield Figure("test accuracy", (text,), held(page[""].pairs().get("Test accuracy", ""), text))
    yield Figure("test accuracy, in the section on the test", (text,), held(section, text))
    by_class = [row[i] / sum(row) for i, row in enumerate(confusion) if sum(row)]
    for name, texts in (
        ("mean over classes", written(share, fmean(by_class))),
        ("loss", written(decimal, fmean(evidence["test"]["losses"]))),
    ):
        found = section.split(f"{name} ", 1)[-1].split(" ", 1)[0].rstrip(",")
        yield Figure(f"test part, {name}", texts, found)
    recalls = page["test"].rows("Share of right answers")
    for k, row in enumerate(confusion):
        if sum(row) and names[k] in recalls:
            own = (f"{row[k]:,} of {sum(row):,} {interval(row[k] / sum(row), *wilson(row[k], sum(row)))}",)
            yield Figure(f"test accuracy of class {names[k]}", own, " ".join(recalls[names[k]]))


def held(text: str, part: str) -> str:
    """The part where a text holds it, else the text's beginning, to say what stands there."""
    return part if part in text else text[:60]


# --- the cost ---------------------------------------------------------------------------------


def of_the_cost(run: Path, evidence: Record, page: dict[str, Node]) -> Iterator[Figure]:
    plan, graph = json.loads((run / "plan.json").read_text("utf-8")), evidence["graph"]
    train, valid, test = (sum(row[part] for row in evidence["data"]["counts"]) for part in range(3))
    flops = [stage["flops"] for stage in graph["stages"]]
    whole, depth, batch = sum(flops), evidence["choice"]["depth"], plan["recipe"]["batch_size"]
    by_key = keyed_lines(run / "trials.jsonl", "spec")
    trials = list(by_key.values())
    full = 3 * whole * train * plan["budget"]["epochs"]
    rows = train * plan["views"] + valid
    computed = plan.get("computed", [])
    deepest = max((trial["spec"]["depth"] for trial in trials if trial["spec"]["depth"] not in computed), default=0)
    # Rows that are not kept are computed for each scoring.
    scored = test * (whole + sum(flops[:depth])) + (valid * sum(flops[:depth]) if depth in computed else 0)
    # One pass that votes, five timed steps, one pass that keeps the rows of all depths, what was trained and scored.
    spent = whole * train + 5 * 3 * whole * batch + sum(trial["flops"] for trial in trials)
    spent += sum(flops[:deepest]) * rows + scored
    own, key = 0 if depth in computed else sum(flops[:depth]) * rows, evidence["choice"]["trial"]
    while key in by_key:
        own, key = own + by_key[key]["flops"], by_key[key]["spec"]["parent"]
    card = page[""].pairs().get("Cost", "")
    by_flops = written(
        lambda cost, chose: f"{share(cost)} by operations, {share(chose)} of it to choose",
        spent / full,
        (spent - scored - own) / full,
    )
    yield Figure("cost by operations", by_flops, next((text for text in by_flops if text in card), card))
    steps = plan["budget"]["epochs"] * math.ceil(train / batch)
    seconds = dict(evidence["cost"]["by_phase"]) | {"train": sum(trial["seconds"] for trial in trials)}
    counted = sum(seconds.get(name, 0) for name in ("trace", "probe", "measure", "prove", "store", "train", "test"))
    bars = page["cost"].rows("Search and last training together").get("this run", [None, None])
    yield Figure("cost in seconds", written(duration, counted), bars[0])
    yield Figure("cost by seconds", written(share, counted / (plan["rates"]["step_seconds"] * steps)), bars[1])
    live = sum(stage["parameters"] for stage in graph["stages"][depth:])
    yield Figure("live parameters", (scaled(live),), held(page[""].pairs().get("Live parameters", ""), scaled(live)))
    table = page[""].rows("Accuracy with 95 % intervals, and predicted cost")
    for forecast in plan["forecasts"]:
        row = table.get(str(forecast["depth"]), [None])
        store = "computed anew" if forecast["depth"] in computed else byte_count(forecast["store_bytes"])
        yield Figure(f"predicted store at depth {forecast['depth']}", (store,), row[-1])


# --- answers anew -----------------------------------------------------------------------------


def answers(run: Path, page: dict[str, Node]) -> Figure:
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
    text = interval(right / len(task.test), *wilson(right, len(task.test)))
    return Figure("test accuracy, answered anew", (text,), held(page[""].pairs().get("Test accuracy", ""), text))


# --- all of it --------------------------------------------------------------------------------


def recounted(run: Path) -> tuple[list[Figure], list[str]]:
    """Every figure, and in words what could not be counted again."""
    evidence, page = json.loads((run / "evidence.json").read_text("utf-8")), page_of(run / "report.html")
    figures = [*of_the_depths(run, evidence, page), *of_the_test(evidence, page), *of_the_cost(run, evidence, page)]
    figures += [*of_the_claims(run, evidence, page), *of_the_stores(run, evidence, page)]
    try:
        figures += of_the_votes(run, evidence, page)
    except LeftOut as reason:
        return figures, [f"leave-one-out votes: {reason}"]
    return figures, []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    figures, left_out = recounted(options.run)
    if options.answers:
        figures.append(answers(options.run, page_of(options.run / "report.html")))
    wrong = [figure for figure in figures if not figure.agrees]
    if options.json:
        told = [figure._asdict() | {"agrees": figure.agrees} for figure in figures]
        print(json.dumps({"figures": told, "left_out": left_out}, ensure_ascii=False, indent=1))
    else:
        print(*figures, *(f"left out  {reason}" for reason in left_out), sep="\n")
        print(f"{len(figures) - len(wrong)} of {len(figures)} figures are as they were counted again")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
