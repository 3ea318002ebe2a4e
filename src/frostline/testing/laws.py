"""The law of every cut, and cuts that lie about it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import frostline as fl
from frostline.records import Cut, CutGraph
from frostline.testing.menagerie import Specimen


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """Everything that must not change on the user's network, as a value that compares.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = snapshot(net)
        >>> net.eval() and snapshot(net) == before
        False
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return (
        [(name, id(tensor), tensor._version, tensor.requires_grad, tensor.grad is None) for name, tensor in tensors],
        [(name, tensor.detach().cpu().numpy().tobytes()) for name, tensor in tensors],
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
    pairs = zip(_values(found), _values(whole), strict=True)
    if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
        return "the outputs differ"
    if not all(torch.equal(before, wire) for before, wire in zip(given, wires, strict=True)):
        return "the live part wrote into the wires that it was fed"
    return None


def _values(output: Any) -> list[torch.Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


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


@dataclasses.dataclass(frozen=True)
class FalseCut:
    """A cut that looks open and is not; `proof` is what a proof has to say, as a regular expression."""

    specimen: Specimen
    graph: CutGraph
    depth: int
    proof: str


def false_cuts() -> tuple[FalseCut, ...]:
    """Make cuts that lie, each in its own way; all pass a plain comparison of outputs but the mixing ones.

    Example:
        >>> [liar.specimen.name for liar in false_cuts()]
        ['zero_gain', 'zero_norm', 'stash', 'train_path', 'batch_mean', 'other_row']
    """
    kinds: tuple[tuple[str, Callable[[], nn.Module], int, str | None, str], ...] = (
        ("zero_gain", lambda: _Branch(_Gain()), 2, "first", "not kept"),
        ("zero_norm", lambda: _Branch(_zero_norm()), 2, "first", "not kept"),
        ("stash", _Stash, 1, None, "another output|not kept"),
        ("train_path", _TrainPath, 2, None, "in train mode"),
        ("batch_mean", lambda: _Mixing(lambda x: x - x.mean(0)), 1, None, "other samples"),
        ("other_row", lambda: _Mixing(lambda x: x.flip(0)), 1, None, "other samples"),
    )
    found = []
    for name, build, depth, wire, proof in kinds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            liar = Specimen(name, build(), torch.randn(4, 5))
        # What a forward leaves on its module passes for what the next one would.
        liar.output()
        graph = fl.trace(liar.model, liar.example)
        found.append(FalseCut(liar, without_wire(graph, depth, wire) if wire else graph, depth, proof))
    return tuple(found)


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


class _Stash(nn.Module):
    """Reads its first value from where the first module left it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = _Leaving(), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.stem(x)
        return self.head(self.last(y) + self.stem.left)


class _Leaving(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 6)

    def forward(self, x: torch.Tensor) -> Any:
        self.left = super().forward(x)
        return self.left


class _TrainPath(nn.Module):
    """Has a second head in train mode, as GoogLeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = nn.Linear(5, 6), nn.Linear(6, 6)
        self.last, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        stem = self.stem(x)
        y = self.head(self.last(self.middle(stem).relu()))
        return y + self.head(stem) if self.training else y


class _Mixing(nn.Module):
    """Lets every sample of a batch see the others."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.stem.register_forward_hook(lambda module, args, output: mix(output))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.last(self.stem(x)).tanh())
