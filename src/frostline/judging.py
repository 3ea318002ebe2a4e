"""Which engine computes the kept rows: the one asked for, where its outputs on real rows are torch's."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from frostline.carrying import carried, device_of
from frostline.data import Feed
from frostline.engines import LARGEST_ERROR, Compiled, Compiler, relative_error
from frostline.records import Wire
from frostline.rowfiles import Layout

JUDGED = 2
"""Rows of a batch that torch computes again to judge an engine; whole ones would be a good part of a short pass."""

Inputs = tuple[Tensor, ...]

_log = logging.getLogger("frostline.features")


class Frozen(Protocol):
    """The part below a cut, as `split` gives it.

    It maps inputs of batch B to the wires of the cut; `module` does the same and can be traced.
    """

    @property
    def fingerprint(self) -> str:
        """Names its weights and its cut."""

    @property
    def wires(self) -> tuple[Wire, ...]:
        """What it returns, in order."""

    @property
    def module(self) -> nn.Module:
        """The same as a module whose forward returns the tuple of wires."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the wires of a batch."""
        ...

    def joined(self, *others: Self) -> "Frozen":
        """The same with those of other cuts, whose wires follow; asked for only where there are several."""
        ...


class Runner(NamedTuple):
    """What computes the wires of some frozen parts in one go, and how it was judged.

    Args:
        places: Which of the parts.
        run: Maps the inputs of a full batch to the wires of these parts, one part after the other.
        engine: What runs it.
        precision: Of its arithmetic.
        errors: By part: largest difference to plain torch, relative to the largest value.
        known: What it gave when it was judged, by the place of the batch.
    """

    places: tuple[int, ...]
    run: Callable[[Inputs], tuple[Tensor, ...]]
    engine: str
    precision: str
    errors: tuple[float, ...]
    known: dict[int, tuple[Tensor, ...]]

    def wires(self, batch: int, inputs: Inputs) -> tuple[Tensor, ...]:
        """The wires of the batch in this place; what was computed to judge is not computed again."""
        return self.known.pop(batch, None) or self.run(inputs)


def judge(
    parts: Sequence[Frozen],
    feed: Feed,
    judged: Mapping[int, Inputs],
    *,
    engine: str,
    precision: str,
    compiler: Compiler,
) -> tuple[tuple[Runner, ...], tuple[str, ...]]:
    """Take the engine that was asked for if its outputs are torch's; else try it in full precision, else torch.

    Several parts are run as one, so that what they have in common is computed once. Each is judged for
    itself: one whose outputs are wrong, or that keeps the others from being converted, goes apart.

    Args:
        parts: Frozen parts of one network.
        feed: How samples reach them.
        judged: Inputs of full batches by which an engine is judged, by the place of their batch.
        engine: What was asked for.
        precision: Of its arithmetic.
        compiler: Makes what runs a part.

    Returns:
        What runs the parts, and by part why that is not what was asked for, or "".

    Example:
        >>> import frostline as fl
        >>> from frostline.engines import compiled
        >>> net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(2, 4)
        >>> frozen = fl.split(net, fl.trace(net, x), 1).frozen
        >>> [one], _ = judge([frozen], Feed(print), {}, engine="torch", precision="float32", compiler=compiled)
        >>> one.engine, one.errors, one.wires(0, (x,))[0].shape
        ('torch', (0.0,), torch.Size([2, 3]))
    """
    court = _Court(parts, feed, judged, compiler)
    if parts and (engine, precision) != ("torch", "float32"):
        court.hear(tuple(range(len(parts))), engine, list(dict.fromkeys((precision, "float32"))))
    found = tuple(court.runners)
    plain = tuple(sorted({*range(len(parts))} - {place for runner in found for place in runner.places}))
    if plain:
        found += (Runner(plain, court.plain(plain), "torch", "float32", (0.0,) * len(plain), {}),)
    return found, tuple("; ".join(reasons) for reasons in court.reasons)


class _Court:
    """Engines before a judge: `runners` are those that may run, `reasons` says by part what may not."""

    def __init__(self, parts: Sequence[Frozen], feed: Feed, judged: Mapping[int, Inputs], compiler: Compiler) -> None:
        self.parts = parts
        self.feed = feed
        self.judged = judged
        self.compiler = compiler
        self.runners: list[Runner] = []
        self.reasons: list[list[str]] = [[] for _ in parts]

    def hear(self, places: tuple[int, ...], engine: str, precisions: list[str]) -> None:
        """Find what runs these parts; those that are in no runner afterwards are left to torch."""
        if not precisions:
            return
        asked = precisions[0]
        other = self.compiler(
            self.feed.before(self._as_one(places).module), self.judged[0], engine=engine, precision=asked
        )
        fell = other.engine != engine != "auto" or other.precision != asked != "auto"
        if fell and len(places) > 1:
            # The deepest may be what cannot be converted.
            self.hear(places[:-1], engine, precisions)
            self.hear(places[-1:], engine, precisions)
            return
        if (other.engine, other.precision) == ("torch", "float32"):
            for place in places if other.why else ():
                self.reasons[place].append(other.why)
            return
        known = {batch: other(inputs) for batch, inputs in self.judged.items()}
        errors = self._errors(places, known)
        right = tuple(place for place in places if errors[place] <= LARGEST_ERROR[other.precision])
        if right == places:
            found = tuple(errors[place] for place in places)
            self.runners.append(Runner(places, other, other.engine, other.precision, found, known))
            return
        wrong = tuple(place for place in places if place not in right)
        for place in wrong:
            self._say(place, other, errors[place])
        if right:
            self.hear(right, engine, precisions)
        self.hear(wrong, engine, precisions[1:])

    def plain(self, places: tuple[int, ...]) -> Callable[[Inputs], tuple[Tensor, ...]]:
        """Torch in full precision."""
        frozen = self._as_one(places)
        home = device_of(frozen.module)
        return lambda inputs: carried(frozen(*self.feed.finished(carried(inputs, home))), torch.device("cpu"))

    def _as_one(self, places: tuple[int, ...]) -> Frozen:
        first, *others = (self.parts[place] for place in places)
        return first.joined(*others) if others else first

    def _errors(self, places: tuple[int, ...], known: Mapping[int, tuple[Tensor, ...]]) -> dict[int, float]:
        plain, errors = self.plain(places), dict.fromkeys(places, 0.0)
        for batch, inputs in self.judged.items():
            wanted, found = plain(tuple(x[:JUDGED] for x in inputs)), known[batch]
            first = 0
            for place in places:
                kinds = self.parts[place].wires
                here = slice(first, first + len(kinds)) if len(places) > 1 else slice(None)
                errors[place] = max(errors[place], _error(found[here], wanted[here], kinds))
                first += len(kinds)
        return errors

    def _say(self, place: int, other: Compiled, error: float) -> None:
        self.reasons[place].append(f"{other.spoken} is {error:.1e} away from torch's outputs")
        _log.warning("%s; it does not run the frozen part", self.reasons[place][-1])


def _error(wires: tuple[Tensor, ...], wanted: tuple[Tensor, ...], kinds: tuple[Wire, ...]) -> float:
    """How far the first rows of a batch are from what they should be."""
    layouts = [Layout(kind) for kind in kinds]
    if any(len(each) != len(kinds) or not all(map(Layout.fits, layouts, each)) for each in (wires, wanted)):
        return float("inf")
    found, right = (
        tuple(layout.to_rows(wire)[:JUDGED] for layout, wire in zip(layouts, each, strict=True))
        for each in (wires, wanted)
    )
    return relative_error(found, right)
