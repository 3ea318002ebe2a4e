"""Fewer samples and wrong labels, drawn by a seed."""

from collections.abc import Sequence
from typing import final

import torch

from frostline.data import Rows


@final
class Chosen:
    """Some rows of a store or a part, read as if they were all.

    Args:
        rows: What holds them.
        numbers: Which of them, (n,) row numbers.

    Example:
        >>> from frostline.data import TensorSamples
        >>> part = TensorSamples(torch.arange(4.0)[:, None], torch.tensor([0, 1, 0, 1]))
        >>> Chosen(part, torch.tensor([3, 1])).read([0])[0].tolist()
        [[3.0]]
    """

    def __init__(self, rows: Rows, numbers: torch.Tensor) -> None:
        self._rows = rows
        self._numbers = numbers

    @property
    def views(self) -> int:
        """Stored views of each row."""
        return self._rows.views

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        """Give some rows as new tensors."""
        return self._rows.read(self._numbers[torch.as_tensor(list(rows), dtype=torch.int64)].tolist(), view)


def drawn(labels: torch.Tensor, samples: int | None, *, seed: int) -> torch.Tensor:
    """Draw so many samples, one of each class in turn as long as the class has any left.

    For one seed a smaller draw is part of a larger one.

    Args:
        labels: (N,) class numbers.
        samples: How many; None takes all.
        seed: Of the draw.

    Returns:
        Row numbers, ascending.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> labels[drawn(labels, 4, seed=0)].tolist()
        [0, 0, 1, 1]
    """
    if samples is None or samples >= len(labels):
        return torch.arange(len(labels))
    return in_turns(labels, seed=seed)[:samples].sort().values


def in_turns(labels: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Draw all samples in an order in which each class has its turn: one of each, then a second of each, and so on.

    Args:
        labels: (N,) class numbers.
        seed: Of the draw.

    Returns:
        (N,) row numbers.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> sorted(labels[in_turns(labels, seed=0)][:2].tolist())
        [0, 1]
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turns = torch.empty(len(labels), dtype=torch.int64)
    for label in set(labels.tolist()):
        own = order[labels[order] == label]
        turns[own] = torch.arange(len(own))
    # By turns, and within a turn in the order of the draw, so that no class is always cut off first.
    return order[turns[order].sort(stable=True).indices]


def mislabelled(labels: torch.Tensor, share: float, *, classes: int, seed: int) -> torch.Tensor:
    """Give a share of the samples the label of another class.

    Args:
        labels: (N,) class numbers.
        share: 0 to 1; rounded to whole samples.
        classes: K.
        seed: Of the draw.

    Returns:
        (N,) class numbers.

    Example:
        >>> labels = torch.tensor([0, 1, 2, 0])
        >>> int((mislabelled(labels, 0.5, classes=3, seed=0) != labels).sum())
        2
    """
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    given = labels.clone()
    given[wrong] = (labels[wrong] + torch.randint(1, classes, (len(wrong),), generator=generator)) % classes
    return given
