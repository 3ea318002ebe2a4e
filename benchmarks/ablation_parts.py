"""The parts of the search that a truth does not hold, each changed alone and trained: see benchmarks/ablations.py.

Everything is tried on one task at the depth that the race looks at in the middle, or where it says, with the rate that
is best there, by the recipe of a full fine-tune; so a row compares with the truth's own row of that depth, rate
and seed 1.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from regret import truth_of
from rivals import share_of
from safetensors.torch import load_file, save_file
from stamps import stamp
from torch import nn
from truth import BATCH, SEEDS, Bench, arm_of, bits, compact, opened, rows_in, spec_of

import frostline as fl
from frostline.probing import Pooled, ridge
from frostline.records import TrialSpec
from frostline.sampling import Chosen, drawn
from frostline.scoring import outputs_of
from frostline.search import LEARNING_RATES, LIVE_TARGETS, usual_epochs
from frostline.tangent import Normalisation, stage_kernels, votes
from frostline.tangent import drawn as drawn_evenly
from frostline.tuning import tune

Truth = dict[str, Any]

RACE_STEPS = 40
SAMPLES = (50, 100, 200, 500, 1000)
VIEWS = (2, 4, 8)
HEADS = ("random head", "trained head", "ridge head", "calibrated ridge head")
CLOSED = ("ridge over all depths", "ridge at the deepest")
ALONE = ("norms only", "first stage only")
FEWER = "fewer samples"
TANGENT, TANGENT_ROWS = "tangent probe", 512
SHORTER = {"half the epochs": 0.5, "three quarters of the epochs": 0.75}


class Variant(NamedTuple):
    """One training that differs from the product's in one thing.

    Args:
        name: What differs.
        depth: Number of frozen stages.
        rate: Peak learning rate.
        samples: Of the training part; None takes all.
    """

    name: str
    depth: int
    rate: float
    samples: int | None = None

    @property
    def key(self) -> str:
        return f"{self.name} {self.depth} {self.rate:g} {self.samples or ''}".strip()


class Halved:
    """Rows as a store in half precision would give them."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.views = rows.views

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.half().float() for tensor in self.rows.read(rows, view))


def variants(bench: Bench, truth: Truth, sizes: Sequence[int]) -> Iterator[Variant]:
    """Everything that is tried on one task; `sizes` are the smaller training parts."""
    depths = truth["depths"]
    deepest = max(depths)
    best = {depth: best_rate(truth, depth) for depth in depths}
    shallow, middle = (depth_at(truth, target) for target in LIVE_TARGETS)
    for name in (*HEADS, "going on", "half precision", *(f"{count} views" for count in VIEWS)):
        yield Variant(name, middle, best[middle])
    for name in SHORTER:
        yield Variant(name, shallow, best[shallow])
        yield Variant(name, middle, best[middle])
    for name in CLOSED:
        yield Variant(name, deepest, 0.0)
    yield Variant(TANGENT, 0, 0.0)
    for name in ALONE:
        yield Variant(name, 0, LEARNING_RATES[0])
    for samples in sizes:
        if samples < len(bench.task.train):
            for depth in (0, middle, deepest):
                yield Variant(FEWER, depth, best[depth], samples)


def depth_at(truth: Truth, live: float) -> int:
    """Of the depths that train more than the head the one that trains about that share of the operations."""
    inner = [depth for depth in truth["depths"] if depth != max(truth["depths"])]
    return min(inner, key=lambda depth: abs(1.0 - share_of(truth, depth) - live))


def whole(truth: Truth, norm_mode: str = "eval") -> list[Mapping[str, Any]]:
    """The trainings in full, with the norms' own statistics or with learnt ones."""
    return [row for row in truth["rows"] if "marks" not in row and row["norm_mode"] == norm_mode]


def in_full(truth: Truth) -> dict[tuple[int, float], Mapping[str, Any]]:
    """Those with the norms' own statistics and the first seed, by depth and rate."""
    return {(row["depth"], row["learning_rate"]): row for row in whole(truth) if row["seed"] == SEEDS[0]}


