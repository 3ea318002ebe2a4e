"""How near the live part's epochs are to what the hardware allows.

    python benchmarks/limit.py --work FOLDER [--json benchmarks/results/limit.json] [--rows 256] [--image-size
        224] [--epochs 2] [--repeats 5] [--network EfficientNet-Lite0 ...] [--share .5 .75 .9]

For each network and frozen share f, `fl.tune` trains the live part on stored rows, and a bare loop trains the same
modules, called one after the other in a plain `nn.Sequential`, on the same rows held in memory: the same batches,
memory format, fused AdamW, clipping and rates. Both score 32 rows after each epoch. f is measured: the frozen stages'
forward and backward seconds in a full training step, as a share of that step.

The bare loop runs in three ways, of which the one with the fewest seconds counts: as torch comes; with memory kept
from step to step and numbers below the normal range taken for zero, as `fl.tune` does; and with its quicker
convolutions, too. The weights of that last way must be those of `fl.tune` (`difference` is the largest between them).

`ratios` is bare seconds / seconds of `fl.tune`, to be .9 or more. `of_limit` is the speed-up over an epoch of
`fl.tune` with nothing frozen, divided by 1 / (1 - f), to be .9 or more. Both are medians of ratios within a repeat;
the ways take turns within each repeat, in another order each time. `reading` is the share of an epoch spent on
reading stored rows. The weights are random, since no number here depends on them. Started again, it goes on where it
stopped; a small trial is

    python benchmarks/limit.py --work FOLDER --json OUT --rows 64 --image-size 64 --epochs 1 --repeats 2
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from stamps import stamp
from torch import nn
from torch.nn import functional as F

import frostline as fl
from frostline.convolving import quick_convolutions
from frostline.copies import copy_of
from frostline.features import FeatureStore
from frostline.heap import kept_heap
from frostline.records import Recipe, TrialSpec, Wire
from frostline.rowfiles import Layout
from frostline.schedules import batches_of, rate_factor
from frostline.tuning import _no_denormals, _train_mode, optimizer_for

NETWORKS = {
    "EfficientNet-Lite0": "efficientnet_lite0",
    "ResNet-18": "torchvision:resnet18",
    "ViT-Ti": "timm:vit_tiny_patch16_224",
    "MobileNetV2": "torchvision:mobilenet_v2",
}
SHARES = (0.5, 0.75, 0.9)
CLASSES = 10
SEED = 0
SHARE_STEPS = 5
"""Full steps in which the stages are timed, after one that is not counted."""

BAR = 0.9


# --- networks ---------------------------------------------------------------------------------


class FirstToken(nn.Module):
    """What a ViT's head reads."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0]


