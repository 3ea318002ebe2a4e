import collections
import dataclasses
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.errors import BadArgument
from frostline.trees import arguments, batch_of, leaves, rebuild, tensors, with_rows


class Pair(NamedTuple):
    one: object
    two: object


@dataclasses.dataclass
class Box:
    content: object
    label: str = "box"


@dataclasses.dataclass(frozen=True)
class Sealed:
    content: object


class Output(collections.OrderedDict):
    """Like the outputs of `transformers`: a dict and a dataclass at once."""

    def __init__(self, logits=None, hidden=None):
        super().__init__(logits=logits, hidden=hidden)
        self.logits, self.hidden = logits, hidden


Output = dataclasses.make_dataclass("Output", ["logits", "hidden"], bases=(Output,), init=False, eq=False)

trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Box, inner),
        st.builds(Sealed, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(trees)
def test_tree_rebuilt_from_its_own_leaves_is_the_tree(tree):
    again = rebuild(tree, iter(leaves(tree)))

    assert again == tree
    assert type(again) is type(tree)


@pytest.mark.parametrize("tree", [Pair(1, 2), Box(1, 2), Sealed([1, 2]), {"a": 1, "b": 2}, Output(1, 2)])
def test_rebuilding_leaves_the_first_tree_alone(tree):
    again = rebuild(tree, iter(["x", "y"]))

    assert leaves(tree) == [1, 2]
    assert leaves(again) == ["x", "y"]
    assert type(again) is type(tree)


def test_output_that_is_dict_and_dataclass_keeps_both_in_step():
    again = rebuild(Output(1, 2), iter("xy"))

    assert (again.logits, again["logits"]) == ("x", "x")


def test_tensors_are_found_at_any_depth():
    a, b = torch.ones(1), torch.zeros(2)

    assert [id(it) for it in tensors({"x": [a, "no"], "y": (Box(b),)})] == [id(a), id(b)]


def test_example_becomes_arguments():
    x = torch.ones(1)

    assert arguments(x) == ((x,), {})
    assert arguments((x, 3)) == ((x, 3), {})
    assert arguments({"x": x}) == ((), {"x": x})


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_every_tensor_with_the_batch_axis_gets_that_many_rows(rows):
    example = {"x": torch.randn(3, 2), "mask": torch.ones(3, dtype=torch.bool), "table": torch.ones(5), "scale": 2.0}

    found = with_rows(example, rows)

    assert [len(found["x"]), len(found["mask"]), len(found["table"])] == [rows, rows, 5]
    assert torch.equal(found["x"][0], example["x"][0])
    assert found["scale"] == 2.0


def test_memory_order_survives_more_rows():
    example = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)

    assert with_rows(example, 5).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("example", [torch.ones(0, 2), torch.tensor(1.0), {"x": 3}])
def test_example_without_a_row_is_refused(example):
    with pytest.raises(BadArgument, match="no sample") as error:
        batch_of(example)

    assert error.value.example is example
