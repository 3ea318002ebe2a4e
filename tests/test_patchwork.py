"""The laws of a network, on random ones; `PATCHES` and `PIECES` say what they are made of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.testing import CLOSE, PATCHES, PIECES, TRAITS, Specimen, breach, network, patchwork, snapshot
from frostline.trees import tensors, with_rows

names = st.sampled_from(sorted(PATCHES))
patterns = st.lists(names | st.lists(names, min_size=1, max_size=3).map(tuple), min_size=2, max_size=4)
seeds = st.integers(0, 99)
sequences = st.builds(patchwork, patterns, traits=st.sets(st.sampled_from(TRAITS)), seed=seeds)
pictures = st.builds(network, st.lists(st.sampled_from(sorted(PIECES)), max_size=5), seed=seeds)
hundred = settings(max_examples=100, derandomize=True, deadline=None)


@hundred
@given(one=sequences | pictures, place=st.integers(0, 9))
def test_laws_hold_on_a_hundred_random_networks(tmp_path_factory, one, place):
    check_laws(one, [place], tmp_path_factory.getbasetemp() / "random.safetensors")


@pytest.mark.parametrize("name", PATCHES)
def test_laws_hold_with_each_patch(tmp_path, name):
    one = patchwork(["keep", name, (name, "linear")], traits={"side", "mask"})

    check_laws(one, [1, 2, 3], tmp_path / "each.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(hundred, max_examples=1000)
@given(one=sequences | pictures, place=st.integers(0, 9))
def test_laws_hold_on_a_thousand_random_networks(tmp_path_factory, one, place):
    check_laws(one, [place], tmp_path_factory.getbasetemp() / "random.safetensors")


def check_laws(one, places, file):
    """The cheap laws at every open cut, the others at those of the given places among them."""
    before = snapshot(one.model)
    graph = fl.trace(one.model, one.example)
    some = {graph.open_depths[place % len(graph.open_depths)] for place in places}

    check_keys_have_one_stage(one, graph)
    for depth in some:
        assert fl.prove(one.model, graph, depth, example=one.example) is None, depth
        check_delta_lays_back_what_was_tuned(one, fl.split(one.model, graph, depth), file)
    assert snapshot(one.model) == before
    # From here on the network itself runs, which writes into its buffers.
    for depth in graph.open_depths:
        assert breach(one, graph, depth) is None, depth
    for depth in some:
        check_rows_are_those_of_another_batch(one, graph, depth)


def check_keys_have_one_stage(one, graph):
    keys = [key for stage in graph.stages for key in stage.keys]
    assert sorted(keys) == sorted(one.model.state_dict())
    assert graph.parameters == sum(weight.numel() for weight in one.model.parameters())


def check_delta_lays_back_what_was_tuned(one, parts, file):
    wires = parts.frozen(*one.inputs)
    optimizer = torch.optim.SGD(parts.live.parameters(), 0.1)
    sum(value.square().sum() for value in tensors(parts.live.train()(*wires))).backward()
    optimizer.step()

    tuned = parts.merge()
    delta = fl.save_delta(one.model, tuned, file, depth=parts.depth)
    laid = fl.apply_delta(one.model, delta.file)

    live = {key for stage in parts.graph.stages[parts.depth :] for key in stage.keys}
    assert delta.keys
    assert live.issuperset(delta.keys)
    assert all(map(torch.equal, laid.state_dict().values(), tuned.state_dict().values()))
    with torch.no_grad():
        found = tensors(parts.live.eval()(*wires))
    assert all(map(torch.equal, found, tensors(Specimen("laid", laid, one.example).output())))


def check_rows_are_those_of_another_batch(one, graph, depth):
    some = Specimen(one.name, one.model, with_rows(one.example, 3))
    assert breach(some, graph, depth) is None, depth
    for few, all_rows in zip(tensors(some.output()), tensors(one.output()), strict=True):
        torch.testing.assert_close(few, all_rows[:3], **CLOSE)


# --- random networks --------------------------------------------------------------------------


def test_patchwork_is_the_same_for_the_same_seed():
    before = torch.get_rng_state()

    first, second = (patchwork(["lstm", ("keep", "add")], traits={"side"}, seed=3) for _ in range(2))

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.output(), second.output())


def test_sheet_is_one_stage_and_its_patches_are_its_own():
    one = patchwork(["linear", ("linear", "norm"), "linear"])

    graph = fl.trace(one.model, one.example)

    assert [stage.name for stage in graph.stages] == ["stem", "pieces.0", "pieces.1", "pieces.2", "head"]


def test_reversed_network_registers_its_head_first():
    one = patchwork(["linear", "conv"], traits={"reversed"})

    assert [name for name, _ in one.model.named_children()] == ["head", "pieces", "stem"]
    assert isinstance(next(iter(one.model.pieces.values())), nn.Conv1d)


@pytest.mark.parametrize("traits", [{"dict"}, {"record"}])
def test_output_holds_the_pooled_features_too(traits):
    one = patchwork(["linear"], traits=traits)

    assert [value.shape for value in tensors(one.output())] == [(4, 3), (4, 4)]
