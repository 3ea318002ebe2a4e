"""The network's own copy in which what is frozen gives back what was recorded and computes nothing."""

import copy
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from frostline.copies import copy_of, plain_torch
from frostline.errors import BadArgument
from frostline.recording import Layout, Point, Recording, Size, dense_stride
from frostline.trees import leaves, rebuild


def with_stand_ins(
    model: nn.Module, recording: Recording, depth: int, *, fixed: Sequence[torch.Tensor] = (), fill: float = 0.0
) -> nn.Module:
    """Copy a network so that its forward takes the wires of a cut and computes only what lies above.

    Each outermost frozen module stays an object of its own class, since forwards ask for its
    children and attributes; only its instance `forward` is replaced and its hooks are cleared.
    The copy shares nothing with the original that is trained.

    Args:
        model: The network.
        recording: Of its watched pass.
        depth: Number of frozen stages; at 0 everything is live and the wires are the inputs.
        fixed: Values of what crosses the cut and is the same for every sample.
        fill: What stands for every float value that is not kept; NaN shows that none is read.
    """
    point = recording.points[depth]
    frozen = frozen_names(recording, depth)
    shared = [weight for name, weight in model.named_parameters(remove_duplicate=False) if name in frozen]
    live = copy_of(model, shared)
    _set_aside(live, frozen)
    feed = _Feed(recording, point, fixed, fill=fill, is_dense=depth in recording.dense)
    modules = dict(live.named_modules())
    scripts: dict[str, list[int | None]] = {}
    outer = set(recording.outer(point.moment))
    if depth:
        feed.across = tuple(modules[call.name] for call in recording.calls if call.start <= point.moment < call.end)
    for place, call in enumerate(recording.calls):
        if call.end <= point.moment < recording.calls[call.parent].end:
            scripts.setdefault(call.name, []).append(place if place in outer else None)
    for name, script in scripts.items():
        if any(place is not None for place in script):
            runs_again = any(call.name == name and call.end > point.moment for call in recording.calls)
            _stand_in(modules[name], script, feed, runs_again=runs_again)
    _take_out(live, feed, frozen, _read_by_glue(recording, point, outer))
    live.__dict__["forward"] = _Root(live, feed)
    return live


def refill(live: nn.Module, fill: float) -> None:
    """Let another value stand for what is not kept, in a live part of `with_stand_ins`."""
    feed: _Feed = vars(live)["forward"].feed
    feed.fill = fill
    # The blanks that were put in place of weights are made again.
    feed.device = None


def frozen_names(recording: Recording, depth: int) -> set[str]:
    """Parameters and buffers that the live part does not own: read below the cut only, or in no module that runs on.

    What only train mode reads (wav2vec 2.0's mask) belongs to the module around it.
    """
    if depth == 0:
        return set()
    moment = recording.points[depth].moment
    ends = {call.name: call.end for call in recording.calls}
    return {
        name
        for name, moments in recording.reads.items()
        if (max(moments) if moments else ends.get(name.rpartition(".")[0], 0)) <= moment
    }


def _set_aside(live: nn.Module, frozen: set[str]) -> None:
    """Put frozen scripted modules, out of which nothing can be taken, where no table lists their tensors."""
    for prefix, module in list(live.named_modules()):
        for name, child in module._modules.items():
            if isinstance(module, torch.jit.ScriptModule) or not isinstance(child, torch.jit.ScriptModule):
                continue
            full = f"{prefix}.{name}" if prefix else name
            owned = [f"{full}.{key}" for key, _ in (*child.named_parameters(), *child.named_buffers())]
            if owned and frozen.issuperset(owned):
                module._modules[name] = _Aside(child)


class _Aside(nn.Module):
    """A scripted module that belongs to nobody."""

    def __init__(self, scripted: nn.Module) -> None:
        super().__init__()
        for weight in scripted.parameters():
            weight.requires_grad_(False)
        self.__dict__["scripted"] = scripted.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["scripted"](*args, **kwargs)


def _read_by_glue(recording: Recording, point: Point, outer: Collection[int]) -> set[str]:
    """Names that are read below the cut, and again by code that the live part runs."""
    spans = [(recording.calls[place].start, recording.calls[place].end) for place in outer]
    return {
        name
        for name, moments in recording.reads.items()
        if moments and min(moments) <= point.moment
        if any(not any(start < at <= end for start, end in spans) for at in moments)
    }


