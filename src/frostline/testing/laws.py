"""The law of every cut, and cuts that lie about it."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import frostline as fl
from frostline.records import Cut, CutGraph
from frostline.testing.menagerie import Specimen
from frostline.trees import tensors


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """Everything that must not change on the user's network, as a value that compares.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = snapshot(net)
        >>> net.eval() and snapshot(net) == before
        False
    """
    state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return (
        [(name, id(tensor), tensor._version, tensor.requires_grad, tensor.grad is None) for name, tensor in state],
        [(name, tensor.detach().cpu().numpy().tobytes()) for name, tensor in state],
        [(name, type(module), module.training, sorted(vars(module))) for name, module in model.named_modules()],
        [
            [len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)]
            for module in model.modules()
        ],
    )


def breach(one: Specimen, graph: CutGraph, depth: int) -> str | None:
    """Say how a network breaks the law `live(frozen(x)) == model(x)`, or None where it keeps it.

    Example:
        >>> from frostline.testing import specimen
        >>> one = specimen("residual")
        >>> breach(one, fl.trace(one.model, one.example), 2) is None
        True
    """
    parts = fl.split(one.model, graph, depth)
    parts.live.eval()
    with torch.no_grad():
        wires = parts.frozen(*one.inputs)
        given = [wire.clone() for wire in wires]
        found = parts.live(*wires)
    whole = one.output()
    if not all(map(torch.equal, tensors(found), tensors(whole))):
        return "the outputs differ"
    if not all(torch.equal(before, wire) for before, wire in zip(given, wires, strict=True)):
        return "the live part wrote into the wires that it was fed"
    return None


# --- false cuts -------------------------------------------------------------------------------


def without_wire(graph: CutGraph, depth: int, name: str) -> CutGraph:
    """Plant a false cut: a graph that claims that the cut needs one wire less.

    Args:
        graph: As traced.
        depth: Whose cut shall lie.
        name: Of the wire to leave out.

    Example:
        >>> from frostline.testing import specimen
        >>> liar = specimen("branching")
        >>> graph = fl.trace(liar.model, liar.example)
        >>> [wire.name for wire in without_wire(graph, 2, "stem").cuts[2].wires]
        ['left']
    """
    cut, point = graph.cuts[depth], graph.recording.points[depth]
    kept = [place for place, wire in enumerate(cut.wires) if wire.name != name]
    wires = tuple(cut.wires[place] for place in kept)
    bytes_per_sample = sum(wire.bytes_per_sample for wire in wires)
    false_cut: Cut = cut.model_copy(update={"wires": wires, "bytes_per_sample": bytes_per_sample})
    false_point = dataclasses.replace(point, stored=tuple(point.stored[place] for place in kept))
    points = (*graph.recording.points[:depth], false_point, *graph.recording.points[depth + 1 :])
    return graph.model_copy(
        update={
            "cuts": (*graph.cuts[:depth], false_cut, *graph.cuts[depth + 1 :]),
            "recording": dataclasses.replace(graph.recording, points=points, dense=set()),
        }
    )


def opened(graph: CutGraph, depth: int) -> CutGraph:
    """Plant a false cut: a graph that claims that a blocked cut is open.

    Args:
        graph: As traced.
        depth: Whose cut shall lie.

    Example:
        >>> from frostline.testing import specimen
        >>> liar = specimen("tied")
        >>> opened(fl.trace(liar.model, liar.example), 1).open_depths
        (0, 1, 3)
    """
    cut = graph.cuts[depth].model_copy(update={"blocked": None})
    return graph.model_copy(update={"cuts": (*graph.cuts[:depth], cut, *graph.cuts[depth + 1 :])})


@dataclasses.dataclass(frozen=True)
class FalseCut:
    """A cut that looks open and is not; `proof` is what a proof has to say, as parts divided by |."""

    specimen: Specimen
    graph: CutGraph
    depth: int
    proof: str


def false_cuts() -> tuple[FalseCut, ...]:
    """Make cuts that lie, each in its own way; all pass a plain comparison of outputs.

    Example:
        >>> [liar.specimen.name for liar in false_cuts()][:3]
        ['zero_gain', 'zero_norm', 'tied']
    """
    found = []
    for name, (build, depth, plant, proof) in _LIARS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            liar = Specimen(name, build(), torch.randn(4, 5))
        # What a forward leaves on its module passes for what the next one would.
        liar.output()
        graph = fl.trace(liar.model, liar.example)
        found.append(FalseCut(liar, plant(graph, depth), depth, proof))
    return tuple(found)


class _Chain(nn.Module):
    """Three layers; what a liar does comes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem: Any = nn.Linear(5, 6)
        self.last, self.head = nn.Linear(6, 6), nn.Linear(6, 3)


class _Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(6))

    def forward(self, x: torch.Tensor) -> Any:
        return self.gain * x


def _zero_norm() -> nn.Module:
    norm = nn.BatchNorm1d(6)
    nn.init.zeros_(norm.weight)
    return norm


