import ctypes
import os
import sys
from pathlib import Path

import pytest

from frostline import heap
from frostline.heap import kept_heap

MEBIBYTE = 2**20

on_glibc = pytest.mark.skipif(heap._glibc() is None, reason="memory of another library")


def resident():
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def use_and_free(count, *, each=MEBIBYTE):
    blocks = [bytearray(b"x") * each for _ in range(count)]
    assert resident() > count * each
    blocks.clear()


@on_glibc
def test_freed_memory_is_kept_inside():
    before = resident()

    with kept_heap():
        use_and_free(100)
        kept = resident() - before

    assert kept > 90 * MEBIBYTE


@on_glibc
def test_large_blocks_are_kept_inside_too():
    before = resident()

    with kept_heap():
        use_and_free(2, each=60 * MEBIBYTE)
        kept = resident() - before

    assert kept > 90 * MEBIBYTE


@on_glibc
@pytest.mark.parametrize("error", [None, KeyError])
def test_freed_memory_is_given_back_at_the_end(error):
    before = resident()

    try:
        with kept_heap():
            use_and_free(30)
            if error:
                raise error
    except KeyError:
        pass

    assert resident() - before < 15 * MEBIBYTE


@on_glibc
def test_memory_freed_after_the_end_is_given_back_at_once():
    with kept_heap():
        pass
    before = resident()

    use_and_free(200)

    assert resident() - before < 80 * MEBIBYTE


@pytest.mark.parametrize(("platform", "library"), [("darwin", None), ("win32", None), ("linux", object())])
def test_memory_of_another_library_is_left_alone(monkeypatch, platform, library):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    with kept_heap():
        found = heap._glibc()

    assert found is None
