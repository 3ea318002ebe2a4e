"""Pictures as real folders hold them, brought to one size and read as channels-last batches."""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from math import floor
from typing import Any, Protocol, final

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

from frostline import fingerprint
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

LAW = "picture 2"
"""Raised when a change here would give other pixels for the same file, so that no old rows are used."""


_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class PixelRows(Protocol):
    """Pictures of one size (M, H, W, 3), uint8: an array, or what decodes them when they are asked for."""

    def __getitem__(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Bytes:
        """Copies of some of them, (B, H, W, 3)."""


@final
class Pictures:
    """A labelled part of the pictures: float32 inputs (B, 3, H, W), channels-last.

    View 0 is the plain picture. View v > 0 is a crop of it of 70 to 100 % of its area, turned by at most
    ten degrees, with its brightness and contrast moved by at most a fifth; it depends on the picture's
    bytes and on v alone. No view is mirrored, since letters, digits and hands are not their mirror image.

    Args:
        pixels: Pictures (M, H, W, 3), uint8.
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
        pixels: PixelRows,
        rows: Sequence[int],
        labels: torch.Tensor,
        *,
        names: tuple[str, ...],
        digests: tuple[str, ...],
        preprocessing: Preprocessing,
        views: int = 1,
    ) -> None:
        self.pixels = pixels
        self._rows = np.asarray(rows, dtype=np.int64)
        self.labels = labels
        self.names = names
        self.digests = digests
        self.preprocessing = preprocessing
        self.views = views

    @property
    def preparation(self) -> str:
        """What turns a file into an input, as text."""
        return f"{LAW}; {self.preprocessing.model_dump_json()}"

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        """Give the inputs (B, 3, H, W) of some samples, as a new tensor."""
        pictures = self.read_bytes(rows)[0].permute(0, 3, 1, 2).float()
        if view:
            pictures = _varied(pictures, [self.digests[row] for row in rows], view)
        return (_normal(pictures, self.preprocessing),)

    def read_bytes(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        """Give some samples (B, H, W, 3) as uint8, which `Finish` turns into the inputs of view 0."""
        assert not view, "further views are no bytes"
        # Indexing with an array copies, so what the caller does in place cannot reach the file.
        return (torch.from_numpy(self.pixels[self.places(rows)]),)

    def places(self, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Which of `pixels` belong to these samples."""
        return self._rows[np.asarray(rows, dtype=np.int64)]

    def subset(self, rows: Sequence[int]) -> "Pictures":
        """The part that holds some of the samples, in the order given."""
        return Pictures(
            self.pixels,
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


@final
class Finish(nn.Module):
    """The last step from picture to input, for an engine to do with its own threads: (B, H, W, 3) to (B, 3, H, W).

    Args:
        preprocessing: Gives mean and standard deviation.

    Example:
        >>> shape = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> inputs = Finish(shape)(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
        >>> inputs.shape, float(inputs.mean())
        (torch.Size([2, 3, 8, 8]), -1.0)
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, scale = _shift_and_scale(preprocessing)
        self.register_buffer("mean", mean.view(1, 1, 1, 3), persistent=False)
        self.register_buffer("scale", scale.view(1, 1, 1, 3), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give the bits that `Pictures.read` gives, in the same memory order."""
        # Turned last, for then an engine that computes with the channels last has nothing to turn.
        return ((pixels.float() - self.mean) / self.scale).permute(0, 3, 1, 2)


def normalised(pixels: Bytes, preprocessing: Preprocessing) -> torch.Tensor:
    """Turn decoded pictures (B, H, W, 3) into inputs (B, 3, H, W), channels-last.

    Example:
        >>> import numpy as np
        >>> shape = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> float(normalised(np.zeros((1, 8, 8, 3), dtype=np.uint8), shape).mean())
        -1.0
    """
    return _normal(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), preprocessing)


def _normal(pictures: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    mean, scale = _shift_and_scale(preprocessing)
    return pictures.sub_(mean.view(1, 3, 1, 1)).div_(scale.view(1, 3, 1, 1))


def _shift_and_scale(preprocessing: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(preprocessing.mean).mul(255), torch.tensor(preprocessing.std).mul(255)


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


def looks_whole(content: bytes) -> bool:
    """Whether the end of a picture file is in its place, so that decoding it can wait until it is needed.

    What is damaged in real folders was nearly always cut off, or is no picture at all.

    Args:
        content: The file's bytes.

    Returns:
        False for whatever cannot be told without decoding it.

    Example:
        >>> looks_whole(b"\\xff\\xd8\\xff ... \\xff\\xd9"), looks_whole(b"not a picture")
        (True, False)
    """
    if content.startswith(_JPEG):
        # Some cameras fill the last block of a file up.
        return content[-64:].rstrip(b"\0").endswith(_JPEG_END)
    if content.startswith(_PNG) and content.endswith(_PNG_END):
        # The header comes first and begins with width and height (PNG specification 1.2, section 4.1.1).
        width, height = struct.unpack(">II", content[16:24])
        return bool(width * height <= MOST_PIXELS)
    return False


def decode(content: bytes, preprocessing: Preprocessing) -> Bytes:
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
    # Turned before it is cut, for half a pixel of margin is rounded to one side, and which one depends on the turn.
    upright = colours if turn is None else colours.transpose(turn)
    return np.asarray(_middle_square(upright, preprocessing), dtype=np.uint8)


def _middle_square(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    size = preprocessing.image_size
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    if short == size:
        # No resize, which would take as long as decoding and, half a pixel off, would blur.
        return picture.crop((floor(left), floor(top), floor(left) + size, floor(top) + size))
    box = (left, top, left + short, top + short)
    return picture.resize((size, size), _FILTERS[preprocessing.interpolation], box=box)


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


def _in_bytes(values: np.ndarray[Any, np.dtype[np.float64]]) -> Bytes:
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


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hear none of Pillow's warnings (odd Exif, large pictures): they name no file and change no pixel."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield
