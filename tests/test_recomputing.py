"""Rows that are computed anew are those of a store, whoever asks for them and in whatever order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.data import Pictures, TensorSamples
from frostline.engines import compiled
from frostline.errors import BadSample, NotRepeatable
from frostline.features import cache
from frostline.recomputing import Recomputed
from frostline.records import Preprocessing
from frostline.testing import CLOSE, menagerie, specimen

NAMES = [one.name for one in menagerie()]


def cut_of(name, place=0):
    """The frozen part of a specimen at one of its open depths, and seven samples for it."""
    one = specimen(name)
    graph = fl.trace(one.model, one.example)
    inside = [depth for depth in graph.open_depths if depth]
    if not inside:
        pytest.skip("the specimen has no cut")
    inputs = tuple(torch.cat([tensor, tensor.flip(0)])[:7] for tensor in one.inputs)
    return fl.split(one.model, graph, inside[place % len(inside)]).frozen, TensorSamples(inputs, torch.arange(7) % 2)


def anew(frozen, samples, *, engine="torch", precision="float32", compiler=compiled, **others):
    return Recomputed(frozen, samples, engine=engine, precision=precision, compiler=compiler, batch_size=4, **others)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4, deadline=None)
@given(place=st.integers(0, 9), rows=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_rows_computed_anew_are_those_of_the_store_in_any_order(tmp_path_factory, name, place, rows):
    frozen, samples = cut_of(name, place)
    store = cache(frozen, samples, tmp_path_factory.mktemp("law") / "store", batch_size=4)

    found = anew(frozen, samples).read(rows)

    for computed, kept in zip(found, store.read(rows), strict=True):
        torch.testing.assert_close(computed, kept, **CLOSE)
        assert computed.stride() == kept.stride()


def test_the_same_batches_have_the_bits_of_the_store(tmp_path):
    frozen, samples = cut_of("chain")
    store = cache(frozen, samples, tmp_path / "store", batch_size=4)

    rows = anew(frozen, samples)

    for some in (range(4), range(4, 7)):
        for computed, kept in zip(rows.read(some), store.read(some), strict=True):
            assert torch.equal(computed, kept)


def test_every_row_that_is_computed_is_counted_at_each_reading():
    rows = anew(*cut_of("chain"))

    for some in ([0, 1, 2, 3, 4], [6], [6]):
        rows.read(some)

    assert (len(rows), rows.passed) == (7, 5 + 1 + 1)


def test_what_was_read_may_be_written_into():
    rows = anew(*cut_of("chain"))
    before = [wire.clone() for wire in rows.read([1, 2])]

    for wire in rows.read([1, 2]):
        wire.zero_()

    assert all(torch.equal(a, b) for a, b in zip(before, rows.read([1, 2]), strict=True))


def noting(seen, *, add=0.0):
    """A compiler that runs torch under another name, adds this, and notes rows and inference mode at each call."""

    def make(module, example, *, engine, precision):
        plain = compiled(module, example)

        def run(inputs):
            seen.append((len(inputs[0]), torch.is_inference_mode_enabled()))
            return tuple(wire + add for wire in plain(inputs))

        run.engine, run.precision, run.why, run.spoken = engine, precision, "", engine
        return run

    return make


def test_an_engine_is_given_full_batches_alone_and_never_in_inference_mode():
    seen = []
    rows = anew(*cut_of("chain"), engine="compile", compiler=noting(seen))

    with torch.inference_mode():
        rows.read(range(7))

    # Two batches by which it is judged, and two that are read.
    assert seen == [(4, False)] * 4


def test_torch_computes_them_where_the_outputs_of_the_engine_are_not_its_own():
    frozen, samples = cut_of("chain")
    seen = []

    rows = anew(frozen, samples, engine="openvino", compiler=noting(seen, add=1.0))
    found = rows.read(range(7))

    assert len(seen) == 2
    for computed, wanted in zip(found, anew(frozen, samples).read(range(7)), strict=True):
        assert torch.equal(computed, wanted)


def test_rows_lie_in_the_memory_order_of_those_of_the_store(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    samples = TensorSamples(x, torch.arange(6) % 2)
    frozen = fl.split(net, fl.trace(net, x[:4]), 1).frozen
    store = cache(frozen, samples, tmp_path / "store", batch_size=4)

    [found] = anew(frozen, samples).read([5, 0, 1])

    [kept] = store.read([5, 0, 1])
    torch.testing.assert_close(found, kept, **CLOSE)
    assert found.stride() == kept.stride()
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_pictures_are_computed_from_their_bytes_with_the_bits_of_their_inputs():
    drawn = torch.Generator().manual_seed(0)
    part = Pictures(
        torch.randint(0, 256, (10, 12, 12, 3), generator=drawn, dtype=torch.uint8).numpy(),
        range(10),
        torch.arange(10) % 2,
        names=tuple(map(str, range(10))),
        digests=tuple(map(str, range(10))),
        preprocessing=Preprocessing(image_size=12, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)),
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))
    frozen = fl.split(net, fl.trace(net, part.read(range(4))), 1).frozen

    found = anew(frozen, part).read([3, 1, 2, 0])

    for computed, wanted in zip(found, frozen(*part.read([3, 1, 2, 0])), strict=True):
        assert torch.equal(computed, wanted)


def test_samples_that_change_between_readings_are_refused():
    class Restless:
        views, names, digests, preparation, labels = 1, ("a", "b"), ("a", "b"), "", torch.tensor([0, 1])

        def __len__(self):
            return 2

        def read(self, rows, view=0):
            return (torch.rand(len(rows), 4),)

    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

    with pytest.raises(NotRepeatable, match="two readings of sample a"):
        anew(fl.split(net, fl.trace(net, torch.ones(2, 4)), 1).frozen, Restless())


def test_a_row_that_is_no_number_is_refused_with_the_name_of_its_sample():
    x = torch.ones(6, 4)
    x[5, 0] = float("nan")
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    rows = anew(fl.split(net, fl.trace(net, x[:2]), 1).frozen, TensorSamples(x, torch.arange(6) % 2))

    with pytest.raises(BadSample, match="NaN or infinity for 5"):
        rows.read([0, 5])
