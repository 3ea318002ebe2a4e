"""Samples to look at: what excites the channels of each stage, and where the network was most surely wrong."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import nn

from frostline.answering import Lay, Output, Watch, as_line, as_map, rows_of
from frostline.copies import copy_of, full_precision, plain_torch
from frostline.data import Samples, Worded
from frostline.exhibits import Album, Channel, Crop, Mistake, Sight
from frostline.fields import Field, Line, finite, picture_fields, sound_lines, text_lines
from frostline.records import CutGraph, Doubt, Preprocessing, Score
from frostline.sampling import in_turns
from frostline.spectrograms import spectrogram
from frostline.tokens import find_counted, find_ids

MOST_SAMPLES = 256
MOST_FILTERS = 64
MOST = 12
"""Mistakes that are shown, and labels in doubt."""

MOST_LETTERS = 40
CHANNELS = 3
CROPS = 4
NEIGHBOURS = 3
"""Tokens shown on each side of one that a channel answered to."""

SHORTEST_SOUND = 400
"""Values from which on a row of floats may be a sound: a twentieth of a second at 8 kHz."""

_BATCH = 32
_Answers = tuple[torch.Tensor, torch.Tensor]
"""The strongest answer of each channel to each sample, (N, C), and its position in the map."""


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
    """Collect what each stage answers to, and pictures of confident mistakes and of labels in doubt.

    At most 12 stages are shown, each by the parts of at most 256 training samples that its channels answer to most
    strongly: of pictures a square, of sounds (waveforms, of at least 400 values) a stretch as a spectrogram, of texts
    a token among its neighbours. Filters, mistakes and labels in doubt are of pictures only. Other samples, such as
    the rows of a table, give an empty album.

    Args:
        model: The network, tuned or not; a copy of it is run, in eval mode.
        graph: Its stages and cuts.
        train: Samples that the stages look at. Texts may say what their tokens stand for (`Worded`).
        test: Samples that were scored.
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
    net = copy_of(model, model.parameters()).eval()
    first = train.read([0])
    learnt, scored = (_Shown(part, classes, preprocessing) for part in (train, test))
    with full_precision(), plain_torch():
        if _are_pictures(first):
            return Album(
                filters=_filters(net, graph),
                sights=_picture_sights(net, graph, learnt),
                mistakes=_mistakes(scored, score),
                doubts=_doubts(learnt, doubts),
            )
        if _are_sounds(first):
            return Album(sights=_sound_sights(net, graph, learnt))
        return Album(sights=_text_sights(net, graph, learnt))


def _are_pictures(inputs: tuple[torch.Tensor, ...]) -> bool:
    first = inputs[0]
    return (
        len(inputs) == 1
        and first.dim() == 4
        and first.shape[1] in (1, 3)
        and min(first.shape[2:]) > 1
        and first.is_floating_point()
    )


def _are_sounds(inputs: tuple[torch.Tensor, ...]) -> bool:
    first = inputs[0]
    return (
        len(inputs) == 1
        and (first.dim() == 2 or (first.dim() == 3 and first.shape[1] == 1))
        and first.shape[-1] >= SHORTEST_SOUND
        and first.is_floating_point()
    )


# --- samples as a person sees them ------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """A part of the data, as names, pictures and words."""

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

    def words(self, tokens: Sequence[int]) -> tuple[str, ...]:
        found = self.samples.words(tokens) if isinstance(self.samples, Worded) else map(str, tokens)
        return tuple(word if len(word) <= MOST_LETTERS else f"{word[: MOST_LETTERS - 1]}…" for word in found)


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


def _doubts(shown: _Shown, doubts: Sequence[Doubt]) -> tuple[Mistake, ...]:
    return tuple(_differing(shown, doubt.sample, doubt.prediction, doubt.confidence) for doubt in doubts[:MOST])


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

_Show = Callable[[int, int, Field], Crop]
"""What a position of a map sees of a sample: by place among the samples that are looked at, position and field."""


