import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from frostline.calibration import best_temperature
from frostline.data import TensorSamples
from frostline.engines import compiled
from frostline.probing import MOST_ROWS, NEIGHBOURS, Pooled, nearest, probe, ridge
from frostline.tracing import trace


def table(samples, width, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    y = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return x + 3, y + x[:, :1]


def left_out_by_force(x, y, penalty):
    """Fit without each row in turn, the bias unpenalised."""
    predictions = []
    for row in range(len(x)):
        others = [other for other in range(len(x)) if other != row]
        x_mean, y_mean = x[others].mean(0), y[others].mean(0)
        z = x[others] - x_mean
        weight = torch.linalg.solve(
            z.T @ z + penalty * torch.eye(x.shape[1], dtype=x.dtype), z.T @ (y[others] - y_mean)
        )
        predictions.append((x[row] - x_mean) @ weight + y_mean)
    return torch.stack(predictions)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 16), st.integers(1, 24), st.integers(1, 3), st.integers(0, 100))
def test_leave_one_out_in_closed_form_is_leave_one_out_by_force(samples, width, classes, seed):
    x, y = table(samples, width, classes, seed)

    fit = ridge(x, y)

    torch.testing.assert_close(fit.left_out, left_out_by_force(x, y, fit.penalty), rtol=1e-5, atol=1e-6)


def test_leave_one_out_is_exact_to_rounding_where_the_fit_is_well_conditioned():
    x, y = table(60, 12, 3)

    fit = ridge(x, y)

    torch.testing.assert_close(fit.left_out, left_out_by_force(x, y, fit.penalty), rtol=1e-12, atol=1e-12)


