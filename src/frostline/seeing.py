"""Pictures to look at: what excites the channels of each stage, and where the network was most surely wrong."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import nn

from frostline.copies import copy_of, full_precision, plain_torch
from frostline.data import Samples
from frostline.exhibits import Album, Channel, Crop, Mistake, Sight
from frostline.records import CutGraph, Doubt, Preprocessing, Score, Stage, Wire
from frostline.sampling import in_turns
from frostline.trees import leaves

MOST_PICTURES = 256
MOST_STAGES = 12
MOST_FILTERS = 64
MOST = 12
"""Mistakes that are shown, and labels in doubt."""

CHANNELS = 3
CROPS = 4

_BATCH = 32
_Sides = tuple[int, int]
_T = TypeVar("_T")


def see(
    model: nn.Module,
    graph: CutGraph,
    train: Samples,
    *,
    test: Samples,
    score: Score,
    classes: tuple[str, ...],
    preprocessing: Preprocessing | None = None,
    doubts: Sequence[Doubt] = (),
) -> Album:
    """Collect pictures of what each stage answers to, of the most confident mistakes, and of labels in doubt.

    Samples that are no pictures (text, sound, tables, several inputs) give an empty album. At most 12 stages
    are shown, each by the parts of at most 256 training pictures that its channels answer to most strongly.

    Args:
        model: The network, tuned or not; a copy of it is run, in eval mode.
        graph: Its stages and cuts.
        train: Pictures that the stages look at.
        test: Pictures that were scored.
        score: What the network said of them.
        classes: K names.
        preprocessing: How a picture became an input, so that it can be shown as it was. Without it each
            picture is stretched from black to white.
        doubts: Training pictures whose label may be wrong, the surest first.

    Returns:
        The first layer's filters, what each stage sees, the mistakes, and the labels in doubt.

    Example:
        >>> import torch
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        >>> for layer in net[:2]:
        ...     weight = nn.init.ones_(layer.weight)
        >>> x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> part = fl.TensorSamples(x, torch.arange(8) % 2)
        >>> found = fl.score(net(x).detach(), part.labels)
        >>> album = see(net, fl.trace(net, x), part, test=part, score=found, classes=("cat", "dog"))
        >>> [(sight.name, sight.side) for sight in album.sights], len(album.filters)
        ([('0', 3), ('2', 8)], 4)
    """
    if not _are_pictures(train.read([0])):
        return Album()
    net = copy_of(model, model.parameters()).eval()
    learnt, scored = (_Shown(part, classes, preprocessing) for part in (train, test))
    with full_precision(), plain_torch():
        sights = _sights(net, graph, learnt)
    return Album(
        filters=_filters(net, graph),
        sights=sights,
        mistakes=_mistakes(scored, score),
        doubts=tuple(_differing(learnt, doubt.sample, doubt.prediction, doubt.confidence) for doubt in doubts[:MOST]),
    )


def _are_pictures(inputs: tuple[torch.Tensor, ...]) -> bool:
    first = inputs[0]
    return (
        len(inputs) == 1
        and first.dim() == 4
        and first.shape[1] in (1, 3)
        and min(first.shape[2:]) > 1
        and first.is_floating_point()
    )


# --- samples as a person sees them ------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """A part of the data, as names and pictures."""

    samples: Samples
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None

    def label(self, row: int) -> str:
        return self.classes[int(self.samples.labels[row])]

    def picture(self, row: int) -> Image.Image:
        values = self.samples.read([row])[0][0].float().cpu()
        if self.preprocessing is None:
            return _image(_stretched(values))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std))
        return _image((values * std + mean) * 255)


def _stretched(values: torch.Tensor) -> torch.Tensor:
    low, high = values.min(), values.max()
    return (values - low) * (255 / (high - low)) if high > low else torch.zeros_like(values)


def _image(values: torch.Tensor) -> Image.Image:
    """Make a picture of values (C, H, W) from 0 to 255."""
    pixels = values.nan_to_num().round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _jpeg(picture: Image.Image, most: int) -> str:
    picture.thumbnail((most, most))
    file = io.BytesIO()
    # With coarser colours a crop of a few pixels would have one colour.
    picture.save(file, "JPEG", quality=80, subsampling=0)
    return base64.b64encode(file.getvalue()).decode()


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _finite(values: torch.Tensor) -> torch.Tensor:
    """In double precision, with 0 where a broken picture gave no number, so that it hides no other."""
    return values.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0)


# --- filters and mistakes ---------------------------------------------------------------------


def _filters(net: nn.Module, graph: CutGraph) -> tuple[str, ...]:
    modules = dict(net.named_modules())
    convolutions = (modules[call.name] for call in graph.recording.calls)
    first = next((module for module in convolutions if isinstance(module, nn.Conv2d)), None)
    if first is None or first.weight.shape[1] not in (1, 3) or max(first.kernel_size) == 1:
        return ()
    weights = first.weight.detach().float().cpu()
    return tuple(
        _png(_image(_stretched(weight)).resize((24, 24), Image.Resampling.NEAREST)) for weight in weights[:MOST_FILTERS]
    )


def _mistakes(shown: _Shown, score: Score) -> tuple[Mistake, ...]:
    pairs = zip(shown.samples.labels.tolist(), score.predictions, strict=True)
    wrong = [row for row, (label, prediction) in enumerate(pairs) if label != prediction]
    wrong.sort(key=lambda row: -score.confidences[row])
    return tuple(_differing(shown, row, score.predictions[row], score.confidences[row]) for row in wrong[:MOST])


def _differing(shown: _Shown, row: int, prediction: int, confidence: float) -> Mistake:
    name = shown.samples.names[row]
    return Mistake(
        sample=row,
        file="" if name == str(row) else name,
        label=shown.label(row),
        prediction=shown.classes[prediction],
        confidence=confidence,
        image=_jpeg(shown.picture(row), 96),
    )


# --- what each stage sees ---------------------------------------------------------------------


def _sights(net: nn.Module, graph: CutGraph, shown: _Shown) -> tuple[Sight, ...]:
    rows = in_turns(shown.samples.labels, seed=0)[:MOST_PICTURES].tolist()
    device = next(net.parameters()).device

    def pictures(places: Sequence[int]) -> torch.Tensor:
        return shown.samples.read(places)[0].to(device)

    few = pictures(rows[:4])
    watch = _Watch(net, graph, (few.shape[2], few.shape[3]))
    fields = _fields(watch, few)
    # Batches of nearly one size, since many networks squeeze a batch of one away.
    batches = torch.tensor(rows).tensor_split(-(-len(rows) // _BATCH))
    with torch.no_grad():
        found = [watch.run(pictures(batch.tolist()), _strongest) for batch in batches]
    sights = []
    for output, field, answers in zip(watch.outputs, fields, zip(*found, strict=True), strict=True):
        strengths, positions = (torch.cat(column) for column in zip(*answers, strict=True))
        channels = tuple(
            Channel(
                index=channel,
                crops=_crops(shown, rows, strengths[:, channel], positions=positions[:, channel], field=field),
            )
            for channel in _telling(strengths)
        )
        if channels:
            sights.append(Sight(stage=output.stage.index, name=output.stage.name, side=field.side, channels=channels))
    return tuple(sights)


def _strongest(answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The strongest answer of each channel to each picture, (B, C), and its position."""
    strengths, positions = answers.flatten(2).max(dim=2)
    return _finite(strengths), positions.cpu()


