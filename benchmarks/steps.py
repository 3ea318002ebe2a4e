"""Seconds of one training step with nothing frozen: as frostline takes it, in bfloat16, and compiled.

    python benchmarks/steps.py --json OUT [--networks NAME:SIDE ...] [--repeats 12]

Each network's step on 32 random pictures is timed as `fl.tune` takes it, in float32 and under bfloat16 autocast, and
with the network compiled by torch.compile in the quicker of the two, in place of frostline's own quicker
convolutions. `making_seconds` is the first compiled step. Medians of so many steps after one that is not counted, with
the lowest and highest. Weights are random, since no second depends on them. A compiled step pays for its making after
`pays_after` steps, or never (null).
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from stamps import stamp
from torch import nn

import frostline as fl
from frostline.cost import step_seconds
from frostline.heap import kept_heap
from frostline.records import Recipe
from frostline.tuning import _no_denormals, _step, _train_mode, optimizer_for, train_step

NETWORKS = (
    "efficientnet_lite0:96",
    "efficientnet_lite0:224",
    "torchvision:mobilenet_v2:96",
    "torchvision:resnet18:96",
    "torchvision:resnet18:224",
    "timm:vit_tiny_patch16_224:224",
)
BATCH, CLASSES = 32, 10


def row_of(text: str, repeats: int) -> dict[str, Any]:
    name, _, side = text.rpartition(":")
    network = fl.load_model(name, CLASSES, image_size=int(side), pretrained=False).model
    network = network.to(memory_format=torch.channels_last)
    pictures = torch.randn(BATCH, 3, int(side), int(side)).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % CLASSES
    found: dict[str, Any] = {"network": name, "side": int(side)}
    with kept_heap():
        for bits in ("float32", "bfloat16"):
            step = train_step(network, (pictures,), labels, recipe=still(bits), head=None)
            found[bits] = timed(step, repeats)
        quicker = min(("float32", "bfloat16"), key=lambda bits: found[bits]["seconds"])
        step = compiled_step(network, pictures, labels, still(quicker))
        began = time.perf_counter()
        step()
        found["making_seconds"] = round(time.perf_counter() - began, 1)
        found["compiled"] = {"precision": quicker, **timed(step, repeats)}
    spared = found[quicker]["seconds"] - found["compiled"]["seconds"]
    found["pays_after"] = round(found["making_seconds"] / spared) if spared > 0 else None
    return found


def still(bits: str) -> Recipe:
    """A recipe that moves nothing, so that no step is quicker for gradients that have died."""
    return Recipe(precision=bits, learning_rate=0.0, head_learning_rate=0.0)


def compiled_step(
    network: nn.Module, pictures: torch.Tensor, labels: torch.Tensor, recipe: Recipe
) -> Callable[[], None]:
    optimizer = optimizer_for(network, recipe, head=None)
    _train_mode(network, recipe)
    # Of a second network in one process torch would make a graph of any shape, which takes minutes.
    torch.compiler.reset()
    quick = torch.compile(network, dynamic=False)

    def step() -> None:
        with _no_denormals():
            _step(quick, optimizer, ((pictures,), labels), recipe=recipe, quick=nullcontext())

    return step


def timed(step: Callable[[], None], repeats: int) -> dict[str, float]:
    median, low, high = step_seconds(step, repeats)
    return {"seconds": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME:SIDE")
    parser.add_argument("--repeats", type=int, default=12)
    options = parser.parse_args()
    rows = []
    for text in options.networks:
        rows.append(row_of(text, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
        options.json.write_text(json.dumps({"batch": BATCH, "rows": rows, **stamp()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
