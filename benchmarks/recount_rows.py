"""What lies in a run's store: its bytes against manifest and plan, and the votes counted again from the rows."""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from recount_page import Figure, Node, Texts, byte_count, interval
from recount_statistics import wilson

Record = dict[str, Any]
Matrix = NDArray[np.float64]

BLOCK = 1 << 24
"""Bytes under one checksum."""

PARTS = ("train", "valid", "test")
MOST_ROWS = 4096
PENALTIES = np.logspace(-4, 2, 13)
"""Ridge penalties, times the mean eigenvalue of the centred features' products."""

ROUNDING = 1e-4
"""An answer whose lead is smaller may be another one where the features were computed by another engine."""


class LeftOut(Exception):
    """Why a vote cannot be counted again."""


def manifests(run: Path) -> dict[str, Record]:
    """By "train-03": the part and the depth."""
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(run.glob("store/*-*/manifest.json"))}


# --- bytes ------------------------------------------------------------------------------------


def of_the_stores(run: Path, evidence: Record, page: dict[str, Node]) -> Iterator[Figure]:
    counts = dict(zip(PARTS, map(sum, zip(*evidence["data"]["counts"], strict=True)), strict=True))
    kept: dict[int, dict[str, int]] = {}
    for name, manifest in manifests(run).items():
        part, depth = name.rsplit("-", 1)
        yield Figure(f"rows of store {name}", (str(counts[part]),), str(manifest["samples"]), "manifest")
        for file in manifest["files"]:
            path = run / "store" / name / file["file"]
            views = manifest["identity"]["views"]
            length = views * counts[part] * math.prod(file["row_shape"]) * np.dtype(file["dtype"]).itemsize
            kept.setdefault(int(depth), {}).setdefault(part, 0)
            kept[int(depth)][part] += path.stat().st_size
            yield Figure(f"bytes of {name}/{file['file']}", (str(length),), str(path.stat().st_size), "disk")
            whole, sums = file["checksums"], checksums(path)
            equal = sum(one == other for one, other in zip(sums, whole, strict=False))
            yield Figure(
                f"blocks of {name}/{file['file']} with the right CRC-32",
                (f"{len(sums)} of {len(sums)}",),
                f"{equal} of {len(whole)}",
                "manifest",
            )
    table = page[""].rows("Accuracy with 95 % intervals, and predicted cost")
    for depth, parts in sorted(kept.items()):
        if {"train", "valid"} <= set(parts):
            found = table.get(str(depth), [None])[-1]
            yield Figure(f"store at depth {depth}", (byte_count(parts["train"] + parts["valid"]),), found)


def checksums(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK), b"")]


# --- labels -----------------------------------------------------------------------------------


def labels_of(evidence: Record) -> dict[str, list[int]]:
    """The class of each sample by part: rows lie in the order of file names, so class folder by class folder.

    The confusion matrices of the validation and the test part must come out of that, or it is not so here.
    """
    order = sorted(range(len(evidence["data"]["classes"])), key=lambda k: evidence["data"]["classes"][k] + "/")
    labels = {
        part: [k for k in order for _ in range(evidence["data"]["counts"][k][place])]
        for place, part in enumerate(PARTS)
    }
    for part in ("valid", "test"):
        score = evidence[part]
        confusion = np.zeros_like(score["confusion"])
        if len(labels[part]) != len(score["predictions"]):
            raise LeftOut("the run does not tell the classes of its rows")
        np.add.at(confusion, (labels[part], score["predictions"]), 1)
        if confusion.tolist() != score["confusion"]:
            raise LeftOut("the rows do not lie class by class, and the run does not tell their classes")
    return labels


# --- votes ------------------------------------------------------------------------------------


class Vote(NamedTuple):
    """Rows that were named right, and those of them, or of the others, whose lead is within rounding."""

    right: NDArray[np.bool_]
    unsure: NDArray[np.bool_]
    penalty: float


def of_the_votes(run: Path, evidence: Record, page: dict[str, Node]) -> Iterator[Figure]:
    """The leave-one-out vote at every depth whose training rows are kept, the deepest among them."""
    table = page[""].rows("Accuracy with 95 % intervals, and predicted cost")
    votes = {vote["depth"]: vote for vote in evidence["prior"]["votes"]}
    for name, manifest in manifests(run).items():
        part, depth = name.rsplit("-", 1)
        if part == "train" and int(depth) in votes:
            labels = np.array(labels_of(evidence)["train"])
            if len(labels) > MOST_ROWS:
                raise LeftOut(f"{len(labels):,} rows did not vote all, and which did is not kept")
            recorded = votes[int(depth)]
            features = pooled(run / "store" / name, manifest, evidence["graph"], len(labels))
            if features.shape[1] != recorded["features"]:
                raise LeftOut(f"{features.shape[1]} features at depth {depth} where {recorded['features']} voted")
            vote = vote_of(features, labels, len(evidence["data"]["classes"]))
            balanced = any(trial["sample_weights"] for trial in evidence["trials"])
            texts = intervals(vote, weights_of(labels, balanced=balanced))
            yield Figure(
                f"leave-one-out vote at depth {int(depth)}", texts, table.get(str(int(depth)), [None, None])[1]
            )
            near = (f"{vote.penalty:.4g}",)
            yield Figure(f"ridge penalty at depth {int(depth)}", near, f"{recorded['penalty']:.4g}", "prior")