def _telling(strengths: torch.Tensor) -> list[int]:
    """The channels whose strongest answers (N, C) vary most from picture to picture.

    The variance is relative to the square of the mean, to which the stage's own is added: a channel that
    hardly ever answers at all would else be the first.
    """
    spread = strengths.var(dim=0, correction=0) / (strengths.mean(dim=0).square() + strengths.square().mean())
    spread = torch.where(strengths.amax(dim=0) > 0, spread, 0.0)
    order = spread.argsort(descending=True, stable=True)[:CHANNELS].tolist()
    return [channel for channel in order if spread[channel] > 0]


def _crops(
    shown: _Shown, rows: Sequence[int], strengths: torch.Tensor, *, positions: torch.Tensor, field: "_Field"
) -> tuple[Crop, ...]:
    """Where one channel answered most strongly, each time in another picture."""
    crops: dict[str, Crop] = {}
    for place in strengths.argsort(descending=True, stable=True).tolist():
        row, strength = rows[place], float(strengths[place] / strengths.max())
        digest = shown.samples.digests[row]
        if len(crops) == CROPS or strength <= 0:
            break
        if digest not in crops:
            picture = shown.picture(row)
            picture = picture.crop(field.box(int(positions[place]), (picture.height, picture.width)))
            crops[digest] = Crop(sample=row, label=shown.label(row), image=_jpeg(picture, 72), strength=strength)
    return tuple(crops.values())


# --- the outputs of the stages ----------------------------------------------------------------


class _Output(NamedTuple):
    """A stage's output: which leaf of which call of which module, and how it lies."""

    stage: Stage
    name: str
    nth: int
    leaf: int
    wire: Wire


