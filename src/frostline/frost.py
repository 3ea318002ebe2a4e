"""Where the frost lies: what is below each cut of a network, and what it carries since its first freeze."""

import dataclasses
import gc
import math
import sys
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from frostline.errors import AlreadyWrapped, BadArgument
from frostline.holding import CARRIED, Below, Hold, lifted
from frostline.recording import Point, Recording
from frostline.records import CutGraph
from frostline.surveying import graph_of


@dataclasses.dataclass(frozen=True)
class End:
    """Where the frozen part of one depth ends.

    Args:
        moment: On the clock of the watched pass.
        last: Name of the module call that ends it.
        turns: How many calls of that module lie below.
        across: Modules that are running then.
        is_closed: Whether no float input of the network crosses.
        is_narrow: Whether the module that ends it returns a small view, the only use of its memory above.
    """

    moment: int
    last: str
    turns: int
    across: tuple[str, ...]
    is_closed: bool
    is_narrow: bool


@dataclasses.dataclass(frozen=True)
class Course:
    """What a watched pass says of every depth, without the pass itself, so that a network can carry it.

    Args:
        graph: Stages and cuts.
        spans: From when to when each module was running, from its first call to its last return.
        reads: When each parameter and buffer was first and last read; those never read are left out.
        names: Of all parameters and buffers.
        ends: One for each depth.
    """

    graph: CutGraph
    spans: dict[str, tuple[int, int]]
    reads: dict[str, tuple[int, int]]
    names: frozenset[str]
    ends: tuple[End, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Course":
        # What happened is the same for every copy of a network.
        return self

    def below(self, model: nn.Module, depth: int) -> Below:
        """What lies below the cut of a depth other than 0."""
        end = self.ends[depth]
        sides = self._sides(model, end.moment)
        mixed = tuple(name for name, side in sides.items() if side == "mixed")
        return Below(
            frozen=tuple(name for name, side in sides.items() if side == "frozen"),
            mixed=mixed,
            across=end.across,
            buffers=tuple(
                name
                for name, _ in model.named_buffers()
                if name.rpartition(".")[0] in mixed and name in self.reads and self.reads[name][1] <= end.moment
            ),
            last=end.last,
            turns=end.turns,
            is_closed=end.is_closed,
            is_narrow=end.is_narrow,
        )

    def frozen_names(self, model: nn.Module, depth: int) -> set[str]:
        """Parameters and buffers that hold still: read below the cut only, or never and in a frozen module."""
        if depth == 0:
            return set()
        moment = self.ends[depth].moment
        sides = self._sides(model, moment)
        return {
            name
            for name in self.names
            if (self.reads[name][1] <= moment if name in self.reads else sides.get(name.rpartition(".")[0]) == "frozen")
        }

    def stage_modules(self, index: int) -> set[str]:
        """Modules that run within one stage only."""
        start = self.ends[index].moment
        end = self.ends[index + 1].moment if index + 1 < len(self.ends) else math.inf
        return {name for name, (first, last) in self.spans.items() if start < first and last <= end}

    def _sides(self, model: nn.Module, moment: int) -> dict[str, Literal["frozen", "mixed", "live"]]:
        """On which side of a cut each module runs."""
        found: dict[str, Literal["frozen", "mixed", "live"]] = {}
        for name, module in model.named_modules():
            span = self.spans.get(name) or self._span_of_tensors(name, module)
            if span:
                found[name] = "frozen" if span[1] <= moment else "mixed" if span[0] <= moment else "live"
            else:
                # Lists of modules, and what only train mode calls, go with what is around them.
                found[name] = found[name.rpartition(".")[0]]
        return found

    def _span_of_tensors(self, prefix: str, module: nn.Module) -> tuple[int, int] | None:
        """When the own tensors of a module that is never called are read from outside."""
        own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        spans = [span for name in own if (span := self.reads.get(f"{prefix}.{name}" if prefix else name))]
        return (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None


def course_of(model: nn.Module, example: Any) -> Course:
    """Trace the network, or go by what it carries since it was frozen."""
    frost = frost_of(model)
    if example is None:
        if frost is None:
            raise BadArgument(
                f"BadArgument: this {type(model).__name__} was never frozen, so its stages are not known. Give an "
                "example of what its forward takes, `fl.freeze(model, depth, example)`.",
                model=type(model).__name__,
            )
        course = frost.course
    elif isinstance(example, CutGraph):
        course = _course(example)
    else:
        course = _course(graph_of(model, example))
    tensors = {name for name, _ in named_tensors(model)}
    # A forward may fill a buffer that is None until then.
    odd = sorted((tensors - course.names) | (course.names - tensors - _empty_buffers(model)))
    if odd:
        raise BadArgument(
            f"BadArgument: the stages known are those of another network than this {type(model).__name__}: "
            f"{len(odd)} tensors are in one of them only, for instance `{odd[0]}`. Give an example, so that this "
            "network is traced.",
            names=tuple(odd),
        )
    return course


def _course(graph: CutGraph) -> Course:
    recording = graph.recording
    if not isinstance(recording, Recording):
        raise BadArgument(
            f"BadArgument: this graph of {graph.model} was read from a file and holds no recording. "
            "Trace the network again, `fl.trace(model, example)`.",
            graph=graph,
        )
    spans: dict[str, tuple[int, int]] = {}
    for call in recording.calls:
        first, last = spans.get(call.name, (call.start, call.end))
        spans[call.name] = min(first, call.start), max(last, call.end)
    return Course(
        graph=graph.model_copy(update={"recording": None}),
        spans=spans,
        reads={name: (min(moments), max(moments)) for name, moments in recording.reads.items() if moments},
        names=frozenset(recording.reads),
        ends=tuple(_end_of(recording, point) for point in recording.points),
    )


def _end_of(recording: Recording, point: Point) -> End:
    call = recording.calls[point.call]
    return End(
        moment=point.moment,
        last=call.name,
        turns=call.nth + 1,
        across=tuple(dict.fromkeys(call.name for call in recording.calls if call.start <= point.moment < call.end)),
        is_closed=not any(item.call < 0 and item.layout.dtype.is_floating_point for item in point.stored),
        is_narrow=_is_narrow(recording, point),
    )


def _is_narrow(recording: Recording, point: Point) -> bool:
    mine = [item for item in point.stored if item.call == point.call]
    if len(mine) != 1 or len(recording.calls[point.call].leaves) != 1:
        return False
    (wire,) = mine
    storage = recording.storages[wire.storage]
    bytes_used = torch.Size(wire.layout.at(recording.batch)[0]).numel() * wire.layout.dtype.itemsize
    is_alone = sum(item.storage == wire.storage for item in point.stored) == 1
    return 2 * bytes_used < storage.bytes and is_alone and all(moment < point.moment for moment in storage.writes)


def _empty_buffers(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, buffer in module._buffers.items()
        if buffer is None
    }


def named_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters and buffers under each name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def plain(model: nn.Module) -> nn.Module:
    """The network inside its wrappers."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if inner is None:
            return model
        model = inner


# --- the change -------------------------------------------------------------------------------


@dataclasses.dataclass
class Frost:
    """What a network carries since its first freeze.

    `flags` holds the `requires_grad` that each frozen parameter had, `modes` the mode that each
    frozen module had, and the network's own at that time.
    """

    course: Course
    depth: int = 0
    hold: Hold | None = None
    flags: dict[str, bool] = dataclasses.field(default_factory=dict)
    modes: dict[str, tuple[bool, bool]] = dataclasses.field(default_factory=dict)


def frost_of(model: nn.Module) -> Frost | None:
    """What the network carries, or None where it was never frozen."""
    frost: Frost | None = model.__dict__.get(CARRIED)
    return frost


def lay(model: nn.Module, course: Course, depth: int) -> None:
    """Freeze the stages below a depth in place, and give back all others.

    Raises:
        AlreadyWrapped: DistributedDataParallel holds the network and would not see the change.
    """
    frost = frost_of(model) or Frost(course)
    below = course.below(model, depth) if depth else None
    is_held = frost.hold.holds(model, below) if frost.hold else below is None
    if not is_held:
        _refuse_if_wrapped(model)
        if "torch._dynamo" in sys.modules:
            # torch.compile does not see that a parameter's requires_grad has changed (pytorch 139476).
            torch.compiler.reset()
        for part in model.modules():
            if part is not model and (inner := frost_of(part)):
                lay(part, inner.course, 0)
        lifted(model)
    model.__dict__[CARRIED] = frost
    frost.course, frost.depth = course, depth
    _set_modes(model, frost, set(below.frozen) if below else set())
    _set_flags(model, frost, course.frozen_names(model, depth))
    if not is_held:
        frost.hold = Hold(model, below) if below else None


def _set_modes(model: nn.Module, frost: Frost, frozen: set[str]) -> None:
    modules = dict(model.named_modules())
    thawed = {
        modules[name]: mine if model.training == networks else model.training
        for name in modules.keys() & frost.modes.keys() - frozen
        for mine, networks in (frost.modes.pop(name),)
    }
    before = {module: module.training for module in modules.values()}
    for module, mode in thawed.items():
        if type(module).train is not nn.Module.train:
            # LeViT keeps attention biases in eval mode and drops them here.
            module.train(mode)
    for module, mode in (before | thawed).items():
        module.training = mode
    for name in frozen:
        frost.modes.setdefault(name, (modules[name].training, model.training))
        modules[name].training = False


def _set_flags(model: nn.Module, frost: Frost, frozen: set[str]) -> None:
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in named.keys() & frozen:
        # Before any is set: a weight may be there twice.
        frost.flags.setdefault(name, named[name].requires_grad)
    for name, weight in named.items():
        if name in frozen:
            weight.requires_grad_(False)
            # An optimizer that was made before would go on by it.
            weight.grad = None
        elif name in frost.flags:
            weight.requires_grad_(frost.flags.pop(name))


def _refuse_if_wrapped(model: nn.Module) -> None:
    # One that was dropped may lie about until the next collection.
    if _is_wrapped(model) and (gc.collect() or True) and _is_wrapped(model):
        raise AlreadyWrapped(
            f"AlreadyWrapped: this {type(model).__name__} is inside DistributedDataParallel, which settled what it "
            "trains when it was made: after another freeze the processes would drift apart or wait for ever. Drop the "
            "wrapper, freeze the network itself, and wrap it again.",
            model=type(model).__name__,
        )


def _is_wrapped(model: nn.Module) -> bool:
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    # There are millions of objects, so the look at each must be short.
    kinds = {DistributedDataParallel, *DistributedDataParallel.__subclasses__()}
    wrappers = [thing for thing in gc.get_objects() if type(thing) in kinds]
    return any(part is model for wrapper in wrappers for part in wrapper.modules())
