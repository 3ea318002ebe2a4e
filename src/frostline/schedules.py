"""Which samples each step of a chain of rungs learns from, and at which share of the peak rate.

Everything follows from the seed and the number of the step, counted over the chain.
"""

import math

import torch

from frostline.records import TrialSpec


def batches_of(samples: int, spec: TrialSpec, epoch: int) -> list[torch.Tensor]:
    """Row numbers of each mini-batch of an epoch, counted from 1; the same at every depth.

    Example:
        >>> from frostline.records import Recipe
        >>> spec = TrialSpec(depth=0, recipe=Recipe(batch_size=4), seed=0, epochs=1)
        >>> [len(batch) for batch in batches_of(10, spec, 1)]
        [4, 4, 2]
    """
    generator = torch.Generator().manual_seed(mixed(spec.seed, epoch))
    batches = list(torch.split(torch.randperm(samples, generator=generator), spec.recipe.batch_size))
    if spec.recipe.norm_mode == "train" and len(batches) > 1 and len(batches[-1]) == 1:
        # Batch norm has no statistics of a single vector.
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def span_of(spec: TrialSpec, steps: int) -> tuple[int, int]:
    """The first and the last step of a rung, counted over the chain, where an epoch has so many.

    Both ends are rounded, not the length: halves of an odd number of steps would be a step too many together.

    Example:
        >>> from frostline.records import Recipe
        >>> span_of(TrialSpec(depth=0, recipe=Recipe(), seed=0, epochs=2, first_epoch=0.5), 10)
        (5, 25)
    """
    first = round(spec.first_epoch * steps)
    return first, max(first + 1, round((spec.first_epoch + spec.epochs) * steps)) if spec.epochs else first


def rate_factor(spec: TrialSpec, steps: int, step: int) -> float:
    """Share of the peak rate at a step of the chain, counted from 1; an epoch has so many steps.

    Example:
        >>> from frostline.records import Recipe
        >>> spec = TrialSpec(depth=0, recipe=Recipe(warmup=0.2), seed=0, epochs=1)
        >>> [round(rate_factor(spec, 10, step), 2) for step in (1, 2, 3, 7, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    first, last = span_of(spec, steps)
    rise = round(spec.recipe.warmup * steps)
    if spec.parent is None and spec.recipe.schedule == "cosine":
        rise = min(rise, last - first)
    if step <= rise:
        return step / rise
    if spec.recipe.schedule == "constant":
        return 1.0
    begin = max(first, rise)
    return 0.5 * (1.0 + math.cos(math.pi * (step - begin - 1) / max(1, last - begin)))


def mixed(seed: int, number: int) -> int:
    """A seed for one step or epoch.

    Example:
        >>> mixed(2, 5)
        2000011
    """
    return (seed * 1_000_003 + number) % 2**63
