"""A stored row equals the recomputed row, or there is no store."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from frostline import features, fingerprint
from frostline.data import Reading, TensorSamples
from frostline.engines import filled, relative_error
from frostline.errors import (
    BadArgument,
    BadSample,
    EmptyData,
    NotRepeatable,
    StoreCorrupt,
    StoreStale,
)
from frostline.events import Event
from frostline.features import cache, open_store
from frostline.pictures import Pictures
from frostline.records import Preprocessing, Wire

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small_net(seed=0, kind="residual"):
    """Return a prefix of a network that yields one or several wires."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"residual": Residual, "tokens": Tokens, "inner": Inner}[kind]().eval()


class Residual(nn.Module):
    """Convolutions with batch norm; the wires are the path and its shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.path = nn.Conv2d(8, 8, 3, padding=1, stride=2)

    def forward(self, x):
        h = self.stem(x)
        return self.path(h), h


class Tokens(nn.Module):
    """Attention; the wire has its batch on the second axis."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2)

    def forward(self, x):
        h = x.flatten(1).reshape(x.shape[0], -1, 6).transpose(0, 1)
        return (self.attend(h, h, h, need_weights=False)[0],)


class Inner(nn.Module):
    """Four inner rows for each sample, and whole numbers beside them."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(48, 5)

    def forward(self, x):
        h = self.inside(x.reshape(x.shape[0] * 4, -1))
        return h, h.argmax(1)


class FakeFrozen:
    """The frozen part of a split, made by hand."""

    def __init__(self, module, example):
        self.module = module
        self.calls = 0
        batch = example[0].shape[0]
        wires = self(*example)
        self.wires = tuple(
            Wire(
                name=f"wire {index}",
                shape=tuple(wire.shape),
                dtype=str(wire.dtype).removeprefix("torch."),
                batch_axis=(axis := 0 if wire.shape[0] % batch == 0 else 1),
                factor=wire.shape[axis] // batch,
                order=tuple(sorted(range(wire.dim()), key=lambda axis, wire=wire: -wire.stride(axis))),
                bytes_per_sample=wire.numel() * wire.element_size() // batch,
            )
            for index, wire in enumerate(wires)
        )

    @property
    def fingerprint(self):
        return fingerprint.of_tensors(self.module.state_dict().items())

    def __call__(self, *inputs):
        self.calls += 1
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            wires = self.module(*inputs)
        torch.backends.mha.set_fastpath_enabled(before)
        return wires


def pictures(n=10, seed=0, channels_last=False):
    inputs = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    if channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return TensorSamples(inputs, torch.arange(n) % 2)


def frozen_part(seed=0, kind="residual", channels_last=False):
    return FakeFrozen(small_net(seed, kind), pictures(6, channels_last=channels_last).read(range(6)))


class Views:
    """Samples with several views and a preparation of their own."""

    def __init__(self, samples, views=1, preparation=None, read=None):
        self.samples, self.views, self.labels, self.names = samples, views, samples.labels, samples.names
        self.digests, self.preparation = samples.digests, preparation or samples.preparation
        self.reader = read or (lambda inputs, rows, view: inputs + view)

    def __len__(self):
        return len(self.samples)

    def read(self, rows, view=0):
        return tuple(self.reader(tensor, rows, view) for tensor in self.samples.read(rows))


def same_order(a, b):
    lengths = [(x, y) for x, y, n in zip(a.stride(), b.stride(), a.shape, strict=True) if n > 1]
    return all(x == y for x, y in lengths)


# --- laws -------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(["residual", "tokens", "inner"]),
    n=st.integers(1, 11),
    batch=st.integers(1, 5),
    channels_last=st.booleans(),
    rows=st.lists(st.integers(0, 10), min_size=1, max_size=5),
)
@QUICK
def test_a_stored_row_equals_the_recomputed_row(tmp_path_factory, kind, n, batch, channels_last, rows):
    frozen = frozen_part(kind=kind, channels_last=channels_last)
    samples = pictures(n, channels_last=channels_last)
    rows = [row % n for row in rows]
    store = cache(frozen, samples, tmp_path_factory.mktemp("law") / "store", batch_size=batch)

    kept = store.read(rows)

    for place, row in enumerate(rows):
        alone = frozen(*(filled(tensor, batch) for tensor in samples.read([row])))
        # Some processors' kernels round the last rows of a matrix otherwise than the first: the same place in a batch.
        lane = row % batch
        for wire, stored, computed in zip(frozen.wires, kept, alone, strict=True):
            mine = stored.narrow(wire.batch_axis, place * wire.factor, wire.factor)
            assert torch.equal(mine, computed.narrow(wire.batch_axis, lane * wire.factor, wire.factor))


@given(rows=st.lists(st.integers(0, 9), max_size=12), view=st.integers(0, 2))
@QUICK
def test_rows_in_any_order_are_those_of_their_samples(tmp_path_factory, rows, view):
    frozen = frozen_part()
    store = cache(frozen, Views(pictures(), views=3), tmp_path_factory.mktemp("law") / "store", views=3)

    some = store.read(rows, view)
    every = store.read(range(10), view)

    assert all(torch.equal(a, b[rows]) for a, b in zip(some, every, strict=True))


def test_whole_batches_have_the_bits_and_the_memory_order_of_the_frozen_part(tmp_path):
    frozen = frozen_part(channels_last=True)
    samples = pictures(12, channels_last=True)

    store = cache(frozen, samples, tmp_path / "store", batch_size=6)

    for rows in (range(6), range(6, 12)):
        for kept, computed in zip(store.read(rows), frozen(*samples.read(rows)), strict=True):
            assert torch.equal(kept, computed)
            assert same_order(kept, computed)
            assert kept.is_contiguous(memory_format=torch.channels_last)


def test_each_view_has_its_own_rows(tmp_path):
    frozen = frozen_part()
    samples = Views(pictures(6), views=3)

    store = cache(frozen, samples, tmp_path / "store", views=3, batch_size=6)

    for view in range(3):
        for kept, computed in zip(store.read(range(6), view), frozen(*samples.read(range(6), view)), strict=True):
            assert torch.equal(kept, computed)


# --- what is read -----------------------------------------------------------------------------


def test_in_place_edits_of_what_was_read_never_change_the_store(tmp_path):
    store = cache(frozen_part(), pictures(), tmp_path / "store")
    before = [wire.clone() for wire in store.read([1, 2])]

    for wire in store.read([1, 2]):
        wire.zero_()

    assert all(torch.equal(a, b) for a, b in zip(before, store.read([1, 2]), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, open_store(tmp_path / "store").read([1, 2]), strict=True))


@pytest.mark.parametrize(("rows", "view"), [([10], 0), ([-1], 0), ([0], 1), ([0], -1)])
def test_rows_and_views_that_do_not_exist_are_refused(tmp_path, rows, view):
    store = cache(frozen_part(), pictures(), tmp_path / "store")

    with pytest.raises(IndexError, match="of a store of"):
        store.read(rows, view)


def test_a_store_counts_samples_and_bytes(tmp_path):
    frozen = frozen_part()

    store = cache(frozen, Views(pictures(), views=2), tmp_path / "store", views=2)

    assert (len(store), store.views) == (10, 2)
    assert store.bytes == 20 * sum(wire.bytes_per_sample for wire in frozen.wires)
    assert sum(file.stat().st_size for file in (tmp_path / "store").glob("*.bin")) == store.bytes


def test_halves_take_half_the_bytes_and_say_what_they_add(tmp_path):
    frozen, samples = frozen_part(), pictures()
    whole = cache(frozen, samples, tmp_path / "whole")

    halves = cache(frozen, samples, tmp_path / "halves", dtype="float16")

    assert halves.bytes * 2 == whole.bytes
    assert whole.manifest.rounding == 0
    assert 0 < halves.manifest.rounding < 1e-3
    for a, b in zip(halves.read(range(10)), whole.read(range(10)), strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).abs().max() / b.abs().max()) <= halves.manifest.rounding


# --- reuse and refusal ------------------------------------------------------------------------


def test_a_sealed_store_is_opened_without_computing(tmp_path):
    samples = pictures()
    cache(frozen_part(), samples, tmp_path / "store")
    frozen = frozen_part()
    frozen.calls = 0

    store = cache(frozen, samples, tmp_path / "store", batch_size=3)

    assert frozen.calls == 0
    assert len(store) == 10


def test_the_batch_size_of_the_watched_pass_plays_no_part(tmp_path):
    module = small_net()
    cache(FakeFrozen(module, pictures(2).read(range(2))), pictures(), tmp_path / "store")

    store = cache(FakeFrozen(module, pictures(7).read(range(7))), pictures(), tmp_path / "store")

    assert len(store) == 10


def one_bit_changed():
    frozen = frozen_part()
    frozen.module.path.weight.data.view(torch.uint8).flatten()[0] ^= 1
    return frozen


def one_picture_changed():
    samples = pictures()
    inputs = samples.read(range(10))[0]
    inputs[9, 0, 0, 0] += 1e-3
    return TensorSamples(inputs, samples.labels)


def another_cut():
    frozen = frozen_part()
    frozen.wires = frozen.wires[:1]
    return frozen


@pytest.mark.parametrize(
    ("frozen", "samples", "options", "differs"),
    [
        (one_bit_changed, pictures, {}, "frozen"),
        (another_cut, pictures, {}, "wires"),
        (frozen_part, one_picture_changed, {}, "samples"),
        (frozen_part, lambda: pictures(11), {}, "samples"),
        (frozen_part, lambda: Views(pictures(), preparation="96 px, bicubic"), {}, "preparation"),
        (frozen_part, lambda: Views(pictures(), views=2), {"views": 2}, "views"),
        (frozen_part, pictures, {"engine": "openvino"}, "engine"),
        (frozen_part, pictures, {"dtype": "float16"}, "dtype"),
    ],
    ids=["weight bit", "cut", "picture", "more pictures", "preparation", "views", "engine", "dtype"],
)
def test_a_store_of_something_else_is_refused_and_kept(tmp_path, frozen, samples, options, differs):
    store = cache(frozen_part(), pictures(), tmp_path / "store")
    before = store.read(range(10))

    with pytest.raises(StoreStale, match="Use another folder, or delete this one") as caught:
        cache(frozen(), samples(), tmp_path / "store", **options)

    assert differs in caught.value.differs
    assert all(torch.equal(a, b) for a, b in zip(before, open_store(tmp_path / "store").read(range(10)), strict=True))


def test_labels_play_no_part(tmp_path):
    samples = pictures()
    cache(frozen_part(), samples, tmp_path / "store")

    store = cache(frozen_part(), TensorSamples(*samples.read(range(10)), 1 - samples.labels), tmp_path / "store")

    assert len(store) == 10


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("mine")

    with pytest.raises(StoreStale, match="holds files but no sealed store"):
        cache(frozen_part(), pictures(), tmp_path / "store")

    assert (tmp_path / "store" / "thesis.tex").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "store").mkdir()

    assert len(cache(frozen_part(), pictures(), tmp_path / "store")) == 10


@pytest.mark.parametrize("damage", ["byte", "length", "missing", "manifest", "other manifest"])
def test_a_damaged_store_is_refused(tmp_path, damage):
    folder = tmp_path / "store"
    cache(frozen_part(), pictures(), folder)
    content = (folder / "wire1.bin").read_bytes()
    match damage:
        case "byte":
            (folder / "wire1.bin").write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "length":
            (folder / "wire1.bin").write_bytes(content[:-4])
        case "missing":
            (folder / "wire1.bin").unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case _:
            (folder / "manifest.json").write_text('{"schema": 1, "phase": "read"}')

    with pytest.raises(StoreCorrupt, match="Delete the folder and start again"):
        cache(frozen_part(), pictures(), folder)


def test_a_folder_without_a_store_cannot_be_opened(tmp_path):
    with pytest.raises(StoreCorrupt, match="no sealed store"):
        open_store(tmp_path)


# --- interruption -----------------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_interrupted_build_leaves_nothing(tmp_path, nth):
    def interrupt(event):
        if event.done >= 4 * nth - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache(frozen_part(), pictures(), tmp_path / "store", batch_size=4, listener=interrupt)

    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from frostline.data import Reading, TensorSamples
from frostline.features import cache
from frostline.pictures import Pictures
from frostline.records import Preprocessing, Wire

class Frozen:
    fingerprint = "f"
    wires = (Wire(name="w", shape=(2, 3), dtype="float32", order=(0, 1), bytes_per_sample=12),)
    module = torch.nn.Identity()
    def __call__(self, x):
        return (x * 2,)

def kill(event):
    if event.done >= 8:
        os.kill(os.getpid(), signal.SIGKILL)

samples = TensorSamples(torch.arange(30.0).reshape(10, 3), torch.arange(10) % 2)
cache(Frozen(), samples, Path(sys.argv[1]), batch_size=4, listener=kill)
"""