class _Watch:
    """Runs a network and shows what its stages give, as maps (B, C, H, W)."""

    def __init__(self, net: nn.Module, graph: CutGraph, sides: _Sides) -> None:
        self.net = net
        self.sides = sides
        self._inputs = graph.recording.inputs
        self.outputs = _spread([output for depth in graph.open_depths if depth for output in self._of(graph, depth)])

    def _of(self, graph: CutGraph, depth: int) -> list[_Output]:
        """The output of the last stage below the cut, or nothing where it is no map."""
        point = graph.recording.points[depth]
        # What else crosses was made by earlier stages.
        stored, wire = max(zip(point.stored, graph.cuts[depth].wires, strict=True), key=lambda pair: pair[0].call)
        example = torch.empty(wire.shape, dtype=getattr(torch, wire.dtype), device="meta")
        if stored.call < 0 or _as_map(example, wire, self.sides) is None:
            return []
        call = graph.recording.calls[stored.call]
        return [_Output(graph.stages[depth - 1], call.name, call.nth, stored.leaf, wire)]

    def run(self, pictures: torch.Tensor, take: Callable[[torch.Tensor], _T]) -> list[_T]:
        """What `take` makes of each output, at the moment at which it is there: it may be written over later."""
        taken: dict[_Output, _T] = {}
        seen: Counter[str] = Counter()

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def look(module: nn.Module, inputs: Any, result: Any) -> None:
                for output in self.outputs:
                    if (output.name, output.nth) == (name, seen[name]):
                        answers = _as_map(leaves(result)[output.leaf], output.wire, self.sides)
                        assert answers is not None
                        taken[output] = take(answers)
                seen[name] += 1

            return look

        names = sorted({output.name for output in self.outputs})
        handles = [self.net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
        try:
            args, kwargs = self._inputs.bind((pictures,))
            self.net(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return [taken[output] for output in self.outputs]


def _spread(outputs: list[_Output]) -> list[_Output]:
    if len(outputs) <= MOST_STAGES:
        return outputs
    step = (len(outputs) - 1) / (MOST_STAGES - 1)
    return [outputs[round(step * place)] for place in range(MOST_STAGES)]


def _as_map(output: torch.Tensor, wire: Wire, sides: _Sides) -> torch.Tensor | None:
    """An output as (B, C, H, W), a vector as a map of one position; None where it is neither."""
    if wire.factor != 1 or not output.is_floating_point():
        return None
    output = output.movedim(wire.batch_axis, 0)
    shape = output.shape[1:]
    if len(shape) == 1:
        return output[:, :, None, None]
    if len(shape) == 2 and (grid := _grid(shape[0], sides)):
        return output[:, -grid[0] * grid[1] :].movedim(2, 1).reshape(len(output), shape[1], *grid)
    if len(shape) == 3:
        height, width = sides
        is_channels_last = abs(shape[0] * width - shape[1] * height) < abs(shape[1] * width - shape[2] * height)
        return output.movedim(3, 1) if is_channels_last else output
    return None


def _grid(tokens: int, sides: _Sides) -> _Sides | None:
    """Rows and columns of tokens that cover the picture evenly, a first token left out where it is one too many."""
    for count in (tokens, tokens - 1):
        rows, columns = (round((count * one / other) ** 0.5) for one, other in (sides, sides[::-1]))
        if 0 < count == rows * columns:
            return rows, columns
    return None


# --- how far a position sees ------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """The square of a picture that a position of a map depends on.

    Args:
        side: In pixels; that of the whole picture at most.
        grid: Rows and columns of the map.
        middle: Row and column of the picture around which the map's middle position sees.
    """

    side: int
    grid: _Sides
    middle: tuple[float, float]

    def box(self, position: int, sides: _Sides) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what a position sees, moved into the picture where it sticks out."""
        ends: list[tuple[int, int]] = []
        for place, size, side, middle in zip(
            divmod(position, self.grid[1]), self.grid, sides, self.middle, strict=True
        ):
            length = min(self.side, side)
            centre = middle + (place - size // 2) * side / size
            start = max(0, min(round(centre - length / 2), side - length))
            ends.append((start, start + length))
        (top, bottom), (left, right) = ends
        return left, top, right, bottom


def _fields(watch: _Watch, pictures: torch.Tensor) -> list[_Field]:
    """Measure the receptive field of each stage by the gradient of its middle position.

    Of all channels at once, each with a weight drawn from a normal distribution, so that none cancels another.

    Source:
        Luo, Li, Urtasun and Zemel, Understanding the Effective Receptive Field in Deep Convolutional Neural
        Networks, 2016, section 3.1. They average over random inputs; here it is over some of the user's own.
    """
    draws = torch.Generator().manual_seed(0)

    def middle(answers: torch.Tensor) -> tuple[torch.Tensor, _Sides]:
        rows, columns = answers.shape[2:]
        weights = torch.randn(answers.shape[:2], generator=draws).to(answers)
        return (answers[:, :, rows // 2, columns // 2] * weights).sum(), (rows, columns)

    pictures = pictures.detach().requires_grad_()
    with torch.enable_grad():
        # A copy, since a network may write into what it is given.
        asked = watch.run(pictures.clone(), middle)
    return [_field(_gradient(answer, pictures), grid, watch.sides) for answer, grid in asked]


def _gradient(answer: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """How much each pixel weighs in an answer, (H, W)."""
    try:
        (gradient,) = torch.autograd.grad(answer, pictures, retain_graph=True)
    except RuntimeError:
        # A network may cut the gradient off, or forbid this way of asking for it (re-entrant checkpoints).
        return torch.zeros(pictures.shape[2:], dtype=torch.float64)
    return _finite(gradient).abs().sum(dim=(0, 1))


def _field(weights: torch.Tensor, grid: _Sides, sides: _Sides) -> _Field:
    """The smallest square around the centre of weight that holds 95 % of it."""
    total = float(weights.sum())
    if grid == (1, 1) or not total:
        return _Field(max(sides), grid, (sides[0] / 2, sides[1] / 2))
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
    return _Field(min(int(2 * reach) + 1, max(sides)), grid, (middle[0], middle[1]))
