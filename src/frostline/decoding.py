"""Pictures of one size in a file on the disk, each decoded when it is first asked for, the next ones meanwhile."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from frostline import fingerprint
from frostline.errors import BadSample, DiskFull, NotWritable, RunError, StoreCorrupt, StoreError
from frostline.events import Listener, silent, watched
from frostline.pictures import LAW, UNREADABLE, Bytes, decode, quiet_pillow, reason_of
from frostline.records import Preprocessing

AHEAD = 2
"""Batches that are decoded ahead of the one that is worked on: memory stays bounded, and a slow batch is bridged."""

SHARE = 4
"""Pictures that a thread takes at a time, for handing each over alone costs as much as a small part of decoding it."""

Rows = Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]


def refusal(reasons: Mapping[str, str]) -> BadSample:
    """The error that names pictures that cannot be read by their digests, where nothing better is known of them.

    Example:
        >>> refusal({"d1": "damaged"}).paths
        ('d1',)
    """
    shown = "; ".join(f"{digest}: {reason}" for digest, reason in list(reasons.items())[:5])
    return BadSample(
        f"BadSample: {len(reasons)} pictures cannot be read: {shown}. Repair them, or leave them out.",
        paths=tuple(reasons),
        reasons=tuple(reasons.values()),
    )


@final
class Pixels:
    """Pictures (M, H, W, 3), uint8, in a memory-mapped file that fills as they are asked for.

    Pillow lets go of the interpreter's lock while it decodes and resizes, so threads are enough. They work only
    while somebody waits for pictures or has said what he will read next: nothing is decoded beside a timing.

    Args:
        digests: M digests of contents, each once.
        content: Gives the bytes of content i.
        preprocessing: Gives size and interpolation.
        folder: Where the whole file is kept for the next time. None: a file without a name that the system removes.
        refuse: Makes the error for pictures that cannot be read, from their reasons by digest.

    Raises:
        DiskFull: There is too little room for all of them.
        NotWritable: The folder cannot be made or written.
        StoreCorrupt: The folder holds a file of another length.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (30, 20), 200).save(file, "PNG")
        >>> shape = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> digest = fingerprint.of_bytes(file.getvalue())
        >>> Pixels((digest,), lambda row: file.getvalue(), shape)[[0]][0, 0, 0].tolist()
        [200, 200, 200]
    """

    def __init__(
        self,
        digests: Sequence[str],
        content: Callable[[int], bytes],
        preprocessing: Preprocessing,
        *,
        folder: Path | None = None,
        refuse: Callable[[Mapping[str, str]], BadSample] = refusal,
    ) -> None:
        size = preprocessing.image_size
        self.digests = tuple(digests)
        self.reasons: dict[int, str] = {}
        self._content = content
        self._preprocessing = preprocessing
        self._refuse = refuse
        self._row_bytes = size * size * 3
        self._done = np.zeros(len(self.digests), dtype=bool)
        self._spent: list[float] = []
        # The order of the digests decides the rows, so it is part of the name.
        key = fingerprint.of_text(LAW, str(size), preprocessing.interpolation, *self.digests)
        self._file = _File(folder, key, shape=(len(self.digests), size, size, 3))
        if (reasons := self._file.reasons) is not None:
            self.reasons = reasons
            self._done[:] = True

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def seconds(self) -> float:
        """What decoding has taken, as if it had had the whole processor for itself."""
        return sum(self._spent) / _cores()

    def __getitem__(self, rows: Rows) -> Bytes:
        wanted = np.asarray(rows, dtype=np.int64)
        self.settle(wanted)
        self.check(wanted)
        # Indexing with an array copies.
        return np.asarray(self._file.mapped[wanted])

    def check(self, rows: Rows) -> None:
        """Raise the error that names every picture that cannot be read, where one of these is among them."""
        if not any(int(row) in self.reasons for row in (rows if self.reasons else ())):
            return
        # One damaged picture is seldom alone, and a person wants to hear of all of them at once.
        self.settle()
        raise self._refuse({self.digests[row]: reason for row, reason in sorted(self.reasons.items())})

    def settle(self, rows: Rows | None = None, *, listener: Listener = silent) -> None:
        """Decode what is still missing, all of it or some rows; `reasons` then says which could not be.

        Args:
            rows: Which; None takes all, and keeps the file for the next time.
            listener: Hears of each picture.

        Raises:
            DiskFull: The disk filled up.
        """
        missing = self._missing(range(len(self)) if rows is None else rows)
        if len(missing) == 1:
            with quiet_pillow(), self._guarded():
                self._decode(missing[0])
        elif missing:
            with quiet_pillow(), self._guarded(), _threads() as pool:
                results = [pool.submit(self._decode, row) for row in missing]
                waited = (future.result() for future in results)
                for _ in watched(waited, listener, "read", total=len(missing), note="decoding", unit="pictures"):
                    pass
        self._finish()

    @contextlib.contextmanager
    def ahead(self, batches: Iterable[Rows]) -> Iterator[Callable[[], None]]:
        """Decode batch after batch inside, at most two ahead of the one that was asked for.

        Args:
            batches: Rows of each batch, in the order in which they will be read.

        Yields:
            A function that starts on one batch more and waits until the next in turn is decoded.
        """
        if self._done.all():
            yield lambda: None
            return
        with quiet_pillow(), _threads() as pool:
            coming, begun = iter(batches), set[int]()
            waiting: deque[list[Future[None]]] = deque()

            def begin() -> None:
                rows = [row for row in self._missing(next(coming, ())) if row not in begun]
                begun.update(rows)
                shares = [rows[first : first + SHARE] for first in range(0, len(rows), SHARE)]
                waiting.append([pool.submit(self._decode_each, share) for share in shares])

            def wait() -> None:
                begin()
                with self._guarded():
                    for future in waiting.popleft():
                        future.result()

            for _ in range(AHEAD):
                begin()
            yield wait
        self._finish()

    def _missing(self, rows: Rows | range) -> list[int]:
        wanted = np.asarray(rows, dtype=np.int64)
        return list(dict.fromkeys(wanted[~self._done[wanted]].tolist()))

    def _decode_each(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._decode(row)

    def _decode(self, row: int) -> None:
        began = time.thread_time()
        try:
            content = self._content(row)
            if fingerprint.of_bytes(content) != self.digests[row]:
                raise OSError(errno.ESTALE, "it was changed after it had been listed")
            decoded = decode(content, self._preprocessing)
        except UNREADABLE as error:
            self.reasons[row] = reason_of(error)
        else:
            self._file.write(decoded, row * self._row_bytes)
        self._done[row] = True
        self._spent.append(time.thread_time() - began)

    def _finish(self) -> None:
        if self._done.all():
            with self._guarded():
                self._file.keep(self.reasons)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Leave no half-written file behind, and say what the system says of the disk in our own words."""
        try:
            yield
        except OSError as error:
            self._file.forget()
            raise _explained(error, self._file.folder) from error


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(_cores())
    try:
        yield pool
    finally:
        # What has not begun is cancelled, or Ctrl+C would wait for all the rest.
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    # A container may be given fewer cores than the machine has; only Linux says how many.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the file ---------------------------------------------------------------------------------


