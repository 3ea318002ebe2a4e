"""Pictures as real folders hold them, decoded once to one size and read as channels-last batches."""

import contextlib
import errno
import io
import json
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from frostline import fingerprint
from frostline.errors import DiskFull, NotWritable, RunError, StoreCorrupt, StoreError
from frostline.events import Listener, silent, watched
from frostline.records import Preprocessing

# Twice Pillow's own warning level, from where Pillow refuses; stated here so that a program that lifts
# Pillow's limit does not lift ours.
MOST_PIXELS = 2 * 89_478_485

# Pillow's readers raise nearly any of these for bytes that are damaged.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Source: Exif 2.32, tag 0x0112 (Orientation), table 4.6.4.A.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LAW = "picture 1"
"""Raised when a change here would give other pixels for the same file, so that no old rows are used."""


@final
class Pictures:
    """A labelled part of the decoded pictures: float32 inputs (B, 3, H, W), channels-last.

    View 0 is the plain picture. View v > 0 is a crop of it of 70 to 100 % of its area, turned by at most
    ten degrees, with its brightness and contrast moved by at most a fifth; it depends on the picture's
    bytes and on v alone. No view is mirrored, since letters, digits and hands are not their mirror image.

    Args:
        pixels: Decoded pictures (M, H, W, 3), uint8.
        rows: N rows of `pixels`, one for each sample.
        labels: (N,) int64.
        names: N file names.
        digests: N digests of the files' bytes.
        preprocessing: Size, mean and standard deviation.
        views: How many views training should read.

    Example:
        >>> import numpy as np, torch
        >>> shape = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> pixels = np.full((1, 8, 8, 3), 255, dtype=np.uint8)
        >>> part = Pictures(pixels, [0], torch.tensor([0]), names=("a.png",), digests=("d",), preprocessing=shape)
        >>> part.read([0])[0].shape, float(part.read([0])[0].max())
        (torch.Size([1, 3, 8, 8]), 1.0)
    """

    def __init__(
        self,
        pixels: np.ndarray[Any, np.dtype[np.uint8]],
        rows: Sequence[int],
        labels: torch.Tensor,
        *,
        names: tuple[str, ...],
        digests: tuple[str, ...],
        preprocessing: Preprocessing,
        views: int = 1,
    ) -> None:
        self._pixels = pixels
        self._rows = np.asarray(rows, dtype=np.int64)
        self.labels = labels
        self.names = names
        self.digests = digests
        self.preprocessing = preprocessing
        self.views = views

    @property
    def preparation(self) -> str:
        """What turns a file into an input, as text."""
        return f"{_LAW}; {self.preprocessing.model_dump_json()}"

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        """Give the inputs (B, 3, H, W) of some samples, as a new tensor."""
        # Indexing with an array copies, so what the caller does in place cannot reach the file.
        batch = torch.from_numpy(self._pixels[self._rows[np.asarray(rows, dtype=np.int64)]])
        pictures = batch.permute(0, 3, 1, 2).float()
        if view:
            pictures = _varied(pictures, [self.digests[row] for row in rows], view)
        return (_normal(pictures, self.preprocessing),)

    def subset(self, rows: Sequence[int]) -> "Pictures":
        """The part that holds some of the samples, in the order given."""
        return Pictures(
            self._pixels,
            [int(self._rows[row]) for row in rows],
            self.labels[torch.as_tensor(rows, dtype=torch.int64)],
            names=tuple(self.names[row] for row in rows),
            digests=tuple(self.digests[row] for row in rows),
            preprocessing=self.preprocessing,
            views=self.views,
        )

    def with_views(self, views: int) -> "Pictures":
        """The same samples with that many views of each."""
        part = self.subset(range(len(self)))
        part.views = views
        return part


def normalised(pixels: np.ndarray[Any, np.dtype[np.uint8]], preprocessing: Preprocessing) -> torch.Tensor:
    """Turn decoded pictures (B, H, W, 3) into inputs (B, 3, H, W), channels-last.

    Example:
        >>> import numpy as np
        >>> shape = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> float(normalised(np.zeros((1, 8, 8, 3), dtype=np.uint8), shape).mean())
        -1.0
    """
    return _normal(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), preprocessing)


