"""Mini-batches, spans and rates of a rung follow from its spec alone."""

import itertools

import pytest
import torch

from frostline.records import Recipe, TrialSpec
from frostline.schedules import batches_of, rate_factor, span_of

SAMPLES = 37


def spec_of(epochs=2, *, parent=None, first_epoch=0, depth=0, **recipe):
    given = {"schedule": "constant", "batch_size": 8, **recipe}
    return TrialSpec(depth=depth, recipe=Recipe(**given), seed=0, epochs=epochs, parent=parent, first_epoch=first_epoch)


def test_every_depth_sees_the_same_mini_batches():
    shallow, deep = spec_of(depth=1), spec_of(depth=7, learning_rate=1e-4)

    batches = [batches_of(SAMPLES, spec, epoch=3) for spec in (shallow, deep)]

    assert all(torch.equal(one, two) for one, two in zip(*batches, strict=True))
    assert not torch.equal(torch.cat(batches[0]), torch.cat(batches_of(SAMPLES, shallow, epoch=4)))
    assert sorted(torch.cat(batches[0]).tolist()) == list(range(SAMPLES))


def test_a_single_last_sample_joins_the_batch_before_where_batch_norm_needs_company():
    spec = spec_of(norm_mode="train", batch_size=6)

    assert [len(batch) for batch in batches_of(13, spec, epoch=1)] == [6, 7]
    assert [len(batch) for batch in batches_of(13, spec_of(batch_size=6), epoch=1)] == [6, 6, 1]


@pytest.mark.parametrize("steps", [7, 39, 48])
@pytest.mark.parametrize("epochs", [1.0, 0.5, 5.7, 2 / 3])
def test_the_halves_of_a_lap_have_its_steps(steps, epochs):
    whole, first, second = (
        span_of(spec_of(length, first_epoch=begin, parent="p" if begin else None), steps)
        for begin, length in ((0, epochs), (0, epochs / 2), (epochs / 2, epochs / 2))
    )

    assert (first[0], first[1], second[1]) == (whole[0], second[0], whole[1])


def test_the_rate_rises_then_falls_to_nothing():
    spec = spec_of(3, schedule="cosine", warmup=1.0)

    factors = [rate_factor(spec, 4, step) for step in range(1, 13)]

    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[4:]))
    assert 0 < factors[-1] < 0.1


def test_a_child_starts_at_the_full_rate():
    spec = spec_of(2, parent="x", first_epoch=1, warmup=1.0)

    assert [rate_factor(spec, 4, step) for step in (5, 12)] == [1.0, 1.0]


def test_a_child_goes_on_with_the_rise_of_its_parent():
    parent, child = spec_of(0.5, warmup=1.0), spec_of(2, parent="x", first_epoch=0.5, warmup=1.0)

    factors = [*(rate_factor(parent, 4, step) for step in (1, 2)), *(rate_factor(child, 4, step) for step in (3, 4, 5))]

    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]
