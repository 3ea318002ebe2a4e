"""Files are whole or absent, and files that only grow survive a torn line."""

import json
import os
import signal
import subprocess
import sys
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline import files
from frostline.errors import BadArgument, NewerSchema, NotARun, RunBusy
from frostline.events import Event
from frostline.files import (
    EventLog,
    append_record,
    check_writable,
    free_bytes,
    hold,
    read_record,
    read_records,
    write_record,
    write_whole,
)
from frostline.records import EpochPoint, Record

EVENTS = st.builds(
    Event,
    phase=st.sampled_from(["read", "train"]),
    note=st.text(max_size=8),
    done=st.integers(0, 9),
    total=st.integers(0, 9),
)


class Point(Record):
    """A record of a second version."""

    version: ClassVar[int] = 2
    x: int
    y: int = 0


# --- laws -------------------------------------------------------------------------------------


@given(event=EVENTS)
@settings(max_examples=25, deadline=None)
def test_a_record_survives_its_file(tmp_path_factory, event):
    file = tmp_path_factory.mktemp("law") / "event.json"

    write_record(file, event)

    assert read_record(file, Event) == event


@given(events=st.lists(EVENTS, min_size=1, max_size=4), cut=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_kill_during_an_append_loses_only_the_record_being_added(tmp_path_factory, events, cut):
    file = tmp_path_factory.mktemp("law") / "events.jsonl"
    for event in events[:-1]:
        append_record(file, event)
    before = file.stat().st_size if file.exists() else 0
    append_record(file, events[-1])
    last = file.stat().st_size - before
    os.truncate(file, before + cut % last)

    survivors = read_records(file, Event)
    append_record(file, events[-1])

    # The last line without its newline is whole: the record is in it.
    assert survivors in (tuple(events[:-1]), tuple(events))
    assert read_records(file, Event) == (*survivors, events[-1])


# --- whole files ------------------------------------------------------------------------------


def test_a_failing_writer_leaves_the_old_file_and_no_litter(tmp_path):
    file = tmp_path / "delta.safetensors"
    write_whole(file, b"old")

    def half(out):
        out.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, half)

    assert [path.name for path in tmp_path.iterdir()] == ["delta.safetensors"]
    assert file.read_bytes() == b"old"


def test_a_reader_of_the_old_file_never_sees_half_of_the_new(tmp_path):
    file = tmp_path / "plan.json"
    write_whole(file, b"old")

    with file.open("rb") as reader:
        write_whole(file, b"new")

        assert reader.read() == b"old"


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: named.append((tmp_path / "plan.json").exists()))

    write_whole(tmp_path / "plan.json", b"new")

    # First the content, before the rename; then the folder, after it.
    assert named == [False, True]


def test_a_writer_function_writes_the_file(tmp_path):
    write_whole(tmp_path / "new" / "file", lambda out: out.write(b"whole"))

    assert (tmp_path / "new" / "file").read_bytes() == b"whole"


KILLED = """
import os, signal, sys
from pathlib import Path
from frostline.files import write_whole

def half(out):
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), half)
"""


def test_a_kill_during_a_write_leaves_the_old_file_and_the_next_write_sweeps(tmp_path):
    file = tmp_path / "plan[1].json"
    write_whole(file, b"old")

    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    after_kill = file.read_bytes()
    write_whole(file, b"new")

    assert killed.returncode == -signal.SIGKILL
    assert after_kill == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["plan[1].json"]
    assert file.read_bytes() == b"new"


def test_a_write_that_another_process_is_in_the_middle_of_is_left_alone(tmp_path):
    theirs = tmp_path / f".plan.json.{os.getppid()}.part"
    theirs.write_bytes(b"half")

    write_whole(tmp_path / "plan.json", b"ours")

    assert theirs.read_bytes() == b"half"


# --- records ----------------------------------------------------------------------------------


def test_every_file_has_a_schema_number(tmp_path):
    write_record(tmp_path / "point.json", Point(x=1))
    append_record(tmp_path / "points.jsonl", Point(x=1))

    assert json.loads((tmp_path / "point.json").read_text()) == {"schema": 2, "x": 1, "y": 0}
    assert json.loads((tmp_path / "points.jsonl").read_text()) == {"schema": 2, "x": 1, "y": 0}


