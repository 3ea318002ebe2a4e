"""What happened, as a stream of records; rooms report, doors draw."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

from frostline.records import Record

Phase = Literal["read", "trace", "probe", "measure", "prove", "store", "train", "score", "test", "look", "report"]

_T = TypeVar("_T")


class Event(Record):
    """One step of a phase.

    Args:
        phase: The work that is going on.
        note: What a person would call it, for instance "depth 9 of 18".
        done: Units finished.
        total: Units in all; 0 where it is not known.
        unit: What is counted, in the plural.
        value: A figure worth showing (a loss, a score), or None.

    Example:
        >>> Event(phase="store", note="depth 9", done=3, total=10, unit="rows").fraction
        0.3
    """

    phase: Phase
    note: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    value: float | None = None

    @property
    def fraction(self) -> float:
        """Share of the phase that is finished, 0 to 1."""
        return self.done / self.total if self.total else 0.0


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Hear an event and do nothing; the listener of those who gave none."""


def watched(
    items: Iterable[_T], listener: Listener, phase: Phase, *, total: int, note: str = "", unit: str = ""
) -> Iterator[_T]:
    """Yield the items and report each one that has been worked on."""
    listener(Event(phase=phase, note=note, done=0, total=total, unit=unit))
    for done, item in enumerate(items, start=1):
        yield item
        listener(Event(phase=phase, note=note, done=done, total=total, unit=unit))
