"""Take a network apart at a cut: the frozen part below, the live part above, and the proof that they are it."""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from frostline import fingerprint
from frostline.carrying import device_of
from frostline.copies import copy_of, full_precision, plain_torch, repeatable_torch
from frostline.errors import BadArgument
from frostline.recording import Recording
from frostline.records import CutGraph, Wire
from frostline.standins import frozen_names, refill, with_stand_ins
from frostline.trees import arguments, batch_of, leaves, tensors, with_rows


def split(model: nn.Module, graph: CutGraph, depth: int | str) -> "Split":
    """Take a network apart at a depth.

    The model itself stays as it was. The frozen part shares its parameters, so it must not be
    trained elsewhere meanwhile; the live part has tensors of its own.

    Args:
        model: The network that `graph` was traced from, or one of the same class and names.
        graph: Its stages and cuts.
        depth: As `CutGraph.resolve` takes it.

    Returns:
        The two parts; `parts.live(*parts.frozen(x))` gives the bits of `model.eval()(x)`.

    Raises:
        UnknownStage: No such depth.
        CutBlocked: The network cannot be cut there.
        BadArgument: The graph came from disk and holds no recording, or is of another network.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> x = torch.ones(2, 4)
        >>> parts = fl.split(net, fl.trace(net, x), -1)
        >>> wires = parts.frozen(x)
        >>> torch.equal(parts.live(*wires), net(x)), list(parts.live.state_dict())
        (True, ['2.weight', '2.bias'])
    """
    found = graph.resolve(depth)
    _check_same_network(model, graph)
    return Split(model, graph, found)


def prove(model: nn.Module, graph: CutGraph, depth: int | str, *, example: Any) -> str | None:
    """Try to catch a cut in a lie; say what differs, or None where nothing does.

    On a copy whose vectors are perturbed (networks start residual branches at zero), the live
    part sees NaN for everything but the wires. Its output and every gradient must equal the
    whole network's bit for bit, row 0 of every wire must not depend on the other rows, and in
    train mode no NaN may come out.

    Args:
        model: The network.
        graph: Its stages and cuts.
        depth: As `CutGraph.resolve` takes it.
        example: As for `trace`; real samples prove more than noise.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.ones(2, 4)
        >>> fl.prove(net, fl.trace(net, x), 1, example=x) is None
        True
    """
    found = graph.resolve(depth)
    _check_same_network(model, graph)
    recording: Recording = graph.recording
    was_dense = found in recording.dense
    why = _difference(model, graph, found, example)
    if why is not None and not was_dense:
        # Code around the stand-ins may write in place or look at strides: then they need real memory.
        recording.dense.add(found)
        if _difference(model, graph, found, example) is None:
            return None
        recording.dense.discard(found)
    return why


class Split:
    """A network in two parts.

    Args:
        model: The network.
        graph: Its stages and cuts.
        depth: An open depth.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> type(fl.split(net, fl.trace(net, torch.ones(2, 4)), 1).merge()).__name__
        'Sequential'
    """

    def __init__(self, model: nn.Module, graph: CutGraph, depth: int) -> None:
        self.graph = graph
        self.depth = depth
        self.frozen = Frozen(model, graph, depth)
        self.live: nn.Module = with_stand_ins(model, graph.recording, depth, fixed=self.frozen.fixed())
        self._model = model

    def merge(self) -> nn.Module:
        """Put the live part's tensors into a copy of the network: its own class, its own keys."""
        merged = copy_of(self._model)
        merged.load_state_dict(self.live.state_dict(), strict=False)
        return merged


