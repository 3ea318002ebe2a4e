"""Read a watched pass: find its cuts, number its stages, say why a cut cannot be used."""

import bisect
import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from frostline import fingerprint
from frostline.copies import copy_of
from frostline.errors import BadArgument
from frostline.numbering import Place, numbered
from frostline.recording import Call, Layout, Point, Read, Recording, Size, Storage, Stored, dense_stride
from frostline.records import Cut, CutGraph, Stage, Wire
from frostline.trees import arguments, batch_of, tensors, with_rows
from frostline.watching import Operation, Pass, watch

_TIED = "tied:"


def graph_of(model: nn.Module, example: Any) -> CutGraph:
    """Watch one forward pass at two batch sizes and list the stages and cuts of the network.

    Args:
        model: The network; the passes run on a copy that shares its parameters.
        example: What its forward takes, as `trace` takes it.

    Raises:
        BadArgument: The network holds tensors without values, or the example no sample.
    """
    _check_has_values(model)
    # Many networks squeeze a batch of one away.
    example = with_rows(example, max(2, batch_of(example)))
    batch = batch_of(example)
    other = batch // 2 if batch % 2 == 0 and batch >= 4 else 2 * batch
    names = tuple(_input_names(model, example))
    # Going by way of train mode empties what a network keeps in eval mode (LeViT's biases). The other size goes first:
    # what is made once in a process (BEiT's places) is a constant in the pass that is read.
    fresh, watched = (copy_of(model, model.parameters()).train().eval() for _ in range(2))
    second = watch(fresh, *arguments(with_rows(example, other)), names)
    first = watch(watched, *arguments(example), names)
    return survey(watched, (first, batch), (second, other))


