"""From a thousand rows to a hundred thousand: seconds and memory of caching and of an epoch of training.

    python benchmarks/scale.py --work FOLDER [--json benchmarks/results/scale.json] [--rows 1000 3000 10000
        30000 100000] [--image-size 64] [--depth 16] [--repeats 3] [--allowed 1536] [--wide-depth 2] [--engine
        auto]

A few hundred random pictures are repeated up to the number of rows. `fl.cache` fills a store with them, and `fl.tune`
trains an epoch on it, each in a fresh process that has imported, compiled and trained a little before it is watched.

`exponent` is that of seconds by rows, fitted to the medians of the repeats (1 is linear); to be 1.05 at most. `last`
is that of the three largest, where what is paid once weighs least. Memory is what belongs to the process alone
(`RssAnon`), seen every five milliseconds: mapped pages of the store are the system's, which takes them back when it
needs them (`mapped` has them). `memory_growth` is the largest peak with the most rows over that with the fewest, to
be 1.1 at most; `bytes_per_row` says what a row adds to the peak, and `stored_bytes_per_row` what it takes on the
disk.

`larger_than_memory`: a store three times as large as all memory that a process may have is filled and trained on for
an epoch. Where this process may make a control group (cgroup v2), the group's `memory.max` is the limit, and the
pages that the system keeps of the store count in it. Elsewhere RLIMIT_DATA is: the kernel then refuses the process
any private writable memory beyond it, stacks and what was never touched included, and pages of files that are only
read do not count. Before the epoch the system is asked to forget the store's pages, so that they come from the disk.
As a control the same process tries to hold all rows at once, which must fail for want of memory (`control_fails`).

Started again, it goes on where it stopped. A small trial is

    python benchmarks/scale.py --work FOLDER --json OUT --rows 100 300 1000 --image-size 32 --repeats 1 --allowed 1280
"""

import argparse
import json
import math
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from stamps import stamp

import frostline as fl
from frostline.engines import Compiled, compiled, pick
from frostline.features import FeatureStore, open_store
from frostline.records import Recipe, Trial, TrialSpec

PICTURES = 512
"""Different pictures; more would only have to be made."""

CLASSES = 10
VALIDATED = 64
TIMES = 3
"""The store is that many times as large as the memory."""

BARS = {"exponent": 1.05, "memory_growth": 1.1}
SEED = 0
MIB = 2**20


class Repeated:
    """A part of N samples that are few, over and over."""

    views = 1

    def __init__(self, few: fl.TensorSamples, rows: int) -> None:
        self._few = few
        turns = -(-rows // len(few))
        self.labels = few.labels.repeat(turns)[:rows]
        self.names = (few.names * turns)[:rows]
        self.digests = (few.digests * turns)[:rows]
        self.preparation = few.preparation

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        return self._few.read([row % len(self._few) for row in rows], view)


def few_pictures(image_size: int) -> fl.TensorSamples:
    draw = torch.Generator().manual_seed(SEED)
    pictures = torch.randn(PICTURES, 3, image_size, image_size, generator=draw)
    labels = torch.arange(PICTURES) % CLASSES
    return fl.TensorSamples(pictures.to(memory_format=torch.channels_last), labels)


# --- in a fresh process -----------------------------------------------------------------------


class Lone:
    """What one fresh process works with.

    Args:
        asked: What the parent has written: phase, rows, folder, depth, image_size, engine, limit.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self.folder = Path(asked["folder"])
        self.batch = Recipe().batch_size
        self.few = few_pictures(asked["image_size"])
        loaded = fl.load_model("efficientnet_lite0", CLASSES, image_size=asked["image_size"])
        base = loaded.model.eval().to(memory_format=torch.channels_last)
        first = self.few.read(range(self.batch))
        graph = fl.trace(base, first[0][:4])
        self.head = graph.head
        self.depth = asked["depth"]
        self.parts = fl.split(base, graph, self.depth)
        self.engine = asked["engine"]
        self.ready = compiled(self.parts.frozen.module, first, engine=self.engine)
        # Whatever a first pass and a first step load belongs to no number of rows.
        self.train(self.cache(self.few, self.folder.with_name(f"{self.folder.name}-warm")), self.few)
        shutil.rmtree(self.folder.with_name(f"{self.folder.name}-warm"))

    def compiler(
        self, module: torch.nn.Module, example: tuple[torch.Tensor, ...], *, engine: str, precision: str
    ) -> Compiled:
        assert (engine, precision) == (self.ready.engine, "float32")
        return self.ready

    def cache(self, samples: Any, folder: Path) -> FeatureStore:
        return fl.cache(
            self.parts.frozen, samples, folder, engine=self.engine, batch_size=self.batch, compiler=self.compiler
        )

    def train(self, store: FeatureStore, samples: Any) -> Trial:
        scored = range(min(VALIDATED, len(store)))
        valid = fl.TensorSamples(store.read(scored), samples.labels[: len(scored)])
        trial = fl.tune(
            self.parts.live,
            store,
            valid,
            train_labels=samples.labels,
            valid_labels=valid.labels,
            spec=TrialSpec(depth=self.depth, recipe=Recipe(), seed=SEED, epochs=1),
            head=self.head,
            save_to=self.folder.with_name(f"{self.folder.name}.safetensors"),
        )
        if trial.failure:
            raise SystemExit(trial.failure)
        return trial


def resident() -> dict[str, int]:
    """Bytes in memory now: what belongs to this process alone, and mapped pages of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: 1024 * int(line[1]) for line in lines if line[0] in ("RssAnon:", "RssFile:")}


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Yield a dict that holds the seconds and the peaks of what was done inside, once that is over."""
    found: dict[str, Any] = {}
    peaks = resident()
    over = threading.Event()

    def look() -> None:
        while True:
            for name, now in resident().items():
                peaks[name] = max(peaks[name], now)
            if over.wait(0.005):
                return

    eye = threading.Thread(target=look)
    eye.start()
    began = time.perf_counter()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - began
        over.set()
        eye.join()
        found |= {"peak_bytes": peaks["RssAnon"], "mapped_bytes": peaks["RssFile"]}


def one(asked: dict[str, Any]) -> dict[str, Any]:
    """Do what the parent asks for, in the fresh process."""
    if asked["group"]:
        (Path(asked["group"]) / "cgroup.procs").write_text(str(os.getpid()))
    elif asked["limit"]:
        resource.setrlimit(resource.RLIMIT_DATA, (asked["limit"], asked["limit"]))
    lone = Lone(asked)
    samples = Repeated(lone.few, asked["rows"])
    if asked["phase"] == "cache":
        with watched() as found:
            store = lone.cache(samples, lone.folder)
        return found | {"stored_bytes": store.bytes}
    if asked["limit"]:
        forget(lone.folder)
    with watched() as found:
        store = open_store(lone.folder)
        if asked["phase"] == "hold":
            return {"held_bytes": sum(tensor.nbytes for tensor in store.read(range(len(store))))}
        trial = lone.train(store, samples)
    return found | {"stored_bytes": store.bytes, "train_loss": trial.curve[-1].train_loss}


def forget(folder: Path) -> None:
    """Ask the system to drop what it keeps of these files in memory."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- the parent -------------------------------------------------------------------------------


