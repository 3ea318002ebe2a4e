"""An engine runs a cut where its outputs are torch's, whatever becomes of the other cuts of the pass."""

import pytest
import torch

import frostline as fl
from frostline.data import TensorSamples
from frostline.engines import Compiled, compiled
from frostline.features import cache, cache_all
from frostline.splitting import depths_of
from frostline.testing import specimen


def three_parts():
    one = specimen("chain")
    graph = fl.trace(one.model, one.example)
    x = torch.randn(8, *one.inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    return [fl.split(one.model, graph, depth).frozen for depth in (1, 2, 3)], TensorSamples(x, torch.arange(8) % 2)


def engine_with(factors, *, refuses=(), seen=None):
    """An engine that multiplies the wires of some depths, by precision, and cannot convert others."""

    def make(module, example, *, engine, precision):
        depths = depths_of(module)
        if seen is not None:
            seen.append((depths, precision))
        plain = compiled(module, example)
        if set(depths) & set(refuses):
            plain.why = f"no rule for depth {max(set(depths) & set(refuses))}"
            return plain

        def run(inputs):
            return tuple(
                wire * factors.get((depth, precision), 1.0) for depth, wire in zip(depths, plain(inputs), strict=True)
            )

        return Compiled(run, batch=len(example[0]), engine=engine, precision=precision)

    return make


def filled_with(tmp_path, compiler, **options):
    """Manifests of the three stores filled together, and of each filled alone."""
    frozen, samples = three_parts()
    options = {"engine": "openvino", "batch_size": 4, "compiler": compiler} | options
    together = cache_all(frozen, samples, [tmp_path / f"{nth}" for nth in range(3)], **options)
    alone = [cache(part, samples, tmp_path / f"alone{nth}", **options) for nth, part in enumerate(frozen)]
    for part, store in zip(frozen, together, strict=True):
        torch.testing.assert_close(store.read(range(8))[0], part(*samples.read(range(8)))[0], rtol=2e-2, atol=2e-2)
    return together, alone


def judged(stores):
    return [store.manifest.model_dump(include={"engine", "precision", "error", "why", "files"}) for store in stores]


@pytest.mark.parametrize("wrong", [(1,), (2,), (3,), (1, 3), (1, 2, 3)])
def test_a_cut_whose_rows_are_wrong_goes_to_torch_and_the_others_do_not(tmp_path, wrong):
    factors = {(depth, "float32"): 1.01 for depth in wrong}

    together, alone = filled_with(tmp_path, engine_with(factors))

    assert judged(together) == judged(alone)
    assert [store.manifest.engine == "torch" for store in together] == [depth in wrong for depth in (1, 2, 3)]


@pytest.mark.parametrize("rough", [(1,), (3,), (2, 3)])
def test_fewer_bits_are_given_up_for_the_cuts_alone_that_they_change(tmp_path, rough):
    factors = {(depth, "bfloat16"): 1.02 for depth in rough} | {(1, "float32"): 1 + 1e-5}

    together, alone = filled_with(tmp_path, engine_with(factors), precision="bfloat16")

    assert judged(together) == judged(alone)
    bits = ["float32" if depth in rough else "bfloat16" for depth in (1, 2, 3)]
    assert [store.manifest.precision for store in together] == bits


def test_each_store_has_the_error_of_its_own_cut(tmp_path):
    together, _ = filled_with(tmp_path, engine_with({(1, "float32"): 1 + 4e-4, (3, "float32"): 1 + 8e-4}))

    assert [store.manifest.error for store in together] == pytest.approx([4e-4, 0, 8e-4], rel=0.1, abs=1e-6)


@pytest.mark.parametrize("refuses", [(3,), (1,), (1, 2, 3)])
def test_a_cut_that_cannot_be_converted_does_not_keep_the_others_from_it(tmp_path, refuses):
    together, alone = filled_with(tmp_path, engine_with({}, refuses=refuses))

    assert judged(together) == judged(alone)
    assert [store.manifest.why for store in together] == [
        f"no rule for depth {depth}" if depth in refuses else "" for depth in (1, 2, 3)
    ]


def test_cuts_that_are_left_to_torch_are_one_pass_again(tmp_path):
    frozen, samples = three_parts()
    calls, before = [], type(frozen[0]).__call__

    class Watched(type(frozen[0])):
        def __call__(self, *inputs):
            calls.append(self.depths)
            return before(self, *inputs)

        def joined(self, *others):
            found = super().joined(*others)
            found.__class__ = Watched
            return found

    for part in frozen:
        part.__class__ = Watched
    cache_all(
        frozen,
        samples,
        [tmp_path / f"{nth}" for nth in range(3)],
        engine="openvino",
        batch_size=4,
        compiler=engine_with({}, refuses=(1, 2, 3)),
    )

    assert calls == [(1, 2, 3)] * 2


def test_all_cuts_are_one_network_to_the_engine_where_none_is_wrong(tmp_path):
    frozen, samples = three_parts()
    seen = []

    cache_all(
        frozen,
        samples,
        [tmp_path / f"{nth}" for nth in range(3)],
        engine="openvino",
        compiler=engine_with({}, seen=seen),
    )

    assert seen == [((1, 2, 3), "float32")]
