"""Kept views of augmented pictures against augmenting anew in every step.

    python benchmarks/views.py --work FOLDER --json OUT [--tasks sign_digits trashnet] [--seeds 1 2 3]
        [--depth DEPTH] [--epochs EPOCHS]

At one middle depth (half of the operations frozen, unless one is given) the live part is trained
by the recipe of a full fine-tune. What differs is the rows that it reads. With K views each picture is kept
plain and K - 1 times augmented, and the epochs go round these. On the fly, every epoch
augments every picture anew, and the frozen part runs again in each step: as a plain torch loop, which is what
people do today, and in frostline's own loop, which tells what the storing brings apart from what the
quicker steps bring. All arms start from the same warm head and see the same mini-batches.

`seconds` of a row is the pass (augmenting, the frozen part, its compiling, writing) and the training,
each with its scoring of the validation part; decoding of the pictures is left out, for all alike.
`share_seconds` is the same in full fine-tunes, which each row times for itself, and `share_flops` by
counted operations. `compared` has each arm over the seeds, and its test accuracy less that of the plain
loop. Started again, the command goes on where it stopped.
"""

import argparse
import datetime
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import IMAGE_SIZE, SPLIT_SEED, TASKS
from torch import nn
from torch.nn import functional as F
from truth import BATCH, Bench, bits, rows_in, spec_of, spread

import frostline as fl
from frostline.calibration import best_temperature
from frostline.claims import machine
from frostline.cost import step_seconds
from frostline.data import Rows, Samples
from frostline.engines import pick
from frostline.files import hold
from frostline.heap import kept_heap
from frostline.records import Recipe
from frostline.schedules import batches_of, rate_factor
from frostline.scoring import outputs_of
from frostline.search import LEARNING_RATES
from frostline.splitting import Split
from frostline.tuning import (
    _lay_head,
    _no_denormals,
    _step,
    _train_mode,
    optimizer_for,
    train_step,
    tune,
)

PLAIN = "on the fly, plain torch loop"
OURS = "on the fly, frostline's loop"
ARMS = {"1 view": 1, "2 views": 2, "4 views": 4, "8 views": 8, PLAIN: None, OURS: None}
"""Kept views of each arm, or None where nothing is kept."""

FRESH = 10_000
"""Numbers of views that one seed may use on the fly; kept views have numbers below."""

Row = dict[str, Any]


class Recomputed:
    """Rows that are made when they are read: the picture is varied, if asked for, and the frozen part runs."""

    views = FRESH

    def __init__(self, parts: Split, samples: Samples, *, first_view: int | None) -> None:
        self.parts, self.samples, self.first_view = parts, samples, first_view

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        number = 0 if self.first_view is None else self.first_view + view
        with torch.no_grad():
            return self.parts.frozen(*self.samples.read(rows, number))


