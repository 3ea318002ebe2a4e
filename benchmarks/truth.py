"""What each depth is worth: all of them trained in full, for a search to be judged by.

    python benchmarks/truth.py TASK --work FOLDER [--json benchmarks/results/truth/TASK.json] [--jobs 2]

Nine open depths, spread evenly over the operations, are trained for as many epochs as a full
fine-tune has: with batch norm's own statistics, three learning rates and seed 1; then each depth's
best rate (by validation loss) again with statistics that are learnt, and again with seed 2. Beside
them each depth is an arm of a race, at each rate and with seed 1, as the search would train it, scored at a few marks.
Every row keeps its validation losses and its test hits by sample, so that rules of choice can be
tried without training anything again. What is frozen is computed once a depth and kept under FOLDER.
Started again, the command goes on where it stopped. `--jobs` trainings run at once, with one
thread each where there are as many as cores.
"""

import argparse
import base64
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stamps import stamp
from tasks import IMAGE_SIZE, SPLIT_SEED, TASKS, load

import frostline as fl
from frostline.copies import copy_of
from frostline.prices import head_scale
from frostline.probing import Pooled
from frostline.records import CutGraph, Recipe, Trial, TrialSpec
from frostline.scoring import outputs_of
from frostline.search import AVERAGING, LEARNING_RATES, RISE_STEPS, usual_epochs
from frostline.tuning import tune

DEPTHS = 9
BATCH = 32
SEEDS = (1, 2)
MARKS = (10, 20, 40, 80)
"""Steps after which an arm is scored."""


