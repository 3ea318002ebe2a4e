"""Twenty-four configurations over shared frozen work, against training each by itself.

    python benchmarks/sharing.py DATA --work FOLDER [--json benchmarks/results/sharing.json] [--model
        efficientnet_lite0] [--image-size 96] [--epochs 5] [--limit N] [--workers 2] [--untrained]
        [--plain-format]

The workload is that of Nautilus on ResNet-50: 4 depths x 2 batch sizes x 3 learning rates, Adam, gradients clipped to
a norm of 1, five epochs. Its depths freeze up to conv4_block5, conv4_block6, conv5_block1 and conv5_block2, which is
.75, .81, .89 and .94 of the operations; on another network the open depths that come nearest are taken. Three arms
train the same weights on the same batches from the same seeds:

- *usual*: each configuration by itself, from files. A `DataLoader` with workers that stay alive decodes the pictures
  in each epoch, by frostline's own quick decoding; frozen stages are in eval mode without gradients, and run in
  float32 in every step; the rest is the loop of `fl.tune`, without its quicker convolutions and its kept memory. The
  validation files are scored after each epoch. The network lies in the memory order that frostline uses, which is up
  to twice as quick as torch's own; `--plain-format` leaves it as torch has it.
- *unshared*: `fl.tune` on decoded pictures, with the frozen part computed in each step.
- *shared*: `fl.tune` on the rows of one store a depth. Its seconds are all that it takes: reading and decoding the
  pictures, tracing, choosing the engine, splitting, proving, compiling, filling the stores, training, scoring.

`speedup` is usual / shared, to be 4 or more. `of_flops` is unshared / shared (the stores with their proofs, and the
trainings), as a share of the same ratio in counted operations, to be .9 or more. `difference` is that of validation
losses and accuracies between *usual* and *shared* over all configurations and epochs: the largest, and the median,
whose loss is to be .001 at most. Training magnifies the last bits, so the three configurations that differ most are
trained by *usual* once more in the other memory order, whose sums round otherwise: `by_rounding` is how far they move.
`by_configuration` is the spread of usual / shared over the trainings alone. Each configuration's arms run one after
the other, in another order each time. Started again, the command goes on with what is missing. A small trial is

    python benchmarks/sharing.py DATA --work FOLDER --json OUT --limit 80 --image-size 32 --epochs 1 --workers 0

The stores of all depths are filled in one pass over the pictures; `stores` has its seconds and those
of the proofs.

Sources: Nakandala and Kumar, Nautilus: an optimized system for deep transfer learning over evolving training
datasets, SIGMOD 2022 (2.83 times the usual practice on this workload), and its code for the depths, sizes, rates and
epochs.
"""

import argparse
import itertools
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stamps import stamp
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import frostline as fl
from frostline.calibration import best_temperature
from frostline.copies import copy_of
from frostline.engines import Compiled, compiled, pick
from frostline.features import FeatureStore
from frostline.footprint import _Recomputed
from frostline.pictures import decode, normalised
from frostline.records import Preprocessing, Recipe, TrialSpec
from frostline.schedules import batches_of, mixed
from frostline.splitting import depths_of
from frostline.tuning import _no_denormals, _own_randomness, _seed, _step, _train_mode, optimizer_for

FROZEN = (0.75, 0.81, 0.89, 0.94)
BATCH_SIZES = (16, 32)
RATES = (5e-5, 3e-5, 2e-5)
SEED = 0
SPLIT_SEED = 0
STORE_BATCH = 32
BARS = {"speedup": 4.0, "of_flops": 0.9}
SAME_LOSS = 1e-3
"""Losses whose median is no further apart are the same: rows are computed at another batch size, by another engine."""
CONTROLS = 3

Curve = list[tuple[float, float]]


class Config(NamedTuple):
    """One of the workload's configurations."""

    depth: int
    batch_size: int
    rate: float

    def spec(self, epochs: int) -> TrialSpec:
        recipe = Recipe(
            learning_rate=self.rate, batch_size=self.batch_size, schedule="constant", warmup=0.0, weight_decay=0.0
        )
        return TrialSpec(depth=self.depth, recipe=recipe, seed=SEED, epochs=epochs)