def _take_out(live: nn.Module, feed: "_Feed", frozen: Collection[str], by_glue: Collection[str]) -> None:
    """Take what is frozen out of the module's tables, so that its state holds what is live and no more."""
    for prefix, module in live.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for table, is_weight in ((module._parameters, True), (module._buffers, False)):
            for name in [name for name, tensor in table.items() if tensor is not None]:
                full = f"{prefix}.{name}" if prefix else name
                if not is_weight and full in by_glue:
                    # Position numbers and rotary tables: derived values need them, the delta does not.
                    module._non_persistent_buffers_set.add(name)
                    continue
                if full not in frozen:
                    continue
                tensor = table.pop(name)
                assert tensor is not None
                module._non_persistent_buffers_set.discard(name)
                module.__dict__[name] = feed.blank(tuple(tensor.shape), None, tensor.dtype, tensor.device)
                feed.places.append(_Place(module, name))
        if feed.places and feed.places[-1].module is module and not (module._parameters or module._buffers):
            # Batch norm reads a state without version numbers as an old one, and adds a count it has no place for.
            module.__dict__["_load_from_state_dict"] = _load_nothing


def _load_nothing(*args: Any) -> None:
    """Stand for the loading of a module that holds no tensor any more."""


def _stand_in(module: nn.Module, script: list[int | None], feed: "_Feed", *, runs_again: bool) -> None:
    module.__dict__["forward"] = _StandIn(module.forward, tuple(script), feed, runs_again=runs_again)
    if not runs_again:
        # The user's hooks have run in the frozen part.
        _clear_hooks(module)


def _clear_hooks(module: nn.Module) -> None:
    for hooks in (
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
    ):
        hooks.clear()


class _Place(NamedTuple):
    """Where a frozen parameter or buffer was; a tensor without memory stands there."""

    module: nn.Module
    name: str


