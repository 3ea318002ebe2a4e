"""Copies of the user's network, and torch switched to its plain paths while they run."""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn

from frostline.holding import lifted

_Module = TypeVar("_Module", bound=nn.Module)

_IS_LOWER = ContextVar("lower precision", default=False)


def copy_of(model: _Module, shared: Iterable[torch.Tensor] = ()) -> _Module:
    """Copy a network deeply, sharing the given tensors and leaving the original as it was.

    What `freeze` holds still on the original is free on the copy, but for its flags and modes.
    Results that a forward pass with gradients left on a module (LeViT's attention bias) cannot
    be copied deeply; the copy holds them detached.

    Args:
        model: Any network.
        shared: Parameters or buffers that the copy and the original hold in common.

    Returns:
        A network of the same class; flags, modes and hooks are those of the original.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> copy_of(layer, [layer.weight]).weight is layer.weight
        True
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            # Its forward shortens the rows that it is asked for, in place.
            memo.pop(id(module.weight), None)
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                _detach_into(memo, value)
    # A copied weight of a scripted module would lead its gradient back to the original.
    with torch.no_grad():
        copied = lifted(copy.deepcopy(model, memo))
    for mine, own in zip(copied.parameters(), model.parameters(), strict=True):
        if mine.requires_grad != own.requires_grad:
            mine.requires_grad_(own.requires_grad)
    return copied


def _detach_into(memo: dict[int, Any], value: Any) -> None:
    match value:
        case torch.Tensor():
            if value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
        case dict():
            for child in value.values():
                _detach_into(memo, child)
        case list() | tuple():
            for child in value:
                _detach_into(memo, child)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Keep attention off its fast path, which reads weights outside their modules.

    Example:
        >>> with plain_torch():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Switch off the caller's autocast: what is kept is what the record of its wire says.

    Only `lower_precision` around it is obeyed, which nobody sets by chance.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    if _IS_LOWER.get():
        yield
        return
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@contextlib.contextmanager
def lower_precision(dtype: torch.dtype, kind: str = "cpu") -> Iterator[None]:
    """Compute in fewer bits where autocast holds that safe, also inside `full_precision`.

    Args:
        dtype: With the fewer bits.
        kind: Of device on which that is done, "cpu" or "cuda".

    Example:
        >>> with lower_precision(torch.bfloat16), full_precision():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    before = _IS_LOWER.set(True)
    try:
        with torch.autocast(kind, dtype):
            yield
    finally:
        _IS_LOWER.reset(before)


@contextlib.contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Put every part of a module into eval mode, and afterwards back into its own.

    Example:
        >>> layer = nn.Dropout(0.5).train()
        >>> with in_eval(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def repeatable_torch() -> Iterator[None]:
    """Make operations add in a fixed order, on the plain paths of `plain_torch`.

    Gradients of indexing (relative positions) differ by 1e-7 from call to call otherwise.

    Example:
        >>> with repeatable_torch():
        ...     torch.are_deterministic_algorithms_enabled()
        True
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with plain_torch(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*", category=UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
