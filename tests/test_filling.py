"""Stores filled in one pass are those filled one by one, and what is there already is not computed again."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline import features
from frostline.data import TensorSamples
from frostline.engines import compiled
from frostline.errors import BadArgument, RunBusy, StoreStale, StoreTooLarge
from frostline.features import cache, cache_all
from frostline.files import hold
from frostline.splitting import depths_of
from frostline.testing import CLOSE, PIECES, menagerie, network, specimen

NAMES = [one.name for one in menagerie()]
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cut_at(one, depths):
    """Frozen parts of a specimen at these places among its open depths, and samples for it."""
    graph = fl.trace(one.model, one.example)
    inside = [depth for depth in graph.open_depths if depth]
    found = sorted({inside[place % len(inside)] for place in depths}) if inside else []
    inputs = tuple(torch.cat([tensor, tensor.flip(0)])[:7] for tensor in one.inputs)
    return [fl.split(one.model, graph, depth).frozen for depth in found], TensorSamples(inputs, torch.arange(7) % 2)


def parts_of(*depths, name="chain"):
    graph = fl.trace((one := specimen(name)).model, one.example)
    x = torch.randn(10, *one.inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    frozen = [fl.split(one.model, graph, depth).frozen for depth in depths]
    return frozen, TensorSamples(x, torch.arange(10) % 2)


def folders(tmp_path, frozen):
    return [tmp_path / str(part.depths[0]) for part in frozen]


def said(store):
    return store.manifest.model_dump(exclude={"seconds"})


def counting(seen):
    """A compiler that runs torch under another name and notes the depths it is asked for."""

    def make(module, example, *, engine, precision):
        seen.append(depths_of(module))
        run = compiled(module, example)
        run.engine = engine
        return run

    return make


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(depths=st.sets(st.integers(0, 9), min_size=1))
def test_one_pass_over_any_open_depths_gives_the_stores_of_separate_passes(tmp_path_factory, name, depths):
    frozen, samples = cut_at(specimen(name), depths)
    if not frozen:
        return
    folder = tmp_path_factory.mktemp("law")

    together = cache_all(frozen, samples, folders(folder / "all", frozen), batch_size=4)

    for part, store in zip(frozen, together, strict=True):
        # The checksums of every file are in it.
        assert said(store) == said(cache(part, samples, folder / f"alone{part.depths}", batch_size=4))


@few
@given(
    st.lists(st.sampled_from(sorted(PIECES)), max_size=7),
    st.sets(st.integers(0, 9), min_size=1),
    st.sampled_from(["float32", "float16"]),
)
def test_one_pass_over_random_networks_gives_the_stores_of_separate_passes(tmp_path_factory, pieces, depths, dtype):
    frozen, samples = cut_at(network(pieces), depths)
    if not frozen:
        return
    folder = tmp_path_factory.mktemp("law")

    together = cache_all(frozen, samples, folders(folder / "all", frozen), batch_size=4, dtype=dtype)

    for part, store in zip(frozen, together, strict=True):
        assert said(store) == said(cache(part, samples, folder / f"alone{part.depths}", batch_size=4, dtype=dtype))


@pytest.mark.parametrize(
    "name", ["branching", "batch_norm", "in_place", "several_inputs", "attention", "padded_tokens"]
)
def test_an_engine_that_runs_several_cuts_as_one_differs_by_rounding_alone(tmp_path, name):
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    frozen, samples = cut_at(specimen(name), range(9))

    together = cache_all(frozen, samples, folders(tmp_path, frozen), engine="openvino", batch_size=4)

    for part, store in zip(frozen, together, strict=True):
        alone = cache(part, samples, tmp_path / f"alone{part.depths}", engine="openvino", batch_size=4)
        assert (store.key, store.manifest.engine, store.manifest.why) == (
            alone.key,
            alone.manifest.engine,
            alone.manifest.why,
        )
        assert store.manifest.error < 1e-4
        for kept, computed in zip(store.read(range(7)), alone.read(range(7)), strict=True):
            torch.testing.assert_close(kept, computed, **CLOSE)


# --- what is computed -------------------------------------------------------------------------


def test_the_shared_stages_are_run_once_for_all_stores(tmp_path):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    graph = fl.trace(net, torch.randn(4, 4))
    frozen = [fl.split(net, graph, depth).frozen for depth in (1, 2)]
    calls.clear()

    cache_all(frozen, TensorSamples(torch.randn(10, 4), torch.arange(10) % 2), folders(tmp_path, frozen), batch_size=5)

    assert len(calls) == 2


def test_only_stores_that_are_missing_are_computed(tmp_path):
    frozen, samples = parts_of(1, 2, 3)
    before = cache(frozen[1], samples, tmp_path / "2", engine="compile", compiler=counting([]))
    seen = []

    together = cache_all(frozen, samples, folders(tmp_path, frozen), engine="compile", compiler=counting(seen))
    again = cache_all(frozen, samples, folders(tmp_path, frozen), engine="compile", compiler=counting(seen))

    assert seen == [(1, 3)]
    assert together[1].manifest == before.manifest
    assert [said(store) for store in again] == [said(store) for store in together]


def test_the_listener_hears_one_pass_and_the_wires_of_every_cut(tmp_path):
    frozen, samples = parts_of(1, 2)
    heard = []

    cache_all(frozen, samples, folders(tmp_path, frozen), batch_size=4, listener=heard.append)

    assert [event.done for event in heard] == [0, 4, 8, 10]
    assert heard[0].note == ", ".join(wire.name for part in frozen for wire in part.wires)


# --- interruption -----------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 4, 10])
def test_an_interrupted_pass_leaves_nothing_and_starts_anew(tmp_path, done):
    frozen, samples = parts_of(1, 2, 3)

    def interrupt(event):
        if event.done >= done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_all(frozen, samples, folders(tmp_path, frozen), batch_size=4, listener=interrupt)
    left = list(tmp_path.iterdir())
    stores = cache_all(frozen, samples, folders(tmp_path, frozen), batch_size=4)

    assert left == []
    assert [said(store) for store in stores] == [
        said(cache(part, samples, tmp_path / f"alone{part.depths}", batch_size=4)) for part in frozen
    ]


@pytest.mark.parametrize("sealed", [0, 1, 2])
def test_stores_that_were_sealed_before_the_end_are_kept_and_the_others_computed(tmp_path, monkeypatch, sealed):
    frozen, samples = parts_of(1, 2, 3)
    count = itertools.count()
    open_sealed = features.FeatureStore

    def stop(*args):
        if next(count) == sealed:
            raise KeyboardInterrupt
        return open_sealed(*args)

    monkeypatch.setattr(features, "FeatureStore", stop)
    with pytest.raises(KeyboardInterrupt):
        cache_all(frozen, samples, folders(tmp_path, frozen), engine="compile", compiler=counting([]))
    monkeypatch.undo()
    left, seen = sorted(path.name for path in tmp_path.iterdir()), []
    stores = cache_all(frozen, samples, folders(tmp_path, frozen), engine="compile", compiler=counting(seen))

    assert left == ["1", "2", "3"][: sealed + 1]
    assert [depth for depths in seen for depth in depths] == [1, 2, 3][sealed + 1 :]
    for part, store in zip(frozen, stores, strict=True):
        torch.testing.assert_close(store.read([9])[0], part(*samples.read([9]))[0], **CLOSE)


def test_a_store_that_another_process_builds_leaves_nothing_of_the_others(tmp_path):
    frozen, samples = parts_of(1, 2)
    key = cache(frozen[1], samples, tmp_path / "else").key

    with hold(tmp_path / f"2.{key}.part"), pytest.raises(RunBusy):
        cache_all(frozen, samples, folders(tmp_path, frozen))

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"2.{key}.part", "else"]


# --- refusing ---------------------------------------------------------------------------------


def test_the_bytes_of_all_stores_are_held_against_the_disk_before_any_is_written(tmp_path, monkeypatch):
    frozen, samples = parts_of(1, 2)
    sizes = [10 * sum(wire.bytes_per_sample for wire in part.wires) for part in frozen]
    monkeypatch.setattr(features, "free_bytes", lambda path: sum(sizes) - 1)

    with pytest.raises(StoreTooLarge) as caught:
        cache_all(frozen, samples, folders(tmp_path, frozen))

    assert caught.value.needed == sum(sizes)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_of_a_store_that_is_there_are_not_asked_for_again(tmp_path, monkeypatch):
    frozen, samples = parts_of(1, 2)
    cache(frozen[0], samples, tmp_path / "1")
    monkeypatch.setattr(
        features, "free_bytes", lambda path: 10 * sum(wire.bytes_per_sample for wire in frozen[1].wires)
    )

    assert len(cache_all(frozen, samples, folders(tmp_path, frozen))) == 2


def test_a_stale_store_among_them_is_told_before_anything_is_computed(tmp_path):
    frozen, samples = parts_of(1, 2)
    cache(frozen[0], samples, tmp_path / "2")

    with pytest.raises(StoreStale):
        cache_all(frozen, samples, folders(tmp_path, frozen))

    assert [path.name for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize("names", [(), ("a",), ("a", "a"), ("a", "b", "c")])
def test_every_part_needs_a_folder_of_its_own(tmp_path, names):
    frozen, samples = parts_of(1, 2)

    with pytest.raises(BadArgument, match="needs a folder of its own"):
        cache_all(frozen, samples, [tmp_path / name for name in names])


def test_no_parts_are_refused(tmp_path):
    with pytest.raises(BadArgument, match="0 frozen parts"):
        cache_all([], parts_of(1)[1], [])


def test_parts_of_different_networks_are_refused(tmp_path):
    (shallow, _), samples = parts_of(1, 2)
    (_, deep), _ = parts_of(1, 2)

    with pytest.raises(BadArgument, match="different networks"):
        cache_all([shallow, deep], samples, [tmp_path / "1", tmp_path / "2"])
