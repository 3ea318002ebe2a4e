"""What the evidence asks to be tried."""

from hypothesis import given
from hypothesis import strategies as st

from frostline.attempts import Attempt, Outcome
from frostline.records import Recipe, TrialSpec

SPEC = TrialSpec(depth=3, recipe=Recipe(), seed=1, epochs=4)
attempts = st.builds(
    Attempt,
    kind=st.sampled_from(["train", "probe", "memory"]),
    trial=st.just(SPEC),
    prefix=st.sampled_from(["pretrained", "random", "matched"]),
    samples=st.none() | st.integers(2, 9),
    noise=st.sampled_from([0.0, 0.2]),
)


@given(attempts, attempts)
def test_attempts_share_a_key_exactly_where_they_ask_for_the_same(one, other):
    assert (one.key == other.key) == (one == other)


@given(st.lists(st.booleans(), max_size=9))
def test_outcome_survives_the_disk(hits):
    outcome = Outcome(attempt=Attempt(trial=SPEC), test_hits=tuple(hits), failure="it failed" if not hits else None)

    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome


def test_outcome_that_was_written_before_energy_was_read_still_opens():
    written = Outcome(attempt=Attempt(trial=SPEC)).model_dump(mode="json")
    del written["joules"]

    assert Outcome.model_validate(written).joules is None


def test_accuracy_is_the_share_of_right_answers():
    assert Outcome(attempt=Attempt(trial=SPEC), test_hits=(True, False, True, True)).accuracy == 0.75


def test_outcome_without_answers_has_no_accuracy_to_speak_of():
    assert Outcome(attempt=Attempt(trial=SPEC), failure="the loss is nan").accuracy == 0.0
