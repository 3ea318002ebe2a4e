"""What the frozen part computes, kept on disk: one row for each sample and view.

A store is a folder with one file for each wire and a manifest that is written last. It is built
under another name and renamed, so a folder that holds a manifest is whole.
"""

import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from frostline.carrying import carried, device_of
from frostline.data import Feed, Reading, feed_of
from frostline.engines import ENGINES, LARGEST_ERROR, Compiled, Compiler, filled, quickest, relative_error
from frostline.errors import (
    BadArgument,
    BadSample,
    EmptyData,
    NotARun,
    NotRepeatable,
    NotWritable,
    RunBusy,
    StoreCorrupt,
    StoreStale,
    StoreTooLarge,
)
from frostline.events import Event, Listener, silent
from frostline.files import explained, free_bytes, hold, read_record, sync_folder, write_record
from frostline.fingerprint import of_text, same_bits
from frostline.manifest import StoreKey, StoreManifest, differences
from frostline.records import Wire
from frostline.rowfiles import Layout, RowFile, RowWriter, fault, mapped

if TYPE_CHECKING:
    from frostline.data import Samples

_MANIFEST = "manifest.json"

JUDGED = 2
"""Rows of a batch that torch computes again to judge an engine; whole ones would be a good part of a short pass."""

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


def cache(
    frozen: Frozen,
    samples: "Samples",
    folder: Path,
    *,
    engine: str = "torch",
    precision: str = "float32",
    dtype: str = "float32",
    views: int = 1,
    batch_size: int = 32,
    compiler: Compiler | None = None,
    listener: Listener = silent,
) -> "FeatureStore":
    """Run the frozen part once over every sample and keep what crosses the cut.

    Row i of the store belongs to sample i. The store is sealed when the call returns; a sealed
    one with the same key is opened instead. Every row is computed at the same batch shape, on the device on which
    the frozen part is; what is read from the store is on the processor.

    Args:
        frozen: Part below the cut. Maps a batch (B, ...) to its wires.
        samples: N samples; reading one twice must give equal tensors.
        folder: New folder, or one holding a sealed store with the same key.
        engine: "torch" gives the bits of `frozen(*inputs)`; "openvino" and "compile" (torch.compile) are faster, and
            their difference is in the manifest; "auto" takes what a measurement of two batches favours. A frozen part
            on a GPU is run by torch there.
        precision: "float32"; "bfloat16" where that differs by at most a hundredth of the largest value; or "auto",
            which takes it only where it also saves a second.
        dtype: Precision kept on disk. "float16" halves the bytes; the error it adds is
            measured and written to the manifest.
        views: Views of each sample to keep, at most those that the samples have.
        batch_size: B.
        compiler: Makes what runs the frozen part; one that remembers spares several stores of a cut the compiling.
            None measures, as `pick` does.
        listener: Hears how many rows are done.

    Returns:
        A read-only store of N rows for each view.

    Raises:
        BadArgument: An engine, precision, dtype or number of views that does not exist.
        StoreTooLarge: The predicted bytes exceed the free disk. Raised before any write.
        StoreStale: The folder holds other files, or a store of something else.
        StoreCorrupt: The folder holds a store whose files are not what it says.
        RunBusy: Another process is building this store.
        NotRepeatable: Two readings of one sample differ, so a kept row would be a lie.
        BadSample: A row is not finite.
        DiskFull: The disk filled up; nothing is kept.

    Example:
        >>> import tempfile
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> samples = fl.TensorSamples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> parts = fl.split(net, fl.trace(net, torch.rand(2, 4)), 1)
        >>> store = fl.cache(parts.frozen, samples, Path(tempfile.mkdtemp()) / "train")
        >>> len(store) == len(samples)
        True
    """
    folder = Path(folder)
    _check(samples, engine, precision, dtype, views, batch_size)
    key = _key_of(frozen, samples, engine, precision, dtype, views)
    if (folder / _MANIFEST).exists():
        return _reopened(folder, key)
    _refuse_foreign(folder)
    _sweep(folder)
    layouts = _layouts(key)
    _refuse_too_large(folder, sum(layout.row_bytes for layout in layouts) * len(samples) * views)
    part = folder.with_name(f"{folder.name}.{key.key}.part")
    with hold(part):
        if (folder / _MANIFEST).exists():  # another process has finished it meanwhile
            shutil.rmtree(part)
            return _reopened(folder, key)
        try:
            manifest = _build(
                part,
                layouts,
                key,
                frozen=frozen,
                samples=samples,
                batch_size=batch_size,
                compiler=compiler or _measuring(len(samples) * views),
                listener=listener,
            )
            with explained(folder):
                (part / "lock").unlink()
                part.rename(folder)
                sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return FeatureStore(folder, manifest)