def _check_has_values(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise BadArgument(
                f"BadArgument: `{name}` has no shape yet, since lazy modules take theirs from the first batch. "
                "Run the network once, `model(example)`, and trace it then.",
                name=name,
            )
        if tensor.is_meta:
            raise BadArgument(
                f"BadArgument: `{name}` is on the device `meta` and holds no values, so nothing can be watched. "
                'Build the network on a real device: `model.to_empty(device="cpu")`, then load its weights.',
                name=name,
            )


def survey(model: nn.Module, first: tuple[Pass, int], second: tuple[Pass, int]) -> CutGraph:
    """List the stages and cuts of a network that was watched at two batch sizes.

    Args:
        model: The network that was watched.
        first: The pass to read, and its batch size.
        second: The same at another batch size.
    """
    seen, batch = first
    calls, is_steady = _paired_calls(seen, second[0], batch, second[1])
    recording = Recording(
        batch=batch,
        calls=calls,
        storages=seen.storages,
        inputs=dataclasses.replace(
            seen.inputs, leaves=_paired(seen.inputs.leaves, second[0].inputs.leaves, batch, second[1])
        ),
        reads=_reads(model, seen),
    )
    if is_steady:
        seen = dataclasses.replace(seen, output=_paired(seen.output, second[0].output, batch, second[1]))
    finder = _Finder(model, seen, recording, is_steady)
    found = [place for number in range(len(recording.calls)) if (place := finder.place(number))]
    places = numbered(model, found, recording)
    return _graph(model, finder, places, _signatures(first, second, [place.moment for place in places]))


def _input_names(model: nn.Module, example: Any) -> Iterable[str]:
    """Name each tensor of the example after the argument of forward that it is, or lies in."""
    args, kwargs = arguments(example)
    try:
        known = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        known = []
    # A forward that takes *inputs names none of them.
    known = known if len(known) >= len(args) else [f"input{place}" for place in range(len(args))]
    named = {**dict(zip(known, args, strict=False)), **kwargs}
    for name, arg in named.items():
        found = len(tensors(arg))
        yield from [name] if found == 1 else [f"{name}.{place}" for place in range(found)]


# --- two batch sizes --------------------------------------------------------------------------


def _paired_calls(seen: Pass, again: Pass, batch: int, other: int) -> tuple[tuple[Call, ...], bool]:
    """The calls with every size as a function of the batch, where both passes made the same calls."""
    same = len(seen.calls) == len(again.calls) and all(
        (one.name, len(one.leaves)) == (two.name, len(two.leaves))
        for one, two in zip(seen.calls, again.calls, strict=True)
    )
    if not same:
        return tuple(seen.calls), False
    return tuple(
        dataclasses.replace(one, leaves=_paired(one.leaves, two.leaves, batch, other))
        for one, two in zip(seen.calls, again.calls, strict=True)
    ), True


def _paired(ones: Sequence[Any], twos: Sequence[Any], batch: int, other: int) -> tuple[Any, ...]:
    return tuple(_fitted(one, two, batch, other) for one, two in zip(ones, twos, strict=True))


def _fitted(one: Any, two: Any, batch: int, other: int) -> Any:
    match one, two:
        case Size(), Size():
            each, rest = divmod(two.fixed - one.fixed, other - batch)
            return one if rest else Size(one.fixed - each * batch, each)
        case Layout(), Layout() if len(one.shape) == len(two.shape):
            return Layout(
                _paired(one.shape, two.shape, batch, other),
                _paired(one.stride, two.stride, batch, other),
                _fitted(one.offset, two.offset, batch, other),
                one.dtype,
                one.device,
            )
    return one


def _signatures(first: tuple[Pass, int], second: tuple[Pass, int], moments: Sequence[int]) -> list[str]:
    """Name the operations up to each moment, whatever the batch size they were watched at."""
    (seen, batch), (again, other) = first, second
    is_paired = [step.name for step in seen.operations] == [step.name for step in again.operations]
    texts = [
        _operation_text(one, two, batch, other)
        for one, two in zip(seen.operations, again.operations if is_paired else seen.operations, strict=True)
    ]
    ends = [step.moment for step in seen.operations]
    return [fingerprint.of_text(*texts[: bisect.bisect_right(ends, moment)]) for moment in moments]


def _operation_text(one: Operation, two: Operation, batch: int, other: int) -> str:
    scalars: list[Any] = []
    for left, right in zip(one.scalars, two.scalars, strict=False):
        is_count = isinstance(left, int) and isinstance(right, int) and not isinstance(left, bool)
        scalars.append(tuple(_fitted(Size(left), Size(right), batch, other)) if is_count else left)
    return f"{one.name}{scalars}"


def _reads(model: nn.Module, seen: Pass) -> dict[str, tuple[int, ...]]:
    """When each parameter and buffer was read; for a buffer that eval mode leaves alone, when its module was called."""
    first_names = {module: name for name, module in model.named_modules()}
    ends: dict[str, list[int]] = {}
    for call in seen.calls:
        ends.setdefault(call.name, []).append(call.end)
    homes = {name: first_names[module] for name, module in model.named_modules(remove_duplicate=False)}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    found = {}
    for name, key in seen.owned.items():
        home = homes[name.rpartition(".")[0]]
        # Batch norm counts batches in train mode only, yet the count belongs to the side of the layer.
        fallback = ends.get(home, []) if name in buffers and home else []
        found[name] = tuple(seen.reads[key] or fallback)
    return found


# --- cuts -------------------------------------------------------------------------------------


class _Finder:
    """Says of each module call what crosses its return."""

    def __init__(self, model: nn.Module, seen: Pass, recording: Recording, is_steady: bool) -> None:
        self.seen = seen
        self.recording = recording
        self.is_steady = is_steady
        self.ends = {call.start: call.end for call in recording.calls}
        self.end = recording.calls[-1].end
        lasting = [(item.made, item.last, key) for key, item in recording.storages.items() if item.last > item.made]
        made_of_sample = {key for key, item in recording.storages.items() if item.is_data and item.of_sample}
        self.data = [entry for entry in lasting if entry[2] in made_of_sample]
        self.plain = [entry for entry in lasting if entry[2] not in made_of_sample]
        self.float_inputs = {
            key: place
            for place, (key, layout) in enumerate(zip(recording.inputs.storages, recording.inputs.layouts, strict=True))
            if layout.dtype.is_floating_point or layout.dtype.is_complex
        }
        norms = {name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, _NormBase)}
        self.sided = {
            name: recording.reads[name]
            for name, key in seen.owned.items()
            if recording.reads[name] and (key in seen.weights or name.rpartition(".")[0] in norms)
        }

    def place(self, number: int) -> Place | None:
        """The cut at the return of that call, or None where something else crosses too."""
        call = self.recording.calls[number]
        if call.end == self.end or not call.name:
            return None
        moment = call.end
        crossing = {key for made, last, key in self.data if made <= moment < last}
        if not crossing & set(call.storages):
            return None
        outer = self.recording.outer(moment)
        crossing |= self._sealed_in(moment, outer)
        owned = {key for place in outer for key in self.recording.calls[place].storages}
        if not crossing <= owned | self.float_inputs.keys():
            return None
        kept = [item for key in crossing for item in self._chosen(key, moment, outer)]
        kept.sort(key=lambda item: (item.call < 0, item.call, item.leaf))
        fixed = [item for item in kept if self._is_fixed(item)]
        stored = [item for item in kept if item not in fixed]
        if not stored:
            return None
        return Place(call.name, moment, number, tuple(stored), tuple(fixed), self.trouble(moment, stored))

    def _is_fixed(self, item: Stored) -> bool:
        """Whether it is the same for every sample, and of one size at every batch size."""
        sizes = (*item.layout.shape, *item.layout.stride, item.layout.offset)
        return not self.recording.storages[item.storage].of_sample and not any(size.each for size in sizes)

    def _sealed_in(self, moment: int, outer: Sequence[int]) -> set[int]:
        """Values that could be derived again, or that others are, but for a module or a weight that is gone."""
        spans = sorted((self.recording.calls[place].start, self.recording.calls[place].end) for place in outer)
        starts = [start for start, _ in spans]

        def is_inside(made: int) -> bool:
            place = bisect.bisect_left(starts, made) - 1
            return place >= 0 and made < spans[place][1]

        found = set()
        waiting = {key for made, last, key in self.plain if made <= moment < last}
        seen = set(waiting)
        while waiting:
            storage = self.recording.storages[key := waiting.pop()]
            if is_inside(storage.made) or storage.sources & self.seen.weights:
                found.add(key)
                continue
            fresh = storage.sources - seen
            waiting |= fresh
            seen |= fresh
        return found

    def _chosen(self, key: int, moment: int, outer: Sequence[int]) -> list[Stored]:
        """What to keep of a storage: the smallest and latest output that holds all that is read later."""
        storage = self.recording.storages[key]
        later = [read for read in storage.reads if read.moment > moment]
        found: list[Stored] = []
        for place in reversed(outer):
            call = self.recording.calls[place]
            of_key = [leaf for leaf, storage_key in enumerate(call.storages) if storage_key == key]
            mine = _distinct(Stored(place, leaf, key, call.leaves[leaf]) for leaf in of_key)
            for option in [*([item] for item in mine), mine]:
                if option and _holds([item.layout for item in option], later, storage, self.recording.batch):
                    return option
            found += mine
        if key in self.float_inputs:
            place = self.float_inputs[key]
            return [Stored(-1, place, key, self.recording.inputs.layouts[place])]
        # Several outputs together, or none: the proof decides.
        return [max(found, key=lambda item: _elements(item.layout, self.recording.batch))]

    def trouble(self, moment: int, stored: Sequence[Stored]) -> str | None:
        for asked, frame in self.seen.asked:
            if asked <= moment < self.ends.get(frame, self.end):
                name = next((call.name for call in self.recording.calls if call.start == frame), "")
                return (
                    f"Python has looked at a value of the sample inside {name or 'the network'!r}, which is still "
                    "running there, so the path it took would be frozen in"
                )
        for name, moments in self.sided.items():
            if min(moments) <= moment < max(moments):
                return _TIED + name
        if not self.is_steady:
            return "the network calls other modules at another batch size, so the batch axis cannot be found"
        for item in stored:
            if item.layout.batch_axis is None:
                shape = item.layout.at(self.recording.batch)[0]
                return f"no axis of {self.wire_name(item)!r} {shape} grows with the batch, so it has no rows to keep"
        return None

    def writes_around(self, moment: int) -> bool:
        """Whether glue below the cut writes into what a module returned or the user gave."""
        outer = [self.recording.calls[place] for place in self.recording.outer(moment)]
        blank = {key for call in outer for key in call.storages} | set(self.recording.inputs.storages)
        return any(
            written <= moment and not any(call.start < written < call.end for call in outer)
            for key in blank
            if key in self.recording.storages
            for written in self.recording.storages[key].writes
        )

    def wire_name(self, item: Stored) -> str:
        """The call or the input that a wire comes from."""
        if item.call < 0:
            return self.recording.inputs.names[item.leaf]
        call = self.recording.calls[item.call]
        return call.name if len(call.leaves) == 1 else f"{call.name}[{item.leaf}]"


