"""Weights drawn anew: which, how, and that nothing else moves."""

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.redrawing import redrawn


class Small(nn.Module):
    """A convolution with its norm, a parameter that no module draws, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 40, 3, bias=False), nn.BatchNorm2d(40), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(40, 40, 3), nn.BatchNorm2d(40), nn.ReLU())
        self.place = nn.Parameter(torch.full((40, 4, 4), 5.0))
        self.head = nn.Linear(40, 2)

    def forward(self, x):
        return self.head((self.body(self.stem(x)) + self.place).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Small()
        with torch.no_grad():
            net.stem[0].weight.mul_(3).add_(1)
            net.body[1].running_mean.fill_(7)
    return net.eval()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [(100 * torch.randn(8, 3, 8, 8, generator=generator) + 30,) for _ in range(4)]


@pytest.fixture(scope="module")
def stages(network, batches):
    return fl.trace(network, batches[0]).stages


def changed(one, other):
    before = one.state_dict()
    return {name for name, tensor in other.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("is_matched", [False, True])
def test_only_the_stages_asked_for_are_drawn(network, stages, batches, is_matched):
    other = redrawn(network, stages[:1], seed=0, batches=batches, is_matched=is_matched)

    assert changed(network, other) <= set(stages[0].keys)
    assert "stem.0.weight" in changed(network, other)


@pytest.mark.parametrize("is_matched", [False, True])
def test_one_seed_gives_one_network_and_another_seed_another(network, stages, batches, is_matched):
    first, again, other = (
        redrawn(network, stages[:-1], seed=seed, batches=batches, is_matched=is_matched) for seed in (3, 3, 4)
    )

    assert changed(first, again) == set()
    assert "stem.0.weight" in changed(first, other)


def test_matched_weights_have_the_mean_and_spread_of_the_pretrained(network, stages, batches):
    before = network.stem[0].weight.detach()

    weight = redrawn(network, stages[:1], seed=0, batches=batches, is_matched=True).stem[0].weight.detach()

    assert float(weight.mean()) == pytest.approx(float(before.mean()), rel=0.05)
    assert float(weight.std()) == pytest.approx(float(before.std()), rel=0.05)


def test_random_weights_are_as_the_module_draws_them(network, stages, batches):
    weight = redrawn(network, stages[:1], seed=0, batches=batches).stem[0].weight.detach()

    assert float(weight.abs().max()) <= 27**-0.5
    assert float(weight.std()) == pytest.approx((27 * 3) ** -0.5, rel=0.05)


def test_what_no_module_draws_is_small_and_normal(network, stages, batches):
    place = redrawn(network, stages, seed=0, batches=batches).place.detach()

    assert float(place.std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(place.mean())) < 0.005


@pytest.mark.parametrize("is_matched", [False, True])
def test_values_neither_vanish_nor_burst_behind_redrawn_norms(network, stages, batches, is_matched):
    other = redrawn(network, stages[:-1], seed=0, batches=batches, is_matched=is_matched)
    seen = {}
    for norm in (other.stem[1], other.body[1]):
        norm.register_forward_hook(lambda module, inputs, output: seen.update({module: output}))

    with torch.no_grad():
        other(torch.cat([inputs for (inputs,) in batches]))

    for norm, output in seen.items():
        plain = (output - norm.bias[:, None, None]) / norm.weight[:, None, None]
        assert torch.allclose(plain.mean(dim=(0, 2, 3)), torch.zeros(40), atol=0.2)
        assert torch.allclose(plain.std(dim=(0, 2, 3)), torch.ones(40), atol=0.2)


def test_the_network_itself_and_the_random_state_stay_as_they_were(network, stages, batches):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()

    other = redrawn(network, stages[:-1], seed=0, batches=batches)

    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in (*network.modules(), *other.modules()))
    assert other.stem[1].momentum == network.stem[1].momentum
