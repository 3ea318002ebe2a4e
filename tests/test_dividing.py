"""Parts: everything in one, copies together, shares kept, no matter how files are called."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.dividing import counts, divide, missing_parts
from frostline.errors import BadSplit, ClassTooSmall
from frostline.listing import Listing

quick = settings(max_examples=25, deadline=None)


def listing_of(pictures, parts=None):
    """A listing of (content, label) pairs; equal contents are copies."""
    return Listing(
        name="photos",
        names=tuple(f"{row}.png" for row in range(len(pictures))),
        labels=tuple(label for _, label in pictures),
        classes=tuple(f"class {label}" for label in range(1 + max(label for _, label in pictures))),
        parts=tuple(parts or [None] * len(pictures)),
        content=lambda row: pictures[row][0].encode(),
        digests=tuple(content for content, _ in pictures),
    )


@st.composite
def folders(draw):
    """Two to four classes of 3 to 30 different pictures each, some copied, some under two labels."""
    classes = draw(st.integers(2, 4))
    pictures = []
    for label in range(classes):
        for number in range(draw(st.integers(3, 30))):
            pictures += [(f"{label}/{number}", label)] * draw(st.sampled_from([1, 1, 1, 2, 5]))
    for content, label in draw(st.lists(st.sampled_from(pictures), max_size=3)):
        pictures.append((content, (label + 1) % classes))
    return pictures


# --- laws -------------------------------------------------------------------------------------


@quick
@given(folders(), st.integers(0, 5))
def test_every_row_is_in_one_part(pictures, seed):
    parts = divide(listing_of(pictures), 0.2, 0.2, seed)

    assert sorted(row for rows in parts.values() for row in rows) == list(range(len(pictures)))


@quick
@given(folders(), st.integers(0, 5))
def test_equal_bytes_are_never_on_two_sides(pictures, seed):
    parts = divide(listing_of(pictures), 0.2, 0.2, seed)

    sides = [{pictures[row][0] for row in rows} for rows in parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


@quick
@given(folders(), st.integers(0, 5))
def test_every_class_is_in_every_part(pictures, seed):
    listing = listing_of(pictures)

    assert all(min(row) >= 1 for row in counts(listing, divide(listing, 0.2, 0.2, seed)))


@quick
@given(folders(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_and_names_of_files_move_nothing(pictures, seed, random):
    # Of the same bytes under two labels the first counts, so here each content has its first label only.
    unique = list(dict(reversed(pictures)).items())
    shuffled = random.sample(unique, len(unique))

    first, second = (divide(listing_of(rows), 0.2, 0.2, seed) for rows in (unique, shuffled))

    assert {unique[row] for row in first["test"]} == {shuffled[row] for row in second["test"]}
    assert {unique[row] for row in first["valid"]} == {shuffled[row] for row in second["valid"]}


@quick
@given(st.integers(5, 80), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_shares_are_of_everything_to_within_half_a_picture(number, valid, test):
    pictures = [(f"{label}/{row}", label) for label in range(2) for row in range(number)]
    listing = listing_of(pictures)

    for _, validated, tested in counts(listing, divide(listing, valid, test, 0)):
        assert validated == max(1, round(valid * number))
        assert tested == max(1, round(test * number))


# --- examples ---------------------------------------------------------------------------------


def test_another_seed_gives_another_division():
    listing = listing_of([(f"{label}/{row}", label) for label in range(2) for row in range(30)])

    assert divide(listing, 0.2, 0.2, 0) != divide(listing, 0.2, 0.2, 1)


def test_copies_go_to_the_training_part_first():
    pictures = [(f"{label}/{row}", label) for label in range(2) for row in range(10)]
    pictures += [("0/0", 0)] * 4

    parts = divide(listing_of(pictures), 0.2, 0.2, 0)

    assert 0 in parts["train"]


@pytest.mark.parametrize(("given_parts", "missing"), [(("train", "test"), "valid"), (("train", "valid"), "test")])
def test_missing_part_is_drawn_from_the_training_part(given_parts, missing):
    pictures = [(f"{part}/{label}/{row}", label) for part in given_parts for label in range(2) for row in range(10)]
    listing = listing_of(pictures, [part for part in given_parts for _ in range(20)])

    parts = divide(listing, 0.2, 0.2, 0)

    assert [len(parts[part]) for part in (missing, "train", given_parts[1])] == [4, 16, 20]
    assert set(parts[missing]) < set(range(20))


def test_given_parts_are_kept_whatever_the_shares():
    given_parts = ["train", "train", "valid", "test"] * 2
    listing = listing_of([(str(row), row // 4) for row in range(8)], given_parts)

    parts = divide(listing, 5.0, -1.0, 0)

    assert Counter(given_parts) == {part: len(rows) for part, rows in parts.items()}


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.7, 0.4), (0.0, 0.2), (0.2, 0.0), (-0.1, 0.2), (0.2, 1.0)])
def test_shares_that_leave_a_part_empty_are_refused(valid, test):
    listing = listing_of([(str(row), row % 2) for row in range(20)])

    with pytest.raises(BadSplit, match=r"--(valid|test)"):
        missing_parts(listing, valid, test)


def test_small_classes_are_named_with_their_counts_and_what_is_needed():
    pictures = [*((f"0/{row}", 0) for row in range(9)), ("1/0", 1), ("1/1", 1), ("1/1", 1)]

    with pytest.raises(ClassTooSmall, match=r"'class 1' has 2; 3 different pictures are needed") as caught:
        divide(listing_of(pictures), 0.2, 0.2, 0)

    assert caught.value.counts == (("class 1", 2),)
