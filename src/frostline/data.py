"""Samples as every room reads them: rows of inputs, their labels, names and digests."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch

from frostline import fingerprint
from frostline.dividing import counts, divide, missing_parts
from frostline.errors import BadArgument, EmptyData
from frostline.events import Listener, silent
from frostline.listing import SKIP, Listing, hashed, list_pictures, unreadable, without
from frostline.pictures import Pictures, decode_all
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


@dataclass(frozen=True)
class Parts:
    """The pictures of a listing, decoded and divided.

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
    """Decode what was listed to one size and divide it into training, validation and test part.

    Given parts are kept; a missing validation or test part is drawn from the training part, stratified by
    class. Files of the same bytes never lie in two parts.

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
        BadSample: Pictures cannot be read; all of them are listed.

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
    listing = hashed(listing, listener, skip_bad=skip_bad)
    divide(listing, valid, test, seed)
    pixels, row_of, reasons = decode_all(
        listing.digests,
        listing.content,
        preprocessing,
        folder=None if folder is None else Path(folder),
        listener=listener,
    )
    bad = {row: reasons[digest] for row, digest in enumerate(listing.digests) if digest in reasons}
    if bad and not skip_bad:
        raise unreadable({listing.names[row]: reason for row, reason in bad.items()}, len(listing), way_out=SKIP)
    listing = without(listing, bad)
    parts = divide(listing, valid, test, seed)
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