def engine_for(options: argparse.Namespace) -> str:
    """The engine asked for; "auto" measures once and holds for later calls too."""
    file = options.work / "engine.txt"
    if options.engine != "auto":
        return options.engine
    if not file.exists():
        network = fl.load_model("efficientnet_lite0", CLASSES, image_size=options.image_size).model.eval()
        first = few_pictures(options.image_size).read(range(Recipe().batch_size))
        file.write_text(pick(network, first).engine)
    return file.read_text()


def ended(asked: dict[str, Any]) -> tuple[int, str, str]:
    command = [sys.executable, __file__, "--one", json.dumps(asked)]
    process = subprocess.run(command, capture_output=True, text=True)
    return process.returncode, process.stdout, process.stderr


def asked_for(asked: dict[str, Any], ledger: Path) -> dict[str, Any]:
    """What a fresh process has found, now or in an earlier call."""
    key = {name: value for name, value in asked.items() if name not in ("folder", "group")}
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    for row in map(json.loads, lines):
        if row["key"] == key:
            return row["found"]
    code, output, errors = ended(asked)
    said = (errors.strip().splitlines() or ["nothing said"])[-1]
    if asked["phase"] == "hold" and code:
        found = {"ended_with": code, "said": said}
    elif code:
        raise SystemExit(f"{key} ended with {code}: {said}")
    else:
        found = json.loads(output.splitlines()[-1])
    with ledger.open("a") as out:
        out.write(json.dumps({"key": key, "found": found}) + "\n")
    print(f"{asked['phase']} {asked['rows']} rows: {found}", flush=True)
    return found


def grown(options: argparse.Namespace, engine: str) -> dict[str, Any]:
    """Both phases with each number of rows; the repeats take turns."""
    ledger = options.work / "rows.jsonl"
    found: dict[str, dict[int, list[dict[str, Any]]]] = {phase: {rows: [] for rows in options.rows} for phase in PHASES}
    for repeat in range(options.repeats):
        for rows in options.rows:
            asked = {
                "rows": rows,
                "repeat": repeat,
                "folder": str(options.work / f"store-{rows}-{repeat}"),
                "depth": options.depth,
                "image_size": options.image_size,
                "engine": engine,
                "limit": 0,
                "group": "",
            }
            for phase in PHASES:
                found[phase][rows].append(asked_for(asked | {"phase": phase}, ledger))
            shutil.rmtree(asked["folder"], ignore_errors=True)
    return {phase: of_phase(by_rows) for phase, by_rows in found.items()}