def _distinct(items: Any) -> list[Stored]:
    return list({item.layout: item for item in items}.values())


def _elements(layout: Layout, batch: int) -> int:
    return torch.Size(layout.at(batch)[0]).numel()


def _holds(layouts: Sequence[Layout], reads: Sequence[Read], storage: Storage, batch: int) -> bool:
    """Whether every element that is read lies in one of the layouts."""
    if not reads:
        return True
    geometries = [layout.at(batch) for layout in layouts]
    if any(_is_whole(geometry, layout.dtype, storage) for geometry, layout in zip(geometries, layouts, strict=True)):
        return True
    length = 1 + max(
        _reach(shape, stride, offset)
        for shape, stride, offset in [*geometries, *((read.shape, read.stride, read.offset) for read in reads)]
    )
    held = torch.zeros(length, dtype=torch.bool)
    for shape, stride, offset in geometries:
        # An axis that is expanded lies on one element.
        once = tuple(1 if step == 0 else size for size, step in zip(shape, stride, strict=True))
        held.as_strided(once, stride, offset).fill_(True)
    places = {(read.shape, read.stride, read.offset) for read in reads}
    return all(bool(held.as_strided(shape, stride, offset).all()) for shape, stride, offset in places)


def _reach(shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> int:
    return offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size)


