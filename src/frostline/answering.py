"""What the stages of a network answer to a batch, laid out so that each position has its channels."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from frostline.records import CutGraph, Stage, Wire
from frostline.trees import leaves

MOST_STAGES = 12

_Sides = tuple[int, int]
_T = TypeVar("_T")


class Output(NamedTuple):
    """A stage's output: which leaf of which call of which module, and how it lies."""

    stage: Stage
    name: str
    nth: int
    leaf: int
    wire: Wire


Lay = Callable[[Output, torch.Tensor], torch.Tensor | None]
"""How an output is laid out, the batch first; None where it is not to be looked at."""


class Watch:
    """Runs a network and shows what its stages give, at most twelve of them.

    Args:
        net: The network that was traced, or a copy of it.
        graph: Its stages and cuts.
        lay: How an output is laid out; asked once without values, and then at each run.
    """

    def __init__(self, net: nn.Module, graph: CutGraph, lay: Lay) -> None:
        self.net = net
        self.lay = lay
        self._inputs = graph.recording.inputs
        self.outputs = _spread([output for depth in graph.open_depths if depth for output in self._of(graph, depth)])

    def _of(self, graph: CutGraph, depth: int) -> list[Output]:
        """The output of the last stage below the cut, or nothing where it is not laid out."""
        point = graph.recording.points[depth]
        # What else crosses was made by earlier stages.
        stored, wire = max(zip(point.stored, graph.cuts[depth].wires, strict=True), key=lambda pair: pair[0].call)
        if stored.call < 0:
            return []
        call = graph.recording.calls[stored.call]
        output = Output(graph.stages[depth - 1], call.name, call.nth, stored.leaf, wire)
        example = torch.empty(wire.shape, dtype=getattr(torch, wire.dtype), device="meta")
        return [] if self.lay(output, example) is None else [output]

    def call(self, inputs: Sequence[torch.Tensor]) -> Any:
        """What the network itself gives for some inputs, as its samples hold them."""
        args, kwargs = self._inputs.bind(inputs)
        return self.net(*args, **kwargs)

    def run(self, inputs: Sequence[torch.Tensor], take: Callable[[Output, torch.Tensor], _T]) -> list[_T]:
        """What `take` makes of each output, at the moment at which it is there: it may be written over later."""
        taken: dict[Output, _T] = {}
        seen: Counter[str] = Counter()

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def look(module: nn.Module, inputs: Any, result: Any) -> None:
                for output in self.outputs:
                    if (output.name, output.nth) == (name, seen[name]):
                        answers = self.lay(output, leaves(result)[output.leaf])
                        assert answers is not None
                        taken[output] = take(output, answers)
                seen[name] += 1

            return look

        names = sorted({output.name for output in self.outputs})
        handles = [self.net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
        try:
            self.call(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return [taken[output] for output in self.outputs]


def _spread(outputs: list[Output]) -> list[Output]:
    if len(outputs) <= MOST_STAGES:
        return outputs
    step = (len(outputs) - 1) / (MOST_STAGES - 1)
    return [outputs[round(step * place)] for place in range(MOST_STAGES)]


def rows_of(output: Output, answers: torch.Tensor) -> torch.Tensor | None:
    """An output as it is, the batch first; None where a sample has not one row of its own in it, or no numbers.

    Args:
        output: Whose answers.
        answers: What its module gave.

    Returns:
        (B, ...)
    """
    if output.wire.factor != 1 or not answers.is_floating_point():
        return None
    return answers.movedim(output.wire.batch_axis, 0)


def as_map(rows: torch.Tensor, sides: _Sides) -> torch.Tensor | None:
    """What a stage makes of a picture as a map, a vector as a map of one position; None where it is neither.

    Args:
        rows: (B, ...)
        sides: Height and width of the picture.

    Returns:
        (B, C, H, W)

    Example:
        >>> as_map(torch.zeros(2, 17, 5), (8, 8)).shape
        torch.Size([2, 5, 4, 4])
    """
    shape = rows.shape[1:]
    if len(shape) == 1:
        return rows[:, :, None, None]
    if len(shape) == 2 and (grid := _grid(shape[0], sides)):
        return rows[:, -grid[0] * grid[1] :].movedim(2, 1).reshape(len(rows), shape[1], *grid)
    if len(shape) == 3:
        height, width = sides
        is_channels_last = abs(shape[0] * width - shape[1] * height) < abs(shape[1] * width - shape[2] * height)
        return rows.movedim(3, 1) if is_channels_last else rows
    return None


def _grid(tokens: int, sides: _Sides) -> _Sides | None:
    """Rows and columns of tokens that cover the picture evenly, a first token left out where it is one too many."""
    for count in (tokens, tokens - 1):
        rows, columns = (round((count * one / other) ** 0.5) for one, other in (sides, sides[::-1]))
        if 0 < count == rows * columns:
            return rows, columns
    return None


def as_line(rows: torch.Tensor, axis: int) -> torch.Tensor:
    """What a stage makes of a sequence as a map whose columns follow each other in time.

    Args:
        rows: (B, C, T), (B, T, C), (B, C, H, T) and so on.
        axis: The one along the sequence, from 0, the batch not counted.

    Returns:
        (B, C, H, T), H being 1 where a place in the sequence has nothing but channels.

    Example:
        >>> as_line(torch.zeros(2, 7, 5), 0).shape
        torch.Size([2, 5, 1, 7])
    """
    line = rows.movedim(axis + 1, -1)
    return line.unsqueeze(2) if line.dim() == 3 else line