def test_a_killed_build_leaves_no_store_and_the_next_one_sweeps(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "store")], check=False, timeout=60)
    left = [path.name for path in tmp_path.iterdir()]

    store = cache(frozen_part(), pictures(), tmp_path / "store")

    assert killed.returncode == -signal.SIGKILL
    assert len(left) == 1
    assert left[0].endswith(".part")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(store) == 10


def test_a_part_of_another_key_is_swept_too(tmp_path):
    (tmp_path / "store.0123456789abcdef.part").mkdir()
    (tmp_path / "store.0123456789abcdef.part" / "wire0.bin").write_bytes(b"half")
    (tmp_path / "stored.part").mkdir()

    cache(frozen_part(), pictures(), tmp_path / "store")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "stored.part"]


def test_a_store_that_another_process_finished_meanwhile_is_opened(tmp_path, monkeypatch):
    cache(frozen_part(), pictures(), tmp_path / "theirs")
    held = features.hold

    def finished_meanwhile(folder):
        shutil.move(tmp_path / "theirs", tmp_path / "store")
        return held(folder)

    monkeypatch.setattr(features, "hold", finished_meanwhile)

    store = cache(frozen_part(), pictures(), tmp_path / "store")

    assert len(store) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# --- bad samples and arguments ----------------------------------------------------------------


