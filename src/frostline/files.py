"""Files that are whole or absent, whenever the process or the disk gives up.

A file is written under a temporary name, flushed to the disk and renamed. A `.jsonl` file only
grows: a line that a kill has torn is no line.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, final

from pydantic import ValidationError
from pydantic_core import to_json

from frostline.errors import BadArgument, DiskFull, NewerSchema, NotARun, NotWritable, RunBusy
from frostline.events import Event
from frostline.exhibits import Album
from frostline.records import Evidence, Record, TrialSpec

_R = TypeVar("_R", bound=Record)

Upgrades = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]
"""By schema number: what turns a file's content into that of the next number."""


def _count_live_parameters(old: dict[str, Any]) -> dict[str, Any]:
    """Schema 0 of the evidence left the live parameters to be counted from the stages."""
    live = old["graph"]["stages"][old["choice"]["depth"] :]
    return {**old, "parameters_live": sum(stage["parameters"] for stage in live)}


def _name_trials_again(old: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 named a trial by a spec of whole epochs; what points to a trial gets the name of today's spec."""
    names: dict[str | None, str | None] = {}

    def renamed(spec: dict[str, Any]) -> dict[str, Any]:
        return {**spec, "parent": names.get(spec["parent"], spec["parent"])}

    # A parent before what continues it.
    for trial in sorted(old["trials"], key=lambda trial: trial["spec"]["first_epoch"]):
        name = hashlib.sha256(to_json(trial["spec"])).hexdigest()[:16]
        names[name] = TrialSpec.model_validate_json(json.dumps(renamed(trial["spec"]))).key
    choice = {**old["choice"], "trial": names.get(old["choice"]["trial"], old["choice"]["trial"])}
    return {**old, "choice": choice, "trials": [trial | {"spec": renamed(trial["spec"])} for trial in old["trials"]]}


def _add_claims(old: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 of the evidence had no claims."""
    return {**old, "claims": []}


def _know_pictures_only(old: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 of the album had no sounds and texts; what is new says by default that there are none."""
    return old


_UPGRADES: Mapping[type[Record], Upgrades] = {
    Evidence: {0: _count_live_parameters, 1: _name_trials_again, 2: _add_claims},
    Album: {1: _know_pictures_only},
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: Replaced if it exists; its folder is made if it does not.
        content: The bytes, or a function that writes them to the open file it is given.

    Raises:
        DiskFull: The disk filled up; what was at `path` before is untouched.
        NotWritable: The folder does not let us write.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_whole(file, b"whole")
        >>> file.read_bytes()
        b'whole'
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        try:
            with part.open("wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_record(path: Path, record: Record) -> None:
    """Write one record as JSON, with the schema number of its class.

    Args:
        path: Replaced if it exists.
        record: Any record.

    Raises:
        DiskFull: The disk filled up; what was at `path` before is untouched.
        NotWritable: The folder does not let us write.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "event.json"
        >>> write_record(file, Event(phase="read", total=3))
        >>> read_record(file, Event).total
        3
    """
    write_whole(path, (_line(record) + "\n").encode())


def read_record(path: Path, record_class: type[_R], *, upgrades: Upgrades | None = None) -> _R:
    """Read what `write_record` wrote, upgrading the file of an older version.

    Args:
        path: The file.
        record_class: What it holds.
        upgrades: By schema number, what turns a content into that of the next number; None takes those that
            belong to the record.

    Returns:
        The record.

    Raises:
        FileNotFoundError: There is no such file.
        NewerSchema: A later version of frostline wrote it.
        NotARun: It holds something else.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "event.json"
        >>> write_record(file, Event(phase="read", note="photos"))
        >>> read_record(file, Event).note
        'photos'
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        _refuse_content(path, record_class, str(error), error)
    return _revive(content, record_class, path, upgrades)


def append_record(path: Path, record: Record) -> None:
    """Add one line to a file that only grows, and see it on the disk before returning.

    Args:
        path: Made if it does not exist. A last line that was torn is closed first.
        record: Any record.

    Raises:
        DiskFull: The disk filled up; the lines before are untouched.
        NotWritable: The file does not let us write.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "events.jsonl"
        >>> append_record(file, Event(phase="read", done=1))
        >>> append_record(file, Event(phase="read", done=2))
        >>> [event.done for event in read_records(file, Event)]
        [1, 2]
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("ab+", buffering=0) as file:
            _append(file, record)
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)


def read_records(path: Path, record_class: type[_R], *, upgrades: Upgrades | None = None) -> tuple[_R, ...]:
    """Read a file that only grows; a line that a kill has torn is skipped.

    Args:
        path: The file; one that does not exist holds no records.
        record_class: What each line holds.
        upgrades: As in `read_record`.

    Returns:
        The records in the order in which they were added.

    Raises:
        NewerSchema: A later version of frostline wrote one.
        NotARun: A whole line holds something else.

    Example:
        >>> read_records(Path("nowhere.jsonl"), Event)
        ()
    """
    path = Path(path)
    if not path.exists():
        return ()
    records = []
    for line in path.read_bytes().split(b"\n"):
        # Our lines are objects, and no beginning of one is JSON: what does not parse was torn.
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            content = json.loads(line)
            records.append(_revive(content, record_class, path, upgrades))
    return tuple(records)


@final
class EventLog:
    """A listener that keeps every event in a file that only grows.

    Unlike `append_record` it does not wait for the disk: progress is worth little after a crash.

    Args:
        path: The file.

    Raises:
        NotWritable: The file does not let us write.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "events.jsonl"
        >>> with EventLog(file) as listener:
        ...     listener(Event(phase="train", value=0.5))
        >>> read_records(file, Event)[0].value
        0.5
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+", buffering=0)

    def __call__(self, event: Event) -> None:
        """Add one event."""
        with explained(self.path):
            _append(self._file, event)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder; a kill lets go as well.

    Args:
        folder: Made if it does not exist. A file named `lock` stays in it.

    Raises:
        RunBusy: Another process holds it; `pid` is its number, or None.
        NotWritable: The folder does not let us write.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with hold(folder):
        ...     (folder / "lock").exists()
        True
    """
    import fcntl

    lock = Path(folder) / "lock"
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="ascii")
    with file:
        try:
            # `flock` and not `lockf`: a second hold within this process must be refused as well.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            pid = int(word) if (word := file.read().strip()).isdecimal() else None
            raise RunBusy(
                f"RunBusy: {folder} is in use by process {pid or 'unknown'}. One process at a time may work in a "
                "folder. Wait for it, stop it, or choose another folder.",
                folder=str(folder),
                pid=pid,
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def free_bytes(path: Path) -> int:
    """Bytes that may still be written on the disk of this path.

    Args:
        path: A file or folder that need not exist yet.

    Returns:
        Free bytes for this user.

    Example:
        >>> free_bytes(Path("new/folder")) > 0
        True
    """
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_writable(folder: Path) -> None:
    """Make the folder if it does not exist, and refuse one that cannot be written.

    Args:
        folder: Where files will go.

    Raises:
        NotWritable: A file cannot be made there.
        DiskFull: There is no room for a single byte.

    Example:
        >>> import tempfile
        >>> check_writable(Path(tempfile.mkdtemp()) / "new")
    """
    probe = Path(folder) / f".writable.{os.getpid()}.part"
    with explained(Path(folder)):
        probe.parent.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"1")
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a write into our own errors.

    Args:
        path: What is being written, for the message.

    Raises:
        DiskFull: The disk, the quota or the largest file is used up.
        NotWritable: No permission, a read-only disk, or a file where a folder should be.

    Example:
        >>> with explained(Path("photos")):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        frostline.errors.NotWritable: NotWritable: photos cannot be written: Permission denied. ...
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = _free_or_none(path)
            raise DiskFull(
                f"DiskFull: the disk filled up while {path} was being written ({error.strerror}); "
                f"{'an unknown number of' if free is None else format(free, ',')} bytes are free. Nothing half-written "
                "is kept. Make room or choose a folder on another disk, then start again.",
                path=str(path),
                free=free,
            ) from error
        if error.errno in _REFUSED:
            raise NotWritable(
                f"NotWritable: {path} cannot be written: {error.strerror}. Choose a folder that you may write to, "
                "or change its permissions.",
                path=str(path),
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """See the names in a folder on the disk, so that a rename outlives a power cut.

    Args:
        folder: The folder that holds the renamed file.

    Example:
        >>> sync_folder(Path("."))
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network disks do not know this call; their rename is as good as they make it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of earlier writes of this file."""
    for part in path.parent.glob(f".{_quoted(path.name)}.*.part"):
        pid = part.name[len(path.name) + 2 : -len(".part")]
        if pid.isdecimal() and not _is_alive(int(pid)):
            part.unlink(missing_ok=True)


def _quoted(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _append(file: Any, record: Record) -> None:
    end = file.seek(0, os.SEEK_END)
    line = (_line(record) + "\n").encode()
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            line = b"\n" + line
    try:
        while line:
            line = line[file.write(line) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def _line(record: Record) -> str:
    content = record.model_dump_json()
    schema = f'"schema":{record.version}'
    return f"{{{schema}}}" if content == "{}" else f"{{{schema},{content[1:]}"


def _revive(content: Any, record_class: type[_R], path: Path, upgrades: Upgrades | None) -> _R:
    name, newest = record_class.__name__, record_class.version
    if not isinstance(content, dict) or not isinstance(schema := content.pop("schema", None), int):
        _refuse_content(path, record_class, "it has no schema number", None)
    if schema > newest:
        raise NewerSchema(
            f"NewerSchema: {path} holds a {name} of schema {schema}; this version of frostline reads up to {newest}. "
            "Install a later version: pip install --upgrade frostline.",
            path=str(path),
            schema=schema,
            newest=newest,
        )
    known = _UPGRADES.get(record_class, {}) if upgrades is None else upgrades
    try:
        for number in range(schema, newest):
            if number not in known:
                raise BadArgument(f"BadArgument: no upgrade from schema {number} of {name} was given.", schema=number)
            content = known[number](content)
        return record_class.model_validate_json(json.dumps(content))
    except KeyError as error:
        _refuse_content(path, record_class, f"{error} is missing", error)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        _refuse_content(path, record_class, f"{where}: {first['msg']}", error)


def _refuse_content(path: Path, record_class: type[Record], reason: str, error: Exception | None) -> NoReturn:
    raise NotARun(
        f"NotARun: {path} does not hold a {record_class.__name__}: {reason}. Put the file back as frostline wrote it, "
        "or start again in a new folder.",
        path=str(path),
        reason=reason,
    ) from error


def _free_or_none(path: Path) -> int | None:
    try:
        return free_bytes(path)
    except OSError:
        return None
