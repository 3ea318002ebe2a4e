import ctypes
import subprocess
import sys
import textwrap

import pytest

from frostline import heap
from frostline.heap import kept_heap

on_glibc = pytest.mark.skipif(heap._glibc() is None, reason="memory of another library")


IN_A_FRESH_PROCESS = """
import os
from frostline.heap import kept_heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

def use_and_free(count, each=1):
    blocks = [bytearray(b"x") * (each * 2**20) for _ in range(count)]
    assert resident() > count * each
    blocks.clear()

before = resident()
"""


def mebibytes(code):
    """What the code prints, in a process whose memory nothing else has used."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS + textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@on_glibc
def test_freed_memory_is_kept_inside():
    kept = mebibytes("""
        with kept_heap():
            use_and_free(100)
            print(resident() - before)
    """)

    assert kept > 90


@on_glibc
def test_large_blocks_are_kept_inside_too():
    kept = mebibytes("""
        with kept_heap():
            use_and_free(2, each=60)
            print(resident() - before)
    """)

    assert kept > 90


@on_glibc
@pytest.mark.parametrize("error", ["", "raise KeyError"])
def test_freed_memory_is_given_back_at_the_end(error):
    left = mebibytes(f"""
        try:
            with kept_heap():
                use_and_free(30)
                {error}
        except KeyError:
            pass
        print(resident() - before)
    """)

    assert left < 15


@on_glibc
def test_large_blocks_freed_after_the_end_are_given_back_at_once():
    left = mebibytes("""
        with kept_heap():
            pass
        use_and_free(3, each=60)
        print(resident() - before)
    """)

    assert left < 15


@pytest.mark.parametrize(("platform", "library"), [("darwin", None), ("win32", None), ("linux", object())])
def test_memory_of_another_library_is_left_alone(monkeypatch, platform, library):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    with kept_heap():
        found = heap._glibc()

    assert found is None
