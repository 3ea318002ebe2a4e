"""Small networks of every kind that a cut has to survive, and random ones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from frostline.copies import plain_torch


@dataclasses.dataclass(frozen=True)
class Specimen:
    """A small network and what its forward takes; `output(specimen)` is what it yields."""

    name: str
    model: nn.Module
    example: Any

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The example's tensors, as the frozen part takes them."""
        match self.example:
            case torch.Tensor():
                return (self.example,)
            case dict():
                return tuple(self.example.values())
        return tuple(self.example)

    def output(self) -> Any:
        """What the network yields in eval mode, without gradients."""
        mode = self.model.training
        self.model.eval()
        try:
            # The fast path of attention rounds otherwise than the layers that it stands for.
            with torch.no_grad(), plain_torch():
                return self.model(**self.example) if isinstance(self.example, dict) else self.model(*self.inputs)
        finally:
            self.model.train(mode)


def menagerie() -> tuple[Specimen, ...]:
    """Make one small network for each trait that a cut has to survive, with three outputs each.

    Example:
        >>> [specimen.name for specimen in menagerie()][:3]
        ['chain', 'residual', 'branching']
    """
    return tuple(specimen(name) for name in _BUILDERS)


def specimen(name: str) -> Specimen:
    """Make the small network of that name; the same call makes the same weights.

    Args:
        name: Of a trait: chain, residual, branching, tied, batch_norm, dropout, in_place,
            several_inputs, dict_output, attention, padded_tokens, shared_activation,
            untraceable or value_check.

    Example:
        >>> specimen("chain").output().shape
        torch.Size([4, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model, example = _BUILDERS[name]()
        _roughen(model)
        return Specimen(name, model, example)


def _roughen(model: nn.Module) -> None:
    """Give norms and biases values of their own: fresh ones are all ones and zeros, which hides mistakes."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1 and weight.numel() > 1:
                weight.add_(0.2 * torch.randn_like(weight))


class _Residual(nn.Module):
    def __init__(self, width: int, gain: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.gain = nn.Parameter(torch.full((1,), gain))

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.gain * self.second(F.relu(self.first(x)))


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)
        self.join, self.head = nn.Linear(8, 6), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> Any:
        stem = self.stem(x)
        joined = self.join(torch.cat([self.left(stem), self.right(stem).sigmoid()], dim=1))
        return self.head(torch.cat([joined, stem], dim=1))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.between, self.out = nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(5, 7)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.out(torch.tanh(self.between(self.embed(x)))).relu())


class _Convolutions(nn.Module):
    def __init__(self, after: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), after())
        self.middle = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), after())
        self.last = nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        x = self.middle(x)
        x = F.relu(self.last(x), inplace=True)
        return self.head(x.mean((2, 3)))


class _InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(size, 6, 3, padding=1) for size in (3, 6, 6))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = F.relu_(self.first(x))
        kept = self.second(x)
        kept += x
        y = self.norm(kept)
        y.mul_(0.5)
        z = self.third(F.relu(y, inplace=True))
        z.add_(y)
        return self.head(z.clamp_(min=0).mean((2, 3)))


class _SeveralInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 6), nn.Linear(4, 6)
        self.join, self.head = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
        one = torch.tanh(self.left(left))
        return self.head(self.join(torch.cat([one, self.right(right)], dim=1)).relu())


class _DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Linear(5, 6), "second": nn.Linear(6, 6)})
        self.head, self.side = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body["second"](torch.tanh(self.body["first"](x)))
        return {"logits": self.head(x), "side": self.side(x)}


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        y = self.norm(x)
        x = x + self.attention(y, y, y, key_padding_mask=mask, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(x)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.Sequential(_Block(8), _Block(8), _Block(8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class _PaddedTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.blocks = nn.ModuleList(_Block(8) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.numbers: torch.Tensor
        self.register_buffer("numbers", torch.arange(6))

    def forward(self, ids: torch.Tensor, is_padding: torch.Tensor) -> Any:
        x = self.words(ids) + self.positions(self.numbers[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, is_padding)
        weight = (~is_padding).to(x.dtype).unsqueeze(-1)
        return self.head((x * weight).sum(1) / weight.sum(1))


class _SharedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        for layer in (self.first, self.second, self.third):
            x = self.act(layer(x))
        return self.head(x)


class _Untraceable(nn.Module):
    """Takes a path that depends on a value, which no symbolic tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Linear(5, 6), _Gate()
        self.last, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.last(self.gate(self.stem(x))).relu())


class _ValueCheck(nn.Module):
    """Looks at a value between its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        return self.head(self.middle(x if (x < 100).all() else x.clamp(max=100)))


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.one(x)
        return self.two(x) if (x.abs().sum() > 0).item() else self.one(x)


def _chain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3))


def _residual() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), _Residual(6), _Residual(6), nn.Linear(6, 3))


def _vector() -> torch.Tensor:
    return torch.randn(4, 5)


def _picture() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8)


