"""From a folder of pictures to a trained network: frostline, and the tools that people use today.

    python benchmarks/peers.py --work FOLDER --json OUT [--data FOLDER ...] [--settings fastai ...]
        [--seeds 1 2 3] [--few] [--quick]

Each data set is divided once into training, validation and test part, and every tool gets the same
three folders, the same network (EfficientNet-Lite0 with its packaged ImageNet weights, at 96
pixels) and the same threads. `peer_loops` has the settings: each tool as it is by default, and beside
it a tuned one. A row is one setting on one data set with one seed, in a process of its own, one after
the other; the files were read once before, so that none waits for the disk. Seeds stand outside and
settings inside, so that what is compared ran one after the other.

`seconds` of a row is all from the folder to the trained network, validation on the way included: for
frostline decoding, tracing, passes, compiling, race and training. `import_seconds` comes before it,
from the start of the process; `answer_seconds` (the test part) and `report_seconds` come after it.

The bars are against one setting of fastai for each data set, of the two that are fastai as it comes, with
augmentation and without: the one with the higher mean test accuracy, or the quicker one where the other's lead is
within one standard error, paired by picture. `speedup` (frostline's defaults) and `speedup_small_budget`
(--budget 0.4) are medians over seeds of the ratio of `seconds`, with the range beside them; `accuracy_gain` is the
difference of mean test accuracies, 0 to 1. `against_tuned` has the same figures against fastai's two tuned settings,
which read the pictures from memory; there are no bars for them. `compared` has every setting. Started again, the
command goes on where it stopped. `--few` trains on twenty pictures of each class; `--quick` takes a few pictures and
one epoch, to see that everything runs. Needs the extra `bench`.
"""

import argparse
import csv
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer_loops import SETTINGS
from tasks import SHARED

import frostline as fl
from frostline.claims import machine
from frostline.dividing import divide
from frostline.files import hold
from frostline.listing import hashed

DATA = ("sign_digits", "trashnet", "caltech25")
IMAGE_SIZE = 96
SPLIT_SEED = 0
EPOCHS = 10
OURS = {"": "frostline", "_small_budget": "frostline, budget 0.4"}
"""What stands behind the name of a figure, and the setting that it is about."""

BARS = {"speedup": 2.5, "speedup_small_budget": 5.0, "accuracy_gain": 0.0, "accuracy_gain_small_budget": 0.0}
RIVALS = ("fastai", "fastai, augmented")
TUNED_RIVALS = ("fastai, tuned", "fastai, augmented, tuned")
LONGEST = 3600
"""Seconds after which a row is given up."""

MOST: Mapping[str, Mapping[str, int]] = {
    "": {},
    "few": {"train": 20, "valid": 7},
    "quick": {"train": 12, "valid": 4, "test": 4},
}
"""Pictures of each class at most, by option and part; a part that is not named is whole."""

Row = dict[str, Any]


# --- the division -----------------------------------------------------------------------------


def divided(source: Path, work: Path, *, most: Mapping[str, int]) -> Path:
    """The folder with the three parts of a data set, as links; its manifest is made once."""
    folder = work / "pictures" / source.name
    manifest = folder.with_suffix(".csv")
    if not manifest.exists():
        write_manifest(source, manifest, most=most)
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for row in manifest_rows(manifest):
            link = part / row["split"] / row["label"] / Path(row["path"]).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((source / row["path"]).resolve())
        part.rename(folder)
    return folder


def write_manifest(source: Path, manifest: Path, *, most: Mapping[str, int]) -> None:
    listing = hashed(fl.list_pictures(source))
    taken = Counter[tuple[str, int]]()
    manifest.parent.mkdir(parents=True, exist_ok=True)
    part = manifest.with_suffix(".part")
    with part.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["path", "label", "split"])
        for split, rows in divide(listing, 0.2, 0.2, SPLIT_SEED).items():
            for row in rows:
                label = listing.labels[row]
                taken[split, label] += 1
                if taken[split, label] <= most.get(split, math.inf):
                    lines.writerow([listing.names[row], listing.classes[label], split])
    part.rename(manifest)


