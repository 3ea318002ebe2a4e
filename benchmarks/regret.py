"""How far the searched depth falls short of the best one, and what the search cost.

    python benchmarks/regret.py --work FOLDER --json OUT [--tasks TASK ...] [--seeds 1 2 3]

For each task that has a truth (`benchmarks/truth.py`) the search runs once a seed, on the same
division, and its tuned network answers the test part. The oracle is cross-fitted: the best depth is
looked up on one half of the test part and scored on the other, over many halvings, so that it gains
nothing by luck. Regret is the oracle's accuracy less the tuned network's, on the same pictures, in
points. The rivals of `benchmarks/rivals.py` are judged alike, each at its own cost. Costs are in full
fine-tunes, by counted operations and by seconds. Started again, it goes on where it stopped.
"""

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rivals
import torch
from stamps import stamp
from tasks import TASKS, load

import frostline as fl

RESULTS = Path(__file__).parent / "results"
TRUTH, RIVALS = RESULTS / "truth", RESULTS / "rivals"
HALVINGS = 200
RESAMPLES = 1000

Hits = np.ndarray[Any, np.dtype[np.float64]]


# --- the oracle -------------------------------------------------------------------------------


def truth_of(task: str) -> dict[str, Any]:
    return json.loads((TRUTH / f"{task}.json").read_text())


def hits_of(text: str) -> Hits:
    return np.array([digit == "1" for digit in text], dtype=np.float64)


def worth(truth: Mapping[str, Any]) -> dict[int, Hits]:
    """Test hits of each depth at its best rate, the mean of the seeds."""
    whole = [row for row in truth["rows"] if "marks" not in row and row["norm_mode"] == "eval"]
    found = {}
    for depth in truth["depths"]:
        mine = [row for row in whole if row["depth"] == depth and not row["failure"]]
        first = [row for row in mine if row["seed"] == min(row["seed"] for row in mine)]
        rate = min(first, key=lambda row: row["valid_loss"])["learning_rate"]
        found[depth] = np.mean([hits_of(row["test_hits"]) for row in mine if row["learning_rate"] == rate], axis=0)
    return found


def regret(depths: Mapping[int, Hits], mine: Hits, *, draw: random.Random, halvings: int = HALVINGS) -> float:
    """Mean accuracy that the cross-fitted oracle has over these hits, in points."""
    numbers, table = list(range(len(mine))), np.stack(list(depths.values()))
    shortfalls = []
    for _ in range(halvings):
        draw.shuffle(numbers)
        middle = len(numbers) // 2
        for seen, judged in ((numbers[:middle], numbers[middle:]), (numbers[middle:], numbers[:middle])):
            best = table[table[:, seen].mean(axis=1).argmax()]
            shortfalls.append(best[judged].mean() - mine[judged].mean())
    return 100 * statistics.fmean(shortfalls)


def with_interval(depths: Mapping[int, Hits], mine: Hits) -> "Judged":
    """Regret on the test part, and its 95 % interval over test parts drawn anew."""
    draw, count = random.Random(0), len(mine)
    drawn = []
    for _ in range(RESAMPLES):
        again = [draw.randrange(count) for _ in range(count)]
        # A picture drawn twice must not stand on both sides of a halving.
        drawn.append(regret_of_resample(depths, mine, again, draw))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Judged(regret(depths, mine, draw=random.Random(0)), float(low), float(high))


def regret_of_resample(depths: Mapping[int, Hits], mine: Hits, rows: Sequence[int], draw: random.Random) -> float:
    sides = [draw.random() < 0.5 for _ in range(len(mine))]
    halves = [[row for row in rows if sides[row] == side] for side in (True, False)]
    if not all(halves):
        return 0.0
    table, found = np.stack(list(depths.values())), []
    for seen, judged in (halves, halves[::-1]):
        best = table[table[:, seen].mean(axis=1).argmax()]
        found.append(best[judged].mean() - mine[judged].mean())
    return 100 * statistics.fmean(found)


class Judged(NamedTuple):
    regret: float
    low: float
    high: float


# --- the search -------------------------------------------------------------------------------


def searched(task: str, seed: int, work: Path) -> dict[str, Any]:
    """One run of the search; its folder keeps what was paid for."""
    file = work / f"{task}-{seed}.json"
    if not file.exists():
        loaded = load(task, work / task)
        result = fl.fit(loaded, seed=seed, out=work / f"{task}-{seed}")
        hits = torch.tensor(result.test.predictions) == loaded.test.labels
        row = {
            "task": task,
            "seed": seed,
            "depth": result.depth,
            "test_accuracy": result.test.accuracy,
            "test_hits": "".join("1" if hit else "0" for hit in hits.tolist()),
            "cost_flops": result.cost.share_flops,
            "cost_seconds": result.cost.share_seconds,
            "reason": result.choice.reason,
            "candidates": result.evidence.plan.candidates,
            "learning_rate": next(
                trial.spec.recipe.learning_rate
                for trial in result.evidence.trials
                if trial.spec.key == result.choice.trial
            ),
        }
        file.write_text(json.dumps(row))
    return json.loads(file.read_text())


