"""The one factor on a network's outputs that makes the labels most likely."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.calibration import HOTTEST, best_temperature


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_no_temperature_near_by_is_better(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (50,), generator=generator)
    outputs = nn.functional.one_hot(labels, 3) + torch.randn(50, 3, generator=generator, dtype=torch.float64)

    found = best_temperature(outputs, labels)

    def loss(factor):
        return float(nn.functional.cross_entropy(outputs * factor, labels))

    assert loss(found) <= min(loss(found * 1.02), loss(found / 1.02))


def test_a_set_that_separates_does_not_make_the_head_infinitely_sure():
    assert best_temperature(torch.eye(3).double(), torch.arange(3)) == HOTTEST