def _is_whole(geometry: tuple[tuple[int, ...], tuple[int, ...], int], dtype: torch.dtype, storage: Storage) -> bool:
    shape, stride, _ = geometry
    is_expanded = any(step == 0 and size > 1 for size, step in zip(shape, stride, strict=True))
    return not is_expanded and torch.Size(shape).numel() * dtype.itemsize == storage.bytes


# --- the record -------------------------------------------------------------------------------


def _graph(model: nn.Module, finder: _Finder, places: Sequence[Place], signatures: Sequence[str]) -> CutGraph:
    recording = finder.recording
    batch = recording.batch
    raw = [
        Stored(-1, place, key, layout)
        for place, (key, layout) in enumerate(zip(recording.inputs.storages, recording.inputs.layouts, strict=True))
    ]
    plain = [item for item in raw if item.leaf not in finder.float_inputs.values()]
    points = [Point(0, -1, tuple(raw), fingerprint.of_text("inputs"))]
    for place, signature in zip(places, signatures, strict=True):
        points.append(Point(place.moment, place.call, (*place.stored, *plain), signature, place.fixed))
    recording.points = tuple(points)
    head, outputs = _head(model, recording, finder)
    moments = [place.moment for place in places]
    names = _unique([*(place.name for place in places), _last_name(recording, moments)])
    stages = _stages(model, finder, names, places)
    cuts = []
    for depth, point in enumerate(points):
        trouble = places[depth - 1].trouble if depth else finder.trouble(0, raw)
        wires = tuple(_wire(item, finder.wire_name(item), batch) for item in point.stored)
        cuts.append(
            Cut(
                depth=depth,
                name=names[depth - 1] if depth else "",
                wires=wires,
                bytes_per_sample=sum(wire.bytes_per_sample for wire in wires),
                blocked=_in_words(trouble, recording, moments, names),
            )
        )
        if finder.writes_around(point.moment):
            recording.dense.add(depth)
    return CutGraph(
        model=type(model).__name__,
        batch=batch,
        stages=stages,
        cuts=tuple(cuts),
        head=head,
        outputs=outputs,
        recording=recording,
    )


