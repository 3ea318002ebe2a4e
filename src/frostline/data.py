"""Samples as every room reads them: rows of inputs, their labels, names and digests."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import nn

from frostline import fingerprint
from frostline.decoding import Pixels
from frostline.dividing import counts, divide, missing_parts
from frostline.errors import BadArgument, BadSample, EmptyData
from frostline.events import Listener, silent
from frostline.listing import SKIP, Listing, hashed, list_pictures, unreadable, without
from frostline.pictures import Finish, Pictures, looks_whole
from frostline.records import DataSummary, Preprocessing
from frostline.tokens import find_ids

__all__ = [
    "Listing",
    "Parts",
    "Pictures",
    "Rows",
    "Samples",
    "TensorSamples",
    "Worded",
    "list_pictures",
    "read_pictures",
]


class Rows(Protocol):
    """What training and scoring read: samples themselves, or the kept rows of a store."""

    @property
    def views(self) -> int:
        """Stored views of each row; view 0 is the plain one."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        """Give some rows as new tensors, the batch axis first."""


class Samples(Rows, Protocol):
    """A labelled part of the data.

    Samples that are texts, whole numbers (B, T), may be `Worded` too, so that people can read them.
    """

    @property
    def labels(self) -> torch.Tensor:
        """Class of each sample, (N,) int64."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a person calls each sample: a file path, or its number."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Digest of each sample's content."""

    @property
    def preparation(self) -> str:
        """How content becomes an input; part of every store's key."""


@runtime_checkable
class Worded(Protocol):
    """What samples may offer besides: the texts of their tokens, for the report. Nothing is computed from them."""

    def words(self, tokens: Sequence[int]) -> Sequence[str]:
        """Say what each of some token ids stands for, as it shall be read."""


