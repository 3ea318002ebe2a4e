import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.leaving_out import balancing, leave_one_out, worth


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
