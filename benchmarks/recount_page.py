"""What a report shows, found by its place on the page, and how a report writes numbers."""

import html.parser
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Texts = tuple[str, ...]
NEVER_CLOSED = frozenset(("br", "hr", "img", "input", "link", "meta"))
UNKNOWN = "not measured"


class Figure(NamedTuple):
    """One figure: what it is, how it may be written after recounting, what stands in its place, and where that is."""

    name: str
    recounted: Texts
    found: str | None
    where: str = "report"

    @property
    def agrees(self) -> bool:
        return self.found in self.recounted

    def __str__(self) -> str:
        said = self.recounted[0] if self.agrees else f"{self.recounted[0]}, but found {self.found}"
        return f"{'agrees' if self.agrees else 'DIFFERS'}  {self.where:8}  {self.name}: {said}"


# --- the page ---------------------------------------------------------------------------------


@dataclass
class Node:
    tag: str
    id: str = ""
    classes: tuple[str, ...] = ()
    parts: list["Node | str"] = field(default_factory=list)

    def walk(self) -> Iterator["Node"]:
        yield self
        for part in self.parts:
            if isinstance(part, Node):
                yield from part.walk()

    def all(self, tag: str, kind: str | None = None) -> list["Node"]:
        return [node for node in self.walk() if node.tag == tag and (kind is None or kind in node.classes)]

    @property
    def text(self) -> str:
        pieces = (part if isinstance(part, str) else part.text for part in self.parts)
        return re.sub(r"\s+", " ", " ".join(pieces)).strip()

    def first(self, tag: str, kind: str | None = None) -> str | None:
        """Text of the first such element."""
        return next((node.text for node in self.all(tag, kind)), None)

    def rows(self, caption: str = "") -> dict[str, list[str]]:
        """Cells of the first table whose caption begins so, by the first cell of each row."""
        for table in self.all("table"):
            if (table.first("caption") or "").startswith(caption):
                cells = [[cell.text for cell in row.walk() if cell.tag in ("th", "td")] for row in table.all("tr")]
                return {row[0]: row[1:] for row in reversed(cells) if row}
        return {}

    def pairs(self) -> dict[str, str]:
        """All names with their values: tables of two columns and cards."""
        found = {}
        for table in self.all("table", "pairs"):
            for row in table.all("tr"):
                found[row.first("th") or ""] = row.first("td") or ""
        for card in self.all("div", "card"):
            found[card.first("dt") or ""] = " ".join(value.text for value in card.all("dd"))
        return found


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("page")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        node = Node(tag, named.get("id") or "", tuple((named.get("class") or "").split()))
        self.open[-1].parts.append(node)
        if tag not in NEVER_CLOSED:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if any(node.tag == tag for node in self.open[1:]):
            while self.open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.open[-1].tag not in ("script", "style"):
            self.open[-1].parts.append(data)


def page_of(file: Path) -> dict[str, Node]:
    """The elements of a page by their id; the whole page is ""."""
    reader = Reader()
    reader.feed(file.read_text("utf-8"))
    return {node.id: node for node in reader.open[0].walk() if node.id} | {"": reader.open[0]}


# --- how a report writes numbers --------------------------------------------------------------


def written(write: Callable[..., str], *values: float) -> Texts:
    """A figure as text, and as it would be with values that differ by rounding alone."""
    near = itertools.product(*((value, value * (1 + 1e-9), value * (1 - 1e-9)) for value in values))
    return tuple(dict.fromkeys(write(*each) for each in near))


def told(write: Callable[[float], str], *values: float) -> Texts:
    """A figure of the frozen arm and of the other one."""
    return written(lambda frozen, full: f"frozen {write(frozen)}, nothing frozen {write(full)}", *values)


def share(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if abs(value) > 1:
        return f"{value:.2f}"
    text = f"{value:.3f}"
    return text if text.lstrip("-").startswith("1") else text.replace("0.", ".", 1)


def interval(value: float, low: float, high: float) -> str:
    return f"{share(value)} ({share(low)}–{share(high)})"


def points(value: float, low: float, high: float) -> str:
    return f"{value:.1f} points ({low:.1f} to {high:.1f})".replace("-", "−")


def decimal(value: float) -> str:
    return f"{value:.3f}"


def rate(value: float) -> str:
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def scaled(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix; a bare number gets its prefix from 100,000 on."""
    if abs(value) < (1000 if unit else 100_000):
        return f"{value:,.0f} {unit}".strip()
    prefixes = ("k", "M", "G", "T", "P")
    place = next((i for i in range(5) if abs(value) < 0.9995 * 1000 ** (i + 2)), 4)
    return f"{value / 1000 ** (place + 1):#.3g}".rstrip(".") + f" {prefixes[place]}{unit}"


def byte_count(value: float) -> str:
    return scaled(value, "B")