def open_store(folder: Path) -> "FeatureStore":
    """Open a sealed store and check that its files are what it says.

    Args:
        folder: What `cache` was given.

    Returns:
        A read-only store.

    Raises:
        StoreCorrupt: There is no store, or a file of it was changed.
        NewerSchema: A later version of frostline wrote it.

    Example:
        >>> open_store(Path("nowhere"))
        Traceback (most recent call last):
        frostline.errors.StoreCorrupt: StoreCorrupt: nowhere holds no sealed store. ...
    """
    folder = Path(folder)
    try:
        manifest = read_record(folder / _MANIFEST, StoreManifest)
    except FileNotFoundError as error:
        raise StoreCorrupt(
            f"StoreCorrupt: {folder} holds no sealed store. Build it with `fl.cache`.", folder=str(folder)
        ) from error
    except (NotARun, OSError) as error:
        raise _corrupt(folder, f"its {_MANIFEST} cannot be read ({error})") from error
    for kept in manifest.files:
        if reason := fault(folder, kept):
            raise _corrupt(folder, reason)
    return FeatureStore(folder, manifest)


@final
class FeatureStore:
    """Kept rows of one cut, read like samples: row i belongs to sample i.

    Made by `cache` and `open_store`. What `read` gives are copies, in the memory order of the
    network's own wires, so nothing done to them changes the store.

    Args:
        folder: A sealed store.
        manifest: What it holds.

    Example:
        >>> import tempfile
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> samples = fl.TensorSamples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> parts = fl.split(net, fl.trace(net, torch.rand(2, 4)), 1)
        >>> store = fl.cache(parts.frozen, samples, Path(tempfile.mkdtemp()) / "train")
        >>> store.read([0, 2])[0].shape
        torch.Size([2, 3])
    """

    def __init__(self, folder: Path, manifest: StoreManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.key = manifest.identity.key
        self.views = manifest.identity.views
        self.bytes = sum(kept.bytes for kept in manifest.files)
        self._layouts = _layouts(manifest.identity)
        self._rows = [mapped(folder, kept) for kept in manifest.files]

    def __len__(self) -> int:
        return self.manifest.samples

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[Tensor, ...]:
        """Copy rows out of the store.

        Args:
            rows: Sample numbers, 0 to N - 1, in any order.
            view: Which stored view, 0 to `views` - 1.

        Returns:
            One tensor for each wire, (B, ...) along its batch axis.
        """
        wanted = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), dtype=torch.int64)
        if not 0 <= view < self.views:
            raise IndexError(f"view {view} of a store of {self.views}")
        if wanted.numel() and (int(wanted.min()) < 0 or int(wanted.max()) >= len(self)):
            raise IndexError(f"rows {int(wanted.min())} to {int(wanted.max())} of a store of {len(self)}")
        index = wanted + view * len(self)
        return tuple(
            layout.from_rows(kept.index_select(0, index))
            for layout, kept in zip(self._layouts, self._rows, strict=True)
        )


# --- building ---------------------------------------------------------------------------------


class _Batch(NamedTuple):
    view: int
    rows: range
    inputs: tuple[Tensor, ...]


