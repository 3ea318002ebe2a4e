"""What a search of depths is compared with: other ways of choosing what to freeze, each at its own cost.

    python benchmarks/rivals.py TASK --work FOLDER --json OUT [--seeds 1]

Two kinds. `RULES` name a depth, and what it is worth is looked up in the task's truth file
(benchmarks/truth.py), at the usual rate and with the best of three. `PROCEDURES` change during the
training what is frozen; the command trains them, from the warm head and by the recipe of a full
fine-tune, and goes on where it stopped when started again. A row says the depth in each epoch.

Cost is in full fine-tunes, by operations: a step is one third forward and two thirds backward, and
frozen stages have no backward. Depths that are looked up keep what is frozen: one forward pass of
it. Gradual unfreezing and Auto-RGN keep nothing: what is frozen goes forward in every step. Auto-RGN
pays for the steps in which it measures, too. AutoFreeze keeps what is frozen, as its paper does:
each stage goes forward over the samples once more after it was frozen, and never again. Scoring and
the pass of the warm head are left out, which favours the rivals; the pass of the ridge probe is not.

Sources: Howard and Ruder, Universal language model fine-tuning for text classification, 2018. Lee et
al., Surgical fine-tuning improves adaptation to distribution shifts, 2023, and its code
(anniesch/surgical-finetuning): rates anew before each epoch, from five batches; by tensor; batch
norm's own tensors stay as they are. Liu et al., AutoFreeze: automatically freezing model blocks to
accelerate fine-tuning, 2021, and its code (YuhanLiu11/AutoFreeze): gradients summed over an interval,
the norm of each stage compared with that of the interval before, the median as threshold. Unlike the
codes, the optimizer keeps its state when rates or depth change, and AutoFreeze's interval is an epoch.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from stamps import stamp
from tasks import IMAGE_SIZE, SPLIT_SEED, TASKS
from torch import nn
from torch.nn import functional as F
from truth import SEEDS, Bench, bits, compact, rows_in, spec_of

import frostline as fl
from frostline.calibration import best_temperature
from frostline.copies import copy_of
from frostline.schedules import batches_of, rate_factor
from frostline.scoring import outputs_of
from frostline.search import LEARNING_RATES
from frostline.tuning import _lay_head, _no_denormals, _step, _train_mode, optimizer_for

USUAL_RATE = LEARNING_RATES[0]
RGN_RATE = 1e-2
"""Of all but the head. The head's gradient is the largest by far, so the others get 1 to 20 % of this. On 200
sign-language digits the validation loss chose it before 1e-3 (test .867 and .766)."""

PERCENTILE = 50
MEASURED_BATCHES = 5

Truth = dict[str, Any]


class Outcome(NamedTuple):
    """What a rival came to.

    Args:
        depth: Number of frozen stages, at the best epoch.
        learning_rate: Peak rate.
        test_hits: A digit a test sample, 1 where it was right; all are wrong where the training failed.
        cost: In full fine-tunes.
    """

    depth: int
    learning_rate: float
    test_hits: str
    cost: float


# --- depths that are looked up ----------------------------------------------------------------


def head_only(truth: Truth, seed: int) -> int:
    return max(truth["depths"])


def full_finetune(truth: Truth, seed: int) -> int:
    return 0


def half(truth: Truth, seed: int) -> int:
    return min(truth["depths"], key=lambda depth: abs(share_of(truth, depth) - 0.5))


def last_stage(truth: Truth, seed: int) -> int:
    return sorted(truth["depths"])[-2]


def any_depth(truth: Truth, seed: int) -> int:
    return random.Random(f"{truth['task']} {seed}").choice(truth["depths"])


def best_probe(truth: Truth, seed: int) -> int:
    votes = [vote for vote in truth["votes"] if vote["depth"] in truth["depths"]]
    return max(votes, key=lambda vote: (vote["accuracy"], vote["depth"]))["depth"]


RULES: dict[str, tuple[Callable[[Truth, int], int], int]] = {
    "head only": (head_only, 0),
    "full fine-tune": (full_finetune, 0),
    "fixed 50 %": (half, 0),
    "last stage only": (last_stage, 0),
    "random depth": (any_depth, 0),
    "ridge probe": (best_probe, 1),
}
"""The depth that each rule names, and how many forward passes of the whole network it needs for that."""


def looked_up(truth: Truth, *, seed: int) -> dict[str, Outcome]:
    """What each rule comes to, at the usual rate and with the best of three."""
    return {
        f"{name}{suffix}": outcome(truth, rule(truth, seed), rates, passes)
        for suffix, rates in (("", (USUAL_RATE,)), (", best of three rates", LEARNING_RATES))
        for name, (rule, passes) in RULES.items()
    }


def outcome(truth: Truth, depth: int, rates: tuple[float, ...], passes: int) -> Outcome:
    """The rate with the lowest validation loss; head only was trained at one."""
    rows = [
        row
        for row in truth["rows"]
        if "marks" not in row
        and (row["depth"], row["norm_mode"], row["seed"]) == (depth, "eval", SEEDS[0])
        and row["learning_rate"] in rates
    ]
    best = min(rows, key=lambda row: float("inf") if row["failure"] else row["valid_loss"])
    frozen = share_of(truth, depth)
    cost = len(rows) * (1 - frozen) + (passes + frozen) / (3 * truth["epochs"])
    hits = "0" * truth["samples"]["test"] if best["failure"] else best["test_hits"]
    return Outcome(depth, best["learning_rate"], hits, cost)


def share_of(truth: Truth, depth: int) -> float:
    return truth["frozen_shares"][truth["depths"].index(depth)]


# --- what is frozen changes during the training -----------------------------------------------


class Epoch(NamedTuple):
    """What a procedure has set before an epoch.

    Args:
        depth: Number of frozen stages.
        cost: As a share of an epoch with nothing frozen.
        scales: Largest factor on the rate by stage, where there are such factors.
    """

    depth: int
    cost: float
    scales: tuple[float, ...] = ()


class Training:
    """A whole network that is trained as `fl.tune` does, but for what a procedure changes before an epoch."""

    def __init__(self, bench: Bench, *, rate: float, seed: int) -> None:
        self.task = bench.task
        self.spec = spec_of(bench, 0, rate, seed=seed)
        self.network = copy_of(bench.base)
        if bench.graph.head:
            _lay_head(self.network, bench.graph.head, bench.warm_head(), scale=self.spec.recipe.head_scale)
        self.optimizer = optimizer_for(self.network, self.spec.recipe, head=bench.graph.head)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    def batches(self, epoch: int) -> list[torch.Tensor]:
        return batches_of(len(self.task.train), self.spec, epoch)

    @contextmanager
    def mode(self, epoch: int) -> Iterator[None]:
        """Train mode, with dropout that follows from the seed and the epoch."""
        _train_mode(self.network, self.spec.recipe)
        with _no_denormals(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.spec.seed + epoch)
            yield

    def learn(self, epoch: int) -> None:
        batches = self.batches(epoch)
        with self.mode(epoch):
            for number, batch in enumerate(batches, 1):
                factor = rate_factor(self.spec, len(batches), (epoch - 1) * len(batches) + number)
                for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                    group["lr"] = peak * factor
                inputs = self.task.train.read(batch.tolist())
                given = inputs, self.task.train.labels[batch]
                _step(self.network, self.optimizer, given, recipe=self.spec.recipe, quick=nullcontext())

    def check(self, epoch: int) -> tuple[float, float]:
        """Validation loss after the temperature that suits it best, and accuracy."""
        outputs, labels = outputs_of(self.network, self.task.valid), self.task.valid.labels
        if not outputs.isfinite().all():
            raise FloatingPointError(f"outputs after epoch {epoch} are not finite")
        loss = F.cross_entropy(outputs * best_temperature(outputs, labels), labels)
        return float(loss), float((outputs.argmax(1) == labels).double().mean())

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}


def gradual_unfreezing(bench: Bench, training: Training) -> Iterator[Epoch]:
    """The head first, then more stages from the top each epoch."""
    for wanted in thaw(bench.graph.max_depth, bench.epochs):
        depth = freeze(bench, training.network, wanted)
        frozen = bench.graph.frozen_share(depth)
        yield Epoch(depth, 1 - frozen + frozen / 3)


def thaw(deepest: int, epochs: int) -> list[int]:
    """Depth in each epoch: one stage more, or as many as have all live by half of the epochs.

    Example:
        >>> thaw(3, 6), thaw(6, 6)
        ([3, 2, 1, 0, 0, 0], [6, 3, 0, 0, 0, 0])
    """
    stages = 1 if deepest < epochs else -(-deepest // max(1, epochs // 2 - 1))
    return [max(0, deepest - stages * epoch) for epoch in range(epochs)]


def auto_rgn(bench: Bench, training: Training) -> Iterator[Epoch]:
    """Each tensor's rate by the norm of its gradient, relative to its own; the largest has the whole rate."""
    network = training.network
    for module in network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.requires_grad_(False)
    groups = [
        {**group, "params": [parameter]}
        for group in training.optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]
    training.optimizer = torch.optim.AdamW(groups, fused=True)
    parameters = [parameter for group in groups for parameter in group["params"]]
    peaks = [group["lr"] for group in groups]
    names = {parameter: name for name, parameter in network.named_parameters()}
    for epoch in range(1, bench.epochs + 1):
        batches = training.batches(epoch)
        measured = batches[:MEASURED_BATCHES]
        ratios = relative_gradients(bench, training, parameters, measured)
        scales = (ratios / ratios.max()).tolist()
        training.peaks = [peak * scale for peak, scale in zip(peaks, scales, strict=True)]
        by_name = {names[parameter]: scale for parameter, scale in zip(parameters, scales, strict=True)}
        by_stage = (max((by_name.get(key, 0.0) for key in stage.keys), default=0.0) for stage in bench.graph.stages)
        yield Epoch(0, 1 + len(measured) / len(batches), tuple(round(scale, 4) for scale in by_stage))


