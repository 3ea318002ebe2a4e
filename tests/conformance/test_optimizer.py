"""Groups hold what trains and nothing else, and survive a change of depth."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from frostline.testing import specimen


class Net(nn.Module):
    """Three stages and a head; the norms of the first two hold equal values."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6))
        self.second = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))
        self.third = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x)).relu()))


def made():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(), torch.randn(8, 5)


def step(net, x, optimizer):
    optimizer.zero_grad()
    loss = net.train()(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def identities(weights):
    return sorted(id(weight) for weight in weights)


def test_case_27_groups_hold_each_live_weight_once_and_no_frozen_one_whatever_their_values(freezing):
    net, x = made()
    freezing.freeze(net, 1, x)

    groups = freezing.param_groups(net, 0.1)

    grouped = [weight for group in groups for weight in group["params"]]
    live = [*net.second.parameters(), *net.third.parameters(), *net.head.parameters()]
    assert torch.equal(net.first[1].weight, net.second[1].weight)
    assert identities(grouped) == identities(live)


def test_case_27_a_tied_live_weight_is_in_one_group(freezing):
    one = specimen("tied")
    freezing.freeze(one.model, 0, one.example)

    grouped = [weight for group in freezing.param_groups(one.model, 0.1) for weight in group["params"]]

    assert identities(grouped) == identities(one.model.parameters())


SCHEDULERS = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2),
    "Cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 6),
    "OneCycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=7),
    "Lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "WarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "Plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_case_28_each_scheduler_of_torch_works_while_stages_thaw(freezing, scheduler):
    net, x = made()
    thaw = freezing.Thaw(net, {0: -1, 2: 1, 4: 0}, x)
    optimizer = torch.optim.AdamW(thaw.param_groups(0.01))
    rates = SCHEDULERS[scheduler](optimizer)
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}

    for _ in range(6):
        loss = step(net, x, optimizer)
        thaw.step()
        rates.step(*[loss] * (scheduler == "Plateau"))

    assert thaw.depth == 0
    assert not any(torch.equal(weight, before[name]) for name, weight in net.named_parameters())


def test_case_29_each_stage_has_the_rate_asked_for_and_the_head_the_largest(freezing):
    net, x = made()
    freezing.freeze(net, 1, x)

    groups = freezing.param_groups(net, 0.1, layer_decay=0.5)

    rate_of = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    rates = [{rate_of[id(weight)] for weight in stage.parameters()} for stage in (net.second, net.third, net.head)]
    assert [round(rate, 12) for (rate,) in rates] == [0.025, 0.05, 0.1]
    assert len({group["name"] for group in groups}) >= 3


def test_case_30_what_the_optimizer_knows_of_live_weights_survives_a_change_of_depth(freezing):
    net, x = made()
    thaw = freezing.Thaw(net, {0: -1, 1: 0}, x)
    optimizer = torch.optim.AdamW(thaw.param_groups(0.01))
    step(net, x, optimizer)
    before = optimizer.state[net.head.weight]["exp_avg"].clone()

    thaw.step()

    assert thaw.depth == 0
    assert torch.equal(optimizer.state[net.head.weight]["exp_avg"], before)
    step(net, x, optimizer)
    assert int(optimizer.state[net.head.weight]["step"]) == 2
    assert int(optimizer.state[net.first[0].weight]["step"]) == 1


# --- each case can fail -----------------------------------------------------------------------

BROKEN = {"Flags": {27, 29, 30}, "Modes": {27, 29, 30}}


def test_broken_freeze_fails_exactly_the_cases_that_it_should(broken, cases_failed_by):
    assert cases_failed_by(globals(), broken) == BROKEN[broken.__name__]


def test_schedulers_that_are_given_a_group_late_are_what_case_28_guards_against():
    failed = []

    for name, make in SCHEDULERS.items():
        net, x = made()
        optimizer = torch.optim.AdamW(net.head.parameters(), lr=0.01)
        rates = make(optimizer)
        try:
            step(net, x, optimizer)
            rates.step(*[1.0] * (name == "Plateau"))
            optimizer.add_param_group({"params": list(net.third.parameters())})
            step(net, x, optimizer)
            rates.step(*[1.0] * (name == "Plateau"))
            step(net, x, optimizer)
        except (KeyError, ValueError, IndexError):
            failed.append(name)

    assert failed