def table(tasks: Sequence[str], seeds: Sequence[int], work: Path) -> list[dict[str, Any]]:
    rows = []
    for task in tasks:
        depths = worth(truth_of(task))
        accuracies = {depth: round(float(hits.mean()), 4) for depth, hits in depths.items()}
        for seed in seeds:
            row = searched(task, seed, work)
            judged = with_interval(depths, hits_of(row["test_hits"]))
            rows.append({**row, **judged._asdict(), "truth": accuracies})
            print(
                f"{task}, seed {seed}: depth {row['depth']}, test {row['test_accuracy']:.3f}, regret "
                f"{judged.regret:+.2f} ({judged.low:+.2f} to {judged.high:+.2f}), cost {row['cost_flops']:.2f} by "
                f"operations, {row['cost_seconds']:.2f} by seconds; truth {accuracies}",
                flush=True,
            )
    return rows


# --- the summary ------------------------------------------------------------------------------


def by_task(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[str, float]:
    tasks = dict.fromkeys(row["task"] for row in rows)
    return {task: statistics.fmean(row[figure] for row in rows if row["task"] == task) for task in tasks}


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over tasks drawn anew."""
    draw = np.random.default_rng(0)
    means = draw.choice(values, (RESAMPLES * 10, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


def summary(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mine = by_task(rows, "regret")
    costs = {task: max(by_task(rows, "cost_flops")[task], by_task(rows, "cost_seconds")[task]) for task in mine}
    worst = max(mine, key=mine.__getitem__)
    lows = by_task(rows, "low")
    compared = [against(mine, costs, name, others) for name in dict.fromkeys(row["rival"] for row in others)]
    return {
        "by_task": {task: round(value, 3) for task, value in mine.items()},
        "mean_regret_interval": bootstrap(list(mine.values())),
        "worst_task": worst,
        "cost_by_task": {task: round(value, 3) for task, value in costs.items()},
        "rivals": compared,
        "mean_regret": round(statistics.fmean(mine.values()), 3),
        "worst_regret": round(mine[worst], 3),
        "worst_within_interval": lows[worst] <= 2,
        "max_cost": round(max(costs.values()), 3),
        "median_cost": round(statistics.median(costs.values()), 3),
        "beats_rivals": all(
            rival["mean_regret"] > statistics.fmean(mine.values()) for rival in compared if rival["costs_as_little"]
        ),
    }


def against(
    mine: Mapping[str, float], costs: Mapping[str, float], name: str, others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One rival beside the search, on the tasks that both were tried on."""
    own = [row for row in others if row["rival"] == name and row["task"] in mine]
    theirs, price = by_task(own, "regret"), by_task(own, "cost")
    return {
        "rival": name,
        "tasks": len(theirs),
        "mean_regret": round(statistics.fmean(theirs.values()), 3),
        "mean_regret_interval": bootstrap(list(theirs.values())),
        "worse_by": round(statistics.fmean(theirs[task] - mine[task] for task in theirs), 3),
        "worse_by_interval": bootstrap([theirs[task] - mine[task] for task in theirs]),
        "mean_cost": round(statistics.fmean(price.values()), 3),
        "costs_as_little": statistics.fmean(price.values()) <= statistics.fmean(costs[task] for task in theirs),
    }


def rival_rows(tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for task in tasks:
        truth = truth_of(task)
        depths = worth(truth)
        outcomes = [(name, seed, found) for seed in seeds for name, found in rivals.looked_up(truth, seed=seed).items()]
        file = RIVALS / f"{task}.json"
        trained = json.loads(file.read_text())["rows"] if file.exists() else []
        outcomes += [(row["rival"], row["seed"], rivals.outcome_of(row)) for row in trained]
        for name, seed, outcome in outcomes:
            rows.append(
                {
                    "rival": name,
                    "task": task,
                    "seed": seed,
                    "depth": outcome.depth,
                    "cost": outcome.cost,
                    "regret": regret(depths, hits_of(outcome.test_hits), draw=random.Random(0)),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=[task for task in TASKS if (TRUTH / f"{task}.json").exists()])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = table(options.tasks, options.seeds, options.work)
    others = rival_rows(options.tasks, options.seeds)
    found = {
        "rows": rows,
        "rival_rows": others,
        **stamp(),
        **summary(rows, others),
    }
    options.json.write_text(json.dumps(found, indent=1))
    for name in ("mean_regret", "worst_regret", "worst_within_interval", "max_cost", "median_cost", "beats_rivals"):
        print(f"{name}: {found[name]}")


if __name__ == "__main__":
    main()