def _build(
    part: Path,
    layouts: Sequence[Layout],
    key: StoreKey,
    *,
    frozen: Frozen,
    samples: "Samples",
    batch_size: int,
    compiler: Compiler,
    listener: Listener,
) -> StoreManifest:
    start = time.perf_counter()
    _refuse_unrepeatable(samples, key.views)
    feed = feed_of(samples, key.views, device=device_of(frozen.module))
    order = _order(len(samples), key.views, batch_size)
    rounding = 0.0
    names = [f"wire{index}.bin" for index in range(len(layouts))]
    with ExitStack() as open_files:
        with explained(part):
            writers = [open_files.enter_context(RowWriter(part / name)) for name in names]
        reading = open_files.enter_context(Reading(samples, order, feed.read))
        batches = (
            _Batch(view, rows, tuple(filled(tensor, batch_size) for tensor in inputs))
            for (view, rows), inputs in zip(order, reading, strict=True)
        )
        first = next(batches)
        chosen = _chosen(frozen, feed, _judged(first, feed, order, batch_size), key, compiler)
        every = itertools.chain([first], batches)
        for place, batch in enumerate(_reported(every, reading, listener, key=key, total=len(samples) * key.views)):
            wires = chosen.known.pop(place, None) or chosen.run(batch.inputs)
            _refuse_other_sizes(wires, layouts, batch, samples)
            kept = [layout.to_rows(wire) for layout, wire in zip(layouts, wires, strict=True)]
            _refuse_not_finite(kept, batch, samples, key.dtype)
            if batch is first and key.dtype == "float16":
                again = tuple(layout.from_rows(rows) for layout, rows in zip(layouts, kept, strict=True))
                rounding = relative_error(again, wires)
            with explained(part):
                for writer, rows in zip(writers, kept, strict=True):
                    writer.write(rows[: len(batch.rows)])
        with explained(part):
            files = tuple(_finished(*each) for each in zip(names, layouts, writers, strict=True))
    manifest = StoreManifest(
        identity=key,
        samples=len(samples),
        files=files,
        engine=chosen.engine,
        precision=chosen.precision,
        why=chosen.why,
        batch_size=batch_size,
        error=chosen.error,
        rounding=rounding,
        seconds=time.perf_counter() - start,
        torch=torch.__version__,
    )
    write_record(part / _MANIFEST, manifest)
    return manifest


def _layouts(key: StoreKey) -> tuple[Layout, ...]:
    return tuple(Layout(wire, halves=key.dtype == "float16") for wire in key.wires)


def _finished(name: str, layout: Layout, writer: RowWriter) -> RowFile:
    return RowFile(
        file=name,
        row_shape=layout.row_shape,
        dtype=str(layout.disk_dtype).removeprefix("torch."),
        bytes=writer.bytes,
        checksums=writer.finish(),
    )


def _order(samples: int, views: int, batch_size: int) -> list[tuple[int, range]]:
    starts = range(0, samples, batch_size)
    return [(view, range(start, min(start + batch_size, samples))) for view in range(views) for start in starts]


def _reported(
    batches: Iterable[_Batch], reading: Reading, listener: Listener, *, key: StoreKey, total: int
) -> Iterator[_Batch]:
    wires = ", ".join(wire.name for wire in key.wires)
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


class _Chosen(NamedTuple):
    """What runs the frozen part, why it is not what was asked for, its error, and what it gave when it was judged."""

    run: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    engine: str
    precision: str
    why: str
    error: float
    known: dict[int, tuple[Tensor, ...]]


