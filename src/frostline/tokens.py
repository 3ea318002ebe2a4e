"""Texts as a network takes them: which input holds the tokens, and which of them are padding."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from frostline import trees

_FEW = 4

Call = Callable[[Sequence[torch.Tensor]], Any]
"""A network, called with its inputs as its samples hold them."""


def find_ids(inputs: Sequence[torch.Tensor]) -> int | None:
    """Find the input that holds token ids: whole numbers (B, T) from 0, of the largest range.

    Masks and token types hold two values at most and are no ids.

    Args:
        inputs: (B, ...) each.

    Returns:
        Its place, or None where no input is such.

    Example:
        >>> find_ids([torch.ones(2, 3, dtype=torch.int64), torch.tensor([[5, 8, 2], [4, 9, 0]])])
        1
    """
    found = [place for place, tensor in enumerate(inputs) if _may_be_ids(tensor)]
    return max(found, key=lambda place: int(inputs[place].max() - inputs[place].min()), default=None)


def _may_be_ids(tensor: torch.Tensor) -> bool:
    is_whole = tensor.dtype in (torch.int32, torch.int64)
    return is_whole and tensor.dim() == 2 and tensor.shape[1] > 1 and int(tensor.min()) >= 0 and int(tensor.max()) > 1


def find_counted(net: nn.Module, call: Call, inputs: Sequence[torch.Tensor], place: int) -> torch.Tensor:
    """Find the tokens that count; the others are padding.

    Padding is what an embedding declares as its `padding_idx`, an id that stands nowhere but in a run at one end of
    the texts, and what a mask hides. Whether a mask marks what counts or what does not, the network itself says: it
    answers the same whatever stands where it does not look.

    Args:
        net: The network, in eval mode.
        call: How it is called.
        inputs: (B, ...) each.
        place: Which of them holds the ids (B, T).

    Returns:
        (B, T) True where a token counts.
    """
    ids = inputs[place]
    counted = torch.ones_like(ids, dtype=torch.bool)
    few = [tensor[:_FEW] for tensor in inputs]
    with torch.no_grad(), embedded(net, few[place]) as found:
        call(few)
    padding = {module.padding_idx for module, _ in found} - {None}
    for token in [*padding, *_at_the_ends(ids)]:
        counted &= ids != token
    for other, mask in enumerate(inputs):
        if other != place and mask.shape == ids.shape and len(values := set(mask.flatten().tolist())) == 2:
            hidden = [value for value in values if _is_blind(call, inputs, place, mask == value)]
            if len(hidden) == 1:
                counted &= mask != hidden[0]
    return counted


def _at_the_ends(ids: torch.Tensor) -> list[int]:
    """Ids of which every occurrence lies in a run at the same end of its text, and some run is longer than one."""
    found = []
    for line in (ids, ids.flip(1)):
        runs = (line == line[:, :1]).cumprod(dim=1).sum(dim=1)
        for token in sorted(set(line[:, 0].tolist())):
            own = runs[line[:, 0] == token]
            if int(own.max()) > 1 and int(own.sum()) == int((ids == token).sum()):
                found.append(token)
    return found


def _is_blind(call: Call, inputs: Sequence[torch.Tensor], place: int, hidden: torch.Tensor) -> bool:
    """Whether the network answers the same when other tokens stand there, in texts where that is a part only."""
    rows = (hidden.any(dim=1) & ~hidden.all(dim=1)).nonzero().flatten()[:_FEW]
    if not len(rows):
        return False
    few, ids = [tensor[rows] for tensor in inputs], inputs[place]
    lowest, highest = ids.min(), ids.max()
    # Each becomes another one that the texts hold, or that lies between two of them.
    others = lowest + (few[place] - lowest + 1) % (highest - lowest + 1)
    swapped = [*few[:place], torch.where(hidden[rows], others, few[place]), *few[place + 1 :]]
    try:
        with torch.no_grad():
            before, after = (trees.tensors(call(given)) for given in (few, swapped))
    except (RuntimeError, AssertionError, ValueError, IndexError):
        # BART wants as many end tokens in each text: what is refused has been looked at.
        return False
    return all(torch.allclose(one, other) for one, other in zip(before, after, strict=True))


@contextlib.contextmanager
def embedded(net: nn.Module, ids: torch.Tensor) -> Iterator[list[tuple[nn.Embedding, torch.Tensor]]]:
    """Meanwhile, list the embeddings that are asked for these ids, each with what it gave, which may have a gradient.

    Args:
        net: The network; its embeddings have a hook meanwhile.
        ids: (B, T)

    Example:
        >>> net, ids = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)), torch.tensor([[1, 4]])
        >>> with embedded(net, ids) as found:
        ...     net(ids).sum().backward()
        >>> found[0][1].grad.shape
        torch.Size([1, 2, 3])
    """
    found: list[tuple[nn.Embedding, torch.Tensor]] = []

    def hook(module: nn.Module, inputs: Any, result: torch.Tensor) -> torch.Tensor | None:
        assert isinstance(module, nn.Embedding)
        if not inputs or inputs[0].shape != ids.shape or not torch.equal(inputs[0], ids):
            return None
        given = result.detach().requires_grad_()
        found.append((module, given))
        # A copy, since a network may write into what it is given.
        return given.clone()

    handles = [module.register_forward_hook(hook) for module in net.modules() if isinstance(module, nn.Embedding)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