def _wire(item: Stored, name: str, batch: int) -> Wire:
    shape, stride, _ = item.layout.at(batch)
    stride = dense_stride(shape, stride)
    axis = item.layout.batch_axis
    return Wire(
        name=name,
        shape=shape,
        dtype=str(item.layout.dtype).removeprefix("torch."),
        batch_axis=axis or 0,
        factor=item.layout.shape[axis].each if axis is not None else 0,
        # An axis of one element may lie anywhere; leave it where it stands.
        order=tuple(sorted(range(len(shape)), key=lambda at: (-stride[at], at))),
        bytes_per_sample=torch.Size(shape).numel() * item.layout.dtype.itemsize // batch,
    )


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a count behind those that a module called twice has ended before."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def _last_name(recording: Recording, moments: Sequence[int]) -> str:
    """The outermost module that starts after the last cut and ends last."""
    after = [call for call in recording.calls if call.name and call.start > (moments[-1] if moments else 0)]
    return max(after, key=lambda call: call.end).name if after else "output"


def _stages(model: nn.Module, finder: _Finder, names: Sequence[str], places: Sequence[Place]) -> tuple[Stage, ...]:
    moments = [place.moment for place in places]
    told = Counter([*names, *(other for place in places for other in place.others)])
    aliases = [tuple(other for other in place.others if told[other] == 1) for place in places]
    reads = finder.recording.reads
    homes = {name: bisect.bisect_left(moments, min(at)) for name, at in reads.items() if at}
    keys: list[list[str]] = [[] for _ in names]
    for key in model.state_dict():
        if key in homes:
            keys[homes[key]].append(key)
    parameters = [0] * len(names)
    for name, weight in model.named_parameters():
        if name in homes:
            parameters[homes[name]] += weight.numel()
    flops = [0] * len(names)
    for step in finder.seen.operations:
        flops[bisect.bisect_left(moments, step.moment)] += step.flops
    return tuple(
        Stage(
            index=index,
            name=name,
            keys=tuple(keys[index]),
            parameters=parameters[index],
            flops=flops[index] // finder.recording.batch,
            aliases=other_names,
        )
        for index, (name, other_names) in enumerate(zip(names, [*aliases, ()], strict=True))
    )


def _head(model: nn.Module, recording: Recording, finder: _Finder) -> tuple[str | None, int | None]:
    """The last Linear whose output is the network's one (B, K) output, and K."""
    seen = finder.seen
    if len(seen.output) != 1 or seen.output[0] is None:
        return None, None
    layout, key = seen.output[0], seen.output_storages[0]
    if len(layout.shape) != 2 or layout.shape[0] != Size(0, 1) or layout.shape[1].each:
        return None, None
    modules = dict(model.named_modules())
    for call in reversed(recording.calls):
        if isinstance(modules[call.name], nn.Linear) and call.storages == (key,) and call.leaves == (layout,):
            return call.name, layout.shape[1].fixed
    return None, layout.shape[1].fixed


def _in_words(trouble: str | None, recording: Recording, moments: Sequence[int], names: Sequence[str]) -> str | None:
    if trouble is None or not trouble.startswith(_TIED):
        return trouble
    name = trouble.removeprefix(_TIED)
    first, last = (bisect.bisect_left(moments, at(recording.reads[name])) for at in (min, max))
    return (
        f"it would freeze `{name}` in stage {first} ({names[first]}) and train it in stage {last} ({names[last]}), "
        "where it is the same tensor"
    )