def _chosen(
    frozen: Frozen, feed: Feed, judged: dict[int, tuple[Tensor, ...]], key: StoreKey, compiler: Compiler
) -> _Chosen:
    """Take the engine that was asked for if its outputs are torch's; else try it in full precision, else torch."""

    home = device_of(frozen.module)

    def plain(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return carried(frozen(*feed.finished(carried(inputs, home))), torch.device("cpu"))

    reasons: list[str] = []
    is_plain = (key.engine, key.precision) == ("torch", "float32")
    for precision in () if is_plain else dict.fromkeys((key.precision, "float32")):
        other = compiler(feed.before(frozen.module), judged[0], engine=key.engine, precision=precision)
        if (other.engine, other.precision) == ("torch", "float32"):
            reasons += [other.why] if other.why else []
            break
        known = {place: other(inputs) for place, inputs in judged.items()}
        error = max(
            _error(known[place], plain(tuple(x[:JUDGED] for x in inputs)), key.wires)
            for place, inputs in judged.items()
        )
        if error <= LARGEST_ERROR[other.precision]:
            return _Chosen(other, other.engine, other.precision, "; ".join(reasons), error, known)
        reasons.append(f"{other.spoken} is {error:.1e} away from torch's outputs")
        _log.warning("%s; it does not run the frozen part", reasons[-1])
    return _Chosen(plain, "torch", "float32", "; ".join(reasons), 0.0, {})


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


def _measuring(rows: int) -> Compiler:
    def make(module: nn.Module, example: tuple[Tensor, ...], *, engine: str, precision: str) -> Compiled:
        return quickest(module, example, engine=engine, precision=precision, rows=rows).run

    return make


# --- refusing ---------------------------------------------------------------------------------


def _check(samples: "Samples", engine: str, precision: str, dtype: str, views: int, batch_size: int) -> None:
    for name, value, allowed in (
        ("engine", engine, ENGINES),
        ("precision", precision, ("auto", "float32", "bfloat16")),
        ("dtype", dtype, ("float32", "float16")),
    ):
        if value not in allowed:
            raise BadArgument(
                f"BadArgument: {name} is {value!r}; it must be {' or '.join(map(repr, allowed))}.", **{name: value}
            )
    if not 1 <= views <= samples.views:
        raise BadArgument(
            f"BadArgument: views is {views}; these samples have {samples.views}. Use 1 to {samples.views}.", views=views
        )
    if batch_size < 1:
        raise BadArgument(f"BadArgument: batch_size is {batch_size}; it must be at least 1.", batch_size=batch_size)
    if len(samples) == 0:
        raise EmptyData("EmptyData: there are no samples to keep rows of; hand in at least one.")


def _key_of(frozen: Frozen, samples: "Samples", engine: str, precision: str, dtype: str, views: int) -> StoreKey:
    return StoreKey(
        frozen=frozen.fingerprint,
        wires=tuple(_of_one_sample(wire) for wire in frozen.wires),
        samples=of_text(*samples.digests),
        preparation=samples.preparation,
        views=views,
        engine=engine,
        precision=precision,
        dtype=dtype,
    )


def _of_one_sample(wire: Wire) -> Wire:
    """Drop the batch size of the traced pass, on which no row depends."""
    shape = (*wire.shape[: wire.batch_axis], wire.factor, *wire.shape[wire.batch_axis + 1 :])
    return wire.model_copy(update={"shape": shape})


def _reopened(folder: Path, key: StoreKey) -> FeatureStore:
    store = open_store(folder)
    found = store.manifest.identity
    if found == key:
        return store
    values = differences(found, key)
    raise StoreStale(
        f"StoreStale: {folder} holds rows of something else ({'; '.join(values.values())}). Use another folder, or "
        "delete this one.",
        folder=str(folder),
        differs=tuple(values),
    )


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotWritable(
            f"NotWritable: {folder} is a file; a store needs a folder of its own. Choose another name.",
            path=str(folder),
        )
    if folder.exists() and any(folder.iterdir()):
        raise StoreStale(
            f"StoreStale: {folder} holds files but no sealed store. Use another folder, or delete this one.",
            folder=str(folder),
            differs=(),
        )


def _sweep(folder: Path) -> None:
    """Remove what a killed process left of building this store; what one still builds is locked."""
    if not folder.parent.is_dir():
        return
    for part in folder.parent.iterdir():
        if part.name.startswith(f"{folder.name}.") and part.name.endswith(".part") and part.is_dir():
            with contextlib.suppress(RunBusy), hold(part):
                shutil.rmtree(part, ignore_errors=True)


def _refuse_too_large(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if needed > free:
        raise StoreTooLarge(
            f"StoreTooLarge: the store {folder} would take {needed / 1e9:,.3f} GB and {free / 1e9:,.3f} GB are free on "
            "that disk. Make room, choose a folder on another disk, freeze to a depth with smaller wires, "
            'or keep halves with dtype="float16".',
            needed=needed,
            free=free,
        )


def _refuse_unrepeatable(samples: "Samples", views: int) -> None:
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


def _refuse_other_sizes(wires: Sequence[Tensor], layouts: Sequence[Layout], batch: _Batch, samples: "Samples") -> None:
    for wire, layout in zip(wires, layouts, strict=True):
        if not layout.fits(wire):
            names = tuple(samples.names[row] for row in batch.rows)
            raise BadSample(
                f"BadSample: the wire `{layout.wire.name}` is {tuple(wire.shape)} for the samples "
                f"{', '.join(names[:5])} and was {layout.wire.shape} for the example: more than the batch differs. "
                "A store keeps rows of one size; resize the samples or fill them up.",
                paths=names,
            )


def _refuse_not_finite(kept: Sequence[Tensor], batch: _Batch, samples: "Samples", dtype: str) -> None:
    bad: set[int] = set()
    for rows in kept:
        if rows.is_floating_point():
            finite = torch.isfinite(rows[: len(batch.rows)]).flatten(1).all(1)
            bad.update(batch.rows[place] for place in (~finite).nonzero().flatten().tolist())
    if bad:
        names = tuple(samples.names[row] for row in sorted(bad))
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        halves = ' Halves end at 65,504: dtype="float32" holds more.' if dtype == "float16" else ""
        raise BadSample(
            f"BadSample: the frozen part gives NaN or infinity for {shown}. Look at these samples and at the network's "
            f"weights, or leave the samples out.{halves}",
            paths=names,
        )


def _corrupt(folder: Path, reason: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"StoreCorrupt: {folder} is not the store that was sealed: {reason}. Delete the folder and start again; the "
        "rows are computed anew.",
        folder=str(folder),
        reason=reason,
    )
