"""What one watched forward pass was: its module calls, its storages and what crosses each cut.

A recording is private to frostline: `trace` makes it, `split` reads it, and it never leaves the
process. Moments are ticks of a clock that counts operations, module entries and module returns.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from frostline.errors import BadArgument
from frostline.trees import rebuild, tensors


class Size(NamedTuple):
    """A whole number that may grow with the batch: `fixed + each * B`."""

    fixed: int
    each: int = 0

    def at(self, batch: int) -> int:
        """The number at that batch size."""
        return self.fixed + self.each * batch


class Layout(NamedTuple):
    """How a tensor lies in its storage, at any batch size."""

    shape: tuple[Size, ...]
    stride: tuple[Size, ...]
    offset: Size
    dtype: torch.dtype
    device: torch.device

    def at(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Shape, stride and offset at that batch size."""
        return (
            tuple(size.at(batch) for size in self.shape),
            tuple(size.at(batch) for size in self.stride),
            self.offset.at(batch),
        )

    @property
    def batch_axis(self) -> int | None:
        """The one axis that grows with the batch and is nothing without it, or None."""
        growing = [axis for axis, size in enumerate(self.shape) if size.each]
        return growing[0] if len(growing) == 1 and not self.shape[growing[0]].fixed else None


class Read(NamedTuple):
    """An operation that looked at the values of a storage, and where in it."""

    moment: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclasses.dataclass
class Storage:
    """The memory of one value.

    `is_data` tells a value that depends on a weight or on a float input from one that the
    network's own code can derive again; `of_sample` one that depends on any input from one that
    is the same for every sample. `sources` holds the storages that it was computed from.
    """

    made: int
    last: int
    bytes: int
    is_data: bool
    of_sample: bool = True
    sources: set[int] = dataclasses.field(default_factory=set)
    reads: list[Read] = dataclasses.field(default_factory=list)
    writes: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Call:
    """One finished module call: its place in the run and what it returned.

    `leaves` holds a `Layout` for each tensor, a `Size` for each whole number, the value itself
    for anything else; `storages` holds the storage of each tensor and None for the rest. `same`
    holds the place of the argument that a leaf is the very object of, as an `Identity` returns it.
    """

    name: str
    nth: int
    start: int
    end: int
    parent: int
    tree: Any
    leaves: tuple[Any, ...]
    storages: tuple[int | None, ...]
    same: tuple[int | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arguments of the network's forward, as a tree with its tensors taken out.

    `leaves` holds a `Layout` for each tensor and the value itself for the rest; `names` and
    `storages` have one entry for each tensor.
    """

    tree: Any
    leaves: tuple[Any, ...]
    names: tuple[str, ...]
    storages: tuple[int, ...]

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """One for each tensor."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Layout))

    def flatten(self, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """The tensors of a call's inputs, in the order in which they were traced."""
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            _, named = self.tree
            inputs = [inputs[0][name] for name in named]
        found = tuple(tensors(list(inputs)))
        if len(found) != len(self.names):
            raise BadArgument(
                f"BadArgument: the network was given {len(found)} input tensors; it was traced with "
                f"{len(self.names)}: {', '.join(self.names)}. Give the same ones.",
                found=len(found),
                names=self.names,
            )
        return found

    def bind(self, given: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments that hold the given tensors."""
        rest = iter(given)
        new = [next(rest) if isinstance(leaf, Layout) else leaf for leaf in self.leaves]
        args, kwargs = rebuild(self.tree, iter(new))
        return args, kwargs


class Stored(NamedTuple):
    """Where a wire comes from: a leaf of a call, or an input where `call` is -1."""

    call: int
    leaf: int
    storage: int
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Point:
    """What `split` needs to know of one cut.

    `signature` names the operations below it. `fixed` holds what crosses too but is the same for
    every sample (a table of relative positions), so that the live part keeps it.
    """

    moment: int
    call: int
    stored: tuple[Stored, ...]
    signature: str
    fixed: tuple[Stored, ...] = ()


@dataclasses.dataclass
class Recording:
    """A watched pass, with one point for each depth.

    `reads` holds, by dotted name of each parameter and buffer, the moments at which an
    operation read it; for one that none did, the moments at which its module was called.
    `dense` holds the depths whose glue needs real memory around the stand-ins.
    """

    batch: int
    calls: tuple[Call, ...]
    storages: dict[int, Storage]
    inputs: Inputs
    reads: dict[str, tuple[int, ...]]
    points: tuple[Point, ...] = ()
    dense: set[int] = dataclasses.field(default_factory=set)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recording":
        # What happened is the same for every copy of a live part.
        return self

    def outer(self, moment: int) -> list[int]:
        """Calls that have returned by then, inside a call that has not, and must not run again.

        Those that return only values which the network's own code can derive again may.
        """
        return [
            place
            for place, call in enumerate(self.calls)
            if call.end <= moment < self.calls[call.parent].end and call.parent >= 0 and self._yields_data[place]
        ]

    @functools.cached_property
    def _yields_data(self) -> tuple[bool, ...]:
        return tuple(
            any(
                isinstance(leaf, Layout) and (key is None or (key in self.storages and self.storages[key].is_data))
                for leaf, key in zip(call.leaves, call.storages, strict=True)
            )
            for call in self.calls
        )


def dense_stride(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Stride of a copy without gaps that keeps the order of the axes in memory."""
    if _has_no_gaps(shape, stride):
        # Asked in every step of a training, torch takes longer over it than over reading the rows.
        return tuple(stride)
    return torch.empty_like(torch.empty_strided(tuple(shape), tuple(stride), device="meta")).stride()


def _has_no_gaps(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill their memory, each in a place of its own."""
    expected = 1
    for step, size in sorted((step, size) for size, step in zip(shape, stride, strict=True) if size != 1):
        if step != expected or not size:
            return False
        expected *= size
    return True
