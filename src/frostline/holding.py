"""What holds the frozen part of a network still while the user's own loop trains the rest."""

import dataclasses
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from frostline.trees import leaves, rebuild, tensors

CARRIED = "_frostline"
"""Attribute under which a network carries what was done to it."""

_FORWARD = "_frostline_forward"
"""Attribute of a module under which lies what stands in its forward's place, also when others have wrapped that."""

_Module = TypeVar("_Module", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Below:
    """What lies below a cut, by name.

    `frozen` holds modules that run below the cut only, `mixed` those that run on both sides of
    it, and of these `across` those that are running when it is reached. `buffers` are frozen
    ones of mixed modules. The frozen part ends when `last` returns for the `turns`-th time.
    `is_closed` tells that no float input of the network crosses the cut, `is_narrow` that what
    `last` returns is a small view, and nothing else of its memory is used above the cut.
    """

    frozen: tuple[str, ...]
    mixed: tuple[str, ...]
    across: tuple[str, ...]
    buffers: tuple[str, ...]
    last: str
    turns: int
    is_closed: bool
    is_narrow: bool


class Hold:
    """Holds what lies below a cut in eval mode, without gradients, and its buffers as they are.

    It stands in the instance attributes `forward` and `train` of modules. All of it is plain
    objects, so that copies and pickles of the network are held too.

    Args:
        model: The network, which is changed in place.
        below: What to hold.
    """

    def __init__(self, model: nn.Module, below: Below) -> None:
        modules = dict(model.named_modules())
        self.below = below
        self.is_below = False
        self._frozen = tuple(modules[name] for name in below.frozen)
        self._mixed = tuple(modules[name] for name in below.mixed)
        self._buffers = tuple(
            (modules[home], "_buffers", name) for home, _, name in (full.rpartition(".") for full in below.buffers)
        )
        self._done = 0
        self._waiting: list[nn.Module] = []
        self._lent: list[_Lent] = []
        frozen = set(self._frozen)
        for module in self._frozen:
            module.__dict__["train"] = _Train(module)
            if isinstance(module, _NormBase):
                module.__dict__["reset_running_stats"] = _Reset(module)
        for name in _outermost(below.frozen):
            inside = tuple(module for module in modules[name].modules() if module in frozen)
            _forward_of(modules[name]).role = _Frozen(inside)
        for name in below.across:
            _forward_of(modules[name]).role = _Across(
                self, cuts_inputs=below.is_closed and not name, is_network=not name
            )
        last = _forward_of(modules[below.last])
        last.role = _Last(self, last.role)

    def holds(self, model: nn.Module, below: Below | None) -> bool:
        """Whether it holds just that, and none of the modules was replaced since."""
        if below != self.below:
            return False
        modules = dict(model.named_modules())
        return (self._frozen, self._mixed) == tuple(
            tuple(modules[name] for name in names) for names in (below.frozen, below.mixed)
        )

    def begin(self) -> None:
        """Put modules that run on both sides into eval mode: a pass begins below the cut."""
        self.is_below = True
        self._done = 0
        for module in self._mixed:
            if module.training:
                self._waiting.append(module)
                module.training = False
        self._lent += _lend_copies(self._buffers)

    def count(self) -> bool:
        """Note that the last frozen module has returned; tell whether that was the cut."""
        self._done += 1
        is_cut = self.is_below and self._done == self.below.turns
        if is_cut:
            self.end()
        return is_cut

    def end(self) -> None:
        """Give modes and buffers back: the pass is above the cut, or it has failed below."""
        self.is_below = False
        for module in self._waiting:
            module.training = True
        self._waiting = []
        _take_back(self._lent)
        self._lent = []


def lifted(model: _Module) -> _Module:
    """Take off a network whatever holds it still, and what it carries; its flags and modes stay as they are.

    Example:
        >>> lifted(nn.Linear(2, 2)).training
        True
    """
    for module in model.modules():
        mine = module.__dict__
        mine.pop(CARRIED, None)
        for name, kind in (("train", _Train), ("reset_running_stats", _Reset)):
            if isinstance(mine.get(name), kind):
                _restore(module, name)
        if forward := mine.get(_FORWARD):
            forward.role = None
            # What another library has wrapped meanwhile stays, and lets its calls through.
            if mine.get("forward") is forward:
                _restore(module, "forward")
                del mine[_FORWARD]
    return model


def _restore(module: nn.Module, name: str) -> None:
    before = module.__dict__.pop(name).before
    if before is not None:
        module.__dict__[name] = before


def _outermost(names: Iterable[str]) -> list[str]:
    """The names that do not lie inside another one."""
    found: list[str] = []
    for name in sorted(names):
        if not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


# --- what a forward writes --------------------------------------------------------------------

_Place = tuple[nn.Module, str, str]
_Lent = tuple[nn.Module, str, str, torch.Tensor | None]


def _places(module: nn.Module) -> list[_Place]:
    """The tensors that a module's forward may write in eval mode: its table, and its name there."""
    # An embedding with a largest norm shortens the rows that it is asked for.
    is_shortened = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    weights = [(module, "_parameters", "weight")] if is_shortened else []
    is_of_torch = all(
        kind.__module__.partition(".")[0] in ("torch", "builtins", "typing") for kind in type(module).__mro__
    )
    return weights if is_of_torch else weights + [(module, "_buffers", name) for name in module._buffers]


def _lend_copies(places: Iterable[_Place]) -> list[_Lent]:
    """Let modules read from and write into copies; return what to put back."""
    lent: list[_Lent] = []
    copies: dict[int, torch.Tensor] = {}
    for module, table, name in places:
        tensor = getattr(module, table)[name]
        lent.append((module, table, name, tensor))
        if tensor is not None:
            # One tensor under two names stays one.
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().clone()
            getattr(module, table)[name] = copies[id(tensor)]
    return lent


def _take_back(lent: Iterable[_Lent]) -> None:
    for module, table, name, tensor in lent:
        getattr(module, table)[name] = tensor


# --- what stands in a method's place ----------------------------------------------------------


class _Train:
    """The `train` of a frozen module: does nothing, but for live modules that are registered inside it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = module.__dict__.get("train")

    def __call__(self, mode: bool = True) -> nn.Module:
        for child in self.module.children():
            child.train(mode)
        return self.module


class _Reset:
    """The `reset_running_stats` of a frozen norm: stochastic weight averaging calls it on every norm that it finds."""

    def __init__(self, module: nn.Module) -> None:
        self.before = module.__dict__.get("reset_running_stats")

    def __call__(self) -> None:
        pass


class _Forward:
    """Stands in a forward's place, and plays a role there while it has one.

    Trainers treat it as the bound method that forwards mostly are: they ask for its signature, or
    take its function, wrap it and bind it to the network, or to a copy of it, themselves.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        if isinstance(module, torch.jit.ScriptModule):
            # Its class has none; the first look at it puts it where an instance keeps its own.
            _ = module.forward
        self.before: Callable[..., Any] | None = module.__dict__.get("forward")
        self.role: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.module, *args, **kwargs)

    def call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the forward of that module, in its role."""
        return self.role(self, module, *args, **kwargs) if self.role else self.run(module, *args, **kwargs)

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the forward itself."""
        return self.before(*args, **kwargs) if self.before else type(module).forward(module, *args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.before or types.MethodType(type(self.module).forward, self.module)

    @property
    def __func__(self) -> Callable[..., Any]:
        return forward

    @property
    def __self__(self) -> nn.Module:
        return self.module


def _forward_of(module: nn.Module) -> _Forward:
    """What stands in the forward's place, put there where it is not yet."""
    mine = module.__dict__
    if _FORWARD not in mine:
        mine[_FORWARD] = mine["forward"] = _Forward(module)
    # Where others have wrapped it meanwhile, their calls come by here.
    mine.setdefault("forward", mine[_FORWARD])
    found: _Forward = mine[_FORWARD]
    return found


def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call the forward of a module that is held, or was."""
    held = module.__dict__.get(_FORWARD)
    return held.call(module, *args, **kwargs) if held else type(module).forward(module, *args, **kwargs)


# --- the roles of a forward -------------------------------------------------------------------


class _Frozen:
    """The forward of an outermost frozen module."""

    def __init__(self, inside: tuple[nn.Module, ...]) -> None:
        self.inside = inside
        self.places = tuple(place for module in inside for place in _places(module))

    def __call__(self, held: _Forward, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for part in self.inside:
            # Some trainers put modes back without asking `train`.
            if part.training:
                part.training = False
        lent = _lend_copies(self.places)
        try:
            with torch.no_grad():
                output = held.run(module, *args, **kwargs)
        finally:
            _take_back(lent)
        return _detached(output) if torch.is_grad_enabled() else output


class _Across:
    """The forward of a module in which the cut lies."""

    def __init__(self, hold: Hold, *, cuts_inputs: bool, is_network: bool) -> None:
        self.hold = hold
        self.cuts_inputs = cuts_inputs
        self.is_network = is_network

    def __call__(self, held: _Forward, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Lightning passes a whole training step through the forward, which calls the network once or more.
        if self.hold.is_below and not self.is_network:
            return held.run(module, *args, **kwargs)
        if self.cuts_inputs and any(tensor.requires_grad for tensor in tensors((args, kwargs))):
            args, kwargs = _detached((args, kwargs))
        self.hold.begin()
        try:
            return held.run(module, *args, **kwargs)
        finally:
            self.hold.end()


class _Last:
    """The forward of the module at whose return the cut is, around the role that it has besides."""

    def __init__(self, hold: Hold, role: Callable[..., Any] | None) -> None:
        self.hold = hold
        self.role = role

    def __call__(self, held: _Forward, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = (self.role or _Forward.run)(held, module, *args, **kwargs)
        is_cut = self.hold.count()
        if is_cut and self.hold.below.is_narrow and torch.is_grad_enabled():
            # The first live module keeps its input for the backward pass: one token, not all of them.
            return output.clone()
        return output


def _detached(tree: Any) -> Any:
    """The same without gradients; also a view that was made without them may then be written into."""
    if isinstance(tree, torch.Tensor):
        return tree.detach()
    found = leaves(tree)
    if not any(isinstance(leaf, torch.Tensor) for leaf in found):
        return tree
    return rebuild(tree, iter([leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in found]))