class _Feed:
    """What the stand-ins of one live part give back: the wires of this call, and blanks."""

    def __init__(
        self, recording: Recording, point: Point, fixed: Sequence[torch.Tensor], *, fill: float, is_dense: bool
    ) -> None:
        self.recording = recording
        self.point = point
        self.kept = (*point.stored, *point.fixed)
        self.fixed = fixed
        self.fill = fill
        self.is_dense = is_dense
        self.places: list[_Place] = []
        self.across: tuple[nn.Module, ...] = ()
        self._hushed: list[nn.Module] = []
        self.wires: list[torch.Tensor] = []
        self.batch = 0
        self._given: Sequence[torch.Tensor] = ()
        self._rewritten = _rewritten(recording, point)
        self.device: torch.device | None = None
        self.counts: dict[int, int] = {}
        self._assembled: dict[int, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Feed":
        # A copy of a live part has its own modules; the wires of the last call are nothing it needs.
        fresh = _Feed(self.recording, self.point, self.fixed, fill=self.fill, is_dense=self.is_dense)
        memo[id(self)] = fresh
        fresh.places = copy.deepcopy(self.places, memo)
        fresh.across = copy.deepcopy(self.across, memo)
        return fresh

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"wires": [], "counts": {}, "_given": (), "_assembled": {}}

    def take(self, wires: Sequence[torch.Tensor]) -> None:
        """Take the wires of one call; they are copied, so that in-place operations leave the caller's alone."""
        stored = self.point.stored
        if len(wires) != len(stored):
            raise BadArgument(
                f"BadArgument: the live part was given {len(wires)} tensors; {len(stored)} wires cross this cut. "
                "Give it what the frozen part returns, `live(*wires)`.",
                found=len(wires),
                needed=len(stored),
            )
        axis = stored[0].layout.batch_axis or 0
        self.batch = wires[0].shape[axis] // max(1, stored[0].layout.shape[axis].each)
        self._given = (*wires, *(value.to(wires[0].device) for value in self.fixed))
        self.wires = [
            _laid_as(item.layout, wire, self.batch) for item, wire in zip(self.kept, self._given, strict=True)
        ]
        self.counts.clear()
        self._assembled.clear()
        if self.device != wires[0].device:
            self.device = wires[0].device
            for module, name in self.places:
                gone = module.__dict__[name]
                module.__dict__[name] = self.blank(tuple(gone.shape), None, gone.dtype, self.device)

    def hush(self) -> None:
        """Put the modules in which the cut lies in eval mode: below it nothing is trained, so no layer is dropped."""
        for module in self.across:
            if module.training:
                self._hushed.append(module)
                module.training = False

    def wake(self) -> None:
        """Give them their mode back, above the cut."""
        for module in self._hushed:
            module.training = True
        self._hushed.clear()

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the network's own forward: raw inputs that are wires, blanks for the rest."""
        kept = {item.leaf: wire for item, wire in zip(self.kept, self.wires, strict=True) if item.call < 0}
        given = [
            kept[place] if place in kept else self.blank(*layout.at(self.batch)[:2], layout.dtype, self.device)
            for place, layout in enumerate(self.recording.inputs.layouts)
        ]
        return self.recording.inputs.bind(given)

    def output(self, place: int, args: Any, kwargs: Any) -> Any:
        """What that call returned when it was watched, in its own types."""
        call = self.recording.calls[place]
        if place == self.point.call:
            self.wake()
        for number in self._rewritten.get(place, ()):
            self.wires[number].copy_(self._given[number])
        given = leaves((args, kwargs)) if any(at is not None for at in call.same) else []
        new = [
            self._leaf(leaf, key, given[at] if at is not None and at < len(given) else None)
            for leaf, key, at in zip(call.leaves, call.storages, call.same or (None,) * len(call.leaves), strict=True)
        ]
        if given and not torch.compiler.is_compiling():
            _give_under_old_names(new, call.same, given)
        return rebuild(call.tree, iter(new))

    def blank(
        self, shape: tuple[int, ...], stride: tuple[int, ...] | None, dtype: torch.dtype, device: torch.device | None
    ) -> torch.Tensor:
        """A tensor that takes no memory, or as much as it seems to where `is_dense` and it has a stride."""
        value = self.fill if dtype.is_floating_point or dtype.is_complex else 0
        one = torch.full((), value, dtype=dtype, device=device)
        if not self.is_dense or stride is None:
            return one.expand(shape)
        return torch.empty_strided(shape, dense_stride(shape, stride), dtype=dtype, device=device).copy_(one)

    def _leaf(self, leaf: Any, key: int | None, same: Any) -> Any:
        match leaf:
            case Size():
                return leaf.at(self.batch)
            case Layout():
                wire = self._wire(leaf, key)
                if wire is None and isinstance(same, torch.Tensor):
                    # An `Identity` around a value that the live part computes again, from what is the same for all.
                    return same
                return self.blank(*leaf.at(self.batch)[:2], leaf.dtype, self.device) if wire is None else wire
        return leaf

    def _wire(self, layout: Layout, key: int | None) -> torch.Tensor | None:
        """The kept value, or another view of it."""
        mine = [(item, wire) for item, wire in zip(self.kept, self.wires, strict=True) if item.storage == key]
        for item, wire in mine:
            if item.layout == layout:
                return wire
        if key is None or not mine:
            return None
        item, wire = mine[0]
        shape, stride, offset = layout.at(self.batch)
        own_shape, own_stride, own_offset = item.layout.at(self.batch)
        if layout.dtype != item.layout.dtype:
            return None
        is_whole = own_offset == 0 and _lie_alike(own_shape, wire.stride(), own_stride)
        if is_whole and _fits(shape, stride, offset, wire.numel()):
            return wire.as_strided(shape, stride, offset)
        if not self.is_dense:
            return None
        if key not in self._assembled:
            self._assembled[key] = self._assemble(key, layout.dtype, mine)
        return self._assembled[key].as_strided(shape, stride, offset)

    def _assemble(self, key: int, dtype: torch.dtype, mine: list[Any]) -> torch.Tensor:
        """The whole storage, blank but for what is kept of it."""
        storage = self.recording.storages[key]
        length = math.ceil(storage.bytes / dtype.itemsize / self.recording.batch) * self.batch
        whole = torch.full((length,), self.fill, dtype=dtype, device=self.device)
        for item, wire in mine:
            whole.as_strided(*item.layout.at(self.batch)).copy_(wire)
        return whole


