"""From a name to a network, and from a folder to a task."""

import importlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import frostline as fl
from frostline.copies import copy_of
from frostline.errors import BadArgument, BadInputSize, UnknownModel
from frostline.events import Event, Listener, silent
from frostline.fingerprint import of_tensors
from frostline.records import CutGraph, ModelSource, Preprocessing
from frostline.sources.weights import Fitted, head_keys, load_weights

_LOG = logging.getLogger("frostline.sources")
_USUAL_SIZES = (32, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)


@dataclass(frozen=True)
class LoadedModel:
    """A network made from a name.

    Args:
        model: With a new, seeded head for the classes asked for.
        source: How to make it again.
        preprocessing: Its own size, or the one asked for, and its own mean, deviation and interpolation.
        notes: What the user should know, in words.
    """

    model: nn.Module
    source: ModelSource
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()


def load_model(
    name: str,
    outputs: int,
    *,
    weights: Path | str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    pretrained: bool = True,
) -> LoadedModel:
    """Make a pretrained network by name, with a new head for some number of classes.

    Args:
        name: "efficientnet_lite0", whose weights come with the package; "timm:NAME", "torchvision:NAME",
            whose weights come from their hubs unless given; or "FILE.py:FUNCTION".
        outputs: K, the number of classes.
        weights: A local file of weights, safetensors or .pth; then no hub is asked.
        image_size: Side of the pictures, pixels; None takes the network's own.
        seed: Of the new head.
        pretrained: False leaves the weights random and asks no hub.

    Returns:
        The network, how it was made, and how pictures become its inputs.

    Raises:
        UnknownModel: No network of this name.
        WeightsNotReachable: The hub could not be asked.
        WeightsDoNotFit: The file holds the weights of another network.
        BadInputSize: The network refuses pictures of this size.

    Example:
        >>> loaded = fl.load_model("efficientnet_lite0", 5, image_size=96)
        >>> loaded.model.classifier.out_features, loaded.preprocessing.image_size
        (5, 96)
    """
    if image_size is not None and image_size < 1:
        raise BadArgument(f"BadArgument: image_size is {image_size}; at least 1 pixel is needed, 96 or 224 are usual.")
    file = None if weights is None else Path(weights).expanduser().resolve()
    make = _maker(name)
    fitted = make(name, outputs, image_size=image_size, seed=seed, pretrained=pretrained and file is None)
    model, notes = fitted.model, fitted.notes
    if file is not None:
        notes += load_weights(model, file, outputs)
    size = image_size or fitted.preprocessing.image_size
    # What a user's own network was made for is not known.
    own = fitted.preprocessing.image_size if ".py:" not in name else None
    _check_size(name, model, size, own)
    for note in notes:
        _LOG.info("%s: %s", name, note)
    head = head_keys(model, outputs)
    source = ModelSource(
        name=fitted.name,
        outputs=outputs,
        weights=None if file is None else str(file),
        fingerprint=of_tensors(
            (key, tensor) for key, tensor in model.state_dict().items() if key not in head and not tensor.is_meta
        ),
    )
    return LoadedModel(model, source, fitted.preprocessing.model_copy(update={"image_size": size}), notes)


def _maker(name: str) -> Callable[..., Fitted]:
    kind, _, rest = name.partition(":")
    if name == "efficientnet_lite0":
        home = "packaged"
    elif rest and kind in {"timm", "torchvision"}:
        home = kind
    elif ".py:" in name:
        home = "python_file"
    else:
        raise UnknownModel(
            f"UnknownModel: {name!r} is no model name. Give efficientnet_lite0, timm:NAME, torchvision:NAME (say "
            f"timm:{rest or kind}), or FILE.py:FUNCTION for a network of your own.",
            name=name,
        )
    # timm takes seconds to import, so each maker's libraries are imported when it is called for.
    make: Callable[..., Fitted] = importlib.import_module(f"frostline.sources.{home}").make
    return make


def _check_size(name: str, model: nn.Module, size: int, own: int | None) -> None:
    # A network whose weights hold no values cannot run, which the task says better.
    reason = None if any(weight.is_meta for weight in model.parameters()) else _refusal(model, size)
    if reason is None:
        return
    sizes = [other for other in (own or size, *_USUAL_SIZES) if other != size and _refusal(model, other) is None]
    # A network with a fixed size is built for the size asked for, so it then refuses its own size too.
    needed = sizes[0] if sizes else own
    if needed is None or needed == size:
        taken, remedy = "it takes none of the usual sizes either", "It must take pictures (B, 3, H, W)."
    else:
        taken = f"it takes {needed} x {needed}" if sizes else f"its own size is {needed} x {needed}"
        remedy = f"Use --image-size {needed}."
    raise BadInputSize(
        f"BadInputSize: {name} refuses pictures of {size} x {size} ({reason}); {taken}. {remedy}",
        image_size=size,
        needed=needed,
    )


