"""Networks whose weights are drawn anew, to tell what the pretrained ones are worth."""

from collections.abc import Sequence

import torch
from torch import nn

from frostline.carrying import carried, device_of
from frostline.copies import copy_of
from frostline.records import Stage

SPREAD = 0.02
"""Standard deviation of what no module says how to draw, as position embeddings mostly have."""


def redrawn(
    model: nn.Module,
    stages: Sequence[Stage],
    *,
    seed: int,
    batches: Sequence[tuple[torch.Tensor, ...]],
    is_matched: bool = False,
) -> nn.Module:
    """Copy a network and draw the weights of some stages anew.

    The norms of those stages that keep statistics take them from the given batches: with any others the values
    would vanish or burst on their way, and a random network would lose for that alone.

    Args:
        model: The network; it is not changed.
        stages: Whose parameters to draw.
        seed: Of the draw.
        batches: Inputs (B, ...), B > 1, such as the network is trained on.
        is_matched: Draw from normal distributions with the mean and the standard deviation of each tensor as it
            is; otherwise as the modules themselves draw.

    Returns:
        A network of the same class, in eval mode.

    Example:
        >>> from frostline.network import Stage
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> stage = Stage(index=0, name="0", keys=("0.weight", "0.bias"), parameters=15, flops=24)
        >>> other = redrawn(net, [stage], seed=0, batches=[torch.ones(2, 4)])
        >>> torch.equal(other[0].weight, net[0].weight), torch.equal(other[1].weight, net[1].weight)
        (False, True)
    """
    # Drawn on the processor, so that a seed gives the same weights everywhere.
    home, processor = device_of(model), torch.device("cpu")
    drawn = copy_of(model).eval().to(processor)
    keys = {key for stage in stages for key in stage.keys}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        if is_matched:
            _match(drawn, keys)
        else:
            _reset(drawn, keys)
        _settle(drawn, keys, [carried(inputs, processor) for inputs in batches])
    return drawn.to(home)


def _match(model: nn.Module, keys: set[str]) -> None:
    for name, weight in model.named_parameters():
        if name in keys and weight.is_floating_point():
            weight.normal_(float(weight.mean()), float(weight.std(correction=0)))


def _reset(model: nn.Module, keys: set[str]) -> None:
    left = {name: weight for name, weight in model.named_parameters() if name in keys and weight.is_floating_point()}
    for prefix, module in model.named_modules():
        own = {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
        if own and own <= left.keys() and callable(reset := getattr(module, "reset_parameters", None)):
            reset()
            for name in own:
                del left[name]
    for weight in left.values():
        weight.normal_(0.0, SPREAD)


def _settle(model: nn.Module, keys: set[str], batches: Sequence[tuple[torch.Tensor, ...]]) -> None:
    """Let norms with running statistics take the mean of these batches."""
    norms = [
        (module, module.momentum)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and module.running_mean is not None
        and f"{name}.running_mean".lstrip(".") in keys
    ]
    if not norms:
        return
    for norm, _ in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for inputs in batches:
        model(*inputs)
    for norm, momentum in norms:
        norm.momentum = momentum
        norm.eval()