def _give_under_old_names(new: Sequence[Any], same: Sequence[int | None], given: Sequence[Any]) -> None:
    """Let the code around an `Identity` see its output also where it knows it as the input."""
    for leaf, at in zip(new, same, strict=True):
        old = given[at] if at is not None and at < len(given) else None
        if isinstance(old, torch.Tensor) and old is not leaf and not old.requires_grad and not leaf.requires_grad:
            old.data = leaf


def _rewritten(recording: Recording, point: Point) -> dict[int, list[int]]:
    """By call, the wires that it gives again because code between the stand-ins has written into them.

    In `y = conv(x); y += x; y = relu_(y)` the three values share their memory: what `conv` gives is
    what `relu_` will give, until `+=` runs once more.
    """
    outer = [recording.calls[place] for place in recording.outer(point.moment)]
    found: dict[int, list[int]] = {}
    for number, item in enumerate((*point.stored, *point.fixed)):
        if item.call < 0:
            continue
        end = recording.calls[item.call].end
        first = min(call.end for call in outer if item.storage in call.storages)
        writes = [moment for moment in recording.storages[item.storage].writes if first < moment < end]
        if any(not any(call.start < moment < call.end for call in outer) for moment in writes):
            found.setdefault(item.call, []).append(number)
    return found


def _fits(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, length: int) -> bool:
    return offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) < length


def _laid_as(layout: Layout, wire: torch.Tensor, batch: int) -> torch.Tensor:
    """A copy of the wire whose axes lie in memory as they did when it was watched, since that decides the bits."""
    shape, stride, _ = layout.at(batch)
    own, wanted = (dense_stride(shape, steps) for steps in (wire.stride(), stride))
    # Where an axis of one element lies says which kernel runs and nothing of the memory: leave it as it came.
    stride = own if _lie_alike(shape, own, wanted) else wanted
    return torch.empty_strided(shape, stride, dtype=wire.dtype, device=wire.device).copy_(wire)


def _lie_alike(shape: tuple[int, ...], one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(size < 2 or mine == theirs for size, mine, theirs in zip(shape, one, other, strict=True))


class _StandIn:
    """The forward of a frozen module: gives the recorded outputs in turn, then runs the module itself.

    A None in the script is a call that yields only values which are derived again.
    """

    def __init__(
        self, forward: Callable[..., Any], script: tuple[int | None, ...], feed: _Feed, *, runs_again: bool
    ) -> None:
        self.forward = forward
        self.script = script
        self.feed = feed
        self.runs_again = runs_again

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        done = self.feed.counts.get(id(self), 0)
        self.feed.counts[id(self)] = done + 1
        if done >= len(self.script):
            if self.runs_again:
                return self.forward(*args, **kwargs)
            # Checkpointing calls a module once more during the backward pass.
            done %= len(self.script)
        place = self.script[done]
        return self.forward(*args, **kwargs) if place is None else self.feed.output(place, args, kwargs)


class _Root:
    """The forward of the live part: takes the wires, then runs the network's own forward.

    The user's hooks on the network itself see the network's own arguments.
    """

    def __init__(self, live: nn.Module, feed: _Feed) -> None:
        self.live = live
        self.feed = feed
        self.forward = live.__dict__.get("forward")
        self.before = [
            (hook, key in live._forward_pre_hooks_with_kwargs) for key, hook in live._forward_pre_hooks.items()
        ]
        self.after = [(hook, key in live._forward_hooks_with_kwargs) for key, hook in live._forward_hooks.items()]
        _clear_hooks(live)

    def __call__(self, *wires: torch.Tensor) -> Any:
        self.feed.take(wires)
        args, kwargs = self._hooked_inputs(*self.feed.inputs())
        forward = self.forward or functools.partial(type(self.live).forward, self.live)
        self.feed.hush()
        try:
            with plain_torch():
                output = forward(*args, **kwargs)
        finally:
            self.feed.wake()
        for hook, wants_kwargs in self.after:
            changed = hook(self.live, args, kwargs, output) if wants_kwargs else hook(self.live, args, output)
            output = output if changed is None else changed
        return output

    def _hooked_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for hook, wants_kwargs in self.before:
            changed = hook(self.live, args, kwargs) if wants_kwargs else hook(self.live, args)
            if changed is not None:
                args, kwargs = changed if wants_kwargs else (_as_tuple(changed), kwargs)
        return args, kwargs


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
