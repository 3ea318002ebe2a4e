"""What the user's folder, manifest or Hub name holds: sources, labels, classes, copies, parts."""

import contextlib
import csv
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from frostline import fingerprint
from frostline.errors import (
    BadSample,
    BadSplit,
    DataError,
    EmptyData,
    NoSuchData,
    OneClass,
    UnknownClass,
)
from frostline.events import Listener, silent, watched

Part = Literal["train", "valid", "test"]

# Where equal bytes lie in several given parts, the copy in the part named first stays.
_KEPT_FIRST: tuple[Part, ...] = ("test", "valid", "train")
_PART_NAMES: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
PICTURE_ENDINGS = frozenset(
    f".{ending}"
    for ending in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "tif", "tiff"),
        *("webp", "avif", "jp2", "ppm", "pgm", "pbm", "pnm", "tga"),
        # Pillow reads these with a plugin only, but left out in silence they would be missed.
        *("heic", "heif", "jxl"),
    )
)
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "img")
_LABEL_COLUMNS = ("label", "class", "category", "target", "labels", "fine_label")
SKIP = "Repair or remove them, or go on without them with --skip-bad."
_PART_COLUMNS = ("split", "part", "subset")


@dataclass(frozen=True)
class Listing:
    """The labelled pictures that were found, none of them opened yet.

    Args:
        name: The data as the user named it.
        names: N texts that name the pictures.
        labels: N indices into `classes`.
        classes: K names in sorted order.
        parts: N parts the user gave, or None where we have to split.
        content: Gives the bytes of picture i.
        digests: N digests of the bytes; empty before `hashed`.
        doubtful: Digests of what may be damaged by the look of its bytes.
        ignored: Files that are no pictures by their ending.
        skipped: (name, reason) of what was left out.
    """

    name: str
    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    parts: tuple[Part | None, ...]
    content: Callable[[int], bytes] = field(repr=False, compare=False)
    digests: tuple[str, ...] = ()
    doubtful: frozenset[str] = frozenset()
    ignored: int = 0
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def duplicates(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names with the same bytes."""
        return tuple(tuple(self.names[row] for row in rows) for rows in self._copies())

    @property
    def conflicts(self) -> tuple[tuple[str, ...], ...]:
        """Those groups that carry more than one label."""
        return tuple(
            tuple(self.names[row] for row in rows)
            for rows in self._copies()
            if len({self.labels[row] for row in rows}) > 1
        )

    def _copies(self) -> list[list[int]]:
        return [rows for rows in grouped(self.digests).values() if len(rows) > 1]


class _Found(NamedTuple):
    source: Path | bytes
    name: str
    label: str
    part: Part | None


def list_pictures(data: str | os.PathLike[str]) -> Listing:
    """List the labelled pictures of a folder, a manifest or a data set on the Hub.

    Nothing is opened and nothing leaves the machine, unless the name starts with "hub:".

    Args:
        data: A folder with one folder per class, or with `train/`, `valid/` (`val/`, `validation/`)
            and `test/` above those; a .csv or .parquet file with the columns path and label, and
            split where the parts are given, paths relative to the file; or "hub:NAME".

    Returns:
        What was found, sorted by name.

    Raises:
        NoSuchData: There is no such folder, file or name.
        EmptyData: It holds no labelled picture.
        OneClass: All pictures are of one class.
        UnknownClass: A given part holds a class that the training part lacks.

    Example:
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     (tmp / name).mkdir()
        ...     Image.new("RGB", (8, 8)).save(tmp / name / "1.png")
        >>> list_pictures(tmp).classes
        ('cat', 'dog')
    """
    text = os.fspath(data)
    if text.startswith("hub:"):
        found, ignored = _read_hub(text.removeprefix("hub:")), 0
    else:
        path = Path(text).expanduser()
        if path.is_dir():
            try:
                found, ignored = _scan(path)
            except PermissionError as error:
                raise NoSuchData(
                    f"NoSuchData: {readable(str(error.filename))!r} may not be read: {error.strerror}. Change its "
                    "permissions, or give another folder.",
                    data=text,
                ) from error
        elif path.is_file():
            found, ignored = _read_manifest(path), 0
        else:
            raise NoSuchData(
                f"NoSuchData: there is no folder or file {readable(text)!r} (looked in {Path.cwd()}). Give a folder "
                "with one folder per class, a .csv or .parquet manifest, or hub:NAME for a data set on the Hugging "
                "Face Hub.",
                data=text,
            )
    return _checked(readable(text), sorted(found, key=lambda item: item.name), ignored)


def readable(path: str | os.PathLike[str]) -> str:
    """Text of a path that survives JSON and HTML even where its bytes are no UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# --- folders ----------------------------------------------------------------------------------


def _scan(root: Path) -> tuple[list[_Found], int]:
    folders = {path.name: path for path in sorted(root.iterdir()) if _is_shown(path) and path.is_dir()}
    parts = {name: _PART_NAMES[name.lower()] for name in folders if name.lower() in _PART_NAMES}
    # A class may itself be called "train": only a folder of class folders is a part.
    parts = {name: part for name, part in parts.items() if _has_class_folders(folders[name])}
    if "train" not in parts.values():
        classes, strays = _class_folders(root, None, root)
        return classes, strays
    found: list[_Found] = []
    ignored = 0
    for name, folder in folders.items():
        if name in parts:
            pictures, strays = _class_folders(folder, parts[name], root)
            found += pictures
            ignored += strays
        elif any(_is_picture(path) for path in walk(folder)):
            raise DataError(
                f"DataError: {readable(root)!r} has the parts {', '.join(sorted(parts))}, and beside them the folder "
                f"{readable(name)!r} with pictures. Move it into one of the parts, or out of the folder.",
                folder=readable(name),
            )
    return found, ignored


def _has_class_folders(folder: Path) -> bool:
    children = [path for path in folder.iterdir() if _is_shown(path)]
    return any(path.is_dir() for path in children) and not any(_is_picture(path) for path in children)


def _class_folders(folder: Path, part: Part | None, root: Path) -> tuple[list[_Found], int]:
    found: list[_Found] = []
    ignored = 0
    for child in sorted(folder.iterdir()):
        if not _is_shown(child):
            continue
        if not child.is_dir():
            ignored += 1
            continue
        for path in walk(child):
            if _is_picture(path):
                found.append(_Found(path, readable(path.relative_to(root)), readable(child.name), part))
            else:
                ignored += 1
    return found, ignored


def walk(folder: Path) -> Iterator[Path]:
    """All shown files below a folder; links are followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if _is_shown(Path(name)))
        yield from (Path(place, name) for name in sorted(files) if _is_shown(Path(name)))


def _is_shown(path: Path) -> bool:
    # macOS packs its own copies of every file into zips under this name.
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_ENDINGS and not path.is_dir()


# --- manifests and the Hub --------------------------------------------------------------------


def _read_manifest(path: Path) -> list[_Found]:
    import tempfile

    from datasets import Dataset, Value, disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    ending = path.suffix.lower()
    if ending not in {".csv", ".tsv", ".parquet"}:
        raise NoSuchData(
            f"NoSuchData: {readable(path)!r} is no folder and no manifest. Give a folder with one folder per class, or "
            "a .csv, .tsv or .parquet file with the columns path and label.",
            data=readable(path),
        )
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if ending == ".parquet":
                    table = Dataset.from_parquet(str(path), cache_dir=folder, keep_in_memory=True)
                else:
                    table = _read_csv(path, folder)
            # What `datasets` raises for a file it cannot parse shares no narrower base with pandas and pyarrow.
            except (OSError, ValueError, RuntimeError) as error:
                raise EmptyData(
                    f"EmptyData: {readable(path)!r} cannot be read as {ending[1:]}: {error.__cause__ or error}. "
                    "It must be a table with the columns path and label.",
                    data=readable(path),
                ) from error
            columns = _columns(table.column_names, readable(path))
            table = _plain_pictures(table.select_columns([name for name in columns if name]), columns[0])
            if table.features[columns[1]] != Value("string"):
                names = getattr(table.features[columns[1]], "names", None)
            else:
                names = None
            rows = [[row[name] if name else None for name in columns] for row in table]
    finally:
        if had_bars:
            enable_progress_bars()
    return [_manifest_row(path, number, row, names) for number, row in enumerate(rows, start=1)]


def _read_csv(path: Path, folder: str) -> Any:
    from datasets import Dataset, Features, Value

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=separator), [])
    # Labels such as 007, 1.0 or NA are names, not numbers and gaps, so all is read as text.
    return Dataset.from_csv(
        str(path),
        cache_dir=folder,
        keep_in_memory=True,
        features=Features({name: Value("string") for name in header}),
        names=header,
        header=0,
        sep=separator,
        na_filter=False,
        encoding="utf-8-sig",
    )


def _columns(present: Sequence[str], name: str) -> tuple[str, str, str | None]:
    """The columns that hold the picture, its label and, where there is one, its part."""
    lower = {column.strip().lower(): column for column in present}
    found = [
        next((lower[choice] for choice in choices if choice in lower), None)
        for choices in (_PATH_COLUMNS, _LABEL_COLUMNS, _PART_COLUMNS)
    ]
    picture, label, part = found
    if picture is None or label is None:
        raise DataError(
            f"DataError: {name!r} has the columns {', '.join(present)}; it needs one named path and one named label. "
            "Rename them in the file's first line.",
            columns=tuple(present),
        )
    return picture, label, part


def _plain_pictures(table: Any, column: str) -> Any:
    from datasets import Image

    return table.cast_column(column, Image(decode=False)) if isinstance(table.features[column], Image) else table


def _manifest_row(manifest: Path, number: int, row: list[Any], names: Sequence[str] | None) -> _Found:
    picture, label, part = row
    if label is None or label == "":
        raise DataError(
            f"DataError: row {number} of {readable(manifest)!r} has no label. Fill it in or remove the row."
        )
    text = names[label] if names is not None else str(label)
    given = _part_of(part, f"row {number} of {readable(manifest)!r}")
    if isinstance(picture, dict):
        if picture.get("bytes"):
            return _Found(picture["bytes"], f"{picture.get('path') or 'row'} ({number})", text, given)
        picture = picture.get("path")
    if not picture:
        raise DataError(f"DataError: row {number} of {readable(manifest)!r} has no path. Fill it in or remove the row.")
    return _Found(manifest.parent / picture, str(picture), text, given)


def _part_of(value: str | None, where: str) -> Part | None:
    if value is None or value == "":
        return None
    if value.lower() not in _PART_NAMES:
        raise BadSplit(f"BadSplit: {where} is of the part {value!r}; a part is train, valid or test.", part=value)
    return _PART_NAMES[value.lower()]


def _read_hub(name: str) -> list[_Found]:
    import datasets

    try:
        parts = datasets.load_dataset(name)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise NoSuchData(
            f"NoSuchData: the Hugging Face Hub has no data set {name!r} that you may read. Check the name at "
            f"https://huggingface.co/datasets, or log in where it is private. ({error})",
            data=name,
        ) from error
    except (OSError, ValueError) as error:
        raise NoSuchData(
            f"NoSuchData: the data set {name!r} could not be fetched from the Hugging Face Hub: {error}. Check the "
            "network, or give a local folder with one folder per class.",
            data=name,
        ) from error
    found: list[_Found] = []
    for split, table in parts.items():
        picture, label, _ = _columns(table.column_names, f"hub:{name}")
        features = table.features[label]
        part = _PART_NAMES.get(split.lower())
        for number, row in enumerate(_plain_pictures(table, picture)):
            text = features.names[row[label]] if hasattr(features, "names") else str(row[label])
            content = row[picture]["bytes"] or Path(row[picture]["path"])
            found.append(_Found(content, f"{split}/{number:07d}", text, part))
    return found


# --- checks -----------------------------------------------------------------------------------


def _checked(name: str, found: list[_Found], ignored: int) -> Listing:
    if not found:
        raise EmptyData(
            f"EmptyData: {name!r} holds no labelled picture ({ignored} other files). It needs one folder per class "
            f"with pictures in it, for instance {name.rstrip('/')}/cat/1.jpg and {name.rstrip('/')}/dog/1.jpg.",
            data=name,
            ignored=ignored,
        )
    classes = tuple(sorted({item.label for item in found}))
    if len(classes) == 1:
        inner = sorted({Path(item.name).parts[1] for item in found if len(Path(item.name).parts) > 2})
        hint = (
            f" Its folders are {', '.join(inner[:5])}: did you mean {name.rstrip('/')}/{classes[0]}?" if inner else ""
        )
        raise OneClass(
            f"OneClass: all {len(found)} pictures of {name!r} are of the class {classes[0]!r}; two classes or more are "
            f"needed to tell anything apart.{hint}",
            classes=classes,
        )
    _check_parts(name, found)
    sources = tuple(item.source for item in found)

    def content(row: int) -> bytes:
        source = sources[row]
        return source if isinstance(source, bytes) else source.read_bytes()

    index = {label: number for number, label in enumerate(classes)}
    return Listing(
        name=name,
        names=tuple(item.name for item in found),
        labels=tuple(index[item.label] for item in found),
        classes=classes,
        parts=tuple(item.part for item in found),
        content=content,
        ignored=ignored,
    )


def _check_parts(name: str, found: list[_Found]) -> None:
    given = {item.part for item in found}
    if given == {None}:
        return
    if None in given or "train" not in given:
        raise BadSplit(
            f"BadSplit: {name!r} gives the parts {', '.join(sorted(part or 'none' for part in given))}; where parts "
            "are given, each picture needs one and some must be train.",
        )
    trained = {item.label for item in found if item.part == "train"}
    for part in ("valid", "test"):
        strange = sorted({item.label for item in found if item.part == part} - trained)
        if strange:
            raise UnknownClass(
                f"UnknownClass: {part}/ of {name!r} holds {some(strange)}, which train/ lacks. Add pictures of it to "
                f"train/, rename the folder, or remove it; train/ has {some(sorted(trained))}.",
                classes=tuple(strange),
                part=part,
            )


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# --- copies -------------------------------------------------------------------------


def hashed(
    listing: Listing,
    listener: Listener = silent,
    *,
    skip_bad: bool = False,
    looks_whole: Callable[[bytes], bool] = bool,
) -> Listing:
    """Add the digest of each picture's bytes, and let no bytes lie in two given parts.

    Raises:
        BadSample: Files cannot be opened, and `skip_bad` does not say to go on without them.
    """

    def look(row: int) -> tuple[str, bool, str]:
        try:
            content = listing.content(row)
        except FileNotFoundError:
            return "", False, "no such file (paths in a manifest are relative to the manifest)"
        except OSError as error:
            return "", False, error.strerror or str(error)
        return fingerprint.of_bytes(content), looks_whole(content), ""

    with (
        ThreadPoolExecutor(min(8, (os.cpu_count() or 1) * 2)) as pool,
        # Closing it cancels what has not begun, or Ctrl+C would wait for all the rest.
        contextlib.closing(cast(Generator[tuple[str, bool, str]], pool.map(look, range(len(listing))))) as results,
    ):
        found = list(watched(results, listener, "read", total=len(listing), note="reading", unit="pictures"))
    bad = {row: reason for row, (_, _, reason) in enumerate(found) if reason}
    if bad and not skip_bad:
        raise unreadable({listing.names[row]: reason for row, reason in bad.items()}, len(listing), way_out=SKIP)
    listing = replace(
        listing,
        digests=tuple(digest for digest, _, _ in found),
        doubtful=frozenset(digest for digest, is_whole, _ in found if not is_whole),
    )
    return _apart(without(listing, bad))


def unreadable(reasons: Mapping[str, str], total: int, *, way_out: str) -> BadSample:
    """The error that lists all pictures that cannot be read."""
    shown = "; ".join(f"{name!r}: {reason}" for name, reason in list(reasons.items())[:5])
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    strange = sorted({Path(name).suffix.lower() for name in reasons} & {".heic", ".heif", ".jxl"})
    hint = f" Convert {' and '.join(strange)} files to JPEG first." if strange else ""
    return BadSample(
        f"BadSample: {len(reasons)} of {total} pictures cannot be read: {shown}{more}.{hint} {way_out}",
        paths=tuple(reasons),
        reasons=tuple(reasons.values()),
    )


def without(listing: Listing, reasons: Mapping[int, str]) -> Listing:
    """The listing less some rows, which are recorded as skipped with their reasons."""
    if not reasons:
        return listing
    kept = [row for row in range(len(listing)) if row not in reasons]
    content = listing.content
    return replace(
        listing,
        names=tuple(listing.names[row] for row in kept),
        labels=tuple(listing.labels[row] for row in kept),
        parts=tuple(listing.parts[row] for row in kept),
        digests=tuple(listing.digests[row] for row in kept),
        content=lambda row: content(kept[row]),
        skipped=(*listing.skipped, *((listing.names[row], reason) for row, reason in reasons.items())),
    )


def _apart(listing: Listing) -> Listing:
    """Drop the copies that lie in another given part than the one that keeps them."""
    reasons: dict[int, str] = {}
    for rows in grouped(listing.digests).values():
        given = {listing.parts[row] for row in rows}
        if len(given) == 1:
            continue
        part = next(part for part in _KEPT_FIRST if part in given)
        keeper = next(row for row in rows if listing.parts[row] == part)
        for row in rows:
            if listing.parts[row] != part:
                reasons[row] = f"left out of {listing.parts[row]}: same bytes as {listing.names[keeper]}"
    return without(listing, reasons)


def grouped(digests: Iterable[str]) -> dict[str, list[int]]:
    """Rows by digest."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        groups[digest].append(row)
    return groups
