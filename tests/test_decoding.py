"""Pictures are decoded once, when they are first asked for, and none is decoded beside anything else unasked."""

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frostline import decoding, fingerprint
from frostline.decoding import AHEAD, Pixels
from frostline.errors import BadSample, DiskFull, NotWritable, StoreCorrupt
from frostline.pictures import decode
from frostline.records import Preprocessing

SMALL = Preprocessing(image_size=8, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))


def contents(number=6):
    files = []
    for seed in range(number):
        file = io.BytesIO()
        colours = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(colours).save(file, "PNG")
        files.append(file.getvalue())
    return files


def pixels_of(files, folder=None, preprocessing=SMALL, **more):
    return Pixels(
        [fingerprint.of_bytes(file) for file in files], files.__getitem__, preprocessing, folder=folder, **more
    )


@pytest.fixture
def decoded(monkeypatch):
    """Contents in the order in which they were decoded."""
    seen = []

    def watched(content, preprocessing):
        seen.append(content)
        return decode(content, preprocessing)

    monkeypatch.setattr(decoding, "decode", watched)
    return seen


# --- what is decoded, and when ----------------------------------------------------------------


@pytest.mark.parametrize("is_kept", [True, False])
def test_rows_are_the_decoded_pictures_however_they_are_read(tmp_path, is_kept):
    files = contents()
    wanted = np.stack([decode(file, SMALL) for file in files])
    folder = tmp_path if is_kept else None

    by_row = pixels_of(files, folder / "a" if folder else None)
    at_once = pixels_of(files, folder / "b" if folder else None)
    at_once.settle()
    streamed = pixels_of(files, folder / "c" if folder else None)
    batches = [[5, 1], [0, 0], [3, 2, 4]]
    with streamed.ahead(batches) as wait:
        for rows in batches:
            wait()
            assert (streamed[rows] == wanted[rows]).all()

    assert all((by_row[[row]][0] == wanted[row]).all() for row in (3, 0, 5))
    assert (at_once[range(6)] == wanted).all()
    assert (streamed[range(6)] == wanted).all()


def test_nothing_is_decoded_before_it_is_asked_for(decoded):
    files = contents()

    pixels = pixels_of(files)
    before = len(decoded)
    pixels[[4, 4]]

    assert before == 0
    assert decoded == [files[4]]


def test_nothing_is_decoded_twice(decoded):
    files = contents()
    pixels = pixels_of(files)

    with pixels.ahead([[0, 1], [1, 2], [0, 2]]) as wait:
        for rows in ([0, 1], [1, 2], [0, 2]):
            wait()
            pixels[rows]
    pixels.settle([0, 1, 2])

    assert sorted(decoded) == sorted(files[:3])


def test_the_next_batches_are_decoded_meanwhile_and_no_more(monkeypatch):
    decoded = threading.Semaphore(0)

    def released(content, preprocessing):
        decoded.release()
        return decode(content, preprocessing)

    monkeypatch.setattr(decoding, "decode", released)

    with pixels_of(contents(12)).ahead([[row] for row in range(12)]) as wait:
        wait()
        begun = [decoded.acquire(timeout=30) for _ in range(1 + AHEAD)]

    assert all(begun)
    assert not decoded.acquire(blocking=False)


def test_no_thread_works_between_passes():
    before = threading.active_count()
    pixels = pixels_of(contents())

    with pixels.ahead([[0, 1], [2, 3]]) as wait:
        wait()

    assert threading.active_count() == before


def test_a_pass_that_is_broken_off_can_be_begun_again():
    files = contents()
    pixels = pixels_of(files)

    def break_off():
        with pixels.ahead([[0], [1], [2]]) as wait:
            wait()
            raise KeyError

    with pytest.raises(KeyError):
        break_off()

    assert (pixels[range(6)] == np.stack([decode(file, SMALL) for file in files])).all()


def test_an_error_of_those_who_read_is_their_own():
    with pytest.raises(PermissionError, match="theirs"), pixels_of(contents()).ahead([[0]]):
        raise PermissionError(errno.EACCES, "theirs")


def test_seconds_of_decoding_are_counted():
    pixels = pixels_of(contents())
    before = pixels.seconds

    pixels.settle()

    assert before == 0
    assert pixels.seconds > 0


def test_the_listener_hears_of_each_picture_that_is_settled():
    heard = []
    pixels = pixels_of(contents())
    pixels[[0]]

    pixels.settle(listener=heard.append)

    assert [event.done for event in heard] == [0, 1, 2, 3, 4, 5]
    assert all((event.phase, event.note) == ("read", "decoding") for event in heard)


# --- what is kept -----------------------------------------------------------------------------


def test_second_call_opens_what_the_first_wrote(tmp_path, decoded):
    files = contents()
    first = pixels_of(files, tmp_path)
    first.settle()
    decoded.clear()

    second = pixels_of(files, tmp_path)

    assert (second[range(6)] == first[range(6)]).all()
    assert decoded == []