def test_rows_that_are_not_finite_name_their_samples(tmp_path):
    samples = pictures()
    inputs = samples.read(range(10))[0]
    inputs[3, 0, 0, 0] = float("nan")
    inputs[7, 1, 2, 2] = float("inf")

    with pytest.raises(BadSample, match="NaN or infinity for 3, 7") as caught:
        cache(frozen_part(), TensorSamples(inputs, samples.labels), tmp_path / "store")

    assert caught.value.paths == ("3", "7")
    assert list(tmp_path.iterdir()) == []


def test_rows_too_large_for_halves_say_so(tmp_path):
    frozen = frozen_part()
    frozen.module.path.bias.data.fill_(1e5)

    with pytest.raises(BadSample, match=r'65,504.*dtype="float32"'):
        cache(frozen, pictures(), tmp_path / "store", dtype="float16")


def test_samples_that_change_between_readings_are_refused(tmp_path):
    draw = torch.Generator().manual_seed(0)
    restless = Views(pictures(), read=lambda x, rows, view: x + torch.rand(x.shape, generator=draw))

    with pytest.raises(NotRepeatable, match="two readings of sample 0"):
        cache(frozen_part(), restless, tmp_path / "store")

    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_fails_in_the_middle_gives_its_own_error(tmp_path):
    def read(x, rows, view):
        if 6 in rows and len(rows) == 4:
            raise PermissionError(13, "Permission denied", "photos/6.png")
        return x

    with pytest.raises(PermissionError, match=r"photos/6\.png"):
        cache(frozen_part(), Views(pictures(), read=read), tmp_path / "store", batch_size=4)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "tensorrt"}, "engine is 'tensorrt'"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"views": 2}, "views is 2; these samples have 1"),
        ({"views": 0}, "views is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_values_outside_their_range_are_refused(tmp_path, options, says):
    with pytest.raises(BadArgument, match=says):
        cache(frozen_part(), pictures(), tmp_path / "store", **options)


def test_no_samples_are_refused(tmp_path):
    none = Views(pictures())
    none.__class__ = type("None_", (Views,), {"__len__": lambda self: 0})

    with pytest.raises(EmptyData):
        cache(frozen_part(), none, tmp_path / "store")


# --- what is heard, and engines ---------------------------------------------------------------


def test_the_listener_hears_every_row_once(tmp_path):
    heard = []

    cache(frozen_part(), pictures(), tmp_path / "store", batch_size=4, listener=heard.append)

    assert [event.done for event in heard] == [0, 4, 8, 10]
    assert all(isinstance(event, Event) and (event.phase, event.total) == ("store", 10) for event in heard)


def test_the_listener_hears_what_the_pass_waits_for(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(Reading, "note", "waiting for pictures")

    cache(frozen_part(), pictures(), tmp_path / "store", batch_size=4, listener=heard.append)

    assert heard[0].note == "wire 0, wire 1"
    assert [event.note for event in heard[1:]] == ["wire 0, wire 1: waiting for pictures"] * 3


def test_pictures_are_computed_from_their_bytes_with_the_bits_of_their_inputs(tmp_path):
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 12, 12, 3), generator=drawn, dtype=torch.uint8).numpy()
    part = Pictures(
        pixels,
        range(10),
        torch.arange(10) % 2,
        names=tuple(map(str, range(10))),
        digests=tuple(map(str, range(10))),
        preprocessing=Preprocessing(image_size=12, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)),
    )
    frozen = FakeFrozen(small_net().to(memory_format=torch.channels_last), part.read(range(4)))

    store = cache(frozen, part, tmp_path / "store", batch_size=5)

    for kept, computed in zip(store.read(range(5)), frozen(*part.read(range(5))), strict=True):
        assert torch.equal(kept, computed)