def _tokens() -> dict[str, torch.Tensor]:
    lengths = torch.tensor([[6], [4], [5], [2]])
    return {"ids": torch.randint(0, 11, (4, 6)), "is_padding": torch.arange(6) >= lengths}


_BUILDERS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "chain": lambda: (_chain(), _vector()),
    "residual": lambda: (_residual(), _vector()),
    "branching": lambda: (_Branching(), _vector()),
    "tied": lambda: (_Tied(), _vector()),
    "batch_norm": lambda: (_Convolutions(nn.ReLU), _picture()),
    "dropout": lambda: (_Convolutions(lambda: nn.Dropout(0.5)), _picture()),
    "in_place": lambda: (_InPlace(), _picture()),
    "several_inputs": lambda: (_SeveralInputs(), (_vector(), torch.randn(4, 4))),
    "dict_output": lambda: (_DictOutput(), _vector()),
    "attention": lambda: (_Attention(), _picture()),
    "padded_tokens": lambda: (_PaddedTokens(), _tokens()),
    "shared_activation": lambda: (_SharedActivation(), _vector()),
    "untraceable": lambda: (_Untraceable(), _vector()),
    "value_check": lambda: (_ValueCheck(), _vector()),
}


# --- random networks --------------------------------------------------------------------------


class _Squeeze(nn.Module):
    """Weighs the channels by their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> Any:
        return x * self.weigh(x.mean((2, 3))).sigmoid()[:, :, None, None]


class _Fork(nn.Module):
    """Two ways side by side, returned as a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.left(x), self.right(x)


class _ConvResidual(nn.Module):
    """A residual whose branch starts at zero, as many networks' do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> Any:
        return F.relu(self.norm(self.conv(x)) + x, inplace=True)


class _Patchwork(nn.Module):
    def __init__(self, pieces: Sequence[str], width: int) -> None:
        super().__init__()
        self.names = tuple(pieces)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.pieces = nn.ModuleList(PIECES[name](width) for name in pieces)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        kept = x
        piece: Any
        for name, piece in zip(self.names, self.pieces, strict=True):
            match name:
                case "fork":
                    left, right = piece(x)
                    x = left.sigmoid() * right
                case "keep":
                    x = kept = piece(x)
                case "add":
                    x = piece(x) + F.adaptive_avg_pool2d(kept, (x.shape[-2], x.shape[-1]))
                case "write":
                    x = piece(x).mul_(0.5)
                case "join":
                    x = piece[0](x)
                    x += F.adaptive_avg_pool2d(kept, (x.shape[-2], x.shape[-1]))
                    x = piece[1](x)
                case _:
                    x = piece(x)
        return self.head(x.flatten(2).mean(2))


PIECES: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "conv": lambda width: nn.Conv2d(width, width, 3, padding=1),
        "norm": nn.BatchNorm2d,
        "act": lambda width: nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True)),
        "dropout": lambda width: nn.Dropout(0.3),
        "pool": lambda width: nn.MaxPool2d(2, ceil_mode=True),
        "residual": _ConvResidual,
        "squeeze": _Squeeze,
        "fork": _Fork,
        "keep": lambda width: nn.Identity(),
        "add": lambda width: nn.Conv2d(width, width, 1),
        "write": lambda width: nn.Conv2d(width, width, 1),
        "join": lambda width: nn.ModuleList([nn.Conv2d(width, width, 1), nn.ReLU(inplace=True)]),
    }
)
"""What a random network is made of: by name, the piece for that many channels."""


def network(pieces: Sequence[str], *, seed: int = 0, width: int = 4) -> Specimen:
    """Make a network of pieces, in that order, between a first convolution and a head.

    Args:
        pieces: Names out of `PIECES`; "add" and "join" add what the last "keep" kept.
        seed: Of the weights and the example.
        width: C.

    Example:
        >>> network(["keep", "fork", "pool", "add"]).output().shape
        torch.Size([4, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Patchwork(pieces, width)
        return Specimen("-".join(pieces), model, torch.randn(4, 3, 7, 7))