def test_weight_and_bias_are_those_of_the_fit_on_all_rows():
    for samples, width in ((30, 5), (10, 40)):
        x, y = table(samples, width, 2)

        fit = ridge(x, y)

        z = x - x.mean(0)
        own = torch.linalg.solve(z.T @ z + fit.penalty * torch.eye(width, dtype=x.dtype), z.T @ (y - y.mean(0)))
        torch.testing.assert_close(fit.weight, own.T, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(fit.bias, y.mean(0) - x.mean(0) @ own)


def test_the_penalty_is_the_best_of_its_neighbours():
    x, y = table(40, 6, 2)

    fit = ridge(x, y)

    def error(penalty):
        return float((y - left_out_by_force(x, y, penalty)).square().sum())

    assert error(fit.penalty) <= min(error(fit.penalty * 3), error(fit.penalty / 3))


def test_features_that_never_vary_predict_the_mean_of_the_others():
    y = torch.tensor([[0.0], [0.0], [3.0]], dtype=torch.float64)

    fit = ridge(torch.ones(3, 4), y)

    torch.testing.assert_close(fit.left_out.flatten(), torch.tensor([1.5, 1.5, 0.0], dtype=torch.float64))


class Small(nn.Module):
    """Convolutions, a normalisation that moves the channels last, tokens, and a head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(5, 6, 2, stride=2), nn.ReLU())
        self.mix = nn.Sequential(nn.Linear(6, 24), nn.LayerNorm(24))
        self.tokens = nn.Linear(24, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.mix(self.down(self.conv(x)).permute(0, 2, 3, 1))
        return self.head(self.tokens(x.flatten(1, 2)).mean(1))


def pooled(maps, axes):
    return torch.cat([maps.mean(axes), maps.std(axes, unbiased=False)], dim=1)


def test_features_are_pooled_over_positions_in_every_layout():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Small().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)

    with torch.no_grad():
        found = Pooled(net, graph)(x)
        conv = net.conv(x)
        down = net.down(conv)
        mix = net.mix(down.permute(0, 2, 3, 1))
        tokens = net.tokens(mix.flatten(1, 2))

    expected = [pooled(conv, (2, 3)), pooled(down, (2, 3)), pooled(mix, (1, 2)), pooled(tokens, (1,)), tokens.mean(1)]
    assert graph.open_depths == (0, 1, 2, 3, 4)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_pooling_leaves_the_network_alone():
    net = Small().train()
    x = torch.randn(2, 3, 8, 8)
    graph = trace(net, x)

    Pooled(net, graph)(x)

    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_pooling_borrows_the_weights():
    net = Small()

    copy = Pooled(net, trace(net, torch.randn(2, 3, 8, 8)))

    assert {id(parameter) for parameter in copy.parameters()} == {id(parameter) for parameter in net.parameters()}


def test_openvino_pools_as_torch_does():
    pytest.importorskip("openvino")
    net, x = Small().eval(), torch.randn(4, 3, 8, 8)
    module = Pooled(net, trace(net, x))

    with torch.no_grad():
        expected = module(x)
    found = compiled(module, (x,), engine="openvino")((x,))

    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def separable(samples=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 4
    x = torch.randn(samples, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return TensorSamples(x, labels)


def voted(net, samples, folder, **more):
    graph = trace(net, samples.read(range(4))[0])
    module = Pooled(net, graph)

    def engine(inputs):
        with torch.no_grad():
            return module(*inputs)

    return graph, probe(graph, samples, engine, folder=folder, **more)


def test_every_open_depth_above_nothing_votes(tmp_path):
    graph, prior = voted(Small(), separable(), tmp_path)

    assert [vote.depth for vote in prior.votes] == list(graph.open_depths[1:])
    assert all(0 <= vote.low <= vote.accuracy <= vote.high <= 1 for vote in prior.votes)
    assert prior.votes[0].accuracy > 0.5
    assert prior.samples == 90


def test_labels_that_may_be_wrong_are_named_by_sample_class_and_likeness(tmp_path, monkeypatch):
    # Only every second sample or so votes, so that places among them are not numbers of samples.
    monkeypatch.setattr("frostline.probing.MOST_ROWS", 200)
    samples = separable(400)
    labels = samples.labels.clone()
    wrong = {row: int(labels[row]) for row in range(20, 400, 40)}
    for row, label in wrong.items():
        labels[row] = (label + 1) % 4

    # Of ten networks drawn anew one found a single wrong label, and one five.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        net = Small()

    doubts = voted(net, TensorSamples(samples.read(range(400))[0], labels), tmp_path)[1].doubts

    named = [doubt for doubt in doubts if doubt.sample in wrong]
    assert len(named) > 2
    assert all(doubt.label == labels[doubt.sample] for doubt in doubts)
    assert all(doubt.prediction == wrong[doubt.sample] for doubt in named)
    # Of 200 right labels a few may look wrong with a probability of .95.
    assert len(doubts) - len(named) <= 2
    assert len(voted(net, samples, tmp_path)[1].doubts) <= 2


def test_votes_do_not_depend_on_the_batch_size(tmp_path):
    net = Small()

    _, small = voted(net, separable(), tmp_path, batch_size=7)
    _, large = voted(net, separable(), tmp_path, batch_size=90)

    assert [vote.accuracy for vote in small.votes] == [vote.accuracy for vote in large.votes]


def test_the_warm_head_says_at_the_deepest_cut_what_the_ridge_says(tmp_path):
    net, samples = Small(), separable()
    graph, prior = voted(net, samples, tmp_path)
    head = load_file(tmp_path / prior.head)

    with torch.no_grad():
        own = Pooled(net, graph)(*samples.read(range(90)))[-1]
    fit = ridge(own, nn.functional.one_hot(samples.labels, 4))

    assert prior.temperature == pytest.approx(best_temperature(fit.left_out, samples.labels), rel=1e-3)
    expected = (own.double() @ fit.weight.T + fit.bias) * prior.temperature
    torch.testing.assert_close(own @ head["weight"].T + head["bias"], expected.float(), rtol=1e-4, atol=1e-3)


def test_a_network_without_a_linear_head_has_no_warm_head(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())

    _, prior = voted(net, separable(), tmp_path)

    assert prior.head is None
    assert not list(tmp_path.iterdir())


def test_a_large_set_votes_by_a_sample_of_it(tmp_path):
    samples = separable(MOST_ROWS + 50)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))

    _, prior = voted(net, samples, tmp_path, batch_size=512)

    assert prior.samples == MOST_ROWS


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_openvino_pools_known_backbones(name):
    timm = pytest.importorskip("timm")
    pytest.importorskip("openvino")
    size = 224 if "224" in name else 96
    net, x = timm.create_model(name, num_classes=5).eval(), torch.randn(4, 3, size, size)
    module = Pooled(net, trace(net, x))

    with torch.no_grad():
        expected = module(x)
    found = compiled(module, (x,), engine="openvino")((x,))

    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


def neighbours_by_force(x, labels, count):
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    hits = 0
    for row in range(len(x)):
        likeness = nn.functional.cosine_similarity(z[row : row + 1], z)
        likeness[row] = -2
        nearest_rows = likeness.argsort(descending=True)[:count]
        shares = torch.zeros(int(labels.max()) + 1)
        for other in nearest_rows:
            shares[labels[other]] += torch.exp(likeness[other] / 0.07)
        hits += int(shares.argmax() == labels[row])
    return hits / len(x)


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 40), st.integers(1, 6), st.integers(0, 100))
def test_nearest_neighbours_vote_as_they_do_by_force(samples, width, seed):
    x, _ = table(samples, width, 1, seed)
    labels = (x[:, 0] > 3).long()

    found = nearest(x, labels)

    # Two rows on one line through the mean are as like each other as can be, and rounding orders them.
    by_force = max(neighbours_by_force(x, labels, count) for count in NEIGHBOURS)
    assert width == 1 or found == pytest.approx(by_force)


def test_nearest_neighbours_find_classes_that_no_line_divides():
    angle = torch.linspace(0, 6.28, 121)[:-1]
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = (torch.arange(120) // 15) % 2

    assert nearest(x, labels) > 0.85
    fit = ridge(x, nn.functional.one_hot(labels))
    assert (fit.left_out.argmax(1) == labels).float().mean() < 0.6


def test_a_sample_is_not_its_own_neighbour():
    x = torch.eye(8)

    assert nearest(x, torch.arange(8)) == 0.0


def test_features_that_never_vary_have_no_say_among_neighbours():
    x, _ = table(60, 2, 1)
    labels = (x[:, 0] > 3).long()
    padded = torch.cat([x, torch.zeros(60, 50, dtype=x.dtype)], dim=1)

    assert nearest(padded, labels) == nearest(x, labels)


def test_every_vote_says_what_the_nearest_neighbours_say(tmp_path):
    _, prior = voted(Small(), separable(), tmp_path)

    assert all(vote.knn is not None and 0 <= vote.knn <= 1 for vote in prior.votes)
    assert prior.votes[0].knn > 0.5