def test_only_what_is_mapped_stays_open_and_no_longer_than_the_store(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))

    store = cache(frozen_part(), pictures(), tmp_path / "store")

    assert len(list(Path("/proc/self/fd").iterdir())) == before + len(store.manifest.files)
    del store
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_openvino_rows_are_close_and_the_manifest_says_how_close(tmp_path):
    pytest.importorskip("openvino", reason="openvino is an extra")
    frozen, samples = frozen_part(channels_last=True), pictures(channels_last=True)

    store = cache(frozen, samples, tmp_path / "store", engine="openvino", batch_size=4)

    assert store.manifest.engine == "openvino"
    assert store.manifest.error < 1e-4
    for kept, computed in zip(store.read(range(4)), frozen(*samples.read(range(4))), strict=True):
        torch.testing.assert_close(kept, computed, rtol=1e-4, atol=1e-5)
        assert same_order(kept, computed)


class Odd(Residual):
    """What OpenVINO cannot convert."""

    def forward(self, x):
        h = self.stem(x)
        return torch.linalg.eigvals(h @ h.transpose(-1, -2)).real, h


def test_what_openvino_cannot_convert_is_run_by_torch_and_the_manifest_says_why(tmp_path):
    pytest.importorskip("openvino", reason="openvino is an extra")
    frozen = FakeFrozen(Odd().eval(), pictures(4).read(range(4)))

    store = cache(frozen, pictures(4), tmp_path / "store", engine="openvino", batch_size=4)
    again = cache(frozen, pictures(4), tmp_path / "store", engine="openvino", batch_size=4)

    assert store.manifest.engine == "torch"
    assert "aten::linalg_eigvals" in store.manifest.why
    assert store.manifest.error == 0
    assert again.key == store.key


