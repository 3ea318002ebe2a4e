"""What the frozen part computes, kept on disk: one row for each sample and view.

A store is a folder with one file for each wire and a manifest that is written last. It is built
under another name and renamed, so a folder that holds a manifest is whole.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from frostline.engines import ENGINES, Compiled, Compiler, quickest
from frostline.errors import (
    BadArgument,
    EmptyData,
    NotARun,
    NotWritable,
    RunBusy,
    StoreCorrupt,
    StoreStale,
    StoreTooLarge,
)
from frostline.events import Listener, silent
from frostline.files import explained, free_bytes, hold, read_record, sync_folder
from frostline.filling import New, fill, layouts_of
from frostline.fingerprint import of_text
from frostline.judging import Frozen
from frostline.manifest import MANIFEST, StoreKey, StoreManifest, differences
from frostline.records import Wire
from frostline.rowfiles import fault, mapped

if TYPE_CHECKING:
    from frostline.data import Samples


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
    return cache_all(
        (frozen,),
        samples,
        (folder,),
        engine=engine,
        precision=precision,
        dtype=dtype,
        views=views,
        batch_size=batch_size,
        compiler=compiler,
        listener=listener,
    )[0]


def cache_all(
    frozen: Sequence[Frozen],
    samples: "Samples",
    folders: Sequence[Path],
    *,
    engine: str = "torch",
    precision: str = "float32",
    dtype: str = "float32",
    views: int = 1,
    batch_size: int = 32,
    compiler: Compiler | None = None,
    listener: Listener = silent,
) -> "tuple[FeatureStore, ...]":
    """Keep what crosses several cuts of a network, in one pass over the samples.

    The stages that the frozen parts have in common are computed once. Each store is the one that
    `cache` would give for its cut alone, up to the rounding of an engine that runs them as one. A
    sealed store with the same key is opened, and only the others are filled.

    Args:
        frozen: Parts below the cuts, split from one network by one graph.
        samples: As in `cache`.
        folders: One for each part, as in `cache`.
        engine: As in `cache`.
        precision: As in `cache`; a store whose rows would differ by too much goes back to full precision alone.
        dtype: As in `cache`.
        views: As in `cache`.
        batch_size: B.
        compiler: As in `cache`.
        listener: Hears how many rows are done.

    Returns:
        One read-only store for each part.

    Raises:
        BadArgument: As in `cache`; no part, another number of folders, one folder twice, or parts of other networks.
        StoreTooLarge: The predicted bytes of all stores to fill exceed the free disk. Raised before any write.
        StoreStale: As in `cache`, before anything is computed.
        StoreCorrupt: As in `cache`.
        RunBusy: Another process is building one of the stores.
        NotRepeatable: As in `cache`.
        BadSample: As in `cache`.
        DiskFull: As in `cache`.

    Example:
        >>> import tempfile
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> samples = fl.TensorSamples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> graph, folder = fl.trace(net, torch.rand(2, 4)), Path(tempfile.mkdtemp())
        >>> parts = [fl.split(net, graph, depth).frozen for depth in (1, 2)]
        >>> shallow, deep = fl.cache_all(parts, samples, [folder / "1", folder / "2"])
        >>> shallow.read([0])[0].shape, deep.read([0])[0].shape
        (torch.Size([1, 3]), torch.Size([1, 5]))
    """
    folders = [Path(folder) for folder in folders]
    _check(samples, engine, precision, dtype, views, batch_size)
    _check_folders(frozen, folders)
    keys = [_key_of(part, samples, engine, precision, dtype, views) for part in frozen]
    stores: dict[Path, FeatureStore] = {}
    wanted = []
    for part, folder, key in zip(frozen, folders, keys, strict=True):
        if (folder / MANIFEST).exists():
            stores[folder] = _reopened(folder, key)
            continue
        _refuse_foreign(folder)
        wanted.append(New(folder, folder.with_name(f"{folder.name}.{key.key}.part"), key, part, layouts_of(key)))
    for new in wanted:
        _sweep(new.folder)
    _refuse_too_large([new.folder for new in wanted], sum(new.row_bytes for new in wanted) * len(samples) * views)
    with _held(wanted):
        for new in wanted:
            if (new.folder / MANIFEST).exists():  # another process has finished it meanwhile
                shutil.rmtree(new.part)
                stores[new.folder] = _reopened(new.folder, new.key)
        left = [new for new in wanted if new.folder not in stores]
        manifests = fill(
            left,
            samples=samples,
            batch_size=batch_size,
            compiler=compiler or _measuring(len(samples) * views),
            listener=listener,
        )
        for new, manifest in zip(left, manifests, strict=True):
            with explained(new.folder):
                (new.part / "lock").unlink()
                new.part.rename(new.folder)
                sync_folder(new.folder.parent)
            stores[new.folder] = FeatureStore(new.folder, manifest)
    return tuple(stores[folder] for folder in folders)


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
        manifest = read_record(folder / MANIFEST, StoreManifest)
    except FileNotFoundError as error:
        raise StoreCorrupt(
            f"StoreCorrupt: {folder} holds no sealed store. Build it with `fl.cache`.", folder=str(folder)
        ) from error
    except (NotARun, OSError) as error:
        raise _corrupt(folder, f"its {MANIFEST} cannot be read ({error})") from error
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
        self._layouts = layouts_of(manifest.identity)
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


@contextlib.contextmanager
def _held(wanted: Sequence[New]) -> Iterator[None]:
    """Be the only process that builds these stores; where that ends badly nothing of them stays."""
    mine: list[Path] = []
    with ExitStack() as holds:
        try:
            for new in wanted:
                holds.enter_context(hold(new.part))
                mine.append(new.part)
            yield
        except BaseException:
            for part in mine:
                shutil.rmtree(part, ignore_errors=True)
            raise


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


def _check_folders(frozen: Sequence[Frozen], folders: Sequence[Path]) -> None:
    if not frozen or len(frozen) != len(folders) or len(set(folders)) < len(folders):
        raise BadArgument(
            f"BadArgument: {len(frozen)} frozen parts and {len(set(folders))} different folders; each store is of one "
            "part and needs a folder of its own.",
            folders=tuple(map(str, folders)),
        )


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


def _refuse_too_large(folders: Sequence[Path], needed: int) -> None:
    free = min((free_bytes(folder) for folder in folders), default=needed)
    if needed > free:
        names = ", ".join(map(str, folders))
        raise StoreTooLarge(
            f"StoreTooLarge: the store {names} would take {needed / 1e9:,.3f} GB and {free / 1e9:,.3f} GB are free on "
            "that disk. Make room, choose a folder on another disk, freeze to a depth with smaller wires, "
            'or keep halves with dtype="float16".',
            needed=needed,
            free=free,
        )


def _corrupt(folder: Path, reason: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"StoreCorrupt: {folder} is not the store that was sealed: {reason}. Delete the folder and start again; the "
        "rows are computed anew.",
        folder=str(folder),
        reason=reason,
    )
