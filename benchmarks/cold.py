"""The cold pass: pictures a second from JPEG files to stored rows, against a DataLoader and eager PyTorch.

    python benchmarks/cold.py speed --work FOLDER --json OUT [--pictures 2048] [--repeats 5] [--networks NAME ...]
    python benchmarks/cold.py accuracy --work FOLDER --json OUT [--image-size 96] [--seeds 5]

`speed` lets each network, at two depths (all but the head, and half of the stages), go once over the same JPEG
files: `fl.read_pictures` and `fl.cache` in float32 and with precision "auto", and the usual way, torchvision's
transforms in a DataLoader of 0 and of 2 workers and the same frozen part in eager float32 PyTorch, its rows written
to one file. Every pass has a fresh process of its own; the ways take turns, repeat by repeat. Clocked is all from
listing the files to rows that are safe on the disk. Loading the network, making the engine and a first batch are not;
what making the engine took stands beside it. The JSON ends with `speedups`: the quicker DataLoader's median seconds
over ours, with the lowest and highest ratio of the repeats. Started again, the command goes on where it stopped.

`accuracy` trains the rest of EfficientNet-Lite0 on rows in float32 and in bfloat16, whatever the error of these, at
both depths and with several seeds, and scores the merged network in float32 on the test part.

Nothing else may run on the machine meanwhile.
"""

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import frostline as fl
from frostline.claims import machine
from frostline.copies import copy_of
from frostline.engines import compiled, pick, quickest, relative_error
from frostline.prices import head_scale
from frostline.probing import Pooled
from frostline.records import CutGraph, Recipe, TrialSpec
from frostline.scoring import outputs_of

SHARED = Path(__file__).parents[2] / "shared" / "data"
BATCH = 32
WARM = 64
"""Pictures of the pass that makes the engine and is not clocked."""

PACKAGED = ("efficientnet_lite0",)
"""Networks whose weights come with the package. Speed does not depend on the values, the error of few bits does."""

WAYS = ("DataLoader 0", "DataLoader 2", "float32", "auto")

BARS = {
    "float32": {"efficientnet_lite0": 5.0, "timm:resnet18": 1.8, "timm:vit_tiny_patch16_224": 1.8},
    "auto": {"efficientnet_lite0": 9.0, "timm:resnet18": 3.0, "timm:vit_tiny_patch16_224": 3.0},
}
LARGEST_ERROR = {"float32": 1e-5, "auto": 1e-2}


# --- speed ------------------------------------------------------------------------------------


def speed(options: argparse.Namespace) -> dict[str, Any]:
    options.work.mkdir(parents=True, exist_ok=True)
    folder = pictures(options.data, options.work, options.pictures)
    file = options.work / f"passes-{options.pictures}-{options.image_size}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["network"], row["cut"], row["way"], row["repeat"]) for row in rows}
    cuts = ("head only", "middle")
    for repeat in range(options.repeats):
        for network in options.networks:
            for cut in cuts:
                # Each repeat begins with another way, so that none always runs on the warmer machine.
                for way in (WAYS[(repeat + place) % len(WAYS)] for place in range(len(WAYS))):
                    if (network, cut, way, repeat) in done:
                        continue
                    asked = {"network": network, "cut": cut, "way": way, "image_size": options.image_size}
                    row = {**asked, "repeat": repeat, **in_a_process_of_its_own(asked, folder, options.work)}
                    rows.append(row)
                    with file.open("a") as out:
                        out.write(json.dumps(row) + "\n")
                    print(
                        f"repeat {repeat}: {network}, {cut}, {way}: {row['pictures'] / row['seconds']:.1f} pictures a "
                        f"second, error {row['error']:.1e}",
                        flush=True,
                    )
    settings = {
        (network, cut): [row for row in rows if (row["network"], row["cut"]) == (network, cut)]
        for network in options.networks
        for cut in cuts
    }
    return {
        "pictures": {"count": options.pictures, "from": [path.name for path in options.data]},
        "image_size": options.image_size,
        "repeats": options.repeats,
        "passes": [summary(found) for setting in settings.values() for found in by_way(setting).values()],
        "bars": BARS,
        "speedups": {f"{network}, {cut}": speedups(network, setting) for (network, cut), setting in settings.items()},
    }