class Looks(Residual):
    """Takes a way that depends on the values it sees."""

    def forward(self, x):
        h = self.stem(x)
        return self.path(h) if h.mean() > 0.5 else self.path(-h), h


def test_a_way_fixed_by_the_first_batch_is_found_on_another(tmp_path):
    pytest.importorskip("openvino", reason="openvino is an extra")
    samples = pictures(8)
    inputs = samples.read(range(8))[0]
    inputs[4:] *= 20
    frozen = FakeFrozen(Looks().eval(), (inputs[:4],))

    store = cache(frozen, TensorSamples(inputs, samples.labels), tmp_path / "store", engine="openvino", batch_size=4)

    assert store.manifest.engine == "torch"
    assert torch.equal(store.read(range(4, 8))[0], frozen(inputs[4:])[0])


def test_an_engine_that_is_wrong_is_not_used(tmp_path):
    frozen, samples = frozen_part(), pictures(4)

    def wrong(module, example, *, engine, precision):
        return features_compiled(lambda x: tuple(w * 1.01 for w in frozen(*x)))

    store = cache(frozen, samples, tmp_path / "store", engine="openvino", batch_size=4, compiler=wrong)

    assert store.manifest.engine == "torch"
    assert "away from torch's outputs" in store.manifest.why
    assert all(torch.equal(a, b) for a, b in zip(store.read(range(4)), frozen(*samples.read(range(4))), strict=True))


