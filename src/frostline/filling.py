"""One pass over samples that fills the files of several new stores."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from frostline.carrying import device_of
from frostline.data import Feed, Reading, feed_of
from frostline.engines import Compiler, filled, relative_error
from frostline.errors import BadSample, NotRepeatable
from frostline.events import Event, Listener
from frostline.files import explained, write_record
from frostline.fingerprint import same_bits
from frostline.judging import Frozen, Runner, judge
from frostline.manifest import MANIFEST, StoreKey, StoreManifest
from frostline.rowfiles import Layout, RowFile, RowWriter

if TYPE_CHECKING:
    from frostline.data import Samples


class New(NamedTuple):
    """A store that is to be filled.

    Args:
        folder: Where it will lie.
        part: Where it is built.
        key: What its rows depend on.
        frozen: What computes them.
        layouts: How each wire lies on disk.
    """

    folder: Path
    part: Path
    key: StoreKey
    frozen: Frozen
    layouts: tuple[Layout, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One file for each wire."""
        return tuple(f"wire{index}.bin" for index in range(len(self.layouts)))

    @property
    def row_bytes(self) -> int:
        """Bytes that a sample takes."""
        return sum(layout.row_bytes for layout in self.layouts)


def fill(
    wanted: Sequence[New], *, samples: "Samples", batch_size: int, compiler: Compiler, listener: Listener
) -> tuple[StoreManifest, ...]:
    """Compute the rows of several stores in one pass, and write their files and manifests.

    Args:
        wanted: Stores of one network, with keys that differ in their cuts alone.
        samples: N samples.
        batch_size: B.
        compiler: Makes what runs the frozen parts.
        listener: Hears how many rows are done.

    Returns:
        One manifest for each, also in the folder where the store is built.

    Raises:
        NotRepeatable: Two readings of one sample differ.
        BadSample: A row is not finite, or of another size than the example's.
        DiskFull: The disk filled up.

    Example:
        >>> from frostline.engines import compiled
        >>> fill((), samples=(), batch_size=32, compiler=compiled, listener=print)
        ()
    """
    if not wanted:
        return ()
    start = time.perf_counter()
    key = wanted[0].key
    refuse_unrepeatable(samples, key.views)
    feed = feed_of(samples, key.views, device=device_of(wanted[0].frozen.module))
    order = _order(len(samples), key.views, batch_size)
    rounding = [0.0] * len(wanted)
    with ExitStack() as open_files:
        writers = [_opened(new, open_files) for new in wanted]
        reading = open_files.enter_context(Reading(samples, order, feed.read))
        batches = (
            _Batch(view, rows, tuple(filled(tensor, batch_size) for tensor in inputs))
            for (view, rows), inputs in zip(order, reading, strict=True)
        )
        first = next(batches)
        runners, reasons = judge(
            [new.frozen for new in wanted],
            feed,
            _judged(first, feed, order, batch_size),
            engine=key.engine,
            precision=key.precision,
            compiler=compiler,
        )
        every = itertools.chain([first], batches)
        for nth, batch in enumerate(_reported(every, reading, listener, wanted, total=len(samples) * key.views)):
            for place, wires in _computed(runners, wanted, nth, batch, samples):
                kept = _rows_of(wires, wanted[place], batch, samples)
                if batch is first and key.dtype == "float16":
                    rounding[place] = _rounding(wires, kept, wanted[place])
                with explained(wanted[place].part):
                    for writer, rows in zip(writers[place], kept, strict=True):
                        writer.write(rows[: len(batch.rows)])
        files = [_finished(new, each) for new, each in zip(wanted, writers, strict=True)]
    judged: dict[int, dict[str, Any]] = {
        place: {"engine": runner.engine, "precision": runner.precision, "error": error}
        for runner in runners
        for place, error in zip(runner.places, runner.errors, strict=True)
    }
    seconds = time.perf_counter() - start
    manifests = tuple(
        StoreManifest(
            identity=new.key,
            samples=len(samples),
            files=files[place],
            **judged[place],
            why=reasons[place],
            batch_size=batch_size,
            rounding=rounding[place],
            seconds=seconds,
            torch=torch.__version__,
        )
        for place, new in enumerate(wanted)
    )
    for new, manifest in zip(wanted, manifests, strict=True):
        write_record(new.part / MANIFEST, manifest)
    return manifests


class _Batch(NamedTuple):
    view: int
    rows: range
    inputs: tuple[Tensor, ...]


def layouts_of(key: StoreKey) -> tuple[Layout, ...]:
    """How the wires of a store lie on disk."""
    return tuple(Layout(wire, halves=key.dtype == "float16") for wire in key.wires)


def _opened(new: New, open_files: ExitStack) -> list[RowWriter]:
    with explained(new.part):
        return [open_files.enter_context(RowWriter(new.part / name)) for name in new.names]


