"""Laws of the similarity of features."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.errors import BadArgument
from frostline.similarity import similarity

seeds = st.integers(0, 10_000)
samples = st.integers(4, 40)
widths = st.integers(1, 60)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(6, 40), widths)
def test_features_are_wholly_like_themselves(seed, n, width):
    x = drawn(seed, n, width)

    assert similarity(x, x) == pytest.approx(1.0)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(6, 40), widths, st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_rotation_factor_and_shift_change_nothing(seed, n, width, factor, shift):
    x, y = drawn(seed, n, width), drawn(seed + 1, n, width) + drawn(seed, n, width)
    rotation = torch.linalg.qr(drawn(seed + 2, width, width)).Q

    assert similarity(factor * x @ rotation + shift, y) == pytest.approx(similarity(x, y), abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(6, 40), widths, widths)
def test_it_does_not_matter_which_comes_first(seed, n, one, other):
    x, y = drawn(seed, n, one), drawn(seed + 1, n, other)

    assert similarity(x, y) == pytest.approx(similarity(y, x))


@pytest.mark.parametrize("width", [2, 50, 500])
def test_features_that_have_nothing_in_common_are_unlike_on_average(width):
    found = [similarity(drawn(2 * seed, 30, width), drawn(2 * seed + 1, 30, width)) for seed in range(200)]

    assert abs(sum(found) / len(found)) < 0.03


def test_features_in_part_the_same_lie_between():
    x = drawn(0, 60, 8)

    assert 0.2 < similarity(x, x + drawn(1, 60, 8)) < 0.9


def test_features_that_do_not_vary_are_like_nothing():
    assert similarity(torch.ones(9, 3), drawn(0, 9, 3)) == 0.0


@pytest.mark.parametrize(("one", "other"), [(3, 3), (8, 9)])
def test_too_few_or_other_samples_are_refused(one, other):
    with pytest.raises(BadArgument, match="same samples, at least 4"):
        similarity(torch.zeros(one, 2), torch.zeros(other, 2))
