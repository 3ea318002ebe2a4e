"""Where trials run."""

from hypothesis import given
from hypothesis import strategies as st

from frostline.executors import in_turn
from frostline.records import Recipe, Trial, TrialSpec

specs = st.lists(
    st.builds(TrialSpec, depth=st.integers(0, 9), recipe=st.just(Recipe()), seed=st.integers(0, 9), epochs=st.just(1)),
    max_size=6,
).map(tuple)


@given(specs)
def test_each_spec_gives_its_trial_in_order(asked):
    trials = list(in_turn(lambda spec: Trial(spec=spec), asked))

    assert tuple(trial.spec for trial in trials) == asked


def test_trial_is_handed_on_before_the_next_one_starts():
    started = []

    def work(spec):
        started.append(spec.depth)
        return Trial(spec=spec)

    trials = in_turn(work, tuple(TrialSpec(depth=depth, recipe=Recipe(), seed=0, epochs=1) for depth in (3, 1)))

    assert next(trials).spec.depth == 3
    assert started == [3]