def pictures(data: list[Path], work: Path, count: int) -> Path:
    """Copies of some JPEG files of every data set, `count` to be clocked and a few for warming up."""
    folder = work / f"pictures-{count}"
    if folder.exists():
        return folder
    part = work / "pictures.part"
    shutil.rmtree(part, ignore_errors=True)
    draw = random.Random(0)
    files = {path.name: sorted(path.rglob("*.[jJ][pP]*[gG]")) for path in data}
    for found in files.values():
        draw.shuffle(found)
    for goal, number in (("clocked/train", count), ("warm/train", WARM)):
        for place in range(number):
            name = list(files)[place % len(files)]
            copied(files[name].pop(), part / goal / name)
    # The parts that a folder of pictures needs beside the one that is read.
    for goal in ("clocked", "warm"):
        for name, found in files.items():
            for other in ("valid", "test"):
                copied(found.pop(), part / goal / other / name)
    part.rename(folder)
    return folder


def copied(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / f"{file.parent.name}-{file.name}")


def in_a_process_of_its_own(asked: dict[str, Any], folder: Path, work: Path) -> dict[str, Any]:
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    command = [sys.executable, __file__, "one", "--pass", json.dumps(asked), "--pictures", folder, "--work", scratch]
    try:
        told = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def one(options: argparse.Namespace) -> dict[str, Any]:
    """One pass, in this process."""
    asked = json.loads(options.one)
    network = asked["network"]
    classes = len(fl.list_pictures(options.pictures / "clocked").classes)
    loaded = fl.load_model(network, classes, image_size=asked["image_size"], pretrained=network in PACKAGED)
    way = asked["way"]
    if way.startswith("DataLoader"):
        return usual(loaded, asked, options, workers=int(way.split()[1]))
    return ours(loaded, asked, options, precision=way)


def depth_of(graph: CutGraph, cut: str) -> int:
    return graph.max_depth if cut == "head only" else min(graph.open_depths, key=lambda d: abs(d - graph.max_depth / 2))


def usual(loaded: Any, asked: dict[str, Any], options: argparse.Namespace, *, workers: int) -> dict[str, Any]:
    """What one writes without frostline."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    shape = loaded.preprocessing
    filters = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}

    class Folder(Dataset):
        def __init__(self, folder: Path) -> None:
            self.files = sorted(folder.rglob("*.*"))
            self.steps = transforms.Compose(
                [
                    transforms.Resize(shape.image_size, filters[shape.interpolation]),
                    transforms.CenterCrop(shape.image_size),
                    transforms.ToTensor(),
                    transforms.Normalize(shape.mean, shape.std),
                ]
            )

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, row: int) -> torch.Tensor:
            with Image.open(self.files[row]) as picture:
                return self.steps(picture.convert("RGB"))

    network = loaded.model.eval()
    example = torch.zeros(BATCH, 3, shape.image_size, shape.image_size)
    graph = fl.trace(network, example[:2])
    depth = depth_of(graph, asked["cut"])
    frozen = fl.split(network, graph, depth).frozen
    with torch.inference_mode():
        frozen(example)
        began = time.perf_counter()
        folder = Folder(options.pictures / "clocked" / "train")
        with (options.work / "rows.bin").open("wb") as out:
            for inputs in DataLoader(folder, batch_size=BATCH, num_workers=workers):
                for wire in frozen(inputs):
                    out.write(wire.numpy().tobytes())
            out.flush()
            os.fsync(out.fileno())
        seconds = time.perf_counter() - began
    return {"depth": depth, "pictures": len(folder), "seconds": seconds, "error": 0.0, "engine": "torch"}


def ours(loaded: Any, asked: dict[str, Any], options: argparse.Namespace, *, precision: str) -> dict[str, Any]:
    network = copy_of(loaded.model).eval().to(memory_format=torch.channels_last)
    size = loaded.preprocessing.image_size
    graph = fl.trace(network, torch.zeros(2, 3, size, size).contiguous(memory_format=torch.channels_last))
    depth = depth_of(graph, asked["cut"])
    frozen = fl.split(network, graph, depth).frozen
    count = len(list((options.pictures / "clocked" / "train").rglob("*.*")))
    made: dict[str, Any] = {}
    making = 0.0

    def remembered(module: torch.nn.Module, example: tuple[torch.Tensor, ...], *, engine: str, precision: str) -> Any:
        nonlocal making
        if precision not in made:
            began = time.perf_counter()
            made[precision] = quickest(module, example, engine=engine, precision=precision, rows=count)
            making += time.perf_counter() - began
        return made[precision].run

    def kept(part: str) -> Any:
        parts = fl.read_pictures(fl.list_pictures(options.pictures / part), loaded.preprocessing)
        return fl.cache(
            frozen,
            parts.train,
            options.work / part,
            engine="auto",
            precision=precision,
            batch_size=BATCH,
            compiler=remembered,
        )

    kept("warm")
    began = time.perf_counter()
    store = kept("clocked")
    seconds = time.perf_counter() - began
    manifest = store.manifest
    return {
        "depth": depth,
        "pictures": len(store),
        "seconds": seconds,
        "making_seconds": making,
        "engine": manifest.engine,
        "precision": manifest.precision,
        "error": manifest.error,
        "why": "; ".join([picked.report.why for picked in made.values()] + ([manifest.why] if manifest.why else [])),
    }


def by_way(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {way: found for way in WAYS if (found := [row for row in rows if row["way"] == way])}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One way at one cut: pictures a second over the repeats."""
    rates = [row["pictures"] / row["seconds"] for row in rows]
    first = rows[0]
    return {
        "network": first["network"],
        "cut": first["cut"],
        "depth": first["depth"],
        "way": first["way"],
        "pictures_per_second": round(statistics.median(rates), 1),
        "low": round(min(rates), 1),
        "high": round(max(rates), 1),
        "engine": sorted({f"{row['engine']} {row.get('precision', 'float32')}" for row in rows}),
        "error": max(row["error"] for row in rows),
        "making_seconds": round(statistics.median(row.get("making_seconds", 0.0) for row in rows), 2),
        "why": rows[-1].get("why", ""),
    }


