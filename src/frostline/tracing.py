"""Watch one real forward pass of any network and list its stages and the cuts between them."""

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from frostline.copies import copy_of
from frostline.records import CutGraph
from frostline.surveying import survey
from frostline.trees import arguments, batch_of, tensors, with_rows
from frostline.watching import watch


def trace(model: nn.Module, example: Any) -> CutGraph:
    """Watch one forward pass and list the network's stages and the cuts between them.

    The network runs in eval mode, on a copy that shares its parameters, once at the example's
    batch size and once at another one, which shows how each value grows with the batch.
    Python control flow, closures and in-place operations are all right: nothing is compiled.

    Args:
        model: Any network; it is left exactly as it was.
        example: What its forward takes: one tensor (B, ...), a tuple of positional arguments or
            a dict of named ones. Every tensor whose first axis is B is cut or repeated with it.

    Returns:
        The stages in order of execution, the head last, and one cut for each depth.

    Raises:
        BadArgument: The example holds no sample.

    Example:
        >>> import torch
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> graph = fl.trace(net, torch.ones(2, 4))
        >>> [stage.name for stage in graph.stages], graph.open_depths
        (['1', '3', '4'], (0, 1, 2))
    """
    # Many networks squeeze a batch of one away.
    example = with_rows(example, max(2, batch_of(example)))
    batch = batch_of(example)
    other = batch // 2 if batch % 2 == 0 and batch >= 4 else 2 * batch
    watched = copy_of(model, model.parameters()).eval()
    names = tuple(_input_names(model, example))
    first = watch(watched, *arguments(example), names)
    second = watch(watched, *arguments(with_rows(example, other)), names)
    return survey(watched, (first, batch), (second, other))


def _input_names(model: nn.Module, example: Any) -> Iterable[str]:
    """Name each tensor of the example after the argument of forward that it is, or lies in."""
    args, kwargs = arguments(example)
    try:
        known = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        known = []
    # A forward that takes *inputs names none of them.
    known = known if len(known) >= len(args) else [f"input{place}" for place in range(len(args))]
    named = {**dict(zip(known, args, strict=False)), **kwargs}
    for name, arg in named.items():
        found = len(tensors(arg))
        yield from [name] if found == 1 else [f"{name}.{place}" for place in range(found)]