class Frozen:
    """The part below a cut: always in eval mode, without gradients, blind to `train()`.

    Calling it with the network's inputs (each tensor, in the order of the example) gives the
    wires as a tuple of fresh tensors. Of several depths it gives the wires of each cut, one cut
    after the other, in one pass up to the deepest.

    Args:
        model: The network, whose parameters it shares.
        graph: Its stages and cuts.
        depths: One open depth, or several.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> frozen = fl.split(net, fl.trace(net, torch.ones(2, 4)), 1).frozen
        >>> [wire.shape for wire in frozen(torch.ones(5, 4))], frozen.wires[0].name
        ([torch.Size([5, 8])], '1')
    """

    def __init__(self, model: nn.Module, graph: CutGraph, *depths: int) -> None:
        self.depths = depths
        self.wires: tuple[Wire, ...] = tuple(wire for depth in depths for wire in graph.cuts[depth].wires)
        self.module: nn.Module = _FrozenModule(model, graph.recording, depths)
        self._model = model
        self._graph = graph
        self._recording: Recording = graph.recording

    def joined(self, *others: "Frozen") -> "Frozen":
        """Those of several depths of the same network as one, which gives the wires of each in one pass.

        Args:
            others: Further frozen parts, made from the same network and graph.

        Raises:
            BadArgument: One of them is of another network.

        Example:
            >>> import frostline as fl
            >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
            >>> graph = fl.trace(net, torch.ones(2, 4))
            >>> shallow, deep = (fl.split(net, graph, depth).frozen for depth in (1, 2))
            >>> [tuple(wire.shape) for wire in shallow.joined(deep)(torch.ones(6, 4))]
            [(6, 8), (6, 5)]
        """
        for other in others:
            if other._model is not self._model or other._graph is not self._graph:
                raise BadArgument(
                    f"BadArgument: frozen parts up to {self._spoken} and {other._spoken} come from different networks "
                    "or traces; one pass needs the same. Split one network by one graph at each depth."
                )
        return Frozen(self._model, self._graph, *self.depths, *(depth for other in others for depth in other.depths))

    @property
    def _spoken(self) -> str:
        return f"depth {', '.join(map(str, self.depths))} of {self._graph.model}"

    def __call__(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Compute the wires of a batch."""
        wires: tuple[torch.Tensor, ...] = self.module(*self._recording.inputs.flatten(inputs))
        return wires

    def fixed(self) -> tuple[torch.Tensor, ...]:
        """What crosses the cut too and is the same for every sample, computed now."""
        recording = self._recording
        if not any(recording.points[depth].fixed for depth in self.depths):
            return ()
        blanks = [
            torch.zeros(layout.at(recording.batch)[0], dtype=layout.dtype, device=layout.device)
            for layout in recording.inputs.layouts
        ]
        module = self.module
        assert isinstance(module, _FrozenModule)
        return module.found(blanks)[len(self.wires) :]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name of everything that decides the wires: frozen tensors, operations, and what is kept."""
        module = self.module
        assert isinstance(module, _FrozenModule)
        points = [self._recording.points[depth] for depth in self.depths]
        moment = max(point.moment for point in points)
        below = {name for name, moments in self._recording.reads.items() if moments and max(moments) <= moment}
        named: list[tuple[str, torch.Tensor]] = [
            *module.model.named_parameters(remove_duplicate=False),
            *module.model.named_buffers(remove_duplicate=False),
        ]
        return fingerprint.of_text(
            *(point.signature for point in points),
            fingerprint.of_tensors((name, tensor) for name, tensor in named if any(self.depths) and name in below),
            # The shape holds the batch size of the watched pass, which decides nothing.
            *(wire.model_dump_json(exclude={"shape"}) for wire in self.wires),
        )


def depths_of(module: nn.Module) -> tuple[int, ...]:
    """Depths whose wires a frozen part's module gives, also where another module stands before it.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> parts = fl.split(net, fl.trace(net, torch.ones(2, 4)), 1)
        >>> depths_of(nn.Sequential(nn.Identity(), parts.frozen.module))
        (1,)
    """
    return next(part.depths for part in module.modules() if isinstance(part, _FrozenModule))


# What the network's own code may raise when it runs on stand-ins: anything but the end of the process.
_OWN_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)


class _Stop(BaseException):
    """Everything that crosses the cut has been seen. A network's own `except Exception` must not catch this."""