PHASES = ("cache", "train")


def of_phase(by_rows: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    seconds = {rows: [each["seconds"] for each in found] for rows, found in by_rows.items()}
    peaks = {rows: statistics.median(each["peak_bytes"] for each in found) for rows, found in by_rows.items()}
    medians = {rows: statistics.median(values) for rows, values in seconds.items()}
    least, most = min(by_rows), max(by_rows)
    return {
        "exponent": exponent(medians),
        "last": exponent(dict(sorted(medians.items())[-3:])),
        "memory_growth": round(peaks[most] / peaks[least], 3),
        "bytes_per_row": round((peaks[most] - peaks[least]) / (most - least), 1),
        "stored_bytes_per_row": by_rows[most][0]["stored_bytes"] // most,
        "seconds": {rows: [round(value, 3) for value in sorted(values)] for rows, values in seconds.items()},
        "peak_bytes": peaks,
        "mapped": {rows: max(each["mapped_bytes"] for each in found) for rows, found in by_rows.items()},
    }


def exponent(seconds: dict[int, float]) -> float:
    """Slope of log seconds by log rows, by least squares.

    Example:
        >>> exponent({10: 1.0, 100: 10.0, 1000: 100.0})
        1.0
    """
    x, y = ([math.log(value) for value in values] for values in (seconds, seconds.values()))
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    up = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(up / sum((a - mean_x) ** 2 for a in x), 4)


def beyond_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Fill a store three times as large as the memory allowed, and train an epoch on it."""
    limit = options.allowed * MIB
    network = fl.load_model("efficientnet_lite0", CLASSES, image_size=options.image_size, pretrained=False).model
    graph = fl.trace(network, torch.zeros(2, 3, options.image_size, options.image_size))
    rows = math.ceil(TIMES * limit / graph.cuts[options.wide_depth].bytes_per_sample)
    group = own_group(limit)
    asked = {
        "rows": rows,
        "repeat": 0,
        "folder": str(options.work / f"store-{options.allowed}"),
        "depth": options.wide_depth,
        "image_size": options.image_size,
        # Compiling takes memory once, for any number of rows.
        "engine": "torch",
        "limit": limit,
        "group": str(group or ""),
    }
    try:
        found = {phase: asked_for(asked | {"phase": phase}, options.work / "rows.jsonl") for phase in (*PHASES, "hold")}
    finally:
        if group:
            group.rmdir()
    shutil.rmtree(asked["folder"], ignore_errors=True)
    stored, hold = found["train"]["stored_bytes"], found["hold"]
    control_fails = hold.get("ended_with") == -signal.SIGKILL or "memory" in hold.get("said", "").lower()
    return {
        "holds": stored >= TIMES * limit and control_fails,
        "by": "memory.max of a control group" if group else "RLIMIT_DATA",
        "allowed_bytes": limit,
        "stored_bytes": stored,
        "rows": rows,
        "control_fails": control_fails,
        **found,
    }


def own_group(limit: int) -> Path | None:
    """A control group (v2) below this process's own with that limit, or None where none may be made."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        # Version 1, or none: a folder made here would be a folder and no group.
        return None
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    group = root / own / f"frostline-scale-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        for name, value in (("memory.max", limit), ("memory.swap.max", 0)):
            # Not made where it is missing: then the parent group keeps memory to itself.
            with (group / name).open("r+") as file:
                file.write(str(value))
    except OSError:
        group.rmdir()
        return None
    return group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "scale.json")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--allowed", type=int, default=1536, help="MiB that the process may have with the large store")
    parser.add_argument("--wide-depth", type=int, default=2, help="cut of the large store, whose rows are wide")
    parser.add_argument("--engine", choices=["auto", "torch", "openvino"], default="auto")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(json.loads(options.one))))
        return
    if options.work is None:
        parser.error("--work is needed")
    options.work.mkdir(parents=True, exist_ok=True)
    engine = engine_for(options)
    phases = grown(options, engine)
    found = {
        "exponent": {phase: phases[phase]["exponent"] for phase in PHASES},
        "memory_growth": {phase: phases[phase]["memory_growth"] for phase in PHASES},
        "larger_than_memory": beyond_memory(options),
    }
    found["holds"] = found["larger_than_memory"]["holds"] and all(
        max(found[name].values()) <= bar for name, bar in BARS.items()
    )
    found |= {
        "model": "efficientnet_lite0",
        "image_size": options.image_size,
        "depth": options.depth,
        "engine": engine,
        "repeats": options.repeats,
        "seed": SEED,
        "phases": phases,
        **stamp(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(
        json.dumps(
            {name: found[name] for name in ("exponent", "memory_growth", "larger_than_memory", "holds")}, indent=1
        )
    )


if __name__ == "__main__":
    main()
