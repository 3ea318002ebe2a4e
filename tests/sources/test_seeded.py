"""Random numbers inside are repeatable, and outside nothing has happened."""

import random

import numpy as np
import pytest
import torch

from frostline.sources.seeded import seeded


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()


def test_same_seed_gives_the_same_numbers_everywhere():
    with seeded(3):
        first = draws()
    with seeded(3):
        second = draws()
    with seeded(4):
        third = draws()

    assert first == second
    assert not set(first) & set(third)


def test_callers_numbers_go_on_as_if_nothing_was():
    before = states()

    with seeded(3):
        draws()

    assert states() == before


def test_callers_numbers_are_put_back_after_an_error():
    before = states()

    with pytest.raises(ZeroDivisionError), seeded(3):
        raise ZeroDivisionError(draws())

    assert states() == before
