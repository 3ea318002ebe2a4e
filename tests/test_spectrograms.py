"""Sounds as pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.spectrograms import SIDES, spectrogram


def tone(pitch, length):
    """So many cycles in one value."""
    return torch.sin(2 * torch.pi * pitch * torch.arange(length))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([1.0, 0.0, float("nan"), 1e-30, 1e30]))
def test_a_sound_of_any_length_is_drawn_at_one_size(length, factor):
    picture = spectrogram(factor * tone(0.1, length))

    assert (picture.size, picture.mode) == (SIDES, "L")


@pytest.mark.parametrize("pitch", [0.05, 0.25, 0.45])
@pytest.mark.parametrize("length", [300, 5000])
def test_low_tones_are_at_the_bottom(pitch, length):
    rows = np.asarray(spectrogram(tone(pitch, length)), dtype=float).sum(axis=1)

    assert abs((1 - rows.argmax() / (SIDES[1] - 1)) - 2 * pitch) < 0.08


@pytest.mark.parametrize("length", [300, 2000])
def test_two_near_tones_are_two_lines(length):
    rows = np.asarray(spectrogram(tone(0.2, length) + tone(0.28, length)), dtype=float).mean(axis=1)

    first, second = (round(SIDES[1] * (1 - 2 * pitch)) for pitch in (0.2, 0.28))
    assert min(rows[first], rows[second]) > 1.5 * rows[(first + second) // 2]


def test_time_runs_to_the_right():
    columns = np.asarray(spectrogram(torch.cat([torch.zeros(900), tone(0.2, 300)])), dtype=float).sum(axis=0)

    assert columns[: SIDES[0] // 2].max() == 0
    assert columns[-SIDES[0] // 6 :].min() > 0


@given(st.integers(1, 2000), st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_silence_is_black_whatever_its_level(length, level):
    assert np.asarray(spectrogram(torch.full((length,), level))).max() == 0


def test_the_loudest_is_bright_and_sixty_decibels_less_is_black():
    pixels = np.asarray(spectrogram(torch.cat([tone(0.2, 2000), 0.0001 * tone(0.4, 2000)])))

    assert pixels.max() > 200
    assert pixels[:, -20:].max() == 0


def test_drawing_leaves_the_sound_as_it_was():
    wave = tone(0.1, 500)
    before = wave.clone()

    spectrogram(wave)

    assert torch.equal(wave, before)
