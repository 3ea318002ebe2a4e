"""Watch one real forward pass of any network and list its stages and the cuts between them."""

from typing import Any

from torch import nn

from frostline.records import CutGraph
from frostline.surveying import graph_of


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
    return graph_of(model, example)