class _Branch(nn.Module):
    """A residual branch that starts at zero: without its middle the output is the same, and the gradient is not."""

    def __init__(self, gain: nn.Module) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.gain, self.head = gain, nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        return self.head(x + self.gain(self.second(self.first(x))))


class _Around(_Chain):
    """Reads what its stem has left on itself, behind a gain that starts at zero."""

    def __init__(self, leave: Callable[[torch.Tensor], Any], *, buffer: torch.Tensor | None = None) -> None:
        super().__init__()
        self.stem = _Leaving(leave, buffer)
        self.gain = nn.Parameter(torch.zeros(6))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.last(self.stem(x))
        return self.head(y + self.gain * torch.as_tensor(self.stem.left))


class _Leaving(nn.Linear):
    def __init__(self, leave: Callable[[torch.Tensor], Any], buffer: torch.Tensor | None) -> None:
        super().__init__(5, 6)
        self.leave = leave
        self.left: Any
        if buffer is not None:
            self.register_buffer("left", buffer)

    def forward(self, x: torch.Tensor) -> Any:
        y = super().forward(x)
        self.left = self.leave(y)
        return y


class _Path(_Chain):
    """Takes a path that depends on values, asked for in a way that runs no operation."""

    def __init__(self, ask: Callable[[float], bool]) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, x: torch.Tensor) -> Any:
        y = self.stem(x)
        z = self.last(y)
        return self.head(z if self.ask(y.tolist()[0][0]) else -z)


class _Hooked(_Chain):
    """Reads what a hook has put into a dict of its own, as extractors of features do."""

    def __init__(self) -> None:
        super().__init__()
        found: dict[str, torch.Tensor] = {}
        self.stem.register_forward_hook(lambda module, args, output: found.update(stem=output))
        self.found: Callable[[str], Any] = found.get

    def forward(self, x: torch.Tensor) -> Any:
        z: torch.Tensor = self.last(self.stem(x).relu())
        return self.head(z + self.found("stem"))


class _Closure(_Chain):
    """Keeps a function that holds on to the network it was made for, and so to the weights of that one."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))
        self.scaled: Callable[[torch.Tensor], torch.Tensor] = lambda x: x * self.gain

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.scaled(self.last(self.stem(x))))


class _TrainPath(_Chain):
    """Has a second head in train mode, as GoogLeNet does."""

    def forward(self, x: torch.Tensor) -> Any:
        stem = self.stem(x)
        y = self.head(self.last(stem).relu())
        return y + self.head(stem) if self.training else y


class _Detached(_Chain):
    """Gives no gradient to what lies below where its stem's weight has no memory of its own."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.last(self.stem(x))
        return self.head(y if self.stem.weight.is_contiguous() else y.detach())


class _Tied(_Chain):
    """Uses one bias on both sides of the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.last.bias = self.stem.bias

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.last(self.stem(x)))


class _Mixing(_Chain):
    """Lets every sample of a batch see the others."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem.register_forward_hook(lambda module, args, output: mix(output))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.last(self.stem(x)).tanh())


def _traced(graph: CutGraph, depth: int) -> CutGraph:
    return graph


_LIARS: Mapping[str, tuple[Callable[[], nn.Module], int, Callable[[CutGraph, int], CutGraph], str]] = MappingProxyType(
    {
        "zero_gain": (
            lambda: _Branch(_Gain()),
            2,
            lambda graph, depth: without_wire(graph, depth, "first"),
            "not kept",
        ),
        "zero_norm": (
            lambda: _Branch(_zero_norm()),
            2,
            lambda graph, depth: without_wire(graph, depth, "first"),
            "not kept",
        ),
        "tied": (_Tied, 1, opened, "gradient of"),
        "attribute": (lambda: _Around(lambda y: y), 2, _traced, "another output"),
        "buffer": (lambda: _Around(lambda y: y.detach(), buffer=torch.zeros(4, 6)), 2, _traced, "not kept"),
        "number": (lambda: _Around(lambda y: y.abs().max().item()), 2, _traced, "another output"),
        "list": (lambda: _Around(lambda y: y.tolist()), 2, _traced, "another output"),
        "array": (lambda: _Around(lambda y: y.detach().numpy().copy()), 2, _traced, "another output"),
        "low_path": (lambda: _Path(lambda value: value < 100), 2, _traced, "another output"),
        "high_path": (lambda: _Path(lambda value: not value > 100), 2, _traced, "another output"),
        "hook": (_Hooked, 2, _traced, "another output"),
        "closure": (_Closure, 1, _traced, "holds on to `gain`"),
        "train_path": (_TrainPath, 2, _traced, "in train mode"),
        "detached": (_Detached, 1, _traced, "gradient of `last.weight`"),
        "batch_mean": (lambda: _Mixing(lambda x: x - x.mean(0)), 1, _traced, "other samples"),
        "batch_norm": (
            lambda: _Mixing(lambda x: F.batch_norm(x, None, None, training=True)),
            1,
            _traced,
            "other samples",
        ),
        "other_row": (lambda: _Mixing(lambda x: x.flip(0)), 1, _traced, "other samples"),
    }
)
"""By name: the network, the depth of its false cut, how that is planted, and what the proof has to say."""