def manifest_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def division(folder: Path) -> dict[str, Any]:
    """How many pictures each part has, and the digest of the manifest."""
    manifest = folder.with_suffix(".csv")
    counts = Counter(row["split"] for row in manifest_rows(manifest))
    return {**counts, "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}


# --- one row ----------------------------------------------------------------------------------


class RowFailed(Exception):
    """A tool did not come to an end; it is tried again when the command is started again."""


def row_of(name: str, folder: Path, *, seed: int, epochs: int, work: Path) -> Row:
    """Run one setting in a process of its own, on files that were just read."""
    setting, scratch = SETTINGS[name], work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for file in folder.glob("*/*/*"):
        file.read_bytes()
    command = [sys.executable, "-m", "peer_loops", name, "--data", folder, "--scratch", scratch]
    command += ["--image-size", IMAGE_SIZE, "--epochs", epochs, "--seed", seed]
    # Nobody gets an accelerator, and nobody asks a hub.
    surroundings = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "KERAS_BACKEND": "torch"}
    started = time.time()
    try:
        ended = subprocess.run(
            [str(word) for word in command],
            cwd=Path(__file__).parent,
            env=os.environ | surroundings,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired as error:
        raise RowFailed(f"not finished after {LONGEST} s") from error
    whole = time.time() - started
    shutil.rmtree(scratch)
    if ended.returncode:
        (work / "failed.txt").write_text(ended.stderr)
        raise RowFailed((ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"])[-1])
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    moments, hits = told["moments"], told["test_hits"]
    return {
        "data": folder.name,
        "setting": name,
        "seed": seed,
        # frostline plans its own.
        "epochs": None if setting.package == "frostline" else epochs,
        "words": setting.words,
        "package": setting.package,
        "version": version_of(setting.package),
        "seconds": round(moments["trained"] - moments["imported"], 2),
        "import_seconds": round(moments["imported"] - started, 2),
        "seconds_with_import": round(moments["trained"] - started, 2),
        "answer_seconds": round(moments["answered"] - moments["trained"], 2),
        "report_seconds": round(moments["reported"] - moments["answered"], 2),
        "process_seconds": round(whole, 2),
        "threads": told["threads"],
        "test_accuracy": round(hits.count("1") / len(hits), 4),
        "test_hits": hits,
        "details": told["details"],
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- what comes of them -----------------------------------------------------------------------


class Runs:
    """The rows of one data set, by setting and seed."""

    def __init__(self, rows: Sequence[Row], data: str) -> None:
        self._rows = {(row["setting"], row["seed"]): row for row in rows if row["data"] == data}
        self.settings = [name for name in SETTINGS if any(setting == name for setting, _ in self._rows)]

    def seeds(self, *settings: str) -> list[int]:
        """Seeds that each of these settings has run with."""
        seen = [{seed for setting, seed in self._rows if setting == name} for name in settings]
        return sorted(set.intersection(*seen))

    def figures(self, setting: str, figure: str, seeds: Sequence[int]) -> list[float]:
        return [self._rows[setting, seed][figure] for seed in seeds]

    def hits(self, setting: str, seeds: Sequence[int]) -> np.ndarray:
        """How often each picture of the test part was right, as a share of the seeds."""
        texts = [self._rows[setting, seed]["test_hits"] for seed in seeds]
        return np.mean([[letter == "1" for letter in text] for text in texts], axis=0)

    def gain(self, setting: str, other: str) -> tuple[float, float]:
        """Test accuracy of one setting less another's, and the standard error, paired by picture."""
        seeds = self.seeds(setting, other)
        gaps = self.hits(setting, seeds) - self.hits(other, seeds)
        return float(gaps.mean()), float(gaps.std(ddof=1) / len(gaps) ** 0.5)

    def ratios(self, setting: str, other: str, figure: str) -> list[float]:
        """How many times the other's seconds are this one's, by seed."""
        seeds = self.seeds(setting, other)
        ours, theirs = self.figures(setting, figure, seeds), self.figures(other, figure, seeds)
        return [b / a for a, b in zip(ours, theirs, strict=True)]

    def better(self, rivals: Sequence[str]) -> str | None:
        """The one of some settings to be judged against, by the rule that the top of this file states."""
        names = [name for name in self.settings if name in rivals]
        if not names:
            return None
        seeds = self.seeds(*names)
        if not seeds:
            return None
        top = max(names, key=lambda name: self.hits(name, seeds).mean())
        equal = [name for name in names if name == top or self.gain(top, name)[0] <= self.gain(top, name)[1]]
        return min(equal, key=lambda name: statistics.median(self.figures(name, "seconds", seeds)))


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that the bars are about, by data set, and every setting beside frostline's."""
    sets = {data: Runs(rows, data) for data in dict.fromkeys(row["data"] for row in rows)}
    found = figures_against(sets, RIVALS)
    holds = {name: {data: value >= bar for data, value in found[name].items()} for name, bar in BARS.items()}
    compared = [{"data": data, **line_of(runs, name)} for data, runs in sets.items() for name in runs.settings]
    return found | {"holds": holds, "against_tuned": figures_against(sets, TUNED_RIVALS), "compared": compared}


def figures_against(sets: Mapping[str, Runs], rivals: Sequence[str]) -> dict[str, Any]:
    """Each figure by data set, for both of frostline's settings, against the better one of some settings."""
    figures = ("speedup", "speedup_range", "speedup_with_import", "accuracy_gain", "accuracy_gain_error")
    found: dict[str, Any] = {f"{figure}{end}": {} for end in OURS for figure in figures} | {"against": {}}
    for data, runs in sets.items():
        rival = found["against"][data] = runs.better(rivals)
        for end, ours in OURS.items():
            for figure, value in (beside(runs, ours, rival) if rival else {}).items():
                found[f"{figure}{end}"][data] = value
    return found


def beside(runs: Runs, ours: str, other: str) -> dict[str, Any]:
    """What one of frostline's settings is worth beside another setting; nothing where no seed has both."""
    if not runs.seeds(ours, other):
        return {}
    ratios = runs.ratios(ours, other, "seconds")
    gain, error = runs.gain(ours, other)
    return {
        "speedup": round(statistics.median(ratios), 3),
        "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "speedup_with_import": round(statistics.median(runs.ratios(ours, other, "seconds_with_import")), 3),
        "accuracy_gain": round(gain, 4),
        "accuracy_gain_error": round(error, 4),
    }


def line_of(runs: Runs, name: str) -> dict[str, Any]:
    """One setting: its own figures over the seeds, and frostline's beside it."""
    seeds = runs.seeds(name)
    seconds, accuracies = (runs.figures(name, figure, seeds) for figure in ("seconds", "test_accuracy"))
    return {
        "setting": name,
        "words": SETTINGS[name].words,
        "seeds": seeds,
        "seconds": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "seconds_with_import": statistics.median(runs.figures(name, "seconds_with_import", seeds)),
        "test_accuracy": round(statistics.fmean(accuracies), 4),
        "test_accuracy_range": [min(accuracies), max(accuracies)],
    } | {ours: beside(runs, ours, name) for ours in OURS.values() if ours != name}


# --- all of it --------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=DATA, metavar="FOLDER", help="one folder for each class")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    fewer = parser.add_mutually_exclusive_group()
    kept = {"action": "store_const", "dest": "size", "default": ""}
    fewer.add_argument("--few", **kept, const="few", help="twenty training pictures of each class")
    fewer.add_argument("--quick", **kept, const="quick", help="a few pictures and one epoch, to see that all runs")
    options = parser.parse_args()
    # Rows of fewer pictures must not pass for those of all.
    work = (options.work / options.size).resolve()
    with hold(work):
        run(options, work)


def run(options: argparse.Namespace, work: Path) -> None:
    epochs = 1 if options.size == "quick" else EPOCHS
    # Names are of the shared folder, where another does not begin at the root.
    sources = [SHARED / data for data in options.data]
    folders = {source.name: divided(source, work, most=MOST[options.size]) for source in sources}
    installed = [name for name in options.settings if version_of(SETTINGS[name].package)]
    wanted = [(seed, data, name) for seed in options.seeds for data in folders for name in installed]
    file = work / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["seed"], row["data"], row["setting"]) for row in rows}
    failed: dict[str, str] = {}
    for number, (seed, data, name) in enumerate(wanted, 1):
        if (seed, data, name) in done:
            continue
        try:
            row = row_of(name, folders[data], seed=seed, epochs=epochs, work=work)
        except RowFailed as error:
            failed[f"{data}, seed {seed}, {name}"] = str(error)
            print(f"{number}/{len(wanted)} {data}, seed {seed}, {name}: FAILED: {error}", flush=True)
            continue
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        rows.append(row)
        options.json.write_text(json.dumps(report(rows, work, failed), indent=1))
        print(
            f"{number}/{len(wanted)} {data}, seed {seed}, {name}: test {row['test_accuracy']:.3f}, "
            f"{row['seconds']:.1f} s and {row['import_seconds']:.1f} s of imports",
            flush=True,
        )
    found = report(rows, work, failed)
    options.json.write_text(json.dumps(found, indent=1))
    for name, bar in BARS.items():
        print(f"{name} (bar {bar:g}): {found[name]}, against {found['against']}")
        print(f"    {found['against_tuned'][name]}, against {found['against_tuned']['against']}")


def report(rows: Sequence[Row], work: Path, failed: Mapping[str, str]) -> dict[str, Any]:
    return {
        "date": str(datetime.date.today()),
        "machine": dict(machine()),
        "versions": {package: version_of(package) for package in sorted({s.package for s in SETTINGS.values()})},
        "not_installed": [name for name, setting in SETTINGS.items() if not version_of(setting.package)],
        "failed": dict(failed),
        "image_size": IMAGE_SIZE,
        "split_seed": SPLIT_SEED,
        "division": {data: division(work / "pictures" / data) for data in dict.fromkeys(row["data"] for row in rows)},
        "bars": BARS,
        **summary(rows),
        "rows": list(rows),
    }


if __name__ == "__main__":
    main()
