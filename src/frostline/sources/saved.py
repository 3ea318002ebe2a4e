"""A run's network, made again from its folder, and what it says of new pictures."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import frostline as fl
from frostline.errors import BadArgument, EmptyData, NoSuchData, NotARun
from frostline.events import Event, Listener, silent
from frostline.files import read_record
from frostline.listing import PICTURE_ENDINGS, readable, unreadable, walk
from frostline.pictures import UNREADABLE, decode, normalised, quiet_pillow, reason_of
from frostline.records import ModelCard, Preprocessing, Record
from frostline.sources import load_model

_TOP = 5


class Prediction(Record):
    """What the network says of one picture.

    Args:
        path: The file.
        label: Name of the most probable class.
        probability: Of that class, 0 to 1.
        top: The five most probable classes and their probabilities, the first first.
    """

    path: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class TunedModel:
    """The merged network of a finished run.

    Args:
        model: In eval mode; the user's own class, without anything of frostline in it.
        card: How it was made, its classes and its preprocessing.
    """

    model: nn.Module
    card: ModelCard


def load_tuned(run: str | os.PathLike[str]) -> TunedModel:
    """Make the tuned network of a finished run again.

    Args:
        run: The run's folder, with `model.json` and `delta.safetensors`.

    Returns:
        The network in eval mode, and its card.

    Raises:
        NotARun: The folder does not hold a finished run.
        DeltaMismatch: The base network is no longer the one that was tuned.

    Example:
        >>> fl.load_tuned(tmp / "nothing")
        Traceback (most recent call last):
        ...
        frostline.errors.NotARun: NotARun: ...
    """
    folder = Path(run)
    file = folder / "model.json"
    if not file.is_file():
        raise NotARun(
            f"NotARun: {readable(folder)!r} holds no model.json, so no run of a network with a name was finished "
            "there. Give the folder that `frostline fit` printed; where fit was interrupted, run it again first.",
            folder=readable(folder),
        )
    card = read_record(file, ModelCard)
    base = load_model(
        card.source.name,
        card.source.outputs,
        weights=card.source.weights,
        image_size=card.preprocessing.image_size if card.preprocessing else None,
    ).model
    model: nn.Module = fl.apply_delta(base, folder / card.delta)
    return TunedModel(model.eval(), card)


def predict(
    run: str | os.PathLike[str],
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch_size: int = 32,
    listener: Listener = silent,
) -> tuple[Prediction, ...]:
    """Name the class of each picture with a run's network.

    Args:
        run: The run's folder.
        paths: Pictures, and folders whose pictures are taken with those of the folders below.
        batch_size: B, pictures at once.
        listener: Hears how far it is.

    Returns:
        One prediction for each picture, in order; those of a folder by name.

    Raises:
        NoSuchData: A path does not exist.
        EmptyData: No picture was found.
        BadSample: A file is no picture, or damaged; all such are listed.

    Example:
        >>> fl.predict(tmp / "nothing", [tmp / "photo.jpg"])
        Traceback (most recent call last):
        ...
        frostline.errors.NoSuchData: NoSuchData: ...
    """
    if batch_size < 1:
        raise BadArgument(f"BadArgument: batch_size is {batch_size}; at least 1 is needed.", batch_size=batch_size)
    files = _files(paths)
    tuned = load_tuned(run)
    if tuned.card.preprocessing is None:
        raise NotARun(
            f"NotARun: the network of {readable(run)!r} was not trained on picture files, so there is no saying how a "
            "file becomes its input. Use `load_tuned` and give it tensors.",
            folder=readable(run),
        )
    classes = tuned.card.classes
    predictions: list[Prediction] = []
    with quiet_pillow(), ThreadPoolExecutor(os.cpu_count() or 1) as pool, torch.inference_mode():
        for names, inputs in _batches(files, tuned.card.preprocessing, batch_size, pool):
            for name, row in zip(names, tuned.model(inputs).softmax(1), strict=True):
                top = row.topk(min(_TOP, len(classes)))
                labels, values = top.indices.tolist(), top.values.tolist()
                pairs = tuple((classes[label], value) for label, value in zip(labels, values, strict=True))
                predictions.append(Prediction(path=name, label=pairs[0][0], probability=pairs[0][1], top=pairs))
            listener(Event(phase="score", done=len(predictions), total=len(files), unit="pictures"))
    return tuple(predictions)


def _files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    found: list[Path] = []
    given = [Path(path).expanduser() for path in paths]
    for path in given:
        if not path.exists():
            raise NoSuchData(f"NoSuchData: there is no file or folder {readable(path)!r}.", data=readable(path))
        if path.is_dir():
            found += [file for file in walk(path) if file.suffix.lower() in PICTURE_ENDINGS]
        else:
            # A file that was named is tried whatever its ending.
            found.append(path)
    if not found:
        names = ", ".join(repr(readable(path)) for path in given) or "nothing"
        raise EmptyData(f"EmptyData: no picture was found in {names}. Give pictures, or folders that hold some.")
    return found


def _batches(
    files: Sequence[Path], preprocessing: Preprocessing, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Decoded batches; every file is tried before the first is judged, so that all bad ones are named at once."""

    def read(file: Path) -> np.ndarray | str:
        try:
            return decode(file.read_bytes(), preprocessing)
        except UNREADABLE as error:
            return reason_of(error)

    reasons: dict[str, str] = {}
    for start in range(0, len(files), batch_size):
        chunk = files[start : start + batch_size]
        read_rows = list(pool.map(read, chunk))
        reasons |= {readable(file): row for file, row in zip(chunk, read_rows, strict=True) if isinstance(row, str)}
        if reasons:
            continue
        pixels = np.stack([row for row in read_rows if not isinstance(row, str)])
        yield [readable(file) for file in chunk], normalised(pixels, preprocessing)
    if reasons:
        raise unreadable(reasons, len(files), way_out="Repair them, or leave them out.")