def pieces(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a network that its forward calls one after the other, by name; a ViT's from its first block on."""
    match type(network).__name__:
        case "EfficientNet":
            before, after = ("conv_stem", "bn1"), ("conv_head", "bn2", "global_pool", "classifier")
            rows = [f"blocks.{stage}" for stage in range(len(network.blocks))]
        case "ResNet":
            before, after = ("conv1", "bn1", "relu", "maxpool"), ("avgpool", "flatten", "fc")
            rows = ["layer1", "layer2", "layer3", "layer4"]
        case "MobileNetV2":
            before, after = (), ("pool", "flatten", "classifier")
            rows = ["features"]
        case "VisionTransformer":
            before, after = ("norm_pre",), ("norm", "token", "fc_norm", "head_drop", "head")
            rows = ["blocks"]
        case other:
            raise ValueError(f"how {other} calls its modules is not written down here")
    own = {"flatten": nn.Flatten(1), "pool": nn.AdaptiveAvgPool2d(1), "token": FirstToken()}
    modules = dict(network.named_modules()) | own
    inner = [f"{row}.{place}" for row in rows for place, _ in modules[row].named_children()]
    return [(name, modules[name]) for name in (*before, *inner, *after)]


def bare(network: nn.Module, cut: str) -> nn.Sequential:
    """What follows a cut, called in order."""
    named = pieces(network)
    last = max(place for place, (name, _) in enumerate(named) if f"{name}.".startswith(f"{cut}."))
    return nn.Sequential(*(module for _, module in named[last + 1 :]))


class Bench:
    """One network with random pictures.

    Args:
        name: A key of `NETWORKS`.
        work: Where stores and weights are kept.
        rows: Number of pictures.
        image_size: Their side, pixels.
        epochs: Of each training.
    """

    def __init__(self, name: str, work: Path, *, rows: int, image_size: int, epochs: int) -> None:
        self.work = work / f"{name}-{rows}-{image_size}"
        self.work.mkdir(parents=True, exist_ok=True)
        draw = torch.Generator().manual_seed(SEED)
        pictures = torch.randn(rows, 3, image_size, image_size, generator=draw)
        labels = torch.randint(CLASSES, (rows,), generator=draw)
        loaded = fl.load_model(NETWORKS[name], CLASSES, image_size=image_size, pretrained=False)
        self.base = settled(loaded.model, pictures[: Recipe().batch_size])
        if any(weight.dim() == 4 for weight in self.base.parameters()):
            self.base = self.base.to(memory_format=torch.channels_last)
            pictures = pictures.to(memory_format=torch.channels_last)
        self.samples = fl.TensorSamples(pictures, labels)
        self.graph = fl.trace(self.base, pictures[:4])
        self.pictures = Held(*self.graph.cuts[0].wires, pictures)
        self.epochs = epochs

    def spec(self, depth: int) -> TrialSpec:
        return TrialSpec(depth=depth, recipe=Recipe(), seed=SEED, epochs=self.epochs)


def settled(network: nn.Module, pictures: torch.Tensor) -> nn.Module:
    """Give norms the statistics of some pictures, so that with random weights no value dies out or runs away."""
    norms = [module for module in network.modules() if getattr(module, "running_mean", None) is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(pictures)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


# --- the frozen share -------------------------------------------------------------------------


def frozen_shares(bench: Bench) -> dict[int, float]:
    """By open depth, the share of a full step's seconds that lies below the cut, forward and backward."""
    whole, recipe = copy_of(bench.base), bench.spec(0).recipe
    cuts = {bench.graph.cuts[depth].name: depth for depth in bench.graph.open_depths if depth}
    down: dict[str, float] = {}
    up: dict[str, float] = {}

    def noted(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            down[name] = time.perf_counter()
            if output.requires_grad:
                output.register_hook(lambda gradient: up.update({name: time.perf_counter()}))

        return hook

    for name in cuts:
        whole.get_submodule(name).register_forward_hook(noted(name))
    optimizer = optimizer_for(whole, recipe, head=bench.graph.head)
    _train_mode(whole, recipe)
    inputs, labels = bench.pictures.read(range(recipe.batch_size)), bench.samples.labels[: recipe.batch_size]
    quick = quick_convolutions(whole, inputs)
    seen: dict[int, list[float]] = {depth: [] for depth in cuts.values()}
    with kept_heap(), _no_denormals():
        for _ in range(SHARE_STEPS + 1):
            up.clear()
            began = time.perf_counter()
            with quick:
                loss = F.cross_entropy(whole(*inputs), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            passed = time.perf_counter()
            nn.utils.clip_grad_norm_(whole.parameters(), recipe.clip_norm)
            optimizer.step()
            ended = time.perf_counter()
            for name, depth in cuts.items():
                below = down[name] - began + passed - up.get(name, passed)
                seen[depth].append(below / (ended - began))
    return {depth: statistics.median(shares[1:]) for depth, shares in seen.items()}


def nearest(shares: dict[int, float], wanted: Sequence[float]) -> dict[float, int]:
    """For each wanted share the depth that comes nearest to it.

    Example:
        >>> nearest({1: 0.4, 2: 0.7, 3: 0.95}, (0.5, 0.9))
        {0.5: 1, 0.9: 3}
    """
    return {share: min(shares, key=lambda depth: abs(shares[depth] - share)) for share in wanted}


# --- the loops --------------------------------------------------------------------------------


class Held:
    """Rows in memory, in the memory order of the network's own wire.

    Args:
        wire: What crosses the cut.
        rows: Its values, (N, ...).
    """

    views = 1

    def __init__(self, wire: Wire, rows: torch.Tensor) -> None:
        self._layout = Layout(wire)
        self._rows = self._layout.to_rows(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int] | torch.Tensor, view: int = 0) -> tuple[torch.Tensor, ...]:
        return (self._layout.from_rows(self._rows.index_select(0, torch.as_tensor(rows))),)


class Read:
    """Rows that sum up the seconds for which they are read."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.views = rows.views
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        began = time.perf_counter()
        found = self.rows.read(rows, view)
        self.seconds += time.perf_counter() - began
        return found


@dataclass(frozen=True)
class Epochs:
    """What a loop took: seconds of an epoch with its scoring, and the last weights."""

    seconds: float
    weights: dict[str, torch.Tensor]
    reading: float = 0.0


def ours(bench: Bench, depth: int) -> Epochs:
    """Train by the product's own loop, on stored rows; with nothing frozen, on the pictures themselves."""
    parts = fl.split(bench.base, bench.graph, depth)
    rows = Read(stored(bench, depth) if depth else bench.pictures)
    spec = bench.spec(depth)
    few = range(spec.recipe.batch_size)
    scored = fl.TensorSamples(rows.rows.read(few), bench.samples.labels[few.start : few.stop])
    file = bench.work / "trial.safetensors"
    trial = fl.tune(
        parts.live,
        rows,
        scored,
        train_labels=bench.samples.labels,
        valid_labels=scored.labels,
        spec=spec,
        head=bench.graph.head,
        save_to=file,
    )
    if trial.failure:
        raise SystemExit(f"depth {depth}: {trial.failure}")
    seconds = sum(point.seconds for point in trial.curve[1:])
    last = {name.removeprefix("last/"): value for name, value in load_file(file).items() if name.startswith("last/")}
    return Epochs(seconds / bench.epochs, last, rows.seconds / seconds)


def stored(bench: Bench, depth: int) -> FeatureStore:
    frozen = fl.split(bench.base, bench.graph, depth).frozen
    return fl.cache(frozen, bench.samples, bench.work / f"store-{depth:02d}", batch_size=Recipe().batch_size)


def bare_loop(bench: Bench, depth: int, *, is_kept: bool, is_quick: bool) -> Epochs:
    """Train by a loop without anything that training does not need."""
    spec = bench.spec(depth)
    recipe, labels = spec.recipe, bench.samples.labels
    network = copy_of(bench.base)
    live = bare(network, bench.graph.cuts[depth].name)
    store = stored(bench, depth)
    rows = Held(*store.manifest.identity.wires, *store.read(range(len(store))))
    few = torch.arange(recipe.batch_size)
    steps = len(batches_of(len(rows), spec, 1))
    optimizer = optimizer_for(live, recipe, head=str(len(live) - 1))
    # In the optimizer's order, in which `fl.tune` adds up the norm of the gradient.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    peaks = [group["lr"] for group in optimizer.param_groups]
    quick: AbstractContextManager[object] | None = None if is_quick else nullcontext()
    seconds = 0.0
    with ExitStack() as house:
        for context in (kept_heap(), _no_denormals()) if is_kept else ():
            house.enter_context(context)
        for epoch in range(1, bench.epochs + 1):
            began = time.perf_counter()
            _train_mode(live, recipe)
            for number, batch in enumerate(batches_of(len(rows), spec, epoch), 1):
                factor = rate_factor(spec, steps, (epoch - 1) * steps + number)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                inputs = rows.read(batch)
                quick = quick or quick_convolutions(live, inputs)
                with quick:
                    loss = F.cross_entropy(live(*inputs), labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
                optimizer.step()
            live.eval()
            with torch.no_grad():
                live(*rows.read(few))
            seconds += time.perf_counter() - began
    return Epochs(seconds / bench.epochs, network.state_dict())


BARE: dict[str, dict[str, bool]] = {
    "as torch comes": {"is_kept": False, "is_quick": False},
    "memory kept": {"is_kept": True, "is_quick": False},
    "quicker convolutions": {"is_kept": True, "is_quick": True},
}


# --- what is compared -------------------------------------------------------------------------


def compared(bench: Bench, depths: dict[float, int], shares: dict[int, float], repeats: int) -> list[dict[str, Any]]:
    """Each depth's loops, and the full training, in turn; a row for each wanted share."""
    loops: dict[tuple[int, str], Callable[[], Epochs]] = {(0, "ours"): lambda: ours(bench, 0)}
    for depth in sorted(set(depths.values())):
        stored(bench, depth)
        loops[depth, "ours"] = lambda depth=depth: ours(bench, depth)
        for way, switches in BARE.items():
            loops[depth, way] = lambda depth=depth, switches=switches: bare_loop(bench, depth, **switches)
    found: dict[tuple[int, str], list[Epochs]] = {key: [] for key in loops}
    order = list(loops)
    for repeat in range(repeats):
        turn = repeat % len(order)
        for key in order[turn:] + order[:turn]:
            found[key].append(loops[key]())
        print(f"  repeat {repeat + 1} of {repeats}: a full epoch {found[0, 'ours'][-1].seconds:.2f} s", flush=True)
    return [row_of(bench, share, depth, shares[depth], found) for share, depth in depths.items()]


def row_of(
    bench: Bench, wanted: float, depth: int, share: float, found: dict[tuple[int, str], list[Epochs]]
) -> dict[str, Any]:
    seconds = {way: [epochs.seconds for epochs in found[depth, way]] for way in ("ours", *BARE)}
    full = [epochs.seconds for epochs in found[0, "ours"]]
    counted = min(BARE, key=lambda way: statistics.median(seconds[way]))
    mine, theirs = found[depth, "ours"][-1].weights, found[depth, "quicker convolutions"][-1].weights
    pairs = zip(seconds["ours"], seconds[counted], full, strict=True)
    ratios, limits = zip(*[(bare / own, whole / own * (1 - share)) for own, bare, whole in pairs], strict=True)
    return {
        "wanted": wanted,
        "depth": depth,
        "frozen_up_to": bench.graph.cuts[depth].name,
        "frozen_share": round(share, 4),
        "frozen_share_by_operations": round(bench.graph.frozen_share(depth), 4),
        "ratio": spread(ratios),
        "of_limit": spread(limits),
        "counted": counted,
        "seconds": {"full": spread(full)} | {way: spread(values) for way, values in seconds.items()},
        "reading": spread([epochs.reading for epochs in found[depth, "ours"]]),
        "difference": max(float((mine[name] - theirs[name]).abs().max()) for name in mine),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"rows": options.rows, "image_size": options.image_size, "epochs": options.epochs}
    print(f"{name}: {sizes}", flush=True)
    bench = Bench(name, options.work, **sizes)
    shares = frozen_shares(bench)
    depths = nearest(shares, options.share)
    for depth in depths.values():
        if reason := fl.prove(bench.base, bench.graph, depth, example=bench.samples.read(range(4))):
            raise SystemExit(f"{name}, depth {depth} is not proven: {reason}")
    rows = compared(bench, depths, shares, options.repeats)
    for row in rows:
        print(
            f"  {row['frozen_up_to']} (f = {row['frozen_share']:.2f}): bare / ours {row['ratio']['median']:.3f} "
            f"({row['ratio']['low']:.3f}-{row['ratio']['high']:.3f}, {row['counted']}), of the limit "
            f"{row['of_limit']['median']:.3f} ({row['of_limit']['low']:.3f}-{row['of_limit']['high']:.3f})",
            flush=True,
        )
    every = {str(depth): round(share, 4) for depth, share in shares.items()}
    return {"network": name, "model": NETWORKS[name], **sizes, "shares_by_depth": every, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "limit.json")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--share", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    networks = []
    for name in options.network:
        asked = [name, options.rows, options.image_size, options.epochs, options.repeats, options.share]
        file = options.work / f"limit-{'-'.join(map(str, asked[:5]))}.json"
        known = json.loads(file.read_text()) if file.exists() else None
        if known is None or known["asked"] != asked:
            known = {"asked": asked, "found": measured(name, options)}
            file.write_text(json.dumps(known))
        networks.append(known["found"])
    rows = [(f"{one['network']}, f = {row['wanted']}", row) for one in networks for row in one["rows"]]
    ratios = {name: row["ratio"]["median"] for name, row in rows}
    limits = {name: row["of_limit"]["median"] for name, row in rows}
    found = {
        "ratios": ratios,
        "of_limit": limits,
        "holds": min(*ratios.values(), *limits.values()) >= BAR,
        "batch_size": Recipe().batch_size,
        "seed": SEED,
        "repeats": options.repeats,
        "networks": networks,
        **stamp(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("ratios", "of_limit", "holds")}, indent=1))


if __name__ == "__main__":
    main()