def _normal(pictures: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    mean = torch.tensor(preprocessing.mean).mul(255).view(1, 3, 1, 1)
    scale = torch.tensor(preprocessing.std).mul(255).view(1, 3, 1, 1)
    return pictures.sub_(mean).div_(scale)


def _varied(pictures: torch.Tensor, digests: Sequence[str], view: int) -> torch.Tensor:
    """Another view of each picture (B, 3, H, W), 0 to 255, drawn from its digest and the view's number."""
    draws = torch.stack([_draws(digest, view) for digest in digests])
    # Source: scale and jitter as in Szegedy 2015 (section 6), narrowed: at .08 to 1, as there, a small data
    # set's object is often cut away.
    side = (0.7 + 0.3 * draws[:, 0]).sqrt()
    angle = (draws[:, 1] - 0.5) * 2 * (10 * torch.pi / 180)
    shift_x, shift_y = ((2 * draws[:, column] - 1) * (1 - side) for column in (2, 3))
    cosine, sine = side * angle.cos(), side * angle.sin()
    grid = torch.nn.functional.affine_grid(
        torch.stack([torch.stack([cosine, -sine, shift_x], dim=1), torch.stack([sine, cosine, shift_y], dim=1)], dim=1),
        list(pictures.shape),
        align_corners=False,
    )
    turned = torch.nn.functional.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    brightness, contrast = (0.8 + 0.4 * draws[:, column].view(-1, 1, 1, 1) for column in (4, 5))
    turned = turned * brightness
    middle = turned.mean(dim=(1, 2, 3), keepdim=True)
    return ((turned - middle) * contrast + middle).clamp(0, 255).contiguous(memory_format=torch.channels_last)


def _draws(digest: str, view: int) -> torch.Tensor:
    # A generator of torch would cost more than the six numbers: 16 bits of a hash each are as good.
    text = fingerprint.of_text(digest, str(view))
    return torch.tensor([int(text[place : place + 4], 16) / 65536 for place in range(0, 24, 4)])


# --- one picture ------------------------------------------------------------------------------


def decode(content: bytes, preprocessing: Preprocessing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one picture file of any kind to (H, W, 3), uint8: its middle square at `image_size`.

    The whole short side is kept. Evaluation recipes that cut a margin (crop_pct .875) assume photographs
    with the object in the middle; in users' folders the object may fill the frame, and at a small size the
    margin costs pixels that cannot be had back.

    Args:
        content: The file's bytes.
        preprocessing: Gives the size and the interpolation.

    Returns:
        The first frame in upright orientation; what is transparent is white.

    Raises:
        OSError: Or another of `UNREADABLE`, where the bytes are no whole picture.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (30, 20), 200).save(file, "PNG")
        >>> shape = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> decode(file.getvalue(), shape)[0, 0].tolist()
        [200, 200, 200]
    """
    size = preprocessing.image_size
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"Image size ({width * height} pixels) exceeds {MOST_PIXELS}")
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its sides at a fraction of the work. Twice the size keeps
        # the later resize exact enough (Pillow's `thumbnail` takes the same gap).
        picture.draft(None, (2 * size, 2 * size))
        picture.load()
        turn = _TURNS.get(_orientation(picture))
        colours = _in_colour(picture)
    width, height = colours.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    square = colours.resize(
        (size, size), _FILTERS[preprocessing.interpolation], box=(left, top, left + short, top + short)
    )
    # A middle square stays the middle square when turned, so turning it last turns the fewest pixels.
    return np.asarray(square if turn is None else square.transpose(turn), dtype=np.uint8)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except UNREADABLE:
        # Cameras and editors write broken Exif blocks around sound pictures.
        return 1


def _in_colour(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, more than 8 bits scaled and not clipped."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in {"I", "F"}:
        return Image.fromarray(_in_bytes(np.asarray(picture, dtype=np.float64))).convert("RGB")
    if picture.has_transparency_data or picture.mode in {"La", "RGBa"}:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _in_bytes(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Numbers of 32 bits, whose range no header states, to 0 .. 255 by the smallest usual range that holds them."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0:
        values, high, low = values - low, high - low, 0.0
        top = high
    else:
        whole = bool((values == np.floor(values)).all()) and high > 1
        top = next((limit for limit in ((255.0, 65535.0) if whole else (1.0, 255.0, 65535.0)) if high <= limit), high)
    return np.asarray(np.round(values * (255 / top if top else 0.0)), dtype=np.uint8)


def reason_of(error: BaseException) -> str:
    """Why a picture cannot be read, as a person would say it."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or damaged at its start"
    if isinstance(error, Image.DecompressionBombError):
        return f"a decompression bomb of more than {MOST_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# --- many pictures ----------------------------------------------------------------------------


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hear none of Pillow's warnings (odd Exif, large pictures): they name no file and change no pixel."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


def decode_all(
    digests: Sequence[str],
    content: Callable[[int], bytes],
    preprocessing: Preprocessing,
    *,
    folder: Path | None = None,
    listener: Listener = silent,
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], dict[str, int], dict[str, str]]:
    """Decode each content once into a memory-mapped file, or open the file that holds just these.

    Args:
        digests: Of the contents, in any order, repeated where contents are.
        content: Gives the bytes of item i.
        preprocessing: Gives size and interpolation.
        folder: Where the file is kept. None: a file without a name that the system removes at the end.
        listener: Hears of each picture.

    Returns:
        Pixels (M, H, W, 3), the row of each digest, and the reason for each digest that could not be read.
    """
    first = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    order = sorted(first)
    size = preprocessing.image_size
    shape = (len(order), size, size, 3)
    key = fingerprint.of_text(_LAW, str(size), preprocessing.interpolation, *order)
    place = Path(tempfile.mkdtemp(prefix="frostline-")) if folder is None else folder
    pixels, notes = place / f"{key}.pixels", place / f"{key}.json"
    try:
        if not notes.exists():
            _check_room(place, int(np.prod(shape)))
            _write(pixels, notes, [first[digest] for digest in order], content, preprocessing, listener)
        reasons = dict(json.loads(notes.read_text(encoding="utf-8"))["unreadable"])
        if pixels.stat().st_size != np.prod(shape):
            raise StoreCorrupt(
                f"StoreCorrupt: {pixels} holds {pixels.stat().st_size:,} bytes, not {np.prod(shape):,}. Remove it.",
                file=str(pixels),
            )
        mapped = np.memmap(pixels, dtype=np.uint8, mode="r", shape=shape)
    finally:
        if folder is None:
            # The mapping keeps an unlinked file alive, and no kill can leave it behind.
            shutil.rmtree(place, ignore_errors=True)
    by_digest = {order[int(row)]: reason for row, reason in reasons.items()}
    return mapped, {digest: row for row, digest in enumerate(order)}, by_digest


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