def test_a_file_is_kept_when_the_last_picture_is_read_and_not_before(tmp_path):
    pixels = pixels_of(contents(), tmp_path)

    pixels[range(5)]
    early = [file.suffix for file in tmp_path.iterdir()]
    pixels[[5]]
    late = sorted(file.suffix for file in tmp_path.iterdir())

    assert early == [".part"]
    assert late == [".json", ".pixels"]


@pytest.mark.parametrize("change", [{"image_size": 9}, {"interpolation": "bilinear"}])
def test_other_size_or_interpolation_is_decoded_anew(tmp_path, change):
    pixels_of(contents(), tmp_path).settle()

    pixels_of(contents(), tmp_path, SMALL.model_copy(update=change)).settle()

    assert len(list(tmp_path.glob("*.pixels"))) == 2


def test_other_mean_uses_the_same_file(tmp_path):
    pixels_of(contents(), tmp_path).settle()

    pixels_of(contents(), tmp_path, SMALL.model_copy(update={"mean": (0.1, 0.1, 0.1)})).settle()

    assert len(list(tmp_path.glob("*.pixels"))) == 1


def test_two_readings_of_one_folder_do_not_share_a_half_written_file(tmp_path):
    files = contents()
    one, other = pixels_of(files, tmp_path), pixels_of(files, tmp_path)

    one[[0]]
    other.settle()
    one.settle()

    assert (one[range(6)] == other[range(6)]).all()
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    pixels = pixels_of(contents())

    assert not list(tmp_path.iterdir())
    assert (pixels[[0]][0] == decode(contents()[0], SMALL)).all()


def test_pixels_that_nobody_needs_any_more_leave_no_half_written_file(tmp_path):
    pixels = pixels_of(contents(), tmp_path)
    pixels[[0]]

    del pixels
    gc.collect()

    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_decoding import contents, pixels_of

pixels = pixels_of(contents(), Path(sys.argv[1]))
pixels[[0]]
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    killed = subprocess.run(command, check=False, timeout=60)
    left = [file.suffix for file in tmp_path.iterdir()]

    pixels_of(contents(), tmp_path).settle()

    assert killed.returncode == -signal.SIGKILL
    assert left == [".part"]
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".pixels"]


# --- what cannot be read ----------------------------------------------------------------------


def test_unreadable_pictures_are_all_told_where_one_is_read_and_remembered(tmp_path):
    files = [*contents(2), b"junk", b"rubbish"]
    first = pixels_of(files, tmp_path)

    with pytest.raises(BadSample, match="2 pictures cannot be read") as caught:
        first[[0, 2]]

    assert caught.value.paths == (fingerprint.of_bytes(b"junk"), fingerprint.of_bytes(b"rubbish"))
    assert first[[0, 1]].shape == (2, 8, 8, 3)
    assert pixels_of(files, tmp_path).reasons == first.reasons != {}


def test_a_pass_tells_of_a_bad_picture_when_it_comes_to_it():
    pixels = pixels_of([*contents(2), b"junk"])

    with pixels.ahead([[0, 1], [2]]) as wait:
        wait()
        pixels[[0, 1]]
        wait()
        with pytest.raises(BadSample, match="not a picture"):
            pixels[[2]]


def test_the_refusal_is_made_by_those_who_know_the_names():
    class Named(BadSample):
        pass

    pixels = pixels_of([b"junk"], refuse=lambda reasons: Named(f"named {len(reasons)}", paths=(), reasons=()))

    with pytest.raises(Named, match="named 1"):
        pixels[[0]]


def test_a_picture_that_was_changed_since_is_not_taken_for_the_one_it_was():
    files = contents(2)
    digests = [fingerprint.of_bytes(file) for file in files]

    pixels = Pixels(digests, lambda row: files[0], SMALL)

    assert pixels[[0]].shape == (1, 8, 8, 3)
    with pytest.raises(BadSample, match="changed after it had been listed"):
        pixels[[1]]


def test_cut_file_is_refused(tmp_path):
    pixels_of(contents(), tmp_path).settle()
    file = next(tmp_path.glob("*.pixels"))
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(StoreCorrupt, match="Remove it"):
        pixels_of(contents(), tmp_path)


def test_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pixels = pixels_of(contents(), tmp_path)
    monkeypatch.setattr(os, "pwrite", full)

    with pytest.raises(DiskFull, match="No space left"):
        pixels.settle()

    assert not list(tmp_path.iterdir())


def test_full_disk_is_an_error_of_the_pass_too(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)

    with pixels_of(contents(), tmp_path).ahead([[0]]) as wait, pytest.raises(DiskFull, match="No space left"):
        wait()


def test_too_little_disk_is_refused_before_the_first_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))

    with pytest.raises(DiskFull, match="need 1,152 bytes") as caught:
        pixels_of(contents(), tmp_path)

    assert caught.value.free == 10


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(NotWritable, match="file/pixels"):
        pixels_of(contents(), tmp_path / "file" / "pixels")


def test_interrupt_does_not_wait_for_the_rest():
    started = threading.Semaphore(0)

    def content(row):
        started.release()
        time.sleep(0.01)
        return b"junk"

    def interrupt(event):
        if event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pixels([f"{row:08d}" for row in range(500)], content, SMALL).settle(listener=interrupt)

    assert started._value < 100