def _picture_sights(net: nn.Module, graph: CutGraph, shown: _Shown) -> tuple[Sight, ...]:
    rows = _looked_at(shown)
    pictures = _reading(shown, rows, net)

    def show(place: int, position: int, field: Field) -> Crop:
        picture = shown.picture(rows[place])
        picture = picture.crop(field.box(position, (picture.height, picture.width)))
        return Crop(sample=rows[place], label=shown.label(rows[place]), image=_jpeg(picture, 72))

    few = pictures(range(min(4, len(rows))))
    sides = (few.shape[2], few.shape[3])
    watch = Watch(net, graph, _laid(lambda output, answers: as_map(answers, sides)))
    fields = picture_fields(watch, few)
    with torch.no_grad():
        found = [watch.run((pictures(batch),), _strongest) for batch in _batches(rows)]
    return _sights(watch, fields, found, digests=_digests(shown, rows), show=show, kind="picture", whole=sides)


def _sound_sights(net: nn.Module, graph: CutGraph, shown: _Shown) -> tuple[Sight, ...]:
    rows = _looked_at(shown)
    sounds = _reading(shown, rows, net)
    few = sounds(range(min(4, len(rows))))
    whole = few.shape[-1]

    def show(place: int, position: int, field: Field) -> Crop:
        left, _, right, _ = field.box(position, (1, whole))
        image = _jpeg(spectrogram(sounds([place]).flatten()[left:right]), 72)
        return Crop(sample=rows[place], label=shown.label(rows[place]), image=image, start=left)

    plain = Watch(net, graph, _laid(lambda output, answers: answers if 2 <= answers.dim() <= 4 else None))
    lines = sound_lines(plain, few)
    if all(line.axis is None for line in lines):
        # Nothing in the network follows time, as where the samples are rows of a table.
        return ()
    watch = Watch(net, graph, _along(plain, lines))
    with torch.no_grad():
        found = [watch.run((sounds(batch),), _strongest) for batch in _batches(rows)]
    fields = [line.field for line in lines]
    return _sights(watch, fields, found, digests=_digests(shown, rows), show=show, kind="sound", whole=(whole,))


def _text_sights(net: nn.Module, graph: CutGraph, shown: _Shown) -> tuple[Sight, ...]:
    rows, device = _looked_at(shown), next(net.parameters()).device
    inputs = [tensor.to(device) for tensor in shown.samples.read(rows)]
    ids = find_ids(inputs)
    if ids is None:
        return ()
    plain = Watch(net, graph, _laid(lambda output, answers: answers if answers.dim() == 3 else None))
    counted = find_counted(net, plain.call, inputs, ids)
    lengths = counted.sum(dim=1)
    longest = lengths.argsort(descending=True, stable=True)[:4]
    lines = text_lines(plain, [tensor[longest] for tensor in inputs], ids, counted[longest])
    watch = Watch(net, graph, _along(plain, lines))
    fields = [line.field for line in lines]
    tokens = {output: _tokens(field, counted.shape[1]) for output, field in zip(watch.outputs, fields, strict=True)}

    def look(batch: list[int]) -> list[_Answers]:
        def strongest(output: Output, answers: torch.Tensor) -> _Answers:
            is_padding = ~counted[batch][:, tokens[output]]
            return _strongest(output, answers.masked_fill(is_padding[:, None, None], float("-inf")))

        return watch.run([tensor[batch] for tensor in inputs], strongest)

    def show(place: int, position: int, field: Field) -> Crop:
        own = counted[place].nonzero().flatten().tolist()
        middle = own.index(int(_tokens(field, counted.shape[1])[position]))
        start = max(0, middle - NEIGHBOURS)
        words = shown.words(inputs[ids][place, own[start : middle + NEIGHBOURS + 1]].tolist())
        label = shown.label(rows[place])
        return Crop(sample=rows[place], label=label, start=start, words=words, marked=middle - start)

    with torch.no_grad():
        found = [look(batch) for batch in _batches(rows)]
    whole = (int(lengths.max()),)
    return _sights(watch, fields, found, digests=_digests(shown, rows), show=show, kind="text", whole=whole)


def _looked_at(shown: _Shown) -> list[int]:
    return in_turns(shown.samples.labels, seed=0)[:MOST_SAMPLES].tolist()


