"""Names stay one line of text, and figures say what they are."""

import html
import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frostline.amounts import (
    UNKNOWN,
    axis_share,
    byte_count,
    decimal,
    duration,
    even_ticks,
    interval,
    label,
    rate,
    scaled,
    share,
    visible,
)

anything = st.text(st.characters(), max_size=40)


@given(anything)
def test_a_label_holds_nothing_that_plotly_reads_as_markup(name):
    written = label(name)

    assert not set(written) & set("<>$")
    assert html.unescape(written) == visible(name)


@given(anything)
def test_a_visible_name_is_one_line_that_can_be_written_to_a_file(name):
    written = visible(name)

    assert written.isprintable()
    assert len(written.splitlines()) <= 1
    written.encode("utf-8")


def test_names_that_hold_no_control_character_stay_as_they_are():
    assert visible("Ünïcödé <b> 猫") == "Ünïcödé <b> 猫"


@given(st.floats(0, 1))
def test_a_share_reads_back_to_three_digits(value):
    assert float(share(value)) == pytest.approx(value, abs=5.1e-4)


def test_a_share_never_shows_a_leading_nought():
    assert [share(value) for value in (0, 0.5, 0.9996, 1, 1.5, -0.02)] == [
        ".000",
        ".500",
        "1.000",
        "1.000",
        "1.50",
        "-.020",
    ]
    assert interval(0.972, 0.958, 0.984) == ".972 (.958–.984)"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_was_not_measured_says_so(value):
    assert share(value) == decimal(value) == duration(value) == UNKNOWN


@example(216_000)
@given(st.floats(0, 1e7))
def test_a_duration_carries_its_unit_and_never_sixty_of_the_smaller_one(seconds):
    written = duration(seconds)

    assert written.endswith((" s", " min"))
    assert all(smaller not in f" {written}" for smaller in (" 60 s", " 60 min"))


def test_counts_bytes_and_rates_are_short_and_carry_their_unit():
    assert scaled(999_999, "B") == "1.00 MB"
    assert byte_count(0) == "0 B"
    assert byte_count(412_000_000) == "412 MB"
    assert scaled(math.nan) == UNKNOWN
    assert [rate(value) for value in (3e-4, 1e-2, 1.25e-3)] == ["3e-4", "1e-2", "1.25e-3"]


@given(st.floats(0, 100), st.floats(0, 100))
def test_ticks_are_even_and_hold_the_range_between_them(one, other):
    low, high = sorted((one, other))

    ticks = even_ticks(low, high)

    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 9
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_ticks_are_written_short():
    assert [axis_share(tick) for tick in (0, 0.5, 0.875, 1, 1.5)] == ["0", ".5", ".875", "1", "1.5"]