class Workload:
    """The pictures, the network and its cuts, made once.

    Args:
        options: What the command was given.
        engine: What runs the frozen part; None chooses by measuring.
    """

    def __init__(self, options: argparse.Namespace, engine: str | None) -> None:
        self.options = options
        self.listing = fl.list_pictures(options.data)
        classes = len(self.listing.classes)
        loaded = fl.load_model(options.model, classes, image_size=options.image_size, pretrained=not options.untrained)
        self.preprocessing = loaded.preprocessing
        parts = fl.read_pictures(self.listing, self.preprocessing, seed=SPLIT_SEED, folder=options.work / "pictures")
        self.train, self.valid = parts.train, parts.valid
        if options.limit:
            self.train, self.valid = (
                part.subset(list(range(0, len(part), -(-len(part) // options.limit))))
                for part in (parts.train, parts.valid)
            )
        self.base = copy_of(loaded.model).eval().to(memory_format=torch.channels_last)
        self.example = self.train.read(range(4))
        self.graph = fl.trace(self.base, self.example)
        self.depths = nearest({d: self.graph.frozen_share(d) for d in self.graph.open_depths if d}, FROZEN)
        deepest = fl.split(self.base, self.graph, self.depths[-1]).frozen
        self.engine = engine or pick(deepest.module, self.train.read(range(min(STORE_BATCH, len(self.train))))).engine
        self.stores: dict[int, dict[str, FeatureStore]] = {}

    @property
    def configs(self) -> Iterator[Config]:
        return itertools.starmap(Config, itertools.product(self.depths, BATCH_SIZES, RATES))

    def folder_of(self, part: str, depth: int) -> Path:
        return self.options.work / "store" / f"{part}-{depth:02d}"

    def keep(self) -> None:
        """Prove the cuts and fill the stores of all depths in one pass, or open those that are there."""
        for depth in self.depths:
            if reason := fl.prove(self.base, self.graph, depth, example=self.example):
                raise SystemExit(f"depth {depth} is not proven: {reason}")
        frozen = [fl.split(self.base, self.graph, depth).frozen for depth in self.depths]
        made: dict[tuple[Any, ...], Compiled] = {}

        def once(module: nn.Module, example: tuple[torch.Tensor, ...], *, engine: str, precision: str) -> Compiled:
            key = (depths_of(module), engine, precision)
            if key not in made:
                made[key] = compiled(module, example, engine=engine, precision=precision)
            return made[key]

        for part, samples in (("train", self.train), ("valid", self.valid)):
            folders = [self.folder_of(part, depth) for depth in self.depths]
            stores = fl.cache_all(frozen, samples, folders, engine=self.engine, batch_size=STORE_BATCH, compiler=once)
            for depth, store in zip(self.depths, stores, strict=True):
                self.stores.setdefault(depth, {})[part] = store


def nearest(shares: dict[int, float], wanted: Sequence[float]) -> list[int]:
    """Different depths, from the shallowest, that come nearest to the wanted shares.

    Example:
        >>> nearest({1: 0.2, 2: 0.7, 3: 0.8, 4: 1.0}, (0.75, 0.8))
        [2, 3]
    """
    left = dict(shares)
    found = []
    for share in sorted(wanted, reverse=True):
        depth = min(left, key=lambda depth: (abs(left[depth] - share), -depth))
        found.append(depth)
        del left[depth]
    return sorted(found)


# --- the usual practice -----------------------------------------------------------------------


class Files(Dataset):
    """Pictures that are decoded each time they are asked for."""

    def __init__(self, work: Workload, names: Sequence[str], labels: torch.Tensor) -> None:
        rows = {name: row for row, name in enumerate(work.listing.names)}
        self.rows = [rows[name] for name in names]
        self.content: Callable[[int], bytes] = work.listing.content
        self.labels = labels.tolist()
        self.preprocessing: Preprocessing = work.preprocessing

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        pixels = decode(self.content(self.rows[number]), self.preprocessing)
        return normalised(pixels[None].copy(), self.preprocessing)[0], self.labels[number]


class Turns:
    """A batch sampler that gives the batches of the epoch that is set."""

    def __init__(self, samples: int, spec: TrialSpec) -> None:
        self.samples, self.spec, self.epoch = samples, spec, 1

    def __len__(self) -> int:
        return len(batches_of(self.samples, self.spec, 1))

    def __iter__(self) -> Iterator[list[int]]:
        # A loader with workers asks twice before its first batch, so counting the calls would not do.
        return iter([batch.tolist() for batch in batches_of(self.samples, self.spec, self.epoch)])


def usual(work: Workload, spec: TrialSpec) -> Curve:
    """Train one configuration by itself, as people do."""
    return by_itself(work, spec, plain_format=work.options.plain_format)


def by_itself(work: Workload, spec: TrialSpec, *, plain_format: bool) -> Curve:
    order = torch.contiguous_format if plain_format else torch.channels_last
    device = torch.device("cpu")
    stays = {"num_workers": work.options.workers, "persistent_workers": work.options.workers > 0}
    train, valid = (Files(work, part.names, part.labels) for part in (work.train, work.valid))
    turns = Turns(len(train), spec)
    learnt = DataLoader(train, batch_sampler=turns, **stays)
    scored = DataLoader(valid, batch_size=spec.recipe.batch_size, **stays)
    network = copy_of(work.base).to(memory_format=order)
    fl.freeze(network, spec.depth, work.graph)
    optimizer = optimizer_for(network, spec.recipe, head=work.graph.head)
    curve: Curve = []
    step = 0
    with _no_denormals(), _own_randomness(device):
        for epoch in range(1, int(spec.epochs) + 1):
            turns.epoch = epoch
            _train_mode(network, spec.recipe)
            for pictures, labels in learnt:
                step += 1
                _seed(mixed(spec.seed, step), device)
                given = (pictures.contiguous(memory_format=order),), labels
                _step(network, optimizer, given, recipe=spec.recipe, quick=nullcontext())
            network.eval()
            with torch.no_grad():
                outputs = [network(pictures.contiguous(memory_format=order)) for pictures, _ in scored]
            curve.append(worth(torch.cat(outputs), work.valid.labels))
    return curve


def worth(outputs: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Validation loss and accuracy, as `fl.tune` scores them."""
    loss = F.cross_entropy(outputs * best_temperature(outputs, labels), labels)
    return float(loss), float((outputs.argmax(1) == labels).double().mean())


# --- the product's loop -----------------------------------------------------------------------


def unshared(work: Workload, spec: TrialSpec) -> Curve:
    """Train one configuration from decoded pictures, with the frozen part computed in each step."""
    network, head = _Recomputed.of(fl.split(work.base, work.graph, spec.depth))
    return tuned(work, network, {"train": work.train, "valid": work.valid}, spec, head)


def shared(work: Workload, spec: TrialSpec) -> Curve:
    """Train one configuration on the store of its depth."""
    live = fl.split(work.base, work.graph, spec.depth).live
    return tuned(work, live, work.stores[spec.depth], spec, work.graph.head)


def tuned(work: Workload, network: nn.Module, rows: dict[str, Any], spec: TrialSpec, head: str | None) -> Curve:
    trial = fl.tune(
        network,
        rows["train"],
        rows["valid"],
        train_labels=work.train.labels,
        valid_labels=work.valid.labels,
        spec=spec,
        head=head,
        save_to=work.options.work / "trial.safetensors",
    )
    if trial.failure:
        raise SystemExit(f"{spec}: {trial.failure}")
    return [(point.valid_loss, point.valid_accuracy) for point in trial.curve[1:]]


ARMS: dict[str, Callable[[Workload, TrialSpec], Curve]] = {"usual": usual, "unshared": unshared, "shared": shared}


# --- what it comes to -------------------------------------------------------------------------


def key_of(arm: str, config: Config) -> str:
    return f"{arm} {config.depth} {config.batch_size} {config.rate:g}"


class Ledger:
    """A file with one line for each piece of work that is done.

    Args:
        file: Lines of JSON; what is there is not done again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    def add(self, key: str, seconds: float, **more: Any) -> None:
        self.rows[key] = {"key": key, "seconds": round(seconds, 3), **more}
        with self.file.open("a") as out:
            out.write(json.dumps(self.rows[key]) + "\n")

    def train(self, arm: str, config: Config, training: Callable[[], Curve]) -> None:
        """Clock a training, unless it is done already."""
        key = key_of(arm, config)
        if key not in self.rows:
            began = time.perf_counter()
            curve = training()
            self.add(key, time.perf_counter() - began, arm=arm, config=config, curve=curve)


def run(work: Workload, ledger: Ledger) -> None:
    """Do what is missing: stores, then each configuration by all arms."""
    is_new = "stores" not in ledger.rows
    if is_new:
        # What a killed call has left would be opened and not filled, and its seconds missing.
        shutil.rmtree(work.options.work / "store", ignore_errors=True)
    began = time.perf_counter()
    work.keep()
    if is_new:
        ledger.add("stores", time.perf_counter() - began)
    configs = list(work.configs)
    for number, config in enumerate(configs):
        names = list(ARMS)[number % 3 :] + list(ARMS)[: number % 3]
        for name in names:
            ledger.train(name, config, partial(ARMS[name], work, config.spec(work.options.epochs)))
        took = {name: ledger.rows[key_of(name, config)]["seconds"] for name in ARMS}
        print(
            f"{number + 1}/{len(configs)} {config}: {', '.join(f'{n} {s:.1f} s' for n, s in took.items())}", flush=True
        )


def control(work: Workload, ledger: Ledger) -> None:
    """Train what differs most by the usual practice again, with sums that round otherwise."""
    for config in sorted(work.configs, key=lambda config: -max(loss for loss, _ in apart(ledger, config)))[:CONTROLS]:
        spec = config.spec(work.options.epochs)
        ledger.train("control", config, partial(by_itself, work, spec, plain_format=not work.options.plain_format))


def apart(ledger: Ledger, config: Config, other: str = "shared") -> Curve:
    """By epoch: how far losses and accuracies are from those of the usual practice."""
    one, two = (ledger.rows[key_of(arm, config)]["curve"] for arm in ("usual", other))
    return [(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in zip(one, two, strict=True)]


def flops_ratio(work: Workload) -> float:
    """What sharing saves by count: one pass for all depths, instead of one in each step and each scoring."""
    train, valid, epochs = len(work.train), len(work.valid), work.options.epochs
    looks = epochs + 1
    alone = together = 0.0
    for config in work.configs:
        frozen = work.graph.frozen_share(config.depth)
        live = 3 * epochs * train * (1 - frozen) + looks * valid * (1 - frozen)
        alone += live + (epochs * train + looks * valid) * frozen
        together += live
    return alone / (together + work.graph.frozen_share(work.depths[-1]) * (train + valid))


def summary(work: Workload, ledger: Ledger) -> dict[str, Any]:
    arms = {
        name: [row for key, row in ledger.rows.items() if key.startswith(f"{name} ") and "curve" in row]
        for name in ARMS
    }
    seconds = {name: sum(row["seconds"] for row in rows) for name, rows in arms.items()}
    stores = ledger.rows["stores"]["seconds"]
    prepared = ledger.rows["prepare"]["seconds"]
    kept = stores + seconds["shared"]
    losses, accuracies = zip(*(each for config in work.configs for each in apart(ledger, config)), strict=True)
    controls = [config for config in work.configs if key_of("control", config) in ledger.rows]
    rounding = [each for config in controls for each in apart(ledger, config, "control")]
    by_config = [
        ledger.rows[key_of("usual", config)]["seconds"] / ledger.rows[key_of("shared", config)]["seconds"]
        for config in work.configs
    ]
    allowed = flops_ratio(work)
    found = {
        "speedup": round(seconds["usual"] / (prepared + kept), 3),
        "of_flops": round(seconds["unshared"] / kept / allowed, 3),
        "difference": {
            name: {"median": statistics.median(values), "largest": max(values)}
            for name, values in (("loss", losses), ("accuracy", accuracies))
        },
        "by_rounding": {"largest_loss": max(a for a, _ in rounding), "largest_accuracy": max(b for _, b in rounding)},
    }
    return found | {
        "holds": all(found[name] >= bar for name, bar in BARS.items()) and statistics.median(losses) <= SAME_LOSS,
        "by_configuration": {
            "median": round(statistics.median(by_config), 2),
            "low": round(min(by_config), 2),
            "high": round(max(by_config), 2),
        },
        "allowed_by_flops": round(allowed, 3),
        "unshared_over_shared": round(seconds["unshared"] / kept, 3),
        "seconds": {name: round(value, 1) for name, value in seconds.items()} | {"prepare": prepared},
        "stores": stores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "sharing.json")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="train on about that many pictures at most, and validate on as many")
    parser.add_argument("--workers", type=int, default=2, help="that decode for the usual practice")
    parser.add_argument("--untrained", action="store_true", help="random weights, where no hub can be reached")
    parser.add_argument("--plain-format", action="store_true", help="the usual practice in torch's own memory order")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    asked = {
        name: getattr(options, name)
        for name in ("model", "image_size", "epochs", "limit", "workers", "untrained", "plain_format")
    } | {"data": options.data.name}
    ledger = Ledger(options.work / "rows.jsonl")
    if "prepare" not in ledger.rows:
        shutil.rmtree(options.work / "pictures", ignore_errors=True)
    began = time.perf_counter()
    work = Workload(options, ledger.rows.get("prepare", {}).get("engine"))
    if "prepare" not in ledger.rows:
        ledger.add("prepare", time.perf_counter() - began, asked=asked, engine=work.engine)
    if ledger.rows["prepare"]["asked"] != asked:
        raise SystemExit(
            f"{ledger.file} holds another workload: {ledger.rows['prepare']['asked']}. Use another folder."
        )
    run(work, ledger)
    control(work, ledger)
    found = summary(work, ledger) | {
        **asked,
        "depths": work.depths,
        "frozen_shares": [round(work.graph.frozen_share(depth), 4) for depth in work.depths],
        "batch_sizes": BATCH_SIZES,
        "rates": RATES,
        "samples": {"train": len(work.train), "valid": len(work.valid)},
        "engine": work.engine,
        "seed": SEED,
        "split_seed": SPLIT_SEED,
        "rows": list(ledger.rows.values()),
        **stamp(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name not in ("rows", "machine")}, indent=1))


if __name__ == "__main__":
    main()