def _finished(new: New, writers: Sequence[RowWriter]) -> tuple[RowFile, ...]:
    with explained(new.part):
        return tuple(
            RowFile(
                file=name,
                row_shape=layout.row_shape,
                dtype=str(layout.disk_dtype).removeprefix("torch."),
                bytes=writer.bytes,
                checksums=writer.finish(),
            )
            for name, layout, writer in zip(new.names, new.layouts, writers, strict=True)
        )


def _computed(
    runners: Sequence[Runner], wanted: Sequence[New], nth: int, batch: _Batch, samples: "Samples"
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """The wires of each store, by its place."""
    for runner in runners:
        layouts = [layout for place in runner.places for layout in wanted[place].layouts]
        wires = runner.wires(nth, batch.inputs)
        refuse_other_sizes(wires, layouts, batch.rows, samples)
        rest = iter(wires)
        for place in runner.places:
            yield place, tuple(itertools.islice(rest, len(wanted[place].layouts)))


def _rows_of(wires: tuple[Tensor, ...], new: New, batch: _Batch, samples: "Samples") -> list[Tensor]:
    kept = [layout.to_rows(wire) for layout, wire in zip(new.layouts, wires, strict=True)]
    refuse_not_finite(kept, batch.rows, samples, dtype=new.key.dtype)
    return kept


def _rounding(wires: tuple[Tensor, ...], kept: Sequence[Tensor], new: New) -> float:
    again = tuple(layout.from_rows(rows) for layout, rows in zip(new.layouts, kept, strict=True))
    return relative_error(again, wires)


def _order(samples: int, views: int, batch_size: int) -> list[tuple[int, range]]:
    starts = range(0, samples, batch_size)
    return [(view, range(start, min(start + batch_size, samples))) for view in range(views) for start in starts]


def _reported(
    batches: Iterable[_Batch], reading: Reading, listener: Listener, wanted: Sequence[New], *, total: int
) -> Iterator[_Batch]:
    wires = ", ".join(dict.fromkeys(wire.name for new in wanted for wire in new.key.wires))
    done = 0
    listener(Event(phase="store", note=wires, done=done, total=total, unit="rows"))
    for batch in batches:
        yield batch
        done += len(batch.rows)
        listener(Event(phase="store", note=f"{wires}: {reading.note}", done=done, total=total, unit="rows"))


def _judged(
    first: _Batch, feed: Feed, order: Sequence[tuple[int, range]], batch_size: int
) -> dict[int, tuple[Tensor, ...]]:
    """Inputs by which an engine is judged, by the place of their batch."""
    if len(order) == 1:
        return {0: first.inputs}
    # What Python has looked at in one batch is fixed in a converted network: another batch must tell.
    view, rows = order[-1]
    return {0: first.inputs, len(order) - 1: tuple(filled(tensor, batch_size) for tensor in feed.read(rows, view))}


def refuse_unrepeatable(samples: "Samples", views: int) -> None:
    """Refuse samples of which two readings differ."""
    rows = sorted({0, len(samples) // 2, len(samples) - 1})
    for view in range(views):
        once, twice = samples.read(rows, view=view), samples.read(rows, view=view)
        for place, row in enumerate(rows):
            if any(not same_bits(a[place], b[place]) for a, b in zip(once, twice, strict=True)):
                name = samples.names[row]
                raise NotRepeatable(
                    f"NotRepeatable: two readings of sample {name} (view {view}) differ, so a kept row would be a lie. "
                    "Take random augmentation out of the data, or store several views of it.",
                    sample=name,
                    view=view,
                )


def refuse_other_sizes(
    wires: Sequence[Tensor], layouts: Sequence[Layout], rows: Sequence[int], samples: "Samples"
) -> None:
    """Refuse wires of these samples that are of another size than the example's."""
    for wire, layout in zip(wires, layouts, strict=True):
        if not layout.fits(wire):
            names = tuple(samples.names[row] for row in rows)
            raise BadSample(
                f"BadSample: the wire `{layout.wire.name}` is {tuple(wire.shape)} for the samples "
                f"{', '.join(names[:5])} and was {layout.wire.shape} for the example: more than the batch differs. "
                "A store keeps rows of one size; resize the samples or fill them up.",
                paths=names,
            )


def refuse_not_finite(
    kept: Sequence[Tensor], rows: Sequence[int], samples: "Samples", *, dtype: str = "float32"
) -> None:
    """Refuse samples of whose rows, the first of those kept, one is not finite."""
    bad: set[int] = set()
    for wire in kept:
        if wire.is_floating_point():
            finite = torch.isfinite(wire[: len(rows)]).flatten(1).all(1)
            bad.update(rows[place] for place in (~finite).nonzero().flatten().tolist())
    if bad:
        names = tuple(samples.names[row] for row in sorted(bad))
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        halves = ' Halves end at 65,504: dtype="float32" holds more.' if dtype == "float16" else ""
        raise BadSample(
            f"BadSample: the frozen part gives NaN or infinity for {shown}. Look at these samples and at the network's "
            f"weights, or leave the samples out.{halves}",
            paths=names,
        )