def _reading(shown: _Shown, rows: Sequence[int], net: nn.Module) -> Callable[[Sequence[int]], torch.Tensor]:
    """Reads the one input of some samples, by their places among the rows, to where the network is."""
    device = next(net.parameters()).device
    return lambda places: shown.samples.read([rows[place] for place in places])[0].to(device)


def _digests(shown: _Shown, rows: Sequence[int]) -> list[str]:
    return [shown.samples.digests[row] for row in rows]


def _batches(rows: Sequence[int]) -> list[list[int]]:
    """Places in batches of nearly one size, since many networks squeeze a batch of one away."""
    return [batch.tolist() for batch in torch.arange(len(rows)).tensor_split(-(-len(rows) // _BATCH))]


def _laid(lay: Lay) -> Lay:
    """Lay out what has a row of its own for each sample."""

    def checked(output: Output, answers: torch.Tensor) -> torch.Tensor | None:
        rows = rows_of(output, answers)
        return None if rows is None else lay(output, rows)

    return checked


def _along(plain: Watch, lines: Sequence[Line]) -> Lay:
    """Lay out the outputs of a watch as maps whose columns follow the sequence."""
    axes = {output: line.axis for output, line in zip(plain.outputs, lines, strict=True)}

    def lay(output: Output, answers: torch.Tensor) -> torch.Tensor | None:
        if output not in axes:
            return None
        axis = axes[output]
        return answers[:, :, None, None] if axis is None else as_line(answers, axis)

    return _laid(lay)


def _tokens(field: Field, length: int) -> torch.Tensor:
    """The token that each place of a stage's output stands for, (T,)."""
    places = field.grid[1]
    if places == length:
        return torch.arange(length)
    centres = torch.tensor([field.centre(place, (1, length))[1] for place in range(places)])
    return centres.long().clamp(0, length - 1)


def _strongest(output: Output, answers: torch.Tensor) -> _Answers:
    strengths, positions = answers.flatten(2).max(dim=2)
    return finite(strengths), positions.cpu()


def _sights(
    watch: Watch,
    fields: Sequence[Field],
    found: Sequence[Sequence[_Answers]],
    *,
    digests: Sequence[str],
    show: _Show,
    kind: Literal["picture", "sound", "text"],
    whole: tuple[int, ...],
) -> tuple[Sight, ...]:
    """What each stage sees, of the strongest answers of its channels in each batch."""
    sights = []
    for output, field, answers in zip(watch.outputs, fields, zip(*found, strict=True), strict=True):
        strengths, positions = (torch.cat(column) for column in zip(*answers, strict=True))
        channels = tuple(
            Channel(
                index=channel,
                crops=tuple(
                    show(place, int(positions[place, channel]), field).model_copy(update={"strength": strength})
                    for place, strength in _first(strengths[:, channel], digests)
                ),
            )
            for channel in _telling(strengths)
        )
        stage = output.stage
        if channels:
            sights.append(
                Sight(stage=stage.index, name=stage.name, side=field.side, channels=channels, kind=kind, whole=whole)
            )
    return tuple(sights)


def _telling(strengths: torch.Tensor) -> list[int]:
    """The channels whose strongest answers (N, C) vary most from picture to picture.

    The variance is relative to the square of the mean, to which the stage's own is added: a channel that
    hardly ever answers at all would else be the first.
    """
    spread = strengths.var(dim=0, correction=0) / (strengths.mean(dim=0).square() + strengths.square().mean())
    spread = torch.where(strengths.amax(dim=0) > 0, spread, 0.0)
    order = spread.argsort(descending=True, stable=True)[:CHANNELS].tolist()
    return [channel for channel in order if spread[channel] > 0]


def _first(strengths: torch.Tensor, digests: Sequence[str]) -> list[tuple[int, float]]:
    """Where one channel answered most strongly, each time another sample, and how strongly."""
    found: dict[str, tuple[int, float]] = {}
    for place in strengths.argsort(descending=True, stable=True).tolist():
        strength = float(strengths[place] / strengths.max())
        if len(found) == CROPS or strength <= 0:
            break
        found.setdefault(digests[place], (place, strength))
    return list(found.values())
