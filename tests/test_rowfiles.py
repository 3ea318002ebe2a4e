"""Rows on disk give back the wire: its bits, its axes and its memory order."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline import rowfiles
from frostline.records import Wire
from frostline.rowfiles import Layout, RowFile, RowWriter, fault, mapped


@st.composite
def wires_and_values(draw):
    """A wire of 1 to 4 axes in any memory order, with its batch axis anywhere and a factor of 1 to 3."""
    axes = draw(st.integers(1, 4))
    batch_axis = draw(st.integers(0, axes - 1))
    factor = draw(st.integers(1, 3))
    batch = draw(st.integers(1, 4))
    lengths = [draw(st.integers(1, 3)) for _ in range(axes)]
    order = tuple(draw(st.permutations(range(axes))))
    dtype = draw(st.sampled_from(["float32", "float64", "bfloat16", "int64", "bool"]))
    shape = (*lengths[:batch_axis], batch * factor, *lengths[batch_axis + 1 :])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    plain = torch.randn([shape[axis] for axis in order], generator=generator).to(getattr(torch, dtype))
    value = plain.permute([order.index(axis) for axis in range(axes)])
    one = (*lengths[:batch_axis], factor, *lengths[batch_axis + 1 :])
    wire = Wire(name="w", shape=one, dtype=dtype, batch_axis=batch_axis, factor=factor, order=order, bytes_per_sample=0)
    return wire, value, batch


@given(wires_and_values())
@settings(max_examples=50, deadline=None)
def test_rows_give_back_the_wire_with_its_strides(case):
    wire, value, batch = case
    layout = Layout(wire)

    rows = layout.to_rows(value)
    back = layout.from_rows(rows)

    assert rows.shape == (batch, *layout.row_shape)
    assert rows[0].numel() * rows.element_size() == layout.row_bytes
    assert torch.equal(back, value)
    # Strides of axes of length 1 say nothing.
    assert [a for a, n in zip(back.stride(), value.shape, strict=True) if n > 1] == [
        a for a, n in zip(value.stride(), value.shape, strict=True) if n > 1
    ]


@given(wires_and_values(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_row_is_one_sample_whatever_the_others(case, data):
    wire, value, batch = case
    layout = Layout(wire)
    place = data.draw(st.integers(0, batch - 1))
    alone = value.narrow(wire.batch_axis, place * wire.factor, wire.factor)

    assert torch.equal(layout.to_rows(value)[place], layout.to_rows(alone)[0])


def test_channels_last_rows_come_back_without_a_copy():
    wire = Wire(name="w", shape=(1, 8, 4, 4), dtype="float32", order=(0, 2, 3, 1), bytes_per_sample=512)
    rows = torch.rand(5, 4, 4, 8)

    back = Layout(wire).from_rows(rows)

    assert back.shape == (5, 8, 4, 4)
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert back.data_ptr() == rows.data_ptr()


def test_halves_keep_whole_numbers_and_masks_as_they_are():
    wire = Wire(name="ids", shape=(1, 3), dtype="int64", order=(0, 1), bytes_per_sample=24)
    value = torch.tensor([[2**40, 1, 2]])
    layout = Layout(wire, halves=True)

    assert torch.equal(layout.from_rows(layout.to_rows(value)), value)


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(rowfiles, "BLOCK_BYTES", 64)
    rows = torch.arange(100, dtype=torch.float32).reshape(20, 5)
    with RowWriter(tmp_path / "wire0.bin") as writer:
        for some in rows.split(7):
            writer.write(some)
        checksums = writer.finish()
    return tmp_path, RowFile(file="wire0.bin", row_shape=(5,), dtype="float32", bytes=400, checksums=checksums), rows


def test_what_was_written_is_what_is_mapped(written):
    folder, kept, rows = written

    assert torch.equal(mapped(folder, kept), rows)
    assert len(kept.checksums) == 7
    assert fault(folder, kept) is None


def test_a_file_without_rows_is_mapped(tmp_path):
    (tmp_path / "wire0.bin").touch()

    rows = mapped(tmp_path, RowFile(file="wire0.bin", row_shape=(2, 5), dtype="int64", bytes=0, checksums=()))

    assert rows.shape == (0, 2, 5)


def test_a_write_into_the_map_never_reaches_the_file(written):
    folder, kept, _ = written
    before = (folder / "wire0.bin").read_bytes()
    code = f"""
from pathlib import Path
from frostline.rowfiles import RowFile, mapped
mapped(Path({str(folder)!r}), RowFile.model_validate_json({kept.model_dump_json()!r})).fill_(-1)
"""

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)

    assert ended.returncode != 0
    assert (folder / "wire0.bin").read_bytes() == before


def test_a_file_larger_than_the_machines_memory_is_mapped(tmp_path):
    # Swap counts as memory here.
    rows = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    file = tmp_path / "wire0.bin"
    file.touch()
    os.truncate(file, 8 * rows)

    kept = RowFile(file="wire0.bin", row_shape=(2,), dtype="float32", bytes=8 * rows, checksums=())

    assert mapped(tmp_path, kept).index_select(0, torch.tensor([0, rows - 1])).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("place", [0, 63, 64, 200, 399])
def test_one_changed_byte_is_found_and_located(written, place):
    folder, kept, _ = written
    content = bytearray((folder / "wire0.bin").read_bytes())
    content[place] ^= 1
    (folder / "wire0.bin").write_bytes(content)

    assert fault(folder, kept) == f"the content of wire0.bin after byte {place // 64 * 64} was changed"


def test_a_missing_byte_is_found(written):
    folder, kept, _ = written
    (folder / "wire0.bin").write_bytes((folder / "wire0.bin").read_bytes()[:-1])

    assert fault(folder, kept) == "wire0.bin has 399 bytes and should have 400"


def test_a_missing_file_is_found(written):
    folder, kept, _ = written
    (folder / "wire0.bin").unlink()

    assert fault(folder, kept) == "wire0.bin is missing"


def test_of_a_large_file_blocks_spread_over_all_of_it_are_checked(written, monkeypatch):
    folder, kept, _ = written
    monkeypatch.setattr(rowfiles, "BLOCKS_CHECKED", 2)
    content = (folder / "wire0.bin").read_bytes()

    found = []
    for block in range(7):
        changed = bytearray(content)
        changed[block * 64] ^= 1
        (folder / "wire0.bin").write_bytes(changed)
        found.append(fault(folder, kept) is not None)

    assert list(itertools.compress(range(7), found)) == [0, 3, 6]
