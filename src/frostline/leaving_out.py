"""Each sample predicted from all others: ridge regression in closed form, and what its predictions are worth."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from frostline.calibration import best_temperature
from frostline.cost import effective, wilson

PENALTIES = 13
"""Points of the logarithmic grid of ridge penalties, from `LOWEST` to `HIGHEST` times the mean eigenvalue."""

LOWEST, HIGHEST = 1e-4, 1e2


SURE = 0.95
"""Probability of another class from which a label is called into question."""


class LeftOut(NamedTuple):
    """What a ridge regression says of each row without it.

    Args:
        residual: (N, K), target less prediction.
        penalty: The one of least squared error.
    """

    residual: torch.Tensor
    penalty: float


def leave_one_out(values: torch.Tensor, projected: torch.Tensor, targets: torch.Tensor) -> LeftOut:
    """Choose the ridge penalty by the exact leave-one-out error, with a bias that is not penalised.

    Args:
        values: Eigenvalues of the kernel or of the features' products, none below 0.
        projected: (N, len(values)), the centred features along the eigenvectors.
        targets: (N, K), centred.

    Returns:
        Residuals of the rows that are left out, and the penalty.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(20, 1)
        >>> found = leave_one_out((x * x).sum()[None], x, 3 * x)
        >>> bool(found.residual.abs().max() < 0.01)
        True

    Source:
        Allen, The relationship between variable selection and data augmentation and a method for
        prediction, 1974 (PRESS).
    """
    squares, products = projected.square(), projected.T @ targets
    # What never varies has no scale; any will do.
    scale = max(float(values.mean()), 1e-100)
    grid = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), PENALTIES, dtype=targets.dtype)
    best: tuple[float, LeftOut] | None = None
    for penalty in (scale * grid).tolist():
        shrunk = 1.0 / (values + penalty)
        leverage = squares @ shrunk + 1.0 / len(targets)
        # A row that its own fit reproduces exactly has nothing to say once it is left out.
        residual = (targets - projected @ (shrunk[:, None] * products)) / (1.0 - leverage).clamp_min(1e-12)[:, None]
        error = float(residual.square().sum())
        if best is None or error < best[0]:
            best = error, LeftOut(residual, penalty)
    assert best is not None
    return best[1]


class Worth(NamedTuple):
    """What predictions are worth: accuracy, its 95 % Wilson interval, and loss in nats after the best temperature."""

    accuracy: float
    low: float
    high: float
    loss: float


def worth(predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> Worth:
    """Compare predictions with labels.

    Args:
        predictions: (N, K) scores.
        labels: (N,) class numbers.
        weights: (N,) what each sample counts, 1 in the mean; None counts all alike.

    Returns:
        Accuracy with its interval, and loss.

    Example:
        >>> import torch
        >>> found = worth(torch.eye(2).repeat(10, 1), torch.tensor([0, 1] * 10))
        >>> found.accuracy, round(found.low, 3)
        (1.0, 0.839)
    """
    counts = torch.ones(len(labels)) if weights is None else weights
    right = predictions.argmax(dim=1) == labels
    accuracy = min(1.0, float((right * counts.double()).mean()))
    number = effective(counts.tolist())
    low, high = wilson(accuracy * number, number)
    losses = F.cross_entropy(predictions * best_temperature(predictions, labels), labels, reduction="none")
    return Worth(accuracy, low, high, float((losses * counts).mean()))


def doubtful(predictions: Sequence[torch.Tensor], labels: torch.Tensor) -> dict[int, tuple[int, float]]:
    """Find the rows that several fits together are sure belong to another class, each row left out.

    What a single fit is sure of is often its own weakness. The probabilities are averaged over the fits, each after its
    best temperature, and the average is calibrated again; so "sure" is meant as it is said.

    Args:
        predictions: The scores of each fit, (N, K); at least one fit.
        labels: (N,) class numbers.

    Returns:
        Class and probability by row, for those of at least `SURE`, the surest first.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0, 1] * 20)
        >>> scores = torch.nn.functional.one_hot(labels, 2).double()
        >>> labels[6] = 1
        >>> [(row, other) for row, (other, _) in doubtful([scores], labels).items()]
        [(6, 0)]

    Source:
        That predictions of held-out samples find wrong labels: Northcutt, Jiang and Chuang, Confident learning:
        estimating uncertainty in dataset labels, 2021.
    """
    shares = torch.stack([(scores * best_temperature(scores, labels)).softmax(dim=1) for scores in predictions])
    logs = shares.mean(dim=0).clamp_min(1e-30).log()
    confidences, classes = (logs * best_temperature(logs, labels)).softmax(dim=1).max(dim=1)
    rows = ((classes != labels) & (confidences >= SURE)).nonzero().flatten().tolist()
    rows.sort(key=lambda row: -float(confidences[row]))
    return {row: (int(classes[row]), float(confidences[row])) for row in rows}


def balancing(labels: torch.Tensor) -> torch.Tensor:
    """Give the weights under which every class that occurs counts the same.

    Args:
        labels: (N,) class numbers.

    Returns:
        (N,), 1 in the mean.

    Example:
        >>> import torch
        >>> balancing(torch.tensor([0, 0, 0, 1])).tolist()
        [0.6666666865348816, 0.6666666865348816, 0.6666666865348816, 2.0]
    """
    counts = torch.bincount(labels)
    return len(labels) / (int((counts > 0).sum()) * counts[labels].float())