def _refusal(model: nn.Module, size: int) -> str | None:
    """Why the network cannot take pictures of this size, or None where it can."""
    probe = copy_of(model, model.parameters()).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            probe(torch.zeros(2, 3, size, size))
    # What forwards raise for a size they cannot take.
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def load_task(
    data: str | Path,
    *,
    model: str = "efficientnet_lite0",
    image_size: int | None = None,
    weights: Path | str | None = None,
    goal: str = "accuracy",
    valid: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    folder: Path | str | None = None,
    listener: Listener | None = None,
) -> "fl.Task":
    """Make a task of labelled pictures and a pretrained network.

    Every file is read here once. Most are decoded later, in the first pass over them, while the network works.

    Args:
        data: A folder with a folder per class, or with `train/`, `valid/`, `test/` above them; a .csv or
            .parquet manifest (path, label); or "hub:NAME".
        model: As in `load_model`.
        image_size: Side of the inputs, pixels; None takes the network's own.
        weights: A local weights file.
        goal: What the choice is judged by: "accuracy", or "balanced_accuracy" for uneven classes.
        valid: Share of everything for validation, where the data does not give that part.
        test: Share of everything for the test, likewise.
        seed: Of the division and of the new head.
        skip_bad: Go on without pictures that cannot be read; they are listed in `task.summary.skipped`.
        folder: Where decoded pictures are kept for the next call; None keeps none.
        listener: Hears of each picture read.

    Returns:
        The task, with everything checked.

    Raises:
        DataError: The pictures cannot be used; the message names the file or class.
        ModelError: The network cannot be used; the message says why.

    Example:
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     (tmp / "pets" / name).mkdir(parents=True)
        ...     for number in range(5):
        ...         Image.new("L", (32, 32), 50 * number + ord(name[0]) - 90).save(
        ...             tmp / "pets" / name / f"{number}.png"
        ...         )
        >>> task = fl.load_task(tmp / "pets", image_size=32)
        >>> task.classes, len(task.train), len(task.valid), len(task.test)
        (('cat', 'dog'), 6, 2, 2)
    """
    hear = listener or silent
    listing = fl.list_pictures(data)
    loaded = load_model(model, len(listing.classes), weights=weights, image_size=image_size, seed=seed)
    notes = list(loaded.notes)
    if listing.ignored:
        notes.append(f"{listing.ignored} files that are no pictures were left out")
    for note in notes:
        hear(Event(phase="read", note=note))
    _rehearse(loaded, listing.classes)
    parts = fl.read_pictures(
        listing,
        loaded.preprocessing,
        valid=valid,
        test=test,
        seed=seed,
        skip_bad=skip_bad,
        folder=folder,
        listener=hear,
    )
    asked = {"goal": goal, "valid": valid, "test": test, "skip_bad": skip_bad, "split_seed": seed}
    return fl.Task(
        loaded.model,
        parts.train,
        parts.valid,
        parts.test,
        goal=goal,
        classes=listing.classes,
        source=loaded.source,
        preprocessing=loaded.preprocessing,
        summary=parts.summary.model_copy(update={"asked": tuple((name, str(value)) for name, value in asked.items())}),
    )


def _rehearse(loaded: LoadedModel, classes: tuple[str, ...]) -> None:
    """Say all that can be wrong with the network before the first picture is read."""
    size = loaded.preprocessing.image_size
    part = fl.TensorSamples(torch.zeros(2, 3, size, size), torch.tensor([0, len(classes) - 1]))
    with warnings.catch_warnings():
        # The task itself warns again.
        warnings.simplefilter("ignore")
        fl.Task(loaded.model, part, part, part, classes=classes)


def look(
    model: str | nn.Module,
    *,
    image_size: int | None = None,
    weights: Path | str | None = None,
    outputs: int = 1000,
) -> CutGraph:
    """Show a network's stages and cuts without any data.

    No weights are fetched, since stages and cuts do not depend on their values.

    Args:
        model: A name as in `load_model`, or a network that takes pictures (B, 3, H, W).
        image_size: Side of the pictures, pixels; None takes the network's own, 224 where that is not known.
        weights: A local weights file.
        outputs: K, for a network made by name.

    Returns:
        Stages, cuts and why some are blocked.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
        >>> [stage.name for stage in fl.look(net, image_size=8).stages]
        ['1', '2']
    """
    size = image_size or 224
    if isinstance(model, str):
        loaded = load_model(model, outputs, weights=weights, image_size=image_size, pretrained=False)
        model, size = loaded.model, loaded.preprocessing.image_size
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    graph: CutGraph = fl.trace(model, pictures)
    return graph