def relative_gradients(
    bench: Bench, training: Training, parameters: list[nn.Parameter], batches: list[torch.Tensor]
) -> torch.Tensor:
    """Mean over the batches of each tensor's gradient norm, divided by the norm of the tensor."""
    found = []
    with training.mode(epoch=0):
        for batch in batches:
            outputs = training.network(*bench.task.train.read(batch.tolist()))
            loss = F.cross_entropy(outputs, bench.task.train.labels[batch])
            gradients = torch.autograd.grad(loss, parameters)
            found.append(
                torch.stack([g.norm() / p.detach().norm() for g, p in zip(gradients, parameters, strict=True)])
            )
    return torch.stack(found).mean(0)


def auto_freeze(bench: Bench, training: Training) -> Iterator[Epoch]:
    """Nothing at first; after each epoch the front stages whose gradient norm changes less than the median's."""
    names = {parameter: name for name, parameter in training.network.named_parameters()}
    sums = {name: torch.zeros_like(parameter) for parameter, name in names.items()}

    def add(parameter: torch.Tensor) -> None:
        sums[names[parameter]] += parameter.grad

    for parameter in names:
        # Called before the gradient is clipped.
        parameter.register_post_accumulate_grad_hook(add)
    depth, kept, before = 0, 0.0, None
    for _ in range(bench.epochs):
        depth = freeze(bench, training.network, depth)
        frozen = bench.graph.frozen_share(depth)
        yield Epoch(depth, 1 - frozen + (frozen - kept) / 3)
        kept = frozen
        # The head is never frozen, nor is the stage before it: one is always left to be the first that moves.
        after = [
            sum(float(sums[key].norm(p=1)) for key in stage.keys if key in sums)
            for stage in bench.graph.stages[: bench.graph.max_depth]
        ]
        if before is not None:
            depth = first_moving(before, after, depth)
        before = after
        for total in sums.values():
            total.zero_()


