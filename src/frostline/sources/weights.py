"""Local weights files, and which of a network's tensors are its head."""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frostline.errors import WeightsDoNotFit
from frostline.records import Preprocessing

_WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_TENSORS = {torch.Tensor, nn.Parameter}


@dataclass(frozen=True)
class Fitted:
    """What every maker gives: the network, its own preprocessing, its full name and notes.

    Args:
        model: With a new head.
        preprocessing: At the network's own size.
        name: By which it can be made again, from any folder.
        notes: What the user should know.
    """

    model: nn.Module
    preprocessing: Preprocessing
    name: str
    notes: tuple[str, ...] = ()


def head_keys(model: nn.Module, outputs: int) -> frozenset[str]:
    """State-dict keys of the last layer that yields the K outputs; empty where there is none.

    Example:
        >>> sorted(head_keys(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), 3))
        ['1.bias', '1.weight']
    """
    prefix = None
    for name, module in model.named_modules():
        yields = getattr(module, "out_features", getattr(module, "out_channels", None))
        if yields == outputs and isinstance(getattr(module, "weight", None), torch.Tensor):
            prefix = f"{name}." if name else ""
    return frozenset(key for key in model.state_dict() if prefix is not None and key.startswith(prefix))


def load_weights(model: nn.Module, file: Path, outputs: int) -> tuple[str, ...]:
    """Load a local file into a network; a head for another number of classes is left out.

    Args:
        model: Changed in place.
        file: safetensors, or what `torch.save` wrote, read without running any code of it.
        outputs: K of the network's head.

    Returns:
        Notes on what was left out.

    Raises:
        WeightsDoNotFit: There is no such file, it holds something else, or names or shapes differ.

    Example:
        >>> from safetensors.torch import save_file
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        >>> save_file(net.state_dict(), tmp / "net.safetensors")
        >>> load_weights(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5)), tmp / "net.safetensors", 5)
        ('the head of net.safetensors (3 outputs) was left out: 5 are needed',)
    """
    return fit_weights(model, _read(file), outputs, where=file.name)


def fit_weights(model: nn.Module, state: Mapping[str, torch.Tensor], outputs: int, *, where: str) -> tuple[str, ...]:
    """Load named tensors into a network, as `load_weights` does."""
    own = model.state_dict()
    head = head_keys(model, outputs)
    kept = dict(state)
    notes: tuple[str, ...] = ()
    own_head = [key for key in head & kept.keys() if kept[key].dim()]
    foreign = [key for key in own_head if len(kept[key]) != outputs and kept[key].shape[1:] == own[key].shape[1:]]
    if foreign:
        found = len(kept[foreign[0]])
        notes = (f"the head of {where} ({found} outputs) was left out: {outputs} are needed",)
        for key in head & kept.keys():
            del kept[key]
    # Files of old versions lack this counter, which no forward of a pretrained network reads.
    missing = [key for key in own if key not in kept and key not in head and not key.endswith("num_batches_tracked")]
    unknown = [key for key in kept if key not in own]
    shapes = [
        f"{key} is {tuple(kept[key].shape)}, not {tuple(own[key].shape)}"
        for key in kept
        if key in own and kept[key].shape != own[key].shape
    ]
    if missing or unknown or shapes:
        faults = [
            f"{len(items)} {what}: {', '.join(items[:3])}{' ...' if len(items) > 3 else ''}"
            for items, what in (
                (missing, "tensors missing"),
                (unknown, "unknown"),
                (shapes, "of another shape"),
            )
            if items
        ]
        raise WeightsDoNotFit(
            f"WeightsDoNotFit: {where} does not fit {type(model).__name__}: {'; '.join(faults)}. Give the weights of "
            "just this network, or the network that these weights are of.",
            missing=tuple(missing),
            unknown=tuple(unknown),
            shapes=tuple(shapes),
        )
    if not notes and head and not head & kept.keys():
        notes = (f"{where} holds no head; a new one is used",)
    model.load_state_dict(kept, strict=False)
    return notes


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise WeightsDoNotFit(f"WeightsDoNotFit: there is no file {str(file)!r}. Correct --weights.", file=str(file))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix.lower() == ".safetensors":
            content: Any = load_file(file)
        else:
            with warnings.catch_warnings():
                # It wonders at the age of files that it then reads or refuses all the same.
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsDoNotFit(
            f"WeightsDoNotFit: {str(file)!r} cannot be read as weights: {str(error).splitlines()[0]} It must be "
            "safetensors, or a state dict written by torch.save; anything else could run code and is refused.",
            file=str(file),
        ) from error
    for wrapping in _WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise WeightsDoNotFit(
            f"WeightsDoNotFit: {str(file)!r} holds a {type(content).__name__} that is no state dict. Save "
            "`model.state_dict()`.",
            file=str(file),
        )
    state = {str(key): tensor for key, tensor in content.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