def best_rate(truth: Truth, depth: int) -> float:
    rows = [row for (at, _), row in in_full(truth).items() if at == depth and not row["failure"]]
    return min(rows, key=lambda row: row["valid_loss"])["learning_rate"]


def tried(bench: Bench, variant: Variant) -> dict[str, Any]:
    """One variant, and its answers on the test part."""
    if variant.name in CLOSED:
        return answered(variant, in_closed_form(bench, variant.name))
    if variant.name == TANGENT:
        return {"key": variant.key, **variant._asdict(), "failure": None, "votes": tangent_votes(bench)}
    return trained(bench, variant)


def answered(variant: Variant, right: torch.Tensor) -> dict[str, Any]:
    hits = {"test_accuracy": float(right.float().mean()), "test_hits": bits(right.tolist())}
    return {"key": variant.key, **variant._asdict(), "failure": None, **hits}


def tangent_votes(bench: Bench) -> dict[str, list[dict[str, float]]]:
    """What the tangent probe says of each depth, for each way to weigh the stages."""
    labels = bench.task.train.labels
    chosen = drawn_evenly(labels, TANGENT_ROWS, seed=0)
    weight = load_file(bench.warm_head())["weight"]
    kernels = stage_kernels(bench.base, bench.graph, bench.task.train, chosen=chosen, head_weight=weight)
    return {
        name: [
            {"depth": vote.depth, "accuracy": vote.accuracy, "loss": vote.loss}
            for vote in votes(kernels, bench.graph, labels[torch.tensor(chosen)], normalisation=name)
        ]
        for name in get_args(Normalisation)
    }


def in_closed_form(bench: Bench, name: str) -> torch.Tensor:
    """Whether a ridge regression on pooled features is right, by test sample."""
    pooled = Pooled(bench.base, bench.graph)
    seen = {}
    for part in ("train", "test"):
        samples = bench.parts[part]
        with torch.no_grad():
            batches = [
                pooled(*samples.read(range(first, min(first + BATCH, len(samples)))))
                for first in range(0, len(samples), BATCH)
            ]
        columns = [torch.cat(column) for column in zip(*batches, strict=True)]
        # The last column is the head's own input.
        seen[part] = torch.cat([scaled(column) for column in columns[:-1]], 1) if "all" in name else columns[-1]
    targets = nn.functional.one_hot(bench.task.train.labels, len(bench.task.classes)).double()
    fit = ridge(seen["train"], targets)
    outputs = seen["test"].double() @ fit.weight.T + fit.bias
    return outputs.argmax(1) == bench.task.test.labels


def scaled(features: torch.Tensor) -> torch.Tensor:
    """Each depth counts the same, whatever its width and size."""
    return features / features.square().sum(1).mean().sqrt()