class _FrozenModule(nn.Module):
    """A module an engine can convert: its forward takes the inputs and returns the wires of one or several cuts."""

    def __init__(self, model: nn.Module, recording: Recording, depths: Sequence[int]) -> None:
        super().__init__()
        self.model = copy_of(model, model.parameters())
        self.depths = tuple(depths)
        self._recording = recording
        points = [recording.points[depth] for depth in depths]
        self._last = max(points, key=lambda point: point.moment).call
        self._stored = tuple(item for point in points for item in point.stored)
        self._counts: dict[str, int] = {}
        self._found: dict[int, torch.Tensor] = {}
        self._is_shared = True
        self.eval()
        calls = recording.calls
        self._kept = (*self._stored, *(item for point in points for item in point.fixed))
        watched = {calls[item.call].name for item in self._kept if item.call >= 0}
        if self._last >= 0:
            watched.add(calls[self._last].name)
        modules = dict(self.model.named_modules())
        for name in sorted(watched):
            modules[name].register_forward_hook(functools.partial(self._see, name))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.found(inputs)[: len(self._stored)]

    def found(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The wires, and after them what is the same for every sample."""
        self._counts.clear()
        self._found.clear()
        for place, item in enumerate(self._kept):
            if item.call < 0:
                self._found[place] = inputs[item.leaf].detach().clone()
        if self._last >= 0:
            args, kwargs = self._recording.inputs.bind(inputs)
            try:
                with torch.no_grad(), plain_torch(), full_precision():
                    self.model(*args, **kwargs)
            except _Stop:
                pass
        return tuple(self._found[place] for place in range(len(self._kept)))

    def train(self, mode: bool = True) -> "_FrozenModule":
        """Do nothing: what is frozen has no train mode."""
        return super().train(False)

    def _see(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        nth = self._counts.get(name, 0)
        self._counts[name] = nth + 1
        calls = self._recording.calls
        for place, item in enumerate(self._kept):
            if item.call >= 0 and (calls[item.call].name, calls[item.call].nth) == (name, nth):
                # Later operations may write into it.
                self._found[place] = leaves(output)[item.leaf].detach().clone()
        last = calls[self._last]
        if (last.name, last.nth) == (name, nth):
            raise _Stop

    def _apply(self, fn: Any, recurse: bool = True) -> "_FrozenModule":
        # Moving or casting replaces a parameter's data in place, which would reach the user's own network.
        if self._is_shared:
            own = {weight: nn.Parameter(weight.detach().clone(), weight.requires_grad) for weight in self.parameters()}
            for module in self.model.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        module._parameters[name] = own[weight]
            self._is_shared = False
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        return self


def _check_same_network(model: nn.Module, graph: CutGraph) -> None:
    if not isinstance(graph.recording, Recording):
        raise BadArgument(
            f"BadArgument: this graph of {graph.model} was read from a file and holds no recording; "
            "trace the network again, `fl.trace(model, example)`.",
            graph=graph,
        )
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    if names != graph.recording.reads.keys():
        odd = sorted(names ^ graph.recording.reads.keys())
        raise BadArgument(
            f"BadArgument: the graph was traced from another network than this {type(model).__name__}: {len(odd)} "
            f"tensors are in one of them only, for instance `{odd[0]}`. Trace this network.",
            names=tuple(odd),
        )


# --- the proof --------------------------------------------------------------------------------


def _difference(model: nn.Module, graph: CutGraph, depth: int, example: Any) -> str | None:
    """What tells the live part, fed NaN for all but the wires, from the network; None if nothing does."""
    example = with_rows(example, max(2, batch_of(example)))
    recording: Recording = graph.recording
    whole = _perturbed(model)
    frozen = frozen_names(recording, depth)
    for name, weight in whole.named_parameters():
        weight.requires_grad_(name not in frozen and weight.is_floating_point())
    inputs = recording.inputs.flatten(arguments(example))
    with repeatable_torch(), _unfused(whole), contextlib.ExitStack() as end:
        end.callback(_let_go, whole)
        below = Frozen(whole, graph, depth)
        end.callback(_let_go, below.module)
        fixed = below.fixed()
        live = with_stand_ins(whole, recording, depth, fixed=fixed, fill=math.nan)
        end.callback(_let_go, live)
        wires = below(*inputs)
        args, kwargs = recording.inputs.bind(inputs)
        expected = tensors(whole(*args, **kwargs))
        # What a hook has put somewhere else is that of other rows when the live part runs.
        if not _are_rows_alone(below, wires, inputs):
            return "a row that would be kept depends on the other samples of its batch"
        try:
            found = tensors(live(*wires))
            why = (
                _output_difference(expected, found)
                or _foreign_weight(model, live, found)
                or _gradient_difference(whole, live, expected, found)
            )
            # Python may compare a value that is not kept: NaN is neither above nor below, but infinity is.
            for fill in (math.inf, -math.inf):
                refill(live, fill)
                why = why or _output_difference(expected, tensors(live(*wires)))
            refill(live, math.nan)
            # Last, since train mode writes into the buffers.
            return why or _train_mode_trouble(live, wires)
        except _OWN_ERRORS as error:
            return f"its own code fails on stand-ins with {type(error).__name__}: {_first_line(error)}"


def _let_go(copy: nn.Module) -> None:
    """Free the tensors of a copy that is done with: it refers to itself, so that it would wait for the collector."""
    for module in copy.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module._parameters.clear()
            module._buffers.clear()


@contextlib.contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """Keep an LSTM off its fused kernel, which runs only without gradients and rounds otherwise.

    On a GPU also attention off those whose gradients are added in no fixed order, even where torch is asked for one.
    """
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(before and not any(isinstance(module, nn.LSTM) for module in model.modules()))
    on_gpu = device_of(model).type == "cuda"
    try:
        with sdpa_kernel(SDPBackend.MATH) if on_gpu else contextlib.nullcontext():
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _foreign_weight(model: nn.Module, live: nn.Module, found: Sequence[torch.Tensor]) -> str | None:
    """A weight of the user's own network that a copy still reads, through a function that holds on to it."""
    names = {weight: name for name, weight in model.named_parameters()}
    nodes = {value.grad_fn for value in found if value.grad_fn is not None}
    fresh = list(nodes)
    while fresh:
        node = fresh.pop()
        if (weight := getattr(node, "variable", None)) in names:
            return (
                f"a function of the network holds on to `{names[weight]}` of the network it was made for, "
                "so that of a copy would never be trained"
            )
        following = {step for step, _ in node.next_functions if step is not None} - nodes
        nodes |= following
        fresh += following
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120]


