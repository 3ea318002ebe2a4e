"""What the machine may refuse: permission, room, a disk that fills up, a second process."""

import errno
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from frostline import features, files, filling
from frostline.data import TensorSamples
from frostline.errors import DiskFull, NotWritable, RunBusy, StoreTooLarge
from frostline.events import Event
from frostline.features import cache
from frostline.files import EventLog, append_record, check_writable, hold, read_records, write_record, write_whole
from frostline.records import Wire

# The suite may run as root, whom no permission stops: a path below a regular file stops everybody.


@pytest.fixture
def below_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file" / "run"


class NothingFrozen:
    """The frozen part at depth 0: its one wire is the input."""

    fingerprint = "nothing"
    wires = (Wire(name="x", shape=(2, 3, 8, 8), dtype="float32", order=(0, 1, 2, 3), bytes_per_sample=768),)

    module = nn.Identity()

    def __call__(self, x):
        return (x,)


@pytest.fixture
def frozen():
    return NothingFrozen()


@pytest.fixture
def samples():
    return TensorSamples(torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2)


@pytest.mark.parametrize(
    "act",
    [
        check_writable,
        lambda folder: write_whole(folder / "plan.json", b"{}"),
        lambda folder: append_record(folder / "trials.jsonl", Event(phase="read")),
        lambda folder: EventLog(folder / "events.jsonl"),
        lambda folder: hold(folder).__enter__(),
    ],
    ids=["check_writable", "write_whole", "append_record", "EventLog", "hold"],
)
def test_a_folder_that_cannot_be_made_is_refused_with_its_name(below_a_file, act):
    with pytest.raises(NotWritable, match=r"file.*cannot be written: .*Choose a folder that you may write to"):
        act(below_a_file)


def test_a_store_below_a_file_is_refused(below_a_file, frozen, samples):
    with pytest.raises(NotWritable, match="file"):
        cache(frozen, samples, below_a_file)


def test_a_file_in_the_place_of_the_store_is_refused(tmp_path, frozen, samples):
    (tmp_path / "store").write_bytes(b"mine")

    with pytest.raises(NotWritable, match="is a file"):
        cache(frozen, samples, tmp_path / "store")

    assert (tmp_path / "store").read_bytes() == b"mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_no_permission_is_said_plainly(tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.Path, "open", refuse)

    with pytest.raises(NotWritable, match=os.strerror(number)) as caught:
        write_whole(tmp_path / "plan.json", b"{}")

    assert caught.value.path == str(tmp_path / "plan.json")


def test_a_store_larger_than_the_free_disk_is_refused_before_any_write(tmp_path, monkeypatch, frozen, samples):
    monkeypatch.setattr(features, "free_bytes", lambda path: 1000)

    with pytest.raises(StoreTooLarge, match=r"would take .* GB and 0\.000 GB are free") as caught:
        cache(frozen, samples, tmp_path / "store")

    assert caught.value.free == 1000
    assert caught.value.needed == 10 * frozen.wires[0].bytes_per_sample
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_disk_that_fills_up_leaves_no_store(tmp_path, monkeypatch, frozen, samples, number, nth):
    calls = iter(range(100))
    write = filling.RowWriter.write

    def fill_up(writer, rows):
        if next(calls) == nth:
            raise OSError(number, os.strerror(number))
        write(writer, rows)

    monkeypatch.setattr(filling.RowWriter, "write", fill_up)

    with pytest.raises(DiskFull, match="Nothing half-written is kept") as caught:
        cache(frozen, samples, tmp_path / "store", batch_size=4)

    assert caught.value.free > 0
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from frostline.errors import DiskFull
from frostline.events import Event
from frostline.files import append_record, write_whole

resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
act = {
    "whole": lambda: write_whole(Path(sys.argv[2]), b"new" * 1000),
    "append": lambda: append_record(Path(sys.argv[2]), Event(phase="read", note="n" * 300)),
}[sys.argv[1]]
try:
    act()
except DiskFull as error:
    print(error)
"""


def limited(act, file):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, act, str(file)], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def test_a_write_that_stops_in_the_middle_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "plan.json", b"old")

    said = limited("whole", tmp_path / "plan.json")

    assert said.startswith("DiskFull: the disk filled up while")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("plan.json", b"old")]


def test_an_append_that_stops_in_the_middle_leaves_the_lines_before(tmp_path):
    append_record(tmp_path / "trials.jsonl", Event(phase="train", done=1))
    before = (tmp_path / "trials.jsonl").read_bytes()

    said = limited("append", tmp_path / "trials.jsonl")

    assert said.startswith("DiskFull")
    assert (tmp_path / "trials.jsonl").read_bytes() == before
    assert len(read_records(tmp_path / "trials.jsonl", Event)) == 1


SECOND = """
import sys
from pathlib import Path
from frostline.errors import RunBusy
from frostline.files import hold

try:
    with hold(Path(sys.argv[1])):
        print("held")
except RunBusy as error:
    print(error)
"""


def test_a_second_process_on_the_same_folder_is_refused_with_the_firsts_number(tmp_path):
    with hold(tmp_path):
        second = subprocess.run(
            [sys.executable, "-c", SECOND, str(tmp_path)], check=True, capture_output=True, text=True, timeout=60
        )

    assert second.stdout.startswith(f"RunBusy: {tmp_path} is in use by process {os.getpid()}.")


def test_a_store_that_another_process_is_building_is_refused(tmp_path, frozen, samples):
    key = features._key_of(frozen, samples, "torch", "float32", "float32", 1).key

    with hold(tmp_path / f"store.{key}.part"), pytest.raises(RunBusy):
        cache(frozen, samples, tmp_path / "store")

    assert not (tmp_path / "store").exists()


def test_a_record_on_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    write_record(file, Event(phase="read", note="old"))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)

    with pytest.raises(DiskFull):
        write_record(file, Event(phase="read", note="new"))

    assert b"old" in file.read_bytes()
    assert len(list(tmp_path.iterdir())) == 1