def trained(bench: Bench, variant: Variant) -> dict[str, Any]:
    """Train one variant and score the test part with the weights of its best epoch."""
    live = fl.split(bench.base, bench.graph, variant.depth).live
    spec = spec_of(bench, variant.depth, variant.rate)
    rows, labels = bench.store(variant.depth)["train"], bench.task.train.labels
    warm: Path | None = bench.warm_head()
    start = None
    if variant.samples:
        numbers = drawn(labels, variant.samples, seed=0)
        rows, labels = Chosen(rows, numbers), labels[numbers]
        spec = spec.model_copy(update={"epochs": usual_epochs(-(-variant.samples // BATCH))})
    if variant.name == "half precision":
        rows = Halved(rows)
    elif variant.name.endswith(" views"):
        rows = viewed(bench, variant.depth, int(variant.name.split()[0]))
    elif variant.name in SHORTER:
        spec = spec.model_copy(update={"epochs": SHORTER[variant.name] * spec.epochs})
    elif variant.name in ALONE:
        keep(live, bench, variant.name)
    elif variant.name == "going on":
        start, spec = begun(bench, variant, spec)
    else:
        warm, spec = head_of(bench, variant.name, spec)
    trial = tune(
        live,
        rows,
        bench.store(variant.depth)["valid"],
        train_labels=labels,
        valid_labels=bench.task.valid.labels,
        spec=spec,
        head=bench.graph.head,
        warm=warm,
        start=start,
        save_to=(file := bench.work / "weights" / f"{variant.key}.safetensors"),
    )
    file.unlink(missing_ok=True)
    if trial.failure:
        return {"key": variant.key, **variant._asdict(), "failure": trial.failure}
    test = outputs_of(live, bench.store(variant.depth)["test"], batch_size=BATCH).argmax(1)
    seconds = {"valid_accuracy": trial.accuracy, "seconds": round(trial.seconds, 2)}
    return answered(variant, test == bench.task.test.labels) | seconds


def viewed(bench: Bench, depth: int, count: int) -> Any:
    samples = bench.task.train.with_views(count)
    frozen = fl.split(bench.base, bench.graph, depth).frozen
    folder = bench.work / "store" / f"train-{depth:02d}-{count}"
    return fl.cache(frozen, samples, folder, batch_size=BATCH, views=count)


def keep(live: nn.Module, bench: Bench, name: str) -> None:
    """Let only the norms, or only the first stage, and the head be trained."""
    first, head = set(bench.graph.stages[0].keys), f"{bench.graph.head}."
    for key, parameter in live.named_parameters():
        chosen = parameter.ndim == 1 if name == "norms only" else key in first
        parameter.requires_grad_(chosen or key.startswith(head))


def begun(bench: Bench, variant: Variant, spec: TrialSpec) -> tuple[Path, TrialSpec]:
    """An arm of forty steps at a constant rate, and the spec that goes on from it to the same end."""
    steps = -(-len(bench.task.train) // BATCH)
    part = RACE_STEPS / steps
    first = arm_of(bench, variant.depth, variant.rate).model_copy(update={"epochs": part})
    bench.tuned(first)
    rest = {
        "recipe": first.recipe.model_copy(update={"schedule": "cosine"}),
        "epochs": spec.epochs - part,
        "parent": first.key,
        "first_epoch": part,
    }
    return bench.state_of(first.key), spec.model_copy(update=rest)


def head_of(bench: Bench, name: str, spec: TrialSpec) -> tuple[Path | None, TrialSpec]:
    """The file of another warm head, and the spec that takes it as it is."""
    if name not in HEADS:
        return bench.warm_head(), spec
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"head_scale": 1.0})})
    if name == "random head":
        return None, spec
    if name == "calibrated ridge head":
        return bench.warm_head(), spec
    file = bench.work / f"{name}.safetensors"
    if name == "ridge head":
        temperature = json.loads((bench.work / "prior.json").read_text())["temperature"]
        tensors = {key: tensor / temperature for key, tensor in load_file(bench.warm_head()).items()}
    else:
        _, live, _ = bench.tuned(spec_of(bench, bench.graph.max_depth, LEARNING_RATES[0]))
        tensors = dict(live.get_submodule(str(bench.graph.head)).state_dict())
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    return file, spec


def attempt(name: str, work: Path, threads: int, variant: Variant) -> dict[str, Any]:
    return tried(opened(name, work, threads), variant)


def train_all(task: str, work: Path, file: Path, *, jobs: int, sizes: Sequence[int]) -> None:
    """Train what is not there yet, one process a job, and write each row when it is done."""
    rows, truth = work / "ablations.jsonl", truth_of(task)
    bench = opened(task, work, torch.get_num_threads())
    done = {row["key"] for row in rows_in(rows)}
    wanted = [variant for variant in variants(bench, truth, sizes) if variant.key not in done]
    for depth in {variant.depth for variant in wanted}:
        bench.store(depth)
    bench.warm_head()
    threads, began = max(1, (os.cpu_count() or 1) // jobs), time.perf_counter()
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool, rows.open("a") as out:
        for end in as_completed([pool.submit(attempt, task, work, threads, variant) for variant in wanted]):
            row = end.result()
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"{time.perf_counter() - began:.0f} s: {row['key']}: test {row.get('test_accuracy')}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(compact({"task": task, "rows": rows_in(rows), **stamp()}))
