"""Laws of the draws: nested, balanced, and exactly as wrong as asked for."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.data import TensorSamples
from frostline.sampling import Chosen, drawn, mislabelled

labelled = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda labels: torch.tensor(labels))
seeds = st.integers(0, 1000)


@settings(deadline=None)
@given(labelled, seeds, st.data())
def test_a_smaller_draw_is_part_of_a_larger_one(labels, seed, data):
    small, large = sorted(data.draw(st.tuples(*[st.integers(0, len(labels))] * 2)))

    found = [set(drawn(labels, samples, seed=seed).tolist()) for samples in (small, large)]

    assert found[0] <= found[1]
    assert [len(rows) for rows in found] == [small, large]


@settings(deadline=None)
@given(labelled, seeds, st.data())
def test_a_draw_takes_each_class_in_turn_while_it_lasts(labels, seed, data):
    samples = data.draw(st.integers(0, len(labels)))

    counts = labels[drawn(labels, samples, seed=seed)].bincount(minlength=5)

    most = int(counts.max())
    assert all(count >= min(most - 1, total) for count, total in zip(counts, labels.bincount(minlength=5), strict=True))


def test_another_seed_draws_others():
    labels = torch.arange(40) % 2

    assert not torch.equal(drawn(labels, 10, seed=0), drawn(labels, 10, seed=1))


def test_no_number_takes_all():
    assert drawn(torch.tensor([1, 0, 1]), None, seed=0).tolist() == [0, 1, 2]


@settings(deadline=None)
@given(labelled, st.floats(0, 1), seeds)
def test_exactly_the_share_asked_for_gets_another_class(labels, share, seed):
    given_labels = mislabelled(labels, share, classes=5, seed=seed)

    assert int((given_labels != labels).sum()) == round(share * len(labels))
    assert int(given_labels.min()) >= 0
    assert int(given_labels.max()) < 5


def test_wrong_labels_come_from_all_other_classes():
    labels = torch.zeros(500, dtype=torch.int64)

    assert (mislabelled(labels, 1.0, classes=4, seed=0).bincount(minlength=4) > 100).tolist() == [
        False,
        True,
        True,
        True,
    ]


def test_chosen_rows_are_those_of_the_part():
    part = TensorSamples(torch.arange(6.0)[:, None], torch.arange(6))

    chosen = Chosen(part, torch.tensor([5, 2, 0]))

    assert len(chosen) == 3
    assert chosen.read([2, 0])[0].flatten().tolist() == [0.0, 5.0]