def features_compiled(run, precision="float32"):
    from frostline.engines import Compiled

    return Compiled(run, batch=4, engine="openvino", precision=precision)


def test_no_batch_is_computed_twice(tmp_path):
    frozen, samples, calls = frozen_part(), pictures(10), []

    def counting(module, example, *, engine, precision):
        return features_compiled(lambda inputs: calls.append(1) or frozen(*inputs))

    store = cache(frozen, samples, tmp_path / "store", engine="openvino", batch_size=4, compiler=counting)

    assert len(calls) == 3
    for kept, computed in zip(store.read(range(8, 10)), frozen(*samples.read([8, 9, 8, 9])), strict=True):
        assert torch.equal(kept, computed[:2])


def test_an_engine_that_is_wrong_in_the_last_batch_alone_is_not_used(tmp_path):
    frozen, samples = frozen_part(), pictures(10)

    def wrong(module, example, *, engine, precision):
        seen = []

        def run(inputs):
            seen.append(1)
            return tuple(wire * (1.01 if len(seen) > 1 else 1.0) for wire in frozen(*inputs))

        return features_compiled(run)

    store = cache(frozen, samples, tmp_path / "store", engine="openvino", batch_size=4, compiler=wrong)

    assert store.manifest.engine == "torch"


def test_fewer_bits_that_are_wrong_give_way_to_full_precision(tmp_path):
    frozen, samples = frozen_part(), pictures(4)

    def rough(module, example, *, engine, precision):
        factor = 1.02 if precision == "bfloat16" else 1.0
        return features_compiled(lambda x: tuple(w * factor for w in frozen(*x)), precision)

    store = cache(
        frozen,
        samples,
        tmp_path / "store",
        engine="openvino",
        precision="bfloat16",
        batch_size=4,
        compiler=rough,
    )

    assert (store.manifest.engine, store.manifest.precision) == ("openvino", "float32")
    assert "OpenVINO in bfloat16 is 2.0e-02 away from torch's outputs" in store.manifest.why
    assert store.manifest.identity.precision == "bfloat16"


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_fewer_bits_that_are_right_are_kept_and_the_manifest_says_how_far_off(tmp_path, engine):
    if engine == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra")
    frozen, samples = frozen_part(), pictures(4)

    store = cache(frozen, samples, tmp_path / "store", engine=engine, precision="bfloat16", batch_size=4)

    assert (store.manifest.engine, store.manifest.precision) == (engine, "bfloat16")
    assert 0 < store.manifest.error <= 1e-2
    for kept, computed in zip(store.read(range(4)), frozen(*samples.read(range(4))), strict=True):
        assert kept.dtype == torch.float32
        assert relative_error((kept,), (computed,)) == pytest.approx(store.manifest.error, rel=1)


def test_auto_says_in_the_manifest_what_it_took(tmp_path):
    store = cache(frozen_part(), pictures(4), tmp_path / "store", engine="auto", precision="auto", batch_size=4)

    assert store.manifest.engine in ("torch", "openvino")
    assert store.manifest.precision == "float32"
    assert store.manifest.identity.engine == "auto"


def test_a_manifest_of_before_there_were_fewer_bits_still_opens(tmp_path):
    cache(frozen_part(), pictures(4), tmp_path / "store", batch_size=4)
    file = tmp_path / "store" / "manifest.json"
    content = json.loads(file.read_text())
    del content["precision"]
    file.write_text(json.dumps(content))

    assert open_store(tmp_path / "store").manifest.precision == "float32"
