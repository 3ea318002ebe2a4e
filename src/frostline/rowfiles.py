"""One wire of many samples in one file: rows of plain memory, appended, summed up, mapped."""

import mmap
import os
import warnings
import zlib
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from frostline.records import Record, Wire

BLOCK_BYTES = 1 << 24
"""Bytes under one checksum."""

BLOCKS_CHECKED = 64
"""Of a file with more blocks, about that many spread evenly are checked: 1 GB, .3 s."""


class RowFile(Record):
    """A finished file: rows of all samples of view 0, then of view 1, and so on.

    Args:
        file: Its name in the store's folder.
        row_shape: Shape of one row on disk, slowest axis first.
        dtype: On disk.
        bytes: Its length.
        checksums: CRC-32 of every 16 MiB.

    Example:
        >>> RowFile(file="wire0.bin", row_shape=(3, 2), dtype="float32", bytes=0, checksums=()).row_shape
        (3, 2)
    """

    file: str
    row_shape: tuple[int, ...]
    dtype: str
    bytes: int
    checksums: tuple[int, ...]


@final
class Layout:
    """How one wire lies on disk: sample first, then the wire's other axes in its memory order.

    Args:
        wire: The wire; only the length of its batch axis plays no part.
        halves: Whether floating-point values are kept as float16.

    Example:
        >>> wire = Wire(name="stem", shape=(1, 8, 4, 4), dtype="float32", order=(0, 2, 3, 1), bytes_per_sample=512)
        >>> Layout(wire).row_shape
        (4, 4, 8)
    """

    def __init__(self, wire: Wire, *, halves: bool = False) -> None:
        self.wire = wire
        self.dtype: torch.dtype = getattr(torch, wire.dtype)
        self.disk_dtype = torch.float16 if halves and self.dtype.is_floating_point else self.dtype
        # The batch axis comes first on disk whatever the memory order; the factor stays beside it.
        self.axes = (wire.batch_axis, *(axis for axis in wire.order if axis != wire.batch_axis))
        others = tuple(wire.shape[axis] for axis in self.axes[1:])
        self.row_shape = others if wire.factor == 1 else (wire.factor, *others)
        self.row_bytes = torch.Size(self.row_shape).numel() * self.disk_dtype.itemsize

    def fits(self, tensor: Tensor) -> bool:
        """Whether a wire is as long as the recorded one on every axis but the batch's."""
        batch, kept = self.wire.batch_axis, self.wire.shape
        same = (axis == batch or tensor.shape[axis] == length for axis, length in enumerate(kept))
        return tensor.dim() == len(kept) and all(same)

    def to_rows(self, tensor: Tensor) -> Tensor:
        """Turn a wire of B samples into rows (B, *row_shape) of plain memory, as the disk keeps them."""
        rows = tensor.detach().to(dtype=self.disk_dtype).permute(self.axes).contiguous()
        return rows.reshape(-1, *self.row_shape)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Turn rows back into the wire, in the memory order it was computed in."""
        tensor = rows.to(self.dtype)
        if self.wire.factor != 1:
            tensor = tensor.reshape(-1, *self.row_shape[1:])
        tensor = tensor.permute(_inverse(self.axes))
        if self.wire.order[:1] == (self.wire.batch_axis,):
            return tensor
        return tensor.permute(self.wire.order).contiguous().permute(_inverse(self.wire.order))


@final
class RowWriter:
    """Appends rows to a new file and sums up what went there.

    Args:
        path: Written from its beginning.

    Example:
        >>> import tempfile
        >>> with RowWriter(Path(tempfile.mkdtemp()) / "wire0.bin") as writer:
        ...     writer.write(torch.zeros(5, 3))
        ...     len(writer.finish()), writer.bytes
        (1, 60)
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._checksums: list[int] = []
        self._crc = 0
        self.bytes = 0

    def write(self, rows: Tensor) -> None:
        """Append rows of plain memory."""
        # Ordinary writes: on a full disk a memory map would kill the process with SIGBUS.
        rest = rows.reshape(-1).view(torch.uint8).numpy().data
        while rest:
            written = self._file.write(rest[: BLOCK_BYTES - self.bytes % BLOCK_BYTES])
            self._crc = zlib.crc32(rest[:written], self._crc)
            self.bytes += written
            rest = rest[written:]
            if self.bytes % BLOCK_BYTES == 0:
                self._checksums.append(self._crc)
                self._crc = 0

    def finish(self) -> tuple[int, ...]:
        """See the bytes on the disk and give the checksum of every block."""
        os.fsync(self._file.fileno())
        return (*self._checksums, *([self._crc] if self.bytes % BLOCK_BYTES else []))

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()


def mapped(folder: Path, kept: RowFile) -> Tensor:
    """Map a finished file into memory as rows.

    Args:
        folder: Where it lies.
        kept: What it holds.

    Returns:
        (views x N, *row_shape). Copy rows out of it; its pages come from the disk as they are read, and one that is
        written into ends the process.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with RowWriter(folder / "wire0.bin") as writer:
        ...     writer.write(torch.ones(5, 3))
        >>> mapped(folder, RowFile(file="wire0.bin", row_shape=(3,), dtype="float32", bytes=60, checksums=())).shape
        torch.Size([5, 3])
    """
    dtype: torch.dtype = getattr(torch, kept.dtype)
    if not kept.bytes:
        return torch.empty(0, dtype=dtype).view(-1, *kept.row_shape)
    # Read only: a map that may be written to, even if only by this process, counts as memory of its own, and Linux
    # refuses one that is larger than the machine's.
    with (folder / kept.file).open("rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        flat = torch.frombuffer(mmap.mmap(file.fileno(), kept.bytes, access=mmap.ACCESS_READ), dtype=dtype)
    return flat.view(-1, *kept.row_shape)


def fault(folder: Path, kept: RowFile) -> str | None:
    """Compare a file with what was written.

    Args:
        folder: Where it lies.
        kept: What was written.

    Returns:
        What is wrong with it, in words, or None.

    Example:
        >>> fault(Path("nowhere"), RowFile(file="wire0.bin", row_shape=(3,), dtype="float32", bytes=60, checksums=(1,)))
        'wire0.bin is missing'
    """
    path = folder / kept.file
    if not path.is_file():
        return f"{kept.file} is missing"
    if (length := path.stat().st_size) != kept.bytes:
        return f"{kept.file} has {length:,} bytes and should have {kept.bytes:,}"
    with path.open("rb") as file:
        for block in range(0, len(kept.checksums), max(1, len(kept.checksums) // BLOCKS_CHECKED)):
            file.seek(block * BLOCK_BYTES)
            if zlib.crc32(file.read(BLOCK_BYTES)) != kept.checksums[block]:
                return f"the content of {kept.file} after byte {block * BLOCK_BYTES:,} was changed"
    return None


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes.index(axis) for axis in range(len(axes)))
