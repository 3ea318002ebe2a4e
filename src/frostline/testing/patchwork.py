"""Random networks over sequences, sewn from patches that each hold one trait of real networks."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from frostline.testing.menagerie import Specimen

Pattern: TypeAlias = Sequence["str | Pattern"]
"""Names out of `PATCHES`, in order of execution; a sequence among them is a module of its own."""

TRAITS = ("ids", "side", "mask", "named", "token", "reversed", "dict", "record")
"""What holds for a whole network: whole numbers as input, a second float input, a padding mask, inputs given by name,
a class token and positions at the root, modules registered from last to first, a dict or a dataclass as output."""

_ROWS, _STEPS, _FEATURES, _WORDS, _OUTPUTS = 4, 5, 3, 11, 3


def patchwork(pattern: Pattern, *, traits: Collection[str] = (), seed: int = 0, width: int = 4) -> Specimen:
    """Make a network of patches between a stem and a head; its example has 4 samples.

    Args:
        pattern: Names out of `PATCHES`; "add" and "join" add what the last "keep" kept.
        traits: Names out of `TRAITS`.
        seed: Of the weights and the example.
        width: D, an even number.

    Example:
        >>> patchwork(["lstm", ("keep", "attention", "add")], traits={"token"}).output().shape
        torch.Size([4, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Patchwork(pattern, frozenset(traits), width)
        return Specimen(f"{_name(pattern)} {sorted(traits)}", model, _example(traits, width))


def _name(pattern: "str | Pattern") -> str:
    return pattern if isinstance(pattern, str) else f"[{' '.join(map(_name, pattern))}]"


def _example(traits: Collection[str], width: int) -> Any:
    given = {
        "x": torch.randint(0, _WORDS, (_ROWS, _STEPS)) if "ids" in traits else torch.randn(_ROWS, _STEPS, _FEATURES)
    }
    if "side" in traits:
        given["side"] = torch.randn(_ROWS, width)
    if "mask" in traits:
        lengths = torch.tensor([[5], [3], [4], [1]])
        given["is_kept"] = torch.arange(_STEPS) < lengths
    if "named" in traits or ("mask" in traits and "side" not in traits):
        return given
    return given["x"] if len(given) == 1 else tuple(given.values())


@dataclasses.dataclass(frozen=True)
class _Record:
    """A dataclass that modules return."""

    x: torch.Tensor
    other: torch.Tensor
    note: str = "kept as it is"


class _Patchwork(nn.Module):
    def __init__(self, pattern: Pattern, traits: frozenset[str], width: int) -> None:
        super().__init__()
        self.traits = traits
        self.names = _names(pattern)
        self.stem: nn.Module
        self.pieces: nn.ModuleDict
        self.head: nn.Module
        is_reversed = "reversed" in traits
        parts: dict[str, Callable[[], nn.Module]] = {
            "stem": lambda: nn.Embedding(_WORDS, width) if "ids" in traits else nn.Linear(_FEATURES, width),
            "pieces": lambda: _pieces(pattern, width, is_reversed=is_reversed),
            "head": lambda: nn.Linear(width, _OUTPUTS),
        }
        for name in reversed(parts) if is_reversed else parts:
            self.add_module(name, parts[name]())
        if "token" in traits:
            self.token = nn.Parameter(torch.randn(1, 1, width))
            self.positions = nn.Parameter(torch.randn(1, _STEPS + 1, width))

    def forward(self, x: torch.Tensor, side: torch.Tensor | None = None, is_kept: torch.Tensor | None = None) -> Any:
        x = self.stem(x)
        if "token" in self.traits:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = _sewn(self.names, self.pieces, _Thread(x, x, side, is_kept))
        x = x[:, 0] if "token" in self.traits else x.mean(1)
        y = self.head(x)
        if "dict" in self.traits:
            return {"logits": y, "features": x}
        return _Record(y, x) if "record" in self.traits else y


class _Sheet(nn.Module):
    """Patches that are a module of their own."""

    def __init__(self, pattern: Pattern, width: int, *, is_reversed: bool) -> None:
        super().__init__()
        self.names = _names(pattern)
        self.pieces = _pieces(pattern, width, is_reversed=is_reversed)

    def forward(self, x: torch.Tensor, *, side: torch.Tensor | None, is_kept: torch.Tensor | None) -> Any:
        return _sewn(self.names, self.pieces, _Thread(x, x, side, is_kept))


def _names(pattern: Pattern) -> tuple[str, ...]:
    return tuple(part if isinstance(part, str) else "" for part in pattern)


def _pieces(pattern: Pattern, width: int, *, is_reversed: bool) -> nn.ModuleDict:
    found: dict[str, nn.Module] = {}
    for place, part in enumerate(pattern):
        if isinstance(part, str):
            found[str(place)] = PATCHES[part].build(width, tuple(found.values()))
        else:
            found[str(place)] = _Sheet(part, width, is_reversed=is_reversed)
    return nn.ModuleDict({key: found[key] for key in (reversed(found) if is_reversed else found)})


@dataclasses.dataclass
class _Thread:
    """What passes from patch to patch: the sequence, what was kept of it, and the other inputs."""

    x: torch.Tensor
    kept: torch.Tensor
    side: torch.Tensor | None
    is_kept: torch.Tensor | None

    @property
    def padding(self) -> torch.Tensor | None:
        """True (B, T) where x is padding; a class token is none."""
        if self.is_kept is None:
            return None
        return ~F.pad(self.is_kept, (self.x.shape[1] - self.is_kept.shape[1], 0), value=True)


def _sewn(names: Sequence[str], pieces: nn.ModuleDict, thread: _Thread) -> torch.Tensor:
    for place, name in enumerate(names):
        piece: Any = pieces[str(place)]
        if name:
            thread.x = PATCHES[name].run(piece, thread)
        else:
            thread.x = piece(thread.x, side=thread.side, is_kept=thread.is_kept)
    return thread.x


# --- modules ----------------------------------------------------------------------------------


class _Residual(nn.Module):
    """Its branch starts at zero, as many networks' do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.gain * self.down(F.gelu(self.up(self.norm(x))))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> Any:
        y = self.norm(x)
        return x + self.mix(y, y, y, key_padding_mask=padding, need_weights=False)[0]


class _Stochastic(nn.Module):
    """Leaves its branch out for some samples in train mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.branch(x)
        return x + (y * (torch.rand(len(x), 1, 1) < 0.5) if self.training else y)


class _Returning(nn.Module):
    """Returns several values in a container."""

    def __init__(self, width: int, wrap: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.one(x), self.two(x))


class _Halves(nn.Module):
    """Returns views of one value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * width)

    def forward(self, x: torch.Tensor) -> Any:
        return self.wide(x).chunk(2, dim=-1)


class _Forked(nn.Module):
    """Orders its modules by a question that Python answers."""

    def __init__(self, width: int, asks: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.asks = asks

    def forward(self, x: torch.Tensor) -> Any:
        return self.two(self.one(x)) if self.asks(x) else self.one(self.two(x))


class _Writing(nn.Module):
    """Writes into its buffers: a count, a level that it reads again, and a mean that it only reports."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.count: torch.Tensor
        self.level: torch.Tensor
        self.mean: torch.Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("level", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(width), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        self.count += 1
        self.level.fill_(0.5)
        y = self.inner(x)
        self.mean.copy_(y.detach().mean((0, 1)))
        return y * self.level


class _Numbered(nn.Module):
    """Adds a row of its table for each place, looked up by a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(16, width)
        self.places: torch.Tensor
        self.register_buffer("places", torch.arange(16))

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.table(self.places[: x.shape[1]])


def _batch_norm(width: int) -> nn.Module:
    norm = nn.BatchNorm1d(width)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 1.5)
    return norm


# --- patches ----------------------------------------------------------------------------------


class Patch(NamedTuple):
    """How to build a patch of a width behind the patches before it, and the code that calls it."""

    build: Callable[[int, Sequence[nn.Module]], nn.Module]
    run: Callable[[Any, _Thread], torch.Tensor]


def _call(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece(thread.x)
    return y


def _layer(build: Callable[[int], nn.Module], run: Callable[[Any, _Thread], torch.Tensor] = _call) -> Patch:
    """A patch that needs to know none of those before it."""
    return Patch(lambda width, before: build(width), run)


def _linear(width: int) -> nn.Linear:
    return nn.Linear(width, width)


def _linears(count: int) -> Callable[[int], nn.Module]:
    return lambda width: nn.ModuleList(_linear(width) for _ in range(count))


def _twin(width: int, before: Sequence[nn.Module]) -> nn.Linear:
    """The last linear layer before."""
    return next((piece for piece in reversed(before) if isinstance(piece, nn.Linear)), _linear(width))


def _tied(width: int, before: Sequence[nn.Module]) -> nn.Linear:
    piece = _linear(width)
    piece.weight = _twin(width, before).weight
    return piece


def _returning(wrap: Callable[[Any, Any], Any], unwrap: Callable[[Any], torch.Tensor]) -> Patch:
    return _layer(lambda width: _Returning(width, wrap), lambda piece, thread: unwrap(piece(thread.x)))


def _keep(piece: Any, thread: _Thread) -> torch.Tensor:
    thread.kept = piece(thread.x)
    return thread.kept


def _join(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece[0](thread.x)
    y += thread.kept[:, :1]
    return F.relu(piece[1](y), inplace=True)


def _poke(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece(thread.x)
    y[..., :1].mul_(0.5)
    return y


def _branch(piece: Any, thread: _Thread) -> torch.Tensor:
    return torch.add(piece[0](thread.x), piece[1](thread.x).sigmoid())


def _look(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece(thread.x)
    return y if bool((y.abs() < 1e6).all()) else y.clamp(-1e6, 1e6)


def _fold(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece(thread.x.flatten(0, 1))
    return y.reshape(len(thread.x), -1, y.shape[-1])


def _lstm(piece: Any, thread: _Thread) -> torch.Tensor:
    y, (last, _) = piece(thread.x)
    return torch.add(y, last.transpose(0, 1))


def _gru(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece(thread.x.transpose(0, 1))[0]
    return y.transpose(0, 1)


def _across(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece(thread.x.transpose(1, 2))
    return y.transpose(1, 2)


def _turn(piece: Any, thread: _Thread) -> torch.Tensor:
    _, steps, width = thread.x.shape
    angle = torch.arange(steps, dtype=thread.x.dtype)[:, None] / torch.arange(1, width + 1)
    y: torch.Tensor = piece(thread.x * angle.cos())
    return y


def _side(piece: Any, thread: _Thread) -> torch.Tensor:
    return torch.add(thread.x, piece(thread.x) if thread.side is None else piece(thread.side)[:, None])


def _mask(piece: Any, thread: _Thread) -> torch.Tensor:
    y: torch.Tensor = piece(thread.x)
    return y if thread.padding is None else y.masked_fill(thread.padding[..., None], 0.0)


PATCHES: Mapping[str, Patch] = MappingProxyType(
    {
        "linear": _layer(_linear),
        "act": _layer(lambda width: nn.Sequential(_linear(width), nn.ReLU(inplace=True))),
        "residual": _layer(_Residual),
        "branch": _layer(_linears(2), _branch),
        "keep": _layer(lambda width: nn.Identity(), _keep),
        "add": _layer(_linear, lambda piece, thread: piece(thread.x) + thread.kept[:, :1]),
        "join": _layer(_linears(2), _join),
        "write": _layer(_linear, lambda piece, thread: piece(thread.x).mul_(0.5)),
        "poke": _layer(_linear, _poke),
        "identity": _layer(lambda width: nn.Identity()),
        "dropout": _layer(lambda width: nn.Dropout(0.3)),
        "stochastic": _layer(_Stochastic),
        "norm": _layer(nn.LayerNorm),
        "batch_norm": _layer(_batch_norm, _across),
        "conv": _layer(lambda width: nn.Conv1d(width, width, 3, padding=1), _across),
        "attention": _layer(_Attention, lambda piece, thread: piece(thread.x, padding=thread.padding)),
        "encoder": _layer(
            lambda width: nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True),
            lambda piece, thread: piece(thread.x, src_key_padding_mask=thread.padding),
        ),
        "lstm": _layer(lambda width: nn.LSTM(width, width, batch_first=True), _lstm),
        "gru": _layer(lambda width: nn.GRU(width, width), _gru),
        "tied": Patch(_tied, _call),
        "again": Patch(_twin, _call),
        "twice": _layer(_linear, lambda piece, thread: piece(piece(thread.x).tanh())),
        "dict": _returning(
            lambda one, two: {"one": one, "two": two, "rows": len(one), "none": None},
            lambda found: found["one"] * found["rows"] / len(found["two"]) + found["two"],
        ),
        "record": _returning(_Record, lambda found: found.x + found.other),
        "list": _returning(lambda one, two: [(one,), {"two": two}], lambda found: found[0][0] * found[1]["two"]),
        "halves": _layer(_Halves, lambda piece, thread: torch.mul(*piece(thread.x))),
        "fold": _layer(_linear, _fold),
        "turn": _layer(_linear, _turn),
        "parameter": _layer(
            lambda width: nn.ParameterList([torch.randn(1, 1, width)]), lambda piece, thread: thread.x + piece[0]
        ),
        "numbered": _layer(_Numbered),
        "writing": _layer(_Writing),
        "by_shape": _layer(lambda width: _Forked(width, lambda x: x.shape[1] > _STEPS)),
        "by_flag": _layer(lambda width: _Forked(width, lambda x: x.is_floating_point())),
        "by_value": _layer(lambda width: _Forked(width, lambda x: bool(x.abs().sum() >= 0))),
        "look": _layer(_linear, _look),
        "side": _layer(_linear, _side),
        "mask": _layer(_linear, _mask),
    }
)
"""What a random network over sequences is made of."""