def speedups(network: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times as quick as the quicker DataLoader, by medians; the spread is that of the repeats."""
    ways = by_way(rows)
    seconds = {way: statistics.median(row["seconds"] for row in found) for way, found in ways.items()}
    baseline = min((way for way in ways if way.startswith("DataLoader")), key=seconds.__getitem__)
    found: dict[str, Any] = {"against": baseline}
    for way in ("float32", "auto"):
        mine = {row["repeat"]: row["seconds"] for row in ways[way]}
        ratios = [row["seconds"] / mine[row["repeat"]] for row in ways[baseline] if row["repeat"] in mine]
        error = max(row["error"] for row in ways[way])
        ratio = seconds[baseline] / seconds[way]
        # Making the engine is paid once for a cut, however many pictures follow.
        making = statistics.median(row["making_seconds"] for row in ways[way])
        found[way] = {
            "times": round(ratio, 2),
            "low": round(min(ratios), 2),
            "high": round(max(ratios), 2),
            "with_making": round(seconds[baseline] / (seconds[way] + making), 2),
            "error": error,
            "bar": BARS[way].get(network),
            "is_reached": ratio >= BARS[way].get(network, 0.0) and error <= LARGEST_ERROR[way],
        }
    return found


# --- accuracy ---------------------------------------------------------------------------------


def accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Train on rows in float32 and in bfloat16; score the merged network in float32."""
    options.work.mkdir(parents=True, exist_ok=True)
    task = fl.load_task(options.data, image_size=options.image_size, folder=options.work / "pictures")
    base = copy_of(task.model).eval().to(memory_format=torch.channels_last)
    graph = fl.trace(base, task.example(4))
    pooled = Pooled(base, graph)
    with torch.no_grad():
        prior = fl.probe(graph, task.train, lambda inputs: pooled(*inputs), folder=options.work)
    found = []
    for cut in ("head only", "middle"):
        depth = depth_of(graph, cut)
        frozen = fl.split(base, graph, depth).frozen
        example = task.train.read(range(BATCH))
        full = pick(frozen.module, example, precision="float32")
        # So many rows as would make it worth it, if only the error allowed it.
        auto = pick(frozen.module, example, rows=1_000_000)
        stores, errors = {}, {}
        for precision in ("float32", "bfloat16"):
            run = compiled(frozen.module, example, engine=full.engine, precision=precision, piece=full.piece)
            stores[precision], errors[precision] = rows_of(task, run, frozen)
        hits = {
            precision: [
                trained(task, base, graph, stores[precision], depth=depth, prior=prior, seed=seed, options=options)
                for seed in range(options.seeds)
            ]
            for precision in stores
        }
        found.append(compared(cut, depth, hits, errors) | {"picked_with_many_rows": auto.model_dump(mode="json")})
        print(json.dumps(found[-1]), flush=True)
    return {
        "data": options.data.name,
        "image_size": options.image_size,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "test_samples": len(task.test),
        "rows": found,
    }


def rows_of(task: fl.Task, run: Any, frozen: Any) -> tuple[dict[str, fl.TensorSamples], float]:
    """Rows of the three parts in memory, and how far those of the training part are from plain torch."""
    stores, error = {}, 0.0
    for name, part in (("train", task.train), ("valid", task.valid), ("test", task.test)):
        batches = []
        for first in range(0, len(part), BATCH):
            inputs = part.read(range(first, min(first + BATCH, len(part))))
            batches.append(run(inputs))
            if name == "train":
                error = max(error, relative_error(batches[-1], frozen(*inputs)))
        stores[name] = fl.TensorSamples(tuple(map(torch.cat, zip(*batches, strict=True))), part.labels)
    return stores, error


def trained(
    task: fl.Task,
    base: torch.nn.Module,
    graph: CutGraph,
    rows: dict[str, fl.TensorSamples],
    *,
    depth: int,
    prior: Any,
    seed: int,
    options: argparse.Namespace,
) -> torch.Tensor:
    """Train the live part and tell which test samples the merged network gets right."""
    recipe = Recipe(head_scale=head_scale(depth, graph.max_depth), batch_size=BATCH)
    parts = fl.split(base, graph, depth)
    fl.tune(
        parts.live,
        rows["train"],
        rows["valid"],
        train_labels=task.train.labels,
        valid_labels=task.valid.labels,
        spec=TrialSpec(depth=depth, recipe=recipe, seed=seed, epochs=options.epochs),
        head=graph.head,
        warm=options.work / prior.head,
        save_to=options.work / "trial.safetensors",
    )
    return outputs_of(parts.merge().eval(), task.test, batch_size=BATCH).argmax(1) == task.test.labels


def compared(cut: str, depth: int, hits: dict[str, list[torch.Tensor]], errors: dict[str, float]) -> dict[str, Any]:
    """Accuracies, and their difference paired by seed and sample."""
    accuracies = {precision: [float(one.float().mean()) for one in each] for precision, each in hits.items()}
    differences = torch.stack([a.float() - b.float() for a, b in zip(hits["bfloat16"], hits["float32"], strict=True)])
    by_sample = differences.mean(0)
    return {
        "cut": cut,
        "depth": depth,
        "error": errors,
        "accuracy": accuracies,
        "mean": {precision: statistics.mean(each) for precision, each in accuracies.items()},
        "bfloat16 less float32": {
            "difference": float(by_sample.mean()),
            # Over the test samples, each with the mean of its seeds.
            "standard_error": float(by_sample.std() / len(by_sample) ** 0.5),
            "by_seed": [float(row.mean()) for row in differences],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    quick = parts.add_parser("speed")
    quick.add_argument(
        "--data", nargs="+", type=Path, default=[SHARED / name for name in ("trashnet", "sign_digits", "caltech25")]
    )
    quick.add_argument("--networks", nargs="+", default=list(BARS["float32"]), metavar="NAME")
    quick.add_argument("--pictures", type=int, default=2048)
    quick.add_argument("--repeats", type=int, default=5)
    quick.add_argument("--image-size", type=int, default=224)
    right = parts.add_parser("accuracy")
    right.add_argument("--data", type=Path, default=SHARED / "sign_digits")
    right.add_argument("--image-size", type=int, default=96)
    right.add_argument("--seeds", type=int, default=5)
    right.add_argument("--epochs", type=int, default=8)
    single = parts.add_parser("one", help="one pass in this process; used by `speed`")
    single.add_argument("--pass", dest="one", required=True)
    single.add_argument("--pictures", type=Path, required=True)
    for each in (quick, right, single):
        each.add_argument("--work", type=Path, required=True)
    for each in (quick, right):
        each.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "one":
        print(json.dumps(one(options)))
        return
    began = time.perf_counter()
    found = speed(options) if options.part == "speed" else accuracy(options)
    about = {
        "date": str(datetime.date.today()),
        "machine": dict(machine()) | {"system": platform.platform()},
        "frostline": fl.__version__,
        "seconds": round(time.perf_counter() - began),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
