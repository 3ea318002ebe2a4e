"""Number the stages of a network as people would."""

import bisect
import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

from torch import nn

from frostline.recording import Recording, Stored


@dataclasses.dataclass(frozen=True)
class Place:
    """The return of a module call at which a cut may be; `trouble` is why it cannot be used.

    `others` holds the names of earlier calls whose return belongs to the same stage.
    """

    name: str
    moment: int
    call: int
    stored: tuple[Stored, ...]
    fixed: tuple[Stored, ...]
    trouble: str | None
    others: tuple[str, ...] = ()


def numbered(model: nn.Module, places: Sequence[Place], recording: Recording) -> list[Place]:
    """List the cuts that people would number.

    Containers and modules that hold repeated blocks are entered, any other module with a cut at
    its own return is one stage. Of neighbouring cuts with no weight matrix read between them the
    later one stays, so that a norm or an activation belongs to the stage before it.

    Args:
        model: The network that was watched.
        places: Every cut, in order.
        recording: Of the watched pass.
    """
    matrices = {name for name, weight in model.named_parameters() if weight.dim() >= 2 and weight.shape[0] > 1}
    if not matrices or not places:
        return []
    returns = {place.name: place.moment for place in places}
    called = Counter(call.name for call in recording.calls)
    units = _units(model, {name for name in returns if called[name] == 1}, returns, matrices)
    moments = sorted({moment for name in matrices for moment in recording.reads[name]})
    kept: list[Place] = []
    for place in places:
        if any(place.name.startswith(unit + ".") and place.moment < returns[unit] for unit in units):
            continue
        if kept and not _any_between(moments, kept[-1].moment, place.moment):
            if place.trouble and not kept[-1].trouble:
                continue
            last = kept.pop()
            place = dataclasses.replace(place, others=(*last.others, last.name))
        kept.append(place)
    return [place for place in kept if place.moment < moments[-1]]


def _any_between(moments: Sequence[int], low: int, high: int) -> bool:
    place = bisect.bisect_right(moments, low)
    return place < len(moments) and moments[place] <= high


_BOXES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _units(model: nn.Module, once: set[str], returns: Collection[str], matrices: set[str]) -> list[str]:
    """Modules that are one stage each, in the order in which they are registered."""
    modules = dict(model.named_modules(remove_duplicate=False))
    held = Counter(parent for name in matrices for parent in _parents(name))
    heavy = [name for name in modules if name and held[name] >= 2 and not isinstance(modules[name], _BOXES)]
    alike: dict[tuple[str, type], list[str]] = {}
    for name in heavy:
        owner = next((outer for outer in reversed(_parents(name)) if not isinstance(modules[outer], _BOXES)), "")
        alike.setdefault((owner, type(modules[name])), []).append(name)
    repeated = {kind for (_, kind), names in alike.items() if len(names) > 1}
    instances = Counter(type(modules[name]) for name in heavy)
    shapes = {name: tuple((key, w.shape) for key, w in modules[name].named_parameters()) for name in heavy}
    # Two of the same shapes in a row are blocks. What is alike inside one (GhostNet's halves) is no block of its own,
    # but stages of blocks (Swin) differ in width. Two towers of one class are no row.
    blocks = {
        kind
        for (_, kind), names in alike.items()
        if len({shapes[name] for name in names}) < len(names) and instances[kind] > 2
    }
    holding = {
        outer
        for (_, kind), names in alike.items()
        if kind in repeated
        for name in names
        if not any(type(modules[outer]) in blocks for outer in _parents(name))
        for outer in ["", *_parents(name)]
    }
    units: list[str] = []

    def walk(name: str) -> None:
        # What holds nearly all of the network is the network, in a wrapper.
        is_inside = name in once and any(place.startswith(f"{name}.") for place in returns)
        is_whole = is_inside and 4 * held[name] >= 3 * len(matrices)
        if name in returns and name not in holding and not is_whole and not isinstance(modules[name], _BOXES):
            units.append(name)
            return
        for child, _ in modules[name].named_children():
            walk(f"{name}.{child}" if name else child)

    walk("")
    return units


def _parents(name: str) -> list[str]:
    """The modules around a dotted name, the root left out."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