def _write(
    pixels: Path,
    notes: Path,
    items: Sequence[int],
    content: Callable[[int], bytes],
    preprocessing: Preprocessing,
    listener: Listener,
) -> None:
    """Write the pixels, then the notes that make them valid; each whole or not at all."""
    row_bytes = preprocessing.image_size**2 * 3
    part = pixels.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            # Plain writes: a full disk is then an error here and not a bus error at some later read.
            os.ftruncate(file.fileno(), len(items) * row_bytes)
            reasons = _decode_into(file.fileno(), items, content, preprocessing, listener)
            os.fsync(file.fileno())
        part.replace(pixels)
        _write_notes(notes, reasons)
    except OSError as error:
        raise _explained(error, pixels.parent) from error
    finally:
        part.unlink(missing_ok=True)


def _write_notes(notes: Path, reasons: Mapping[int, str]) -> None:
    part = notes.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"schema": 1, "unreadable": {str(row): why for row, why in reasons.items()}}))
    part.replace(notes)


def _decode_into(
    file: int,
    items: Sequence[int],
    content: Callable[[int], bytes],
    preprocessing: Preprocessing,
    listener: Listener,
) -> dict[int, str]:
    row_bytes = preprocessing.image_size**2 * 3

    def work(row: int) -> str:
        try:
            decoded = decode(content(items[row]), preprocessing).tobytes()
        except UNREADABLE as error:
            return reason_of(error)
        os.pwrite(file, decoded, row * row_bytes)
        return ""

    reasons: dict[int, str] = {}
    # Pillow lets go of the interpreter's lock while it decodes and resizes, so threads are enough.
    with (
        quiet_pillow(),
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        # Closing it cancels what has not begun, or Ctrl+C would wait for all the rest.
        contextlib.closing(cast(Generator[str], pool.map(work, range(len(items))))) as results,
    ):
        watch = watched(results, listener, "read", total=len(items), note="decoding", unit="pictures")
        for row, reason in enumerate(watch):
            if reason:
                reasons[row] = reason
    return reasons
