"""The stream of events."""

from hypothesis import given
from hypothesis import strategies as st

from frostline.events import Event, silent, watched


@given(st.lists(st.integers(), max_size=8))
def test_watching_hands_on_every_item_and_counts_it(items):
    heard = []

    handed_on = list(watched(items, heard.append, "read", total=len(items), unit="pictures"))

    assert handed_on == items
    assert [event.done for event in heard] == list(range(len(items) + 1))
    assert {(event.phase, event.total, event.unit) for event in heard} == {("read", len(items), "pictures")}


def test_item_counts_only_when_it_has_been_worked_on():
    heard = []

    items = watched("ab", heard.append, "store", total=2)
    next(items)

    assert [event.done for event in heard] == [0]


def test_fraction_of_an_unknown_total_is_nothing():
    assert Event(phase="train", done=3).fraction == 0.0


def test_nobody_need_listen():
    assert silent(Event(phase="train")) is None
