"""What every fact has in common: a key that follows from its content alone."""

from hypothesis import given
from hypothesis import strategies as st

from frostline.record import Record


class Fact(Record):
    number: int
    words: tuple[str, ...] = ()


facts = st.builds(Fact, number=st.integers(-5, 5), words=st.lists(st.text(max_size=3), max_size=2).map(tuple))


@given(facts, facts)
def test_keys_are_equal_where_the_content_is(one, other):
    assert (one.key == other.key) == (one == other)


def test_key_is_the_same_in_every_process():
    assert Fact(number=1, words=("ice",)).key == "5e7f9c87b0eeab98"