@final
class _File:
    """A file of pixels: whole and kept from an earlier time, or one that fills and is kept when it is full."""

    def __init__(self, folder: Path | None, key: str, *, shape: tuple[int, ...]) -> None:
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder
        self.reasons: dict[int, str] | None = None
        self._pixels, self._notes = self.folder / f"{key}.pixels", self.folder / f"{key}.json"
        self._number: int | None = None
        needed = int(np.prod(shape))
        if folder is not None and self._notes.exists():
            self._open(needed)
            name = self._pixels
        else:
            name = self._begin(key, needed)
        self.mapped = np.memmap(name, dtype=np.uint8, mode="r", shape=shape)
        if folder is None:
            # The mapping keeps an unlinked file alive, and no kill can leave it behind.
            self.forget()

    def _open(self, needed: int) -> None:
        notes = json.loads(self._notes.read_text(encoding="utf-8"))
        self.reasons = {int(row): why for row, why in notes["unreadable"].items()}
        if (length := self._pixels.stat().st_size) != needed:
            raise StoreCorrupt(
                f"StoreCorrupt: {self._pixels} holds {length:,} bytes, not {needed:,}. Remove it.",
                file=str(self._pixels),
            )

    def _begin(self, key: str, needed: int) -> Path:
        _check_room(self.folder, needed)
        _sweep(self.folder, key)
        part = self.folder / f"{key}.{os.getpid()}.{next(_NUMBERS)}.part"
        try:
            self._number = number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            self._close = weakref.finalize(self, os.close, number)
            self._remove = weakref.finalize(self, part.unlink, missing_ok=True)
            _lock(number)
            # Plain writes: a full disk is then an error there and not a bus error at some later read.
            os.ftruncate(number, needed)
        except OSError as error:
            self.forget()
            raise _explained(error, self.folder) from error
        self._part = part
        return part

    def write(self, decoded: Bytes, offset: int) -> None:
        """Put one picture into its place."""
        assert self._number is not None, "a full file is not written to"
        os.pwrite(self._number, decoded.data, offset)

    def keep(self, reasons: Mapping[int, str]) -> None:
        """Keep a file that is full: the pixels, then the notes that make them valid; each whole or not at all."""
        if self._number is None:
            return
        if self._remove.alive:
            os.fsync(self._number)
            self._part.replace(self._pixels)
            self._remove.detach()
            note = self._part.with_suffix(".note")
            note.write_text(json.dumps({"schema": 1, "unreadable": {str(row): why for row, why in reasons.items()}}))
            note.replace(self._notes)
        self._close()
        self._number = None

    def forget(self) -> None:
        """Take the name of a file that is not full: nothing half-written is left, and what is there can be read."""
        if self._number is not None:
            self._remove()


_NUMBERS = itertools.count()
"""Of the files that this process fills: two readings of one folder must not share one."""


def _lock(file: int | BinaryIO) -> None:
    import fcntl

    # Let go by a kill too; so whoever finds a file that is not held knows that nobody fills it.
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(folder: Path, key: str) -> None:
    """Remove what killed processes left of the same file."""
    for part in folder.glob(f"{key}.*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            _lock(file)
            part.unlink()


def _check_room(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(error, folder) from error
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"DiskFull: the decoded pictures need {needed:,} bytes in {folder}, where {free:,} are free. Free some "
            "space, or take a smaller --image-size.",
            needed=needed,
            free=free,
        )


def _explained(error: OSError, folder: Path) -> StoreError | RunError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return DiskFull(
            f"DiskFull: {error.strerror} while the decoded pictures were written to {folder}. Nothing half-written is "
            "kept; free some space, or take a smaller --image-size.",
            folder=str(folder),
        )
    return NotWritable(
        f"NotWritable: the decoded pictures cannot be written to {folder}: {error.strerror or error}. Give a folder "
        "that you may write to.",
        folder=str(folder),
    )
