"""How far a position in a stage's output sees: the part of a picture or a sequence that it depends on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from frostline.answering import Output, Watch
from frostline.tokens import embedded

_Sides = tuple[int, int]
_Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Field:
    """The square of a picture, or the stretch of a sequence, that a position of a map depends on.

    A sequence is a picture of one row.

    Args:
        side: In pixels, tokens or values; that of the whole at most.
        grid: Rows and columns of the map.
        middle: Row and column of the picture around which the map's middle position sees.
        step: Columns of the picture from one column of the map to the next; None where the map's columns are
            spread evenly over it.
    """

    side: int
    grid: _Sides
    middle: tuple[float, float]
    step: float | None = None

    def centre(self, position: int, sides: _Sides) -> tuple[float, float]:
        """Row and column of the picture around which a position sees."""
        (row, column), (height, width) = divmod(position, self.grid[1]), sides
        rows, columns = self.grid
        down = self.middle[0] + (row - rows // 2) * height / rows
        if self.step is None:
            return down, self.middle[1] + (column - columns // 2) * width / columns
        return down, self.middle[1] + (column - columns // 2) * self.step

    def box(self, position: int, sides: _Sides) -> _Box:
        """Left, top, right and bottom of what a position sees, moved into the picture where it sticks out."""
        ends: list[tuple[int, int]] = []
        for centre, side in zip(self.centre(position, sides), sides, strict=True):
            length = min(self.side, side)
            start = max(0, min(round(centre - length / 2), side - length))
            ends.append((start, start + length))
        (top, bottom), (left, right) = ends
        return left, top, right, bottom


# --- pictures ---------------------------------------------------------------------------------


def picture_fields(watch: Watch, pictures: torch.Tensor) -> list[Field]:
    """Measure the receptive field of each stage by the gradient of its middle position.

    Of all channels at once, each with a weight drawn from a normal distribution, so that none cancels another.

    Args:
        watch: Its outputs laid out as maps (B, C, H, W).
        pictures: (B, C, H, W)

    Returns:
        One for each output.

    Source:
        Luo, Li, Urtasun and Zemel, Understanding the Effective Receptive Field in Deep Convolutional Neural
        Networks, 2016, section 3.1. They average over random inputs; here it is over some of the user's own.
    """
    draws = torch.Generator().manual_seed(0)

    def middle(output: Output, answers: torch.Tensor) -> tuple[torch.Tensor, _Sides]:
        rows, columns = answers.shape[2:]
        weights = torch.randn(answers.shape[:2], generator=draws).to(answers)
        return (answers[:, :, rows // 2, columns // 2] * weights).sum(), (rows, columns)

    pictures = pictures.detach().requires_grad_()
    with torch.enable_grad():
        # A copy, since a network may write into what it is given.
        asked = watch.run((pictures.clone(),), middle)
    height, width = pictures.shape[2:]
    return [_field(_weights(answer, pictures).sum(dim=(0, 1)), grid, (height, width)) for answer, grid in asked]


def _weights(answer: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """How much each number of the inputs weighs in an answer."""
    try:
        (gradient,) = torch.autograd.grad(answer, inputs, retain_graph=True)
    except RuntimeError:
        # A network may cut the gradient off, or forbid this way of asking for it (re-entrant checkpoints).
        return torch.zeros(inputs.shape, dtype=torch.float64)
    return finite(gradient).abs()


def finite(values: torch.Tensor) -> torch.Tensor:
    """In double precision, with 0 where a broken sample gave no number, so that it hides no other.

    Example:
        >>> finite(torch.tensor([1.5, float("nan")])).tolist()
        [1.5, 0.0]
    """
    return values.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0)


def _field(weights: torch.Tensor, grid: _Sides, sides: _Sides) -> Field:
    """The smallest square around the centre of weight that holds 95 % of it."""
    total = float(weights.sum())
    if grid == (1, 1) or not total:
        return Field(max(sides), grid, (sides[0] / 2, sides[1] / 2))
    distances, middle = [], []
    for axis, side in enumerate(sides):
        places = torch.arange(side) + 0.5
        centre = float(weights.sum(dim=1 - axis) @ places.double()) / total
        # To half a pixel: the middle of a pixel, or the line between two.
        middle.append(round(2 * centre) / 2)
        distances.append((places - middle[-1]).abs())
    distance = torch.maximum(distances[0][:, None], distances[1][None, :]).flatten()
    order = distance.argsort(stable=True)
    held = weights.flatten()[order].cumsum(dim=0)
    reach = float(distance[order][int((held < 0.95 * total).sum())])
    return Field(min(int(2 * reach) + 1, max(sides)), grid, (middle[0], middle[1]))


# --- sequences --------------------------------------------------------------------------------

_QUARTERS = (0.25, 0.5, 0.75)


class Line(NamedTuple):
    """How an output follows a sequence: along which axis, None for a vector, and how far a place in it sees."""

    axis: int | None
    field: Field


class _Asked(NamedTuple):
    """The shape of an output, the batch left out, and for each axis the answers at three places along it."""

    shape: tuple[int, ...]
    answers: tuple[tuple[torch.Tensor, ...], ...]


def sound_lines(watch: Watch, waves: torch.Tensor) -> list[Line]:
    """Measure how the stages follow a sound, and how far they see, as `picture_fields` does for pictures.

    Args:
        watch: Its outputs (B, ...) as they are.
        waves: (B, T) or (B, 1, T)

    Returns:
        One for each output.
    """
    waves = waves.detach().requires_grad_()
    with torch.enable_grad():
        asked = watch.run((waves.clone(),), _asking(_QUARTERS))
    return _lines(asked, _QUARTERS, waves.shape[-1], lambda answer: _along(_weights(answer, waves), -1))


def text_lines(watch: Watch, inputs: Sequence[torch.Tensor], place: int, counted: torch.Tensor) -> list[Line]:
    """Measure how the stages follow a text, by the gradient of what its tokens are embedded as.

    Args:
        watch: Its outputs (B, ...) as they are.
        inputs: (B, ...) each.
        place: Which of them holds the ids (B, T).
        counted: (B, T) True where a token is no padding.

    Returns:
        One for each output.
    """
    length = counted.shape[1]
    # Where even the shortest of the texts has tokens.
    own = counted[int(counted.sum(dim=1).argmin())].nonzero().flatten().tolist()
    shares = tuple((own[int(len(own) * share)] + 0.5) / length if own else share for share in _QUARTERS)
    with torch.enable_grad(), embedded(watch.net, inputs[place]) as found:
        asked = watch.run(inputs, _asking(shares))

    def weigh(answer: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(length, dtype=torch.float64)
        for _, given in found:
            weights += _along(_weights(answer, given), 1)
        return weights

    return _lines(asked, shares, length, weigh)


def _asking(shares: Sequence[float]) -> Callable[[Output, torch.Tensor], _Asked]:
    draws = torch.Generator().manual_seed(0)

    def ask(output: Output, answers: torch.Tensor) -> _Asked:
        shape, asked = tuple(answers.shape[1:]), []
        for axis, size in enumerate(shape):
            picked = [answers.select(axis + 1, int(size * share)) for share in shares]
            weights = torch.randn(picked[0].shape[1:], generator=draws).to(answers)
            asked.append(tuple((answer * weights).sum() for answer in picked))
        return _Asked(shape, tuple(asked))

    return ask


def _along(weights: torch.Tensor, axis: int) -> torch.Tensor:
    return weights.movedim(axis, -1).flatten(0, -2).sum(dim=0)


def _lines(
    asked: Sequence[_Asked], shares: Sequence[float], length: int, weigh: Callable[[torch.Tensor], torch.Tensor]
) -> list[Line]:
    lines, known = [], length
    for shape, answers in asked:
        if len(shape) == 1:
            lines.append(Line(None, Field(length, (1, 1), (0.5, length / 2))))
            continue
        ends = [[_centre(weigh(answer)) for answer in (first, last)] for first, _, last in answers]
        axis = _axis_of_time(shape, [abs(last - first) / length for first, last in ends], known)
        known = shape[axis]
        across = 1 if len(shape) == 2 else [size for other, size in enumerate(shape) if other != axis][1]
        field = _field(weigh(answers[axis][1])[None], (across, known), (1, length))
        lines.append(Line(axis, _stepping(field, ends[axis], [int(known * share) for share in shares])))
    return lines


def _centre(weights: torch.Tensor) -> float:
    places = torch.arange(len(weights)).double() + 0.5
    total = float(weights.sum())
    return float(weights @ places) / total if total else len(weights) / 2


def _axis_of_time(shape: Sequence[int], moves: Sequence[float], known: int) -> int:
    """The axis along which what is seen moves through the sequence: by half of it, from a quarter to three quarters.

    Where every place sees everything none may stand out; then it is the one that is as long as in the stage before.
    """
    *_, second, first = sorted(range(len(shape)), key=lambda axis: (moves[axis], axis))
    alike = [axis for axis, size in enumerate(shape) if size == known]
    stands_out = moves[first] >= max(0.125, 2 * moves[second])
    return first if stands_out or len(alike) != 1 else alike[0]


def _stepping(field: Field, ends: Sequence[float], places: Sequence[int]) -> Field:
    """The field with its measured step, around the middle of the map and not where it was measured."""
    first, middle, last = places
    if first == last or ends[0] == ends[1]:
        return field
    step = (ends[1] - ends[0]) / (last - first)
    rows, columns = field.middle
    return replace(field, middle=(rows, columns - (middle - field.grid[1] // 2) * step), step=step)
