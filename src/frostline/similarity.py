"""How alike two sets of features are, whatever their width, rotation and scale."""

import math

import torch

from frostline.errors import BadArgument

FEWEST = 4
"""Samples below which the estimate without bias does not exist."""


def similarity(ones: torch.Tensor, others: torch.Tensor) -> float:
    """Give the debiased linear CKA of two sets of features of the same samples.

    It is 1 for features that differ by a rotation and a factor only, and about 0 for features that have nothing to
    do with each other, also where there are more features than samples. It may fall a little below 0.

    Args:
        ones: (N, D) features of N >= 4 samples.
        others: (N, E) other features of the same samples.

    Returns:
        At most 1; 0 where one of them does not vary.

    Raises:
        BadArgument: Too few samples, or not the same number.

    Example:
        >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        >>> round(similarity(x, 5 * x), 6)
        1.0

    Source:
        Kornblith et al., Similarity of neural network representations revisited, 2019; without bias by Song et al.,
        Feature selection via dependence maximization, 2012, equation 5, as Nguyen, Raghu and Kornblith, Do wide and
        deep networks learn the same things?, 2021, use it.
    """
    if len(ones) != len(others) or len(ones) < FEWEST:
        raise BadArgument(
            f"BadArgument: features of {len(ones)} and {len(others)} samples; both need the same samples, at least "
            f"{FEWEST}.",
            samples=(len(ones), len(others)),
        )
    left, right = _products(ones), _products(others)
    own = _dependence(left, left) * _dependence(right, right)
    return _dependence(left, right) / math.sqrt(own) if own > 0 else 0.0


def _products(features: torch.Tensor) -> torch.Tensor:
    """Inner products of the samples (N, N), those with themselves set to 0."""
    x = features.detach().double()
    x = x - x.mean(dim=0)
    # Widths far from 1 would leave the range in the square of the square.
    x = x / x.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return (x @ x.T).fill_diagonal_(0.0)


def _dependence(left: torch.Tensor, right: torch.Tensor) -> float:
    """The Hilbert-Schmidt independence criterion without bias."""
    n = len(left)
    rows, columns = left.sum(dim=0), right.sum(dim=0)
    total = (
        (left * right).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 * torch.dot(rows, columns) / (n - 2)
    )
    return float(total) / (n * (n - 3))
