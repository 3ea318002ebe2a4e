"""How sure a network should be: the one factor on its outputs that makes the labels most likely."""

import math

import torch

COLDEST, HOTTEST = 0.1, 100.0
"""Range of the temperature. Beyond the upper end a separable set would make a head that is never unsure."""


def best_temperature(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Find the factor on the outputs that makes the labels most likely.

    Args:
        outputs: (N, K) scores before softmax.
        labels: (N,) class numbers.

    Returns:
        The factor, 0.1 to 100.

    Example:
        >>> import torch
        >>> outputs = torch.eye(2).repeat(10, 1)
        >>> best_temperature(outputs, torch.tensor([0, 1] * 10))
        100.0

    Source:
        Guo et al., On calibration of modern neural networks, 2017, section 4.2.
    """
    own = outputs.gather(1, labels[:, None]).squeeze(1)

    def slope(factor: float) -> float:
        probabilities = torch.softmax(outputs * factor, dim=1)
        return float(((probabilities * outputs).sum(dim=1) - own).mean())

    low, high = math.log(COLDEST), math.log(HOTTEST)
    # The loss is convex in the factor, so its slope changes sign once at most.
    if slope(HOTTEST) <= 0:
        return HOTTEST
    if slope(COLDEST) >= 0:
        return COLDEST
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp((low + high) / 2)
