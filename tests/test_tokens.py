"""Which input holds the tokens, and which of them are padding."""

import pytest
import torch
from torch import nn

from frostline.testing import specimen
from frostline.tokens import embedded, find_counted, find_ids

IDS = torch.tensor([[5, 3, 2, 7], [4, 6, 0, 0], [2, 5, 3, 0]])


def counted_by(net, *inputs, place=0):
    return find_counted(net.eval(), lambda given: net(*given), inputs, place)


def test_ids_are_the_whole_numbers_of_the_largest_range():
    mask, places = (IDS > 0).long(), torch.arange(4).expand(3, 4)

    assert find_ids([mask, IDS, places]) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(3, 4),
        torch.ones(3, 4, dtype=torch.bool),
        torch.ones(3, 4, dtype=torch.int64),
        IDS - 1,
        IDS[:, :1],
        IDS[:, 0],
        IDS.to(torch.uint8),
    ],
    ids=["floats", "booleans", "a mask", "negative", "one each", "vectors", "bytes"],
)
def test_what_cannot_be_ids_is_none(tensor):
    assert find_ids([tensor]) is None


class Summing(nn.Module):
    """Adds up its embeddings, those that a mask leaves."""

    def __init__(self, marks, padding_idx=None):
        super().__init__()
        self.marks = marks
        self.words = nn.Embedding(8, 3, padding_idx=padding_idx)

    def forward(self, ids, mask=None):
        words = self.words(ids)
        return words.sum(dim=1) if mask is None else (words * (mask == self.marks)[..., None]).sum(dim=1)


@pytest.mark.parametrize("marks", [0, 1, 0.0, 1.0, False, True])
def test_a_mask_is_understood_whichever_way_it_is_meant(marks):
    is_hidden = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    mask = (~is_hidden if marks else is_hidden).to(torch.tensor(marks).dtype)

    counted = counted_by(Summing(marks), IDS, mask)

    assert torch.equal(counted, ~is_hidden & (IDS != 0))


def test_token_types_hide_nothing():
    class Typed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.types = nn.Embedding(8, 3), nn.Embedding(2, 3)

        def forward(self, ids, types):
            return (self.words(ids) + self.types(types)).sum(dim=1)

    ids = torch.tensor([[5, 3, 2, 7], [4, 6, 1, 2]])

    assert counted_by(Typed(), ids, torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])).all()


def test_a_network_that_looks_at_nothing_hides_nothing():
    class Deaf(nn.Module):
        def forward(self, ids, mask):
            return torch.zeros(len(ids), 2)

    ids = torch.tensor([[5, 3, 2, 7], [4, 6, 1, 2]])

    assert counted_by(Deaf(), ids, torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])).all()


def test_padding_that_an_embedding_declares_does_not_count():
    ids = torch.tensor([[5, 3, 2, 4], [4, 6, 2, 7]])

    counted = counted_by(Summing(1, padding_idx=7), ids)

    assert torch.equal(counted, ids != 7)


@pytest.mark.parametrize("is_left", [False, True])
def test_an_id_that_stands_in_a_run_at_one_end_alone_is_padding(is_left):
    ids = IDS.flip(1) if is_left else IDS

    assert torch.equal(counted_by(Summing(1), ids), ids != 0)


@pytest.mark.parametrize(
    "ids",
    [[[5, 3, 2, 7], [4, 6, 1, 7]], [[5, 3, 0, 0], [0, 6, 1, 2]], [[0, 5, 1, 0], [0, 4, 6, 2]]],
    ids=["one at every end", "within a text too", "at both ends"],
)
def test_an_id_that_stands_elsewhere_or_alone_is_no_padding(ids):
    assert counted_by(Summing(1), torch.tensor(ids)).all()


def test_a_look_at_the_embeddings_leaves_no_hook():
    one = specimen("padded_tokens")
    net, (ids, is_padding) = one.model.eval(), one.inputs

    with embedded(net, ids) as found:
        net(ids, is_padding)

    assert [module for module, _ in found] == [net.words]
    assert not any(module._forward_hooks for module in net.modules())
