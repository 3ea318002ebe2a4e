import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.leaving_out import balancing, doubtful, leave_one_out, worth


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 9), st.integers(1, 3), st.integers(0, 9))
def test_residuals_are_those_of_fits_without_the_row(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, size, generator=generator, dtype=torch.float64) for size in (width, 2))
    x, y = x - x.mean(0), y - y.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x)

    found = leave_one_out(values, x @ vectors, y)

    for row in range(rows):
        kept = [other for other in range(rows) if other != row]
        x_mean, y_mean = x[kept].mean(0), y[kept].mean(0)
        a, b = x[kept] - x_mean, y[kept] - y_mean
        weight = torch.linalg.solve(a.T @ a + found.penalty * torch.eye(width), a.T @ b)
        expected = y[row] - y_mean - (x[row] - x_mean) @ weight
        torch.testing.assert_close(found.residual[row], expected, rtol=1e-6, atol=1e-8)


def test_predictions_are_worth_their_hits_and_their_likelihood_at_the_best_temperature():
    right = torch.eye(2).repeat(10, 1)
    labels = torch.tensor([0, 1] * 10)

    all_right, none_right = worth(right, labels), worth(right, 1 - labels)

    assert (all_right.accuracy, all_right.high, none_right.accuracy, none_right.low) == (1.0, 1.0, 0.0, 0.0)
    assert all_right.loss < 1e-6 < none_right.loss


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=3, max_size=40))
def test_with_balancing_weights_accuracy_is_the_mean_over_classes(answers):
    labels = torch.tensor([label for label, _ in answers])
    right = torch.tensor([hit for _, hit in answers])
    predictions = torch.nn.functional.one_hot(torch.where(right, labels, (labels + 1) % 3), 3).float()

    found = worth(predictions, labels, balancing(labels))

    by_class = [right[labels == label].float().mean() for label in labels.unique()]
    assert abs(found.accuracy - float(torch.stack(by_class).mean())) < 1e-6


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_balancing_weights_are_one_in_the_mean_and_sum_alike_over_classes(labels):
    numbers = torch.tensor(labels)

    weights = balancing(numbers)

    sums = [float(weights[numbers == label].sum()) for label in numbers.unique()]
    assert abs(float(weights.mean()) - 1) < 1e-5
    assert max(sums) - min(sums) < 1e-4


def clear_scores(classes, samples, seed=0):
    """Scores that name every class rightly and surely, each alike, and the labels."""
    labels = torch.arange(samples) % classes
    noise = torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.one_hot(labels, classes) + 0.02 * noise, labels


@settings(max_examples=25, deadline=None)
# Of 200 labels: were more wrong than one in twenty, nothing could be said with a probability of .95.
@given(st.integers(2, 8), st.sets(st.integers(0, 199), max_size=4), st.integers(1, 3), st.integers(0, 9))
def test_wrong_labels_among_clear_ones_are_in_doubt_and_no_others(classes, wrong, fits, seed):
    predictions, labels = zip(*(clear_scores(classes, 200, seed + fit) for fit in range(fits)), strict=True)
    true = labels[0]
    given_labels = true.clone()
    for row in wrong:
        given_labels[row] = (true[row] + 1) % classes

    found = doubtful(predictions, given_labels)

    assert {row: other for row, (other, _) in found.items()} == {row: int(true[row]) for row in wrong}
    sureness = [confidence for _, confidence in found.values()]
    assert sureness == sorted(sureness, reverse=True)


def test_scores_that_know_nothing_call_nothing_into_question():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 4, generator=generator, dtype=torch.float64)

    assert doubtful([scores], torch.randint(4, (500,), generator=generator)) == {}


def test_one_fit_alone_does_not_outvote_the_others():
    scores, labels = clear_scores(3, 90)
    odd = scores.clone()
    odd[7] = scores[8]

    assert doubtful([scores, scores, odd], labels) == {}
    assert list(doubtful([odd], labels)) == [7]