class Bench:
    """One task in one process: its network, its cuts, and the kept rows of every part."""

    def __init__(self, name: str, work: Path) -> None:
        self.work = work
        self.task = load(name, work)
        self.base = copy_of(self.task.model).eval().to(memory_format=torch.channels_last)
        self.graph = fl.trace(self.base, self.task.example(4))
        self.parts = {"train": self.task.train, "valid": self.task.valid, "test": self.task.test}
        steps = -(-len(self.task.train) // BATCH)
        self.epochs = usual_epochs(steps)

    def warm_head(self) -> Path:
        """The file of the warm head, made once."""
        file = self.work / "prior.json"
        if not file.exists():
            pooled = Pooled(self.base, self.graph)
            with torch.no_grad():
                prior = fl.probe(self.graph, self.task.train, lambda inputs: pooled(*inputs), folder=self.work)
            file.write_text(prior.model_dump_json())
        return self.work / json.loads(file.read_text())["head"]

    def store(self, depth: int) -> dict[str, Any]:
        """The kept rows of the three parts; at depth 0 the samples themselves."""
        if depth == 0:
            return self.parts
        frozen = fl.split(self.base, self.graph, depth).frozen
        return {
            part: fl.cache(frozen, samples, self.work / "store" / f"{part}-{depth:02d}", batch_size=BATCH)
            for part, samples in self.parts.items()
        }

    def trained(self, spec: TrialSpec) -> dict[str, Any]:
        """Train in full, and score the test part with the weights of the best epoch."""
        rows, live, trial = self.tuned(spec)
        self.state_of(spec.key).unlink(missing_ok=True)
        hits = None
        if not trial.failure:
            hits = outputs_of(live, rows["test"], batch_size=BATCH).argmax(1) == self.task.test.labels
        return row_of(spec, trial) | {
            "curve": [(round(point.valid_loss, 4), round(point.valid_accuracy, 4)) for point in trial.curve],
            "test_hits": None if hits is None else bits(hits.tolist()),
            "test_accuracy": None if hits is None else float(hits.float().mean()),
        }

    def raced(self, spec: TrialSpec) -> dict[str, Any]:
        """Train an arm, and score it at every mark."""
        steps = -(-len(self.task.train) // BATCH)
        looks, seconds, parent, first = {}, 0.0, None, 0
        for mark in MARKS:
            lap = spec.model_copy(
                update={"parent": parent, "first_epoch": first / steps, "epochs": (mark - first) / steps}
            )
            _, _, trial = self.tuned(lap)
            looks[mark] = row_of(lap, trial)
            seconds += looks[mark]["seconds"]
            if parent:
                self.state_of(parent).unlink(missing_ok=True)
            if trial.failure:
                break
            parent, first = lap.key, mark
        self.state_of(lap.key).unlink(missing_ok=True)
        kept = ("valid_losses", "valid_hits", "failure")
        marks = {mark: {name: row[name] for name in kept} for mark, row in looks.items()}
        return row_of(spec, trial) | {"epochs": first / steps, "seconds": seconds, "marks": marks}

    def tuned(self, spec: TrialSpec) -> tuple[dict[str, Any], torch.nn.Module, Trial]:
        rows = self.store(spec.depth)
        live = fl.split(self.base, self.graph, spec.depth).live
        trial = tune(
            live,
            rows["train"],
            rows["valid"],
            train_labels=self.task.train.labels,
            valid_labels=self.task.valid.labels,
            spec=spec,
            head=self.graph.head,
            warm=self.warm_head(),
            start=self.state_of(spec.parent) if spec.parent else None,
            save_to=self.state_of(spec.key),
        )
        return rows, live, trial

    def state_of(self, key: str) -> Path:
        return self.work / "weights" / f"{key}.safetensors"


def row_of(spec: TrialSpec, trial: Trial) -> dict[str, Any]:
    return {
        "key": spec.key,
        "depth": spec.depth,
        "learning_rate": spec.recipe.learning_rate,
        "norm_mode": spec.recipe.norm_mode,
        "seed": spec.seed,
        "epochs": spec.epochs,
        "best_epoch": trial.best_epoch,
        "valid_losses": halves(trial.losses),
        "valid_loss": trial.loss,
        "valid_hits": bits(trial.hits),
        "valid_accuracy": trial.accuracy,
        "seconds": round(trial.seconds, 2),
        "failure": trial.failure,
    }


def halves(losses: Iterable[float]) -> str:
    """One number a sample, as float16 in base64."""
    return base64.b64encode(np.array(tuple(losses), dtype="<f2").tobytes()).decode()


def bits(hits: Iterable[bool]) -> str:
    """One digit a sample: 1 where it was right."""
    return "".join("1" if hit else "0" for hit in hits)


def spread(graph: CutGraph, count: int = DEPTHS) -> list[int]:
    """Open depths, the deepest and 0 among them, spread evenly over the operations."""
    targets = [number / (count - 1) for number in range(count)]
    reached = {depth: graph.frozen_share(depth) for depth in graph.open_depths}
    deepest = max(reached.values())
    chosen: list[int] = []
    for target in targets:
        left = [depth for depth in reached if depth not in chosen]
        if left:
            chosen.append(min(left, key=lambda depth: (abs(reached[depth] - target * deepest), depth)))
    return sorted(chosen)


def specs_of(depths: Iterable[int], bench: Bench) -> Iterator[TrialSpec]:
    """All rates at all depths, in full and as an arm of a race; head only has one rate."""
    for depth in depths:
        for rate in LEARNING_RATES[:1] if depth == bench.graph.max_depth else LEARNING_RATES:
            yield spec_of(bench, depth, rate)
            yield arm_of(bench, depth, rate)


def again(rows: Iterable[dict[str, Any]], bench: Bench) -> Iterator[TrialSpec]:
    """Each depth's best rate once more: with learnt statistics, and with another seed."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        if "marks" not in row and row["norm_mode"] == "eval" and row["seed"] == SEEDS[0]:
            held = best.get(row["depth"])
            if not row["failure"] and (held is None or row["valid_loss"] < held["valid_loss"]):
                best[row["depth"]] = row
    for depth, row in best.items():
        yield spec_of(bench, depth, row["learning_rate"], seed=SEEDS[1])
        if depth != bench.graph.max_depth:
            yield spec_of(bench, depth, row["learning_rate"], norm_mode="train")


def spec_of(bench: Bench, depth: int, rate: float, *, seed: int = SEEDS[0], norm_mode: str = "eval") -> TrialSpec:
    """A training in full."""
    recipe = Recipe(
        learning_rate=rate,
        head_scale=head_scale(depth, bench.graph.max_depth),
        batch_size=BATCH,
        norm_mode=norm_mode,
    )
    return TrialSpec(depth=depth, recipe=recipe, seed=seed, epochs=bench.epochs)


def arm_of(bench: Bench, depth: int, rate: float) -> TrialSpec:
    """An arm of a race, as the search trains it."""
    full = spec_of(bench, depth, rate)
    steps = -(-len(bench.task.train) // BATCH)
    arm = {"schedule": "constant", "averaging": AVERAGING, "warmup": min(1.0, RISE_STEPS / steps)}
    return full.model_copy(update={"recipe": full.recipe.model_copy(update=arm), "epochs": MARKS[-1] / steps})


# --- several trainings at once ----------------------------------------------------------------


@lru_cache(maxsize=1)
def opened(name: str, work: Path, threads: int) -> Bench:
    torch.set_num_threads(threads)
    return Bench(name, work)


def work_on(name: str, work: Path, threads: int, wanted: TrialSpec) -> dict[str, Any]:
    bench = opened(name, work, threads)
    return bench.raced(wanted) if wanted.recipe.schedule == "constant" else bench.trained(wanted)


def run(name: str, work: Path, specs: Iterable[TrialSpec], file: Path, jobs: int) -> None:
    """Train what is not there yet, the dearest first, and write each row when it is done."""
    done = {row["key"] for row in rows_in(file)}
    graph = opened(name, work, torch.get_num_threads()).graph
    wanted = sorted(
        {spec.key: spec for spec in specs if spec.key not in done}.values(),
        key=lambda spec: -spec.epochs * (1 - graph.frozen_share(spec.depth)),
    )
    threads = max(1, (os.cpu_count() or 1) // jobs)
    began = time.perf_counter()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool, file.open("a") as out:
        ends = [pool.submit(work_on, name, work, threads, spec) for spec in wanted]
        for number, end in enumerate(as_completed(ends), 1):
            row = end.result()
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"{number}/{len(wanted)} {time.perf_counter() - began:.0f} s: {line_of(row)}", flush=True)


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def line_of(row: dict[str, Any]) -> str:
    score = row["failure"] or f"valid {row['valid_accuracy']:.3f}, loss {row['valid_loss']:.4f}"
    if row.get("test_accuracy") is not None:
        score += f", test {row['test_accuracy']:.3f}"
    return (
        f"depth {row['depth']}, rate {row['learning_rate']:g}, {row['norm_mode']}, seed {row['seed']}, "
        f"{row['epochs']:.2g} epochs: {score}, {row['seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    work = options.work / options.task
    (work / "weights").mkdir(parents=True, exist_ok=True)
    rows = work / "rows.jsonl"
    began = time.perf_counter()
    bench = opened(options.task, work, torch.get_num_threads())
    depths = spread(bench.graph)
    for depth in depths:
        if reason := fl.prove(bench.base, bench.graph, depth, example=bench.task.example(4)):
            raise SystemExit(f"depth {depth} is not proven: {reason}")
        bench.store(depth)
    bench.warm_head()
    print(f"depths {depths}, {bench.epochs} epochs, kept after {time.perf_counter() - began:.0f} s", flush=True)
    run(options.task, work, specs_of(depths, bench), rows, options.jobs)
    run(options.task, work, again(rows_in(rows), bench), rows, options.jobs)
    found = {
        "task": options.task,
        "model": TASKS[options.task].model,
        "image_size": IMAGE_SIZE,
        "split_seed": SPLIT_SEED,
        "samples": {part: len(samples) for part, samples in bench.parts.items()},
        "epochs": bench.epochs,
        "marks": MARKS,
        "depths": depths,
        "max_depth": bench.graph.max_depth,
        "frozen_shares": [round(bench.graph.frozen_share(depth), 4) for depth in depths],
        "votes": json.loads((work / "prior.json").read_text())["votes"],
        "rows": sorted(
            rows_in(rows),
            key=lambda row: (row["depth"], row["epochs"], row["norm_mode"], row["seed"], row["learning_rate"]),
        ),
        **stamp(),
        "seconds": round(time.perf_counter() - began),
    }
    to = options.json or Path(__file__).parent / "results" / "truth" / f"{options.task}.json"
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(compact(found))


def compact(found: dict[str, Any]) -> str:
    """A line for each row."""
    rows = ",\n  ".join(json.dumps(row) for row in found["rows"])
    rest = json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1)
    return f'{rest.rstrip("}").rstrip()},\n "rows": [\n  {rows}\n ]\n}}\n'


if __name__ == "__main__":
    main()
