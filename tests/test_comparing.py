import statistics

from hypothesis import given
from hypothesis import strategies as st
from races import LITE, carried_out, plan_of, trial_of, votes_of

from frostline.comparing import by_key, chain_of, is_within, paired
from frostline.search import strategy

figures = st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=30)


@given(figures)
def test_a_paired_difference_is_the_mean_of_the_differences_and_its_standard_error(pairs):
    ones, others = zip(*pairs, strict=True)
    differences = [one - other for one, other in pairs]

    mean, error = paired(ones, others)

    assert abs(mean - statistics.fmean(differences)) < 1e-9
    assert abs(error - statistics.stdev(differences) / len(pairs) ** 0.5) < 1e-9


@given(figures)
def test_who_is_first_changes_the_sign_alone(pairs):
    ones, others = zip(*pairs, strict=True)

    mean, error = paired(ones, others)

    assert paired(others, ones) == (-mean, error)


def test_a_paired_difference_of_equal_samples_has_no_error():
    assert paired([True, False], [True, False]) == (0.0, 0.0)


def test_a_difference_of_one_error_is_within_it():
    assert is_within(0.1 + 0.2, 0.3)
    assert not is_within(0.31, 0.3)


def test_of_a_spec_that_was_run_twice_the_better_trial_counts_in_either_order():
    spec = strategy(LITE, votes_of(LITE), plan_of(LITE), (), ())[0]
    failed, worse, better = trial_of(spec, 0, failure="killed"), trial_of(spec, 0.4), trial_of(spec, 0.2, noise=1)

    kept = [by_key(order)[spec.key] for order in ((failed, worse, better), (better, worse, failed))]

    assert kept == [better, better]


def test_a_chain_begins_with_the_oldest_trial_and_a_missing_parent_ends_it():
    trials = carried_out(LITE, plan_of(LITE), lambda spec: trial_of(spec, 0.1 + spec.depth / 20))
    by_spec = by_key(trials)
    last = next(trial for trial in trials if trial.spec.parent)
    parent = by_spec[str(last.spec.parent)]

    assert chain_of(last, by_spec) == (parent, last)
    assert chain_of(last, {}) == (last,)