@final
class TensorSamples:
    """A labelled part that is already in memory.

    Args:
        inputs: (N, ...), or a tuple of such where the network takes several.
        labels: (N,) whole numbers from 0.
        words: Of texts, what a token id stands for: a vocabulary in the order of the ids, or a function from an id
            to its text. The report shows it as given; where it is missing, the id. A tokenizer of transformers
            has `tokenizer.convert_ids_to_tokens`.

    Raises:
        BadArgument: The lengths differ, the labels are no whole numbers, or `words` is no vocabulary.
        EmptyData: There are no samples.

    Example:
        >>> import torch
        >>> part = TensorSamples(torch.zeros(3, 4), torch.tensor([0, 1, 0]))
        >>> part.read([2])[0].shape
        torch.Size([1, 4])
        >>> texts = torch.tensor([[2, 1, 0], [1, 3, 0]])
        >>> TensorSamples(texts, torch.tensor([0, 1]), words=["[PAD]", "my", "card"]).words([2, 1, 3])
        ('card', 'my', '3')
    """

    views = 1

    def __init__(
        self,
        inputs: torch.Tensor | tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        *,
        words: Sequence[str] | Callable[[int], str] | None = None,
    ) -> None:
        self._inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        _check_tensors(self._inputs, labels)
        self._words = words
        if words is not None:
            self._check_words()
        self.labels = labels.detach().to("cpu", torch.int64)
        self.names = tuple(str(row) for row in range(len(labels)))
        self.digests = tuple(_digest(self._inputs, row) for row in range(len(labels)))

    @property
    def preparation(self) -> str:
        """The kinds of the tensors; nothing else is done to them."""
        return "tensors " + " ".join(f"{tensor.dtype}{list(tensor.shape[1:])}" for tensor in self._inputs)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        """Give some samples as new tensors (B, ...)."""
        if view:
            raise BadArgument(
                f"BadArgument: view {view} of samples that are tensors; only view 0 exists. Use views=1, or samples "
                "of your own that make further views.",
                view=view,
            )
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        return tuple(tensor.detach()[index] for tensor in self._inputs)

    def words(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """Say what each of some token ids stands for; the id itself where nothing is known of it."""
        return tuple(str(self._word(token)) for token in tokens)

    def _word(self, token: int) -> str:
        match self._words:
            case None:
                return str(token)
            case Sequence():
                return self._words[token] if token < len(self._words) else str(token)
        return self._words(token)

    def _check_words(self) -> None:
        words, place = self._words, find_ids(self._inputs)
        needed = "a sequence of texts in the order of the token ids is needed, or a function from an id to its text."
        if not (callable(words) or isinstance(words, Sequence)):
            raise BadArgument(f"BadArgument: words is a {type(words).__name__}; {needed}", words=words)
        # Asked once now, since the report, where it would fail otherwise, is made after all training.
        token = None if place is None else int(self._inputs[place][0, 0])
        if token is not None and not isinstance(found := self._word(token), str):
            raise BadArgument(
                f"BadArgument: words gives a {type(found).__name__} for the token {token}; {needed}", words=words
            )


def _check_tensors(inputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise BadArgument(
            f"BadArgument: labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be whole numbers (N,).",
            labels=tuple(labels.shape),
        )
    lengths = [len(tensor) if tensor.dim() else 0 for tensor in inputs]
    if not inputs or any(length != len(labels) for length in lengths):
        raise BadArgument(
            f"BadArgument: inputs of {', '.join(map(str, lengths)) or 'no'} rows and {len(labels)} labels; each input "
            "needs one row for each label.",
            lengths=tuple(lengths),
        )
    if not len(labels):
        raise EmptyData("EmptyData: a part has no samples; at least one is needed.")
    if int(labels.min()) < 0:
        raise BadArgument(f"BadArgument: the smallest label is {int(labels.min())}; labels count from 0.")


def _digest(inputs: tuple[torch.Tensor, ...], row: int) -> str:
    return fingerprint.of_tensors((str(place), tensor[row].detach().cpu()) for place, tensor in enumerate(inputs))


# --- passes -----------------------------------------------------------------------------------


class Feed(NamedTuple):
    """How samples reach an engine: what it reads, and the step that its graph begins with.

    Args:
        read: Gives the inputs of some rows of a view.
        finish: Turns them into the network's inputs; None where they are these already.
    """

    read: Callable[[Sequence[int], int], tuple[torch.Tensor, ...]]
    finish: nn.Module | None = None

    def before(self, module: nn.Module) -> nn.Module:
        """A module that takes what is read."""
        return module if self.finish is None else nn.Sequential(self.finish, module)

    def finished(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The network's own inputs."""
        return inputs if self.finish is None else (self.finish(*inputs),)


def feed_of(samples: Samples, views: int = 1, *, device: torch.device | None = None) -> Feed:
    """Feed an engine with as little work outside it as can be: pictures as bytes, a quarter of their inputs' size.

    Args:
        samples: What will be read.
        views: How many views of it; further ones are no bytes.
        device: Where the network is; None for the processor.

    Returns:
        What to read, which is on the processor mostly, and what to put before the network, which is where that is.

    Example:
        >>> import torch
        >>> part = TensorSamples(torch.zeros(3, 4), torch.tensor([0, 1, 0]))
        >>> feed_of(part).finish is None, feed_of(part).read([1], 0)[0].shape
        (True, torch.Size([1, 4]))
    """
    if views == 1 and isinstance(samples, Pictures):
        return Feed(samples.read_bytes, Finish(samples.preprocessing).to(device))
    return Feed(samples.read)


@final
class Reading:
    """One pass over samples, batch by batch. What is not decoded yet is decoded while others work on what was read.

    Args:
        samples: What to read.
        batches: View and rows of each batch, in order.
        read: How, where not by `samples.read`.

    Example:
        >>> import torch
        >>> part = TensorSamples(torch.arange(3.0), torch.tensor([0, 1, 0]))
        >>> with Reading(part, [(0, [0, 1]), (0, [2])]) as reading:
        ...     [inputs[0].tolist() for inputs in reading]
        [[0.0, 1.0], [2.0]]
    """

    def __init__(
        self,
        samples: Samples,
        batches: Sequence[tuple[int, Sequence[int]]],
        read: Callable[[Sequence[int], int], tuple[torch.Tensor, ...]] | None = None,
    ) -> None:
        self._samples = samples
        self._batches = batches
        self._read = read or samples.read
        self._open = ExitStack()
        self._wait: Callable[[], None] = lambda: None
        self._reading = self._working = 0.0

    def __enter__(self) -> "Reading":
        samples = self._samples
        if isinstance(samples, Pictures) and isinstance(samples.pixels, Pixels):
            places = [samples.places(rows) for _, rows in self._batches]
            self._wait = self._open.enter_context(samples.pixels.ahead(places))
        return self

    def __exit__(self, *reason: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for number, (view, rows) in enumerate(self._batches):
            began = time.perf_counter()
            self._wait()
            inputs = self._read(rows, view)
            given = time.perf_counter()
            yield inputs
            if number:
                # The first batch waits for what is made before the pass can run.
                self._reading += given - began
                self._working += time.perf_counter() - given

    @property
    def note(self) -> str:
        """Which of the two the pass waits for, in words."""
        return "waiting for pictures" if self._reading > self._working else "waiting for the engine"


def settle(*parts: Samples, listener: Listener = silent) -> None:
    """Decode what no pass has asked for yet, so that no picture turns out to be damaged later on.

    Args:
        parts: Samples of any kind; only pictures are decoded.
        listener: Hears of each picture.

    Raises:
        BadSample: Pictures cannot be read; all of them are listed.

    Example:
        >>> import torch
        >>> settle(TensorSamples(torch.zeros(3, 4), torch.tensor([0, 1, 0])))
    """
    for part in parts:
        if isinstance(part, Pictures) and isinstance(part.pixels, Pixels):
            part.pixels.settle(listener=listener)
            part.pixels.check(part.places(range(len(part))))


def decoding_seconds(samples: Samples) -> float:
    """Seconds of the whole processor that decoding has taken so far, in which no engine ran.

    Example:
        >>> import torch
        >>> decoding_seconds(TensorSamples(torch.zeros(3, 4), torch.tensor([0, 1, 0])))
        0.0
    """
    if isinstance(samples, Pictures) and isinstance(samples.pixels, Pixels):
        return samples.pixels.seconds
    return 0.0


# --- pictures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The pictures of a listing, divided.

    Args:
        train: What is trained on.
        valid: What picks the depth and the epoch.
        test: What is scored once, at the end.
        summary: What was read, which files are copies, which were skipped.
    """

    train: Pictures
    valid: Pictures
    test: Pictures
    summary: DataSummary


def read_pictures(
    listing: Listing,
    preprocessing: Preprocessing,
    *,
    valid: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    folder: str | os.PathLike[str] | None = None,
    listener: Listener = silent,
) -> Parts:
    """Bring what was listed to one size and divide it into training, validation and test part.

    Given parts are kept; a missing validation or test part is drawn from the training part, stratified by
    class. Files of the same bytes never lie in two parts.

    Every file is read once here, and decoded at once where it looks damaged. The others are decoded in the first
    pass over them, while the network works; leave the files in their place until then.

    Args:
        listing: What `list_pictures` found.
        preprocessing: Size, interpolation, mean and standard deviation.
        valid: Share of everything for validation, where no such part is given.
        test: Share of everything for the test, likewise.
        seed: Of the division.
        skip_bad: Go on without the pictures that cannot be read.
        folder: Where decoded pictures are kept for the next call. None keeps them only while they are used.
        listener: Hears of each picture read.

    Returns:
        The three parts and the summary.

    Raises:
        BadSplit: The shares leave no training part.
        ClassTooSmall: A class has fewer different pictures than there are parts.
        BadSample: Pictures cannot be read; all of them are listed. What is damaged and does not look so raises it
            in the first pass.

    Example:
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     (tmp / name).mkdir()
        ...     for number in range(5):
        ...         Image.new("L", (9, 9), 50 * number + len(name) + ord(name[0])).save(tmp / name / f"{number}.png")
        >>> shape = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> read_pictures(list_pictures(tmp), shape).summary.counts
        ((3, 1, 1), (3, 1, 1))
    """
    # Refused before the pictures are read, which may take minutes.
    missing_parts(listing, valid, test)
    listing = hashed(listing, listener, skip_bad=skip_bad, looks_whole=looks_whole)
    divide(listing, valid, test, seed)
    pixels = _pixels_of(listing, preprocessing, None if folder is None else Path(folder))
    # Without the bad ones the division is another, so then they must all be known before it.
    doubtful = [row for row, digest in enumerate(pixels.digests) if skip_bad or digest in listing.doubtful]
    pixels.settle(doubtful, listener=listener)
    if not skip_bad:
        # Also those that an earlier call, which went on without them, has found.
        pixels.check(range(len(pixels)))
    reasons = {pixels.digests[row]: reason for row, reason in pixels.reasons.items()}
    bad = {row: reasons[digest] for row, digest in enumerate(listing.digests) if digest in reasons}
    listing = without(listing, bad)
    parts = divide(listing, valid, test, seed)
    row_of = {digest: row for row, digest in enumerate(pixels.digests)}
    whole = Pictures(
        pixels,
        [row_of[digest] for digest in listing.digests],
        torch.tensor(listing.labels, dtype=torch.int64),
        names=listing.names,
        digests=listing.digests,
        preprocessing=preprocessing,
    )
    summary = DataSummary(
        name=listing.name,
        classes=listing.classes,
        counts=counts(listing, parts),
        duplicates=listing.duplicates,
        conflicts=listing.conflicts,
        skipped=listing.skipped,
    )
    return Parts(whole.subset(parts["train"]), whole.subset(parts["valid"]), whole.subset(parts["test"]), summary)


def _pixels_of(listing: Listing, preprocessing: Preprocessing, folder: Path | None) -> Pixels:
    """Each content of a listing once, in the order of the digests."""
    first = {digest: row for row, digest in reversed(list(enumerate(listing.digests)))}
    order = sorted(first)

    def refuse(reasons: Mapping[str, str]) -> BadSample:
        named = {
            name: reasons[digest]
            for name, digest in zip(listing.names, listing.digests, strict=True)
            if digest in reasons
        }
        return unreadable(named, len(listing), way_out=SKIP)

    return Pixels(
        order, lambda place: listing.content(first[order[place]]), preprocessing, folder=folder, refuse=refuse
    )
