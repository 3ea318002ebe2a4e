import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import frostline as fl
from frostline.errors import BadArgument
from frostline.recording import Layout, Size, dense_stride
from frostline.testing import specimen


def layout(*shape):
    return Layout(shape, tuple(Size(1) for _ in shape), Size(0), torch.float32, torch.device("cpu"))


def recording(name):
    one = specimen(name)
    return fl.trace(one.model, one.example).recording


def test_size_grows_with_the_batch():
    assert Size(3, 2).at(5) == 13
    assert Size(3).at(5) == 3


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((Size(0, 1), Size(4)), 0),
        ((Size(4), Size(0, 196)), 1),
        ((Size(4), Size(5)), None),
        ((Size(1, 1), Size(4)), None),
        ((Size(0, 1), Size(0, 1)), None),
    ],
)
def test_batch_axis_is_the_one_that_is_nothing_without_a_batch(shape, axis):
    assert layout(*shape).batch_axis == axis


def test_dense_stride_keeps_the_order_of_the_axes():
    assert dense_stride((2, 3, 4, 5), (600, 1, 15, 3)) == (60, 1, 15, 3)
    assert dense_stride((2, 5), (50, 1)) == (5, 1)


@given(st.lists(st.integers(1, 3), max_size=4), st.data())
@settings(max_examples=200, deadline=None)
def test_dense_stride_is_that_of_torchs_own_copy(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    gap = data.draw(st.integers(1, 2))
    repeats = data.draw(st.sampled_from([1, 1, 2]))
    whole = torch.empty([gap * shape[axis] for axis in order]).permute(
        [order.index(axis) for axis in range(len(shape))]
    )
    laid = whole[tuple(slice(size) for size in shape)].expand(repeats, *shape)

    assert dense_stride(laid.shape, laid.stride()) == torch.empty_like(laid).stride()


def test_inputs_are_bound_as_they_were_given():
    inputs = recording("padded_tokens").inputs
    ids, mask = torch.zeros(2, 6), torch.ones(2, 6)

    args, kwargs = inputs.bind(inputs.flatten([{"is_padding": mask, "ids": ids}]))

    assert args == ()
    assert kwargs["ids"] is ids
    assert kwargs["is_padding"] is mask


def test_inputs_of_another_number_are_refused():
    inputs = recording("several_inputs").inputs

    with pytest.raises(BadArgument, match="traced with 2: left, right"):
        inputs.flatten([torch.ones(1)])


def test_outer_calls_are_the_finished_ones_inside_one_that_is_not():
    found = recording("attention")
    moment = found.points[2].moment

    names = [found.calls[place].name for place in found.outer(moment)]

    assert names == ["patches", "blocks.0"]


def test_copy_of_a_recording_is_the_recording():
    found = recording("chain")

    assert copy.deepcopy({"it": found})["it"] is found