def pooled(folder: Path, manifest: Record, graph: Record, samples: int) -> Matrix:
    """Features of the first view, (N, D): mean and standard deviation over the positions of each wire."""
    columns = []
    for file, wire in zip(manifest["files"], manifest["identity"]["wires"], strict=True):
        shape = (-1, *file["row_shape"])
        rows = np.memmap(folder / file["file"], dtype=file["dtype"], mode="r").reshape(shape)[:samples]
        if len(file["row_shape"]) == 1:
            columns.append(rows.astype(float))
            continue
        # On disk the batch comes first, then the wire's other axes as they lay in memory; a factor stands before them.
        axes = [axis for axis in wire["order"] if axis != wire["batch_axis"]]
        place = rows.ndim - len(axes) + axes.index(feature_axis(wire, graph))
        rows = np.moveaxis(rows, place, -1).reshape(samples, -1, rows.shape[place]).astype(float)
        mean = rows.mean(axis=1)
        columns += [mean, np.sqrt(((rows - mean[:, None]) ** 2).mean(axis=1))]
    return np.concatenate(columns, axis=1)


def feature_axis(wire: Record, graph: Record) -> int:
    """The last axis; the second of (B, C, H, W), unless H and W there are less in the picture's proportion than the
    two before the last one, and of anything with five axes or more."""
    axes = [axis for axis in range(len(wire["shape"])) if axis != wire["batch_axis"]]
    if len(axes) < 3:
        return axes[-1]
    picture = next((w["shape"][-2:] for w in graph["cuts"][0]["wires"] if len(w["shape"]) == 4), None)
    if len(axes) == 3 and picture:

        def skew(height: int, width: int) -> float:
            return abs(math.log(wire["shape"][height] / wire["shape"][width] * picture[1] / picture[0]))

        return axes[2] if skew(axes[0], axes[1]) < skew(axes[1], axes[2]) else axes[0]
    return axes[0]


def vote_of(features: Matrix, labels: NDArray[np.int64], classes: int) -> Vote:
    """Each row named by the ridge regression on the others, at the penalty of least squared error."""
    targets = np.eye(classes)[labels]
    spread = float(((features - features.mean(axis=0)) ** 2).sum()) / min(features.shape)
    found = [
        (penalty, residuals) for penalty, residuals in left_out(features, targets, max(spread, 1e-100) * PENALTIES)
    ]
    penalty, residuals = min(found, key=lambda each: float((each[1] ** 2).sum()))
    predictions = targets - residuals
    ordered = np.sort(predictions, axis=1)
    right = predictions.argmax(axis=1) == labels
    return Vote(right, ordered[:, -1] - ordered[:, -2] < ROUNDING, penalty)


def left_out(features: Matrix, targets: Matrix, penalties: Matrix) -> Iterator[tuple[float, Matrix]]:
    """What each row misses by once it is left out: the border of the system of equations takes up the bias.

    With M = [[K + penalty, 1], [1, 0]] and K the products of the rows, the rows weigh A = M^-1 [targets, 0], and the
    fit without row i misses it by A_i / (M^-1)_ii (Cawley, Leave-one-out cross-validation based model selection
    criteria for weighted LS-SVMs, 2006).
    """
    values, vectors = np.linalg.eigh(features @ features.T)
    along, ones = vectors.T @ targets, vectors.sum(axis=0)
    for penalty in penalties:
        inverse = 1 / (np.maximum(values, 0) + penalty)
        border = vectors @ (inverse * ones)
        total = border.sum()
        diagonal = (vectors**2) @ inverse - border**2 / total
        weights = vectors @ (inverse[:, None] * along) - np.outer(border, border @ targets) / total
        yield float(penalty), weights / np.maximum(diagonal, 1e-300)[:, None]


def weights_of(labels: NDArray[np.int64], *, balanced: bool) -> Matrix:
    """What each row counts: all alike, or every class that occurs."""
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels]) if balanced else np.ones(len(labels))


def intervals(vote: Vote, weights: Matrix) -> Texts:
    """Accuracy with Wilson's interval, and the same where answers within rounding fall the other way."""
    number = float(weights.sum() ** 2 / (weights**2).sum())
    texts = []
    for right in (vote.right, vote.right & ~vote.unsure, vote.right | vote.unsure):
        accuracy = min(1.0, float((right * weights).mean()))
        texts.append(interval(accuracy, *wilson(accuracy * number, number)))
    return tuple(dict.fromkeys(texts))
