import statistics

from hypothesis import given
from hypothesis import strategies as st
from races import LITE, carried_out, plan_of, trial_of, votes_of

from frostline.comparing import accuracy_interval, by_key, chain_of, is_within, paired
from frostline.cost import wilson
from frostline.records import Trial
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


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10), st.integers(1, 3)), min_size=2, max_size=20))
def test_a_sample_that_counts_twice_shifts_the_mean_as_two_would(rows):
    ones, others, counts = zip(*rows, strict=True)
    weights = [count * len(rows) / sum(counts) for count in counts]

    mean, _ = paired(ones, others, weights)

    repeated = [one - other for one, other, count in rows for _ in range(count)]
    assert abs(mean - statistics.fmean(repeated)) < 1e-9


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_samples_of_equal_weight_have_wilsons_interval(hits):
    spec = strategy(LITE, votes_of(LITE), plan_of(LITE), (), ())[0]
    plain = Trial(spec=spec, hits=tuple(hits))

    found = accuracy_interval(plain), accuracy_interval(plain.model_copy(update={"sample_weights": (1.0,) * len(hits)}))

    assert found == (wilson(sum(hits), len(hits)),) * 2


def test_an_interval_is_wider_where_few_samples_weigh_most():
    spec = strategy(LITE, votes_of(LITE), plan_of(LITE), (), ())[0]
    even = Trial(spec=spec, hits=(True, False) * 50)
    uneven = even.model_copy(update={"sample_weights": (9.0, 9.0, *((82 / 98,) * 98))})

    widths = [high - low for low, high in map(accuracy_interval, (even, uneven))]

    assert widths[1] > 1.1 * widths[0]