def first_moving(before: list[float], after: list[float], depth: int) -> int:
    """The first stage from `depth` on whose norm has changed by the median or more.

    Example:
        >>> first_moving([1.0, 1.0, 1.0, 1.0], [1.1, 0.8, 1.5, 1.4], 0)
        2
    """
    changes = [abs(old - new) / old if old else 0.0 for old, new in zip(before, after, strict=True)][depth:]
    threshold = np.percentile(changes, PERCENTILE)
    return depth + next(number for number, change in enumerate(changes) if change >= threshold)


def freeze(bench: Bench, network: nn.Module, wanted: int) -> int:
    """Freeze up to the deepest open cut that is no deeper than wanted, and nothing else."""
    depth = max(depth for depth in bench.graph.open_depths if depth <= wanted)
    fl.freeze(network, depth, bench.graph)
    return depth


PROCEDURES: dict[str, tuple[Callable[[Bench, Training], Iterator[Epoch]], float]] = {
    "gradual unfreezing": (gradual_unfreezing, USUAL_RATE),
    "Auto-RGN": (auto_rgn, RGN_RATE),
    "AutoFreeze": (auto_freeze, USUAL_RATE),
}
"""Each with its peak rate."""


def trained(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """Train by a procedure, and score the test part with the weights of the best epoch."""
    began = time.perf_counter()
    procedure, rate = PROCEDURES[name]
    training = Training(bench, rate=rate, seed=seed)
    changes = procedure(bench, training)
    epochs: list[Epoch] = []
    curve: list[tuple[float, float]] = []
    best, weights, failure = 0, training.weights(), None
    try:
        for number in range(bench.epochs + 1):
            if number:
                epochs.append(next(changes))
                training.learn(number)
            curve.append(training.check(number))
            # As in `fl.tune` the start is no candidate: its head is softened for training.
            if number == 1 or curve[number][0] < curve[best][0]:
                best, weights = number, training.weights()
    except FloatingPointError as diverged:
        failure = str(diverged)
    # A copy that was never frozen takes all weights.
    final = copy_of(bench.base)
    final.load_state_dict(weights)
    hits = outputs_of(final, bench.task.test).argmax(1) == bench.task.test.labels
    if failure:
        hits[:] = False
    return {
        "key": key_of(name, seed),
        "rival": name,
        "seed": seed,
        "depth": epochs[max(0, best - 1)].depth if epochs else 0,
        "learning_rate": rate,
        "cost": round(sum(epoch.cost for epoch in epochs) / bench.epochs, 4),
        "depths": [epoch.depth for epoch in epochs],
        "scales": [epoch.scales for epoch in epochs if epoch.scales],
        "best_epoch": best,
        "curve": [(round(loss, 4), round(accuracy, 4)) for loss, accuracy in curve],
        "test_hits": bits(hits.tolist()),
        "test_accuracy": float(hits.float().mean()),
        "failure": failure,
        "seconds": round(time.perf_counter() - began, 2),
    }


def outcome_of(row: dict[str, Any]) -> Outcome:
    """The outcome in a row of the file that the command writes."""
    return Outcome(row["depth"], row["learning_rate"], row["test_hits"], row["cost"])


def key_of(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


def line_of(row: dict[str, Any]) -> str:
    valid = row["curve"][row["best_epoch"]][1]
    score = row["failure"] or f"valid {valid:.3f}, test {row['test_accuracy']:.3f}"
    return f"{row['key']}: {score}, cost {row['cost']:.2f}, depths {row['depths']}, {row['seconds']:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    work = options.work / options.task
    work.mkdir(parents=True, exist_ok=True)
    file = work / "rivals.jsonl"
    bench = Bench(options.task, work)
    for seed in range(1, options.seeds + 1):
        for name in PROCEDURES:
            if key_of(name, seed) not in {row["key"] for row in rows_in(file)}:
                row = trained(bench, name, seed)
                with file.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                print(line_of(row), flush=True)
    found = {
        "task": options.task,
        "model": TASKS[options.task].model,
        "image_size": IMAGE_SIZE,
        "split_seed": SPLIT_SEED,
        "epochs": bench.epochs,
        "max_depth": bench.graph.max_depth,
        "rows": sorted(rows_in(file), key=lambda row: (row["rival"], row["seed"])),
        **stamp(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(compact(found))


if __name__ == "__main__":
    main()