def test_losses_that_are_not_finite_survive(tmp_path):
    point = EpochPoint(
        epoch=1, train_loss=float("inf"), valid_loss=float("-inf"), valid_accuracy=0.5, learning_rate=1e-3, seconds=1.0
    )

    write_record(tmp_path / "point.json", point)

    assert read_record(tmp_path / "point.json", EpochPoint) == point


def test_an_older_file_is_upgraded(tmp_path):
    (tmp_path / "point.json").write_text('{"schema": 1, "ex": 4}')

    point = read_record(tmp_path / "point.json", Point, upgrades={1: lambda old: {"x": old["ex"], "y": 9}})

    assert point == Point(x=4, y=9)


def test_an_older_file_without_an_upgrade_is_our_own_mistake(tmp_path):
    (tmp_path / "point.json").write_text('{"schema": 1, "ex": 4}')

    with pytest.raises(BadArgument, match="no upgrade from schema 1 of Point"):
        read_record(tmp_path / "point.json", Point)


def test_a_newer_file_is_refused(tmp_path):
    (tmp_path / "point.json").write_text('{"schema": 3, "x": 4}')

    with pytest.raises(NewerSchema, match=r"schema 3.*reads up to 2.*pip install --upgrade") as caught:
        read_record(tmp_path / "point.json", Point)

    assert (caught.value.schema, caught.value.newest) == (3, 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Expecting property name"),
        ('"text"', "no schema number"),
        ('{"x": 1}', "no schema number"),
        ('{"schema": 2, "x": "one"}', "x: Input should be a valid integer"),
        ('{"schema": 2, "x": 1, "z": 1}', "z: Extra inputs are not permitted"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_with_the_reason(tmp_path, content, says):
    (tmp_path / "point.json").write_text(content)

    with pytest.raises(NotARun, match=says):
        read_record(tmp_path / "point.json", Point)


def test_a_file_of_bytes_is_refused(tmp_path):
    (tmp_path / "point.json").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(NotARun, match=r"point\.json"):
        read_record(tmp_path / "point.json", Point)


def test_a_missing_file_is_the_callers_to_handle(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "point.json", Point)


def test_a_whole_line_of_something_else_is_not_skipped(tmp_path):
    (tmp_path / "points.jsonl").write_text('{"schema": 2, "x": 1}\n{"schema": 2, "why": 1}\n')

    with pytest.raises(NotARun, match="x: Field required"):
        read_records(tmp_path / "points.jsonl", Point)


def test_an_appended_record_is_on_the_disk_before_the_call_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))

    append_record(tmp_path / "trials.jsonl", Point(x=1))

    assert synced[0] == (tmp_path / "trials.jsonl").stat().st_size


def test_an_event_log_goes_on_after_a_torn_line(tmp_path):
    file = tmp_path / "events.jsonl"
    with EventLog(file) as listener:
        listener(Event(phase="train", done=1))
        listener(Event(phase="train", done=2))
    os.truncate(file, file.stat().st_size - 5)

    with EventLog(file) as listener:
        listener(Event(phase="train", done=3))

    assert [event.done for event in read_records(file, Event)] == [1, 3]


# --- folders ----------------------------------------------------------------------------------


def test_a_held_folder_is_refused_within_the_same_process_too(tmp_path):
    with hold(tmp_path), pytest.raises(RunBusy, match=f"process {os.getpid()}"), hold(tmp_path):
        pass


def test_a_folder_can_be_held_again_after_its_holder_is_done(tmp_path):
    with hold(tmp_path):
        pass

    with hold(tmp_path):
        held = True

    assert held


HOLDING = """
import sys
from pathlib import Path
from frostline.files import hold

with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_kill_lets_go_of_the_folder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        other.kill()
        other.wait()

        with hold(tmp_path):
            held = True

    assert held


def test_free_bytes_of_a_path_that_does_not_exist_are_those_of_its_disk(tmp_path):
    assert free_bytes(tmp_path / "not" / "there") > 0


def test_checking_a_folder_leaves_nothing_in_it(tmp_path):
    check_writable(tmp_path / "run")

    assert list((tmp_path / "run").iterdir()) == []