class Arm:
    """One task, depth and seed, ready to be trained on whatever rows."""

    def __init__(self, bench: Bench, depth: int, seed: int) -> None:
        self.bench, self.depth, self.task = bench, depth, bench.task
        self.spec = spec_of(bench, depth, LEARNING_RATES[0], seed=seed)
        self.parts = fl.split(bench.base, bench.graph, depth)
        self.scratch = bench.work / "arm"
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()

    def kept(self, views: int, engine: str) -> tuple[Rows, Rows]:
        """Kept rows of the training and the validation part."""
        return tuple(
            fl.cache(
                self.parts.frozen,
                samples.with_views(count),
                self.scratch / part,
                engine=engine,
                views=count,
                batch_size=BATCH,
            )
            for part, samples, count in (("train", self.task.train, views), ("valid", self.task.valid, 1))
        )

    def recomputed(self) -> tuple[Rows, Rows]:
        """The same rows made at each reading; no picture is ever varied twice in the same way."""
        return (
            Recomputed(self.parts, self.task.train, first_view=FRESH * self.spec.seed),
            Recomputed(self.parts, self.task.valid, first_view=None),
        )

    def tuned(self, train: Rows, valid: Rows) -> None:
        """Train in frostline's loop; the live part has the best weights afterwards."""
        trial = tune(
            self.parts.live,
            train,
            valid,
            train_labels=self.task.train.labels,
            valid_labels=self.task.valid.labels,
            spec=self.spec,
            head=self.bench.graph.head,
            warm=self.bench.warm_head(),
            save_to=self.scratch / "trial.safetensors",
        )
        if trial.failure:
            raise FloatingPointError(trial.failure)

    def looped(self, train: Rows, valid: Rows) -> None:
        """Train in a plain torch loop, by the same recipe."""
        live, recipe, head = self.parts.live, self.spec.recipe, self.bench.graph.head
        _lay_head(live, head, self.bench.warm_head(), scale=recipe.head_scale)
        optimizer = optimizer_for(live, recipe, head=head)
        peaks = [group["lr"] for group in optimizer.param_groups]
        best, kept = self.checked(valid), weights_of(live)
        for epoch in range(1, round(self.spec.epochs) + 1):
            _train_mode(live, recipe)
            batches = batches_of(len(train), self.spec, epoch)
            with _no_denormals(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(FRESH * self.spec.seed + epoch)
                for number, batch in enumerate(batches, 1):
                    factor = rate_factor(self.spec, len(batches), (epoch - 1) * len(batches) + number)
                    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                        group["lr"] = peak * factor
                    given = train.read(batch.tolist(), epoch - 1), self.task.train.labels[batch]
                    _step(live, optimizer, given, recipe=recipe, quick=nullcontext())
            loss = self.checked(valid)
            if loss < best:
                best, kept = loss, weights_of(live)
        live.load_state_dict(kept)

    def checked(self, valid: Rows) -> float:
        """Validation loss after the temperature that suits it best."""
        outputs, labels = outputs_of(self.parts.live, valid, batch_size=BATCH), self.task.valid.labels
        return float(F.cross_entropy(outputs * best_temperature(outputs, labels), labels))

    def hits(self, samples: Samples) -> torch.Tensor:
        return outputs_of(self.parts.merge().eval(), samples, batch_size=BATCH).argmax(1) == samples.labels


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# --- rows -------------------------------------------------------------------------------------


def row_of(bench: Bench, name: str, *, depth: int, seed: int, engine: str) -> Row:
    """Train one arm, and time a full fine-tune right before it."""
    full = full_seconds(bench)
    arm, views = Arm(bench, depth, seed), ARMS[name]
    began = time.perf_counter()
    train, valid = arm.recomputed() if views is None else arm.kept(views, engine)
    kept = time.perf_counter()
    if name == PLAIN:
        arm.looped(train, valid)
    else:
        arm.tuned(train, valid)
    ended = time.perf_counter()
    hits, valid_hits = arm.hits(bench.task.test), arm.hits(bench.task.valid)
    store_bytes = sum(file.stat().st_size for file in (arm.scratch / "train").glob("*")) if views else 0
    shutil.rmtree(arm.scratch)
    return {
        "task": bench.work.name,
        "arm": name,
        "views": views,
        "depth": depth,
        "seed": seed,
        "epochs": bench.epochs,
        "engine": engine if views else "torch",
        "test_accuracy": round(float(hits.float().mean()), 4),
        "valid_accuracy": round(float(valid_hits.float().mean()), 4),
        "test_hits": bits(hits.tolist()),
        "pass_seconds": round(kept - began, 2),
        "train_seconds": round(ended - kept, 2),
        "seconds": round(ended - began, 2),
        "full_finetune_seconds": round(full, 2),
        "share_seconds": round((ended - began) / full, 4),
        "share_flops": round(counted(bench, depth, views), 4),
        "store_bytes": store_bytes,
    }


def full_seconds(bench: Bench) -> float:
    """A full fine-tune: the median of five steps with nothing frozen, times its steps."""
    inputs = bench.task.train.read(range(min(BATCH, len(bench.task.train))))
    # With a rate of zero; a network that learns the one batch by heart gets gradients that are slow to compute.
    still = Recipe(batch_size=BATCH, learning_rate=0.0, head_learning_rate=0.0)
    whole = fl.split(bench.base, bench.graph, 0).live
    labels = bench.task.train.labels[: len(inputs[0])]
    with kept_heap():
        median, _, _ = step_seconds(train_step(whole, inputs, labels, recipe=still, head=bench.graph.head))
    return median * bench.epochs * -(-len(bench.task.train) // BATCH)


def counted(bench: Bench, depth: int, views: int | None) -> float:
    """Operations in full fine-tunes; a step is one part forward and two backward."""
    frozen, train, valid = bench.graph.frozen_share(depth), len(bench.task.train), len(bench.task.valid)
    steps, looks = 3 * train * bench.epochs, valid * (bench.epochs + 1)
    live = (1 - frozen) * (steps + looks)
    below = frozen * (train * bench.epochs + looks if views is None else train * views + valid)
    return (live + below) / steps


# --- what comes of them -----------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each arm over the seeds, beside the plain loop."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for arm in ARMS:
            mine = {row["seed"]: row for row in rows if (row["task"], row["arm"]) == (task, arm)}
            plain = {row["seed"]: row for row in rows if (row["task"], row["arm"]) == (task, PLAIN)}
            if not mine:
                continue
            line: dict[str, Any] = {"task": task, "arm": arm, "seeds": sorted(mine)}
            for figure in ("test_accuracy", "seconds", "share_seconds", "share_flops"):
                values = [row[figure] for row in mine.values()]
                line |= {figure: round(statistics.median(values), 4), f"{figure}_range": [min(values), max(values)]}
            line["test_accuracy"] = round(statistics.fmean(row["test_accuracy"] for row in mine.values()), 4)
            lines.append(line | beside(mine, plain))
    return lines


def beside(mine: Mapping[int, Row], plain: Mapping[int, Row]) -> dict[str, float]:
    """Test accuracy less the plain loop's, its standard error paired by picture, and the ratio of seconds."""
    seeds = sorted(mine.keys() & plain.keys())
    if not seeds:
        return {}
    gaps = np.mean([hits_of(mine[seed]) - hits_of(plain[seed]) for seed in seeds], axis=0)
    return {
        "accuracy_gain": round(float(gaps.mean()), 4),
        "accuracy_gain_error": round(float(gaps.std(ddof=1) / len(gaps) ** 0.5), 4),
        "speedup": round(statistics.median(plain[seed]["seconds"] / mine[seed]["seconds"] for seed in seeds), 3),
    }


def hits_of(row: Row) -> np.ndarray:
    return np.array([letter == "1" for letter in row["test_hits"]], dtype=float)


# --- all of it --------------------------------------------------------------------------------


def run(task: str, options: argparse.Namespace, rows: list[Row]) -> None:
    """Add the rows of one task that are missing; seeds outside, so that what is compared ran close together."""
    work = options.work / task
    (work / "weights").mkdir(parents=True, exist_ok=True)
    bench = Bench(task, work)
    bench.epochs = options.epochs or bench.epochs
    depth = spread(bench.graph, 3)[1] if options.depth is None else bench.graph.resolve(options.depth)
    if reason := fl.prove(bench.base, bench.graph, depth, example=bench.task.example(4)):
        raise SystemExit(f"depth {depth} is not proven: {reason}")
    frozen = fl.split(bench.base, bench.graph, depth).frozen
    engine = pick(frozen.module, bench.task.train.read(range(BATCH))).engine
    bench.warm_head()
    done = {(row["task"], row["arm"], row["seed"], row["depth"], row["epochs"]) for row in rows}
    for seed in options.seeds:
        for name in ARMS:
            if (task, name, seed, depth, bench.epochs) in done:
                continue
            row = row_of(bench, name, depth=depth, seed=seed, engine=engine)
            with (options.work / "rows.jsonl").open("a") as out:
                out.write(json.dumps(row) + "\n")
            rows.append(row)
            options.json.write_text(json.dumps(report(rows), indent=1))
            print(
                f"{task}, depth {depth}, seed {seed}, {name}: test {row['test_accuracy']:.3f}, {row['seconds']:.1f} s "
                f"({row['pass_seconds']:.1f} s for the pass), {row['share_seconds']:.2f} full fine-tunes",
                flush=True,
            )


def report(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "date": str(datetime.date.today()),
        "machine": dict(machine()),
        "frostline": fl.__version__,
        "image_size": IMAGE_SIZE,
        "split_seed": SPLIT_SEED,
        "compared": summary(rows),
        "rows": list(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["sign_digits", "trashnet"], metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--depth", type=int, help="frozen stages; by default they do half of the operations")
    parser.add_argument("--epochs", type=int, help="by default as many as a full fine-tune has")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with hold(options.work):
        rows = rows_in(options.work / "rows.jsonl")
        for task in options.tasks:
            run(task, options, rows)
    options.json.write_text(json.dumps(report(rows), indent=1))


if __name__ == "__main__":
    main()