def _perturbed(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose vectors, and all that is zero, have moved."""
    # By way of train mode, which empties what a network keeps in eval mode (LeViT's biases).
    moved = copy_of(model).train().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in moved.parameters():
            is_vector = weight.numel() == max((*weight.shape, 1))
            if weight.is_floating_point() and (is_vector or not weight.any()):
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_((0.1 * noise).to(weight))
    return moved


def _are_rows_alone(below: Frozen, wires: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> bool:
    """Whether row 0 keeps its bits when the other rows are replaced; a permutation would not show a batch mean."""
    rows = batch_of(inputs)
    others = []
    for given in inputs:
        other = given.clone()
        if given.dim() and len(given) == rows:
            # Whole numbers are often indices, so only values that occur in the row are safe.
            flipped = given[:1].flip(-1) if given.dim() > 1 else given[:1]
            other[1:] = given[1:] * 0.5 + 1 if given.is_floating_point() else flipped
        others.append(other)
    return all(
        torch.equal(row.narrow(wire.batch_axis, 0, wire.factor), other.narrow(wire.batch_axis, 0, wire.factor))
        for row, other, wire in zip(wires, below(*others), below.wires, strict=True)
    )


def _output_difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> str | None:
    if any(value.isnan().any() for value in expected if value.is_floating_point()):
        return "the network itself yields NaN on this example, so nothing can be told"
    if len(expected) == len(found) and all(map(torch.equal, expected, found)):
        return None
    if any(value.isnan().any() for value in found if value.is_floating_point()):
        return "the live part reads a value that is not kept"
    return "the live part yields another output than the network"


def _gradient_difference(
    whole: nn.Module, live: nn.Module, expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> str | None:
    generator = torch.Generator().manual_seed(2)
    places = [place for place, value in enumerate(expected) if value.requires_grad]
    if places != [place for place, value in enumerate(found) if value.requires_grad]:
        return "the live part yields gradients for other outputs than the network"
    if not places:
        return None
    directions = [torch.randn(expected[place].shape, generator=generator).to(expected[place]) for place in places]
    try:
        torch.autograd.backward([expected[place] for place in places], directions)
    except RuntimeError as error:
        return f"the network itself cannot be trained in eval mode: {_first_line(error)}"
    torch.autograd.backward([found[place] for place in places], directions)
    theirs = dict(whole.named_parameters())
    for name, weight in live.named_parameters():
        mine, other = weight.grad, theirs[name].grad
        if (mine is None) != (other is None) or (
            mine is not None and other is not None and not torch.equal(mine, other)
        ):
            return f"the gradient of `{name}` is not the network's"
    return None


def _train_mode_trouble(live: nn.Module, wires: Sequence[torch.Tensor]) -> str | None:
    """The path of train mode may be another one: what it reads must be kept too."""
    with torch.random.fork_rng(devices=[wire.device for wire in wires if wire.is_cuda]):
        torch.manual_seed(3)
        seen = tensors(live.train()(*wires))
    if any(value.isnan().any() for value in seen if value.is_floating_point()):
        return "in train mode the live part reads a value that is not kept"
    return None
