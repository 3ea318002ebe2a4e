"""What is frozen stays as it is, bit for bit, whatever the training loop does."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frostline.errors import CutBlocked
from frostline.testing import specimen

# Leaves the two layers of the head below.
BODY = -2
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """A body, which the cases freeze, and a head."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.body(x).flatten(2).mean(2))


def made(*makers, dims=2):
    """Make a network of a convolution and the layers asked for, and a batch for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [make() for make in makers]
        return Net(CONVS[dims](3, 6, 3, padding=1), *layers, nn.ReLU()), torch.randn(8, 3, *(5,) * dims)


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9)


def adamw(weights):
    return torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1)


def train(net, x, *, steps=10, optimizer=None, set_to_none=True):
    """The user's own loop: it knows nothing of freezing, and gives all weights to its optimizer."""
    optimizer = optimizer or sgd(net.parameters())
    net.train()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=set_to_none)
        net(x).square().mean().backward()
        optimizer.step()


def bits(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def buffers(module):
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


def moved(module, before):
    return [name for name, tensor in before.items() if not torch.equal(module.state_dict()[name], tensor)]


def reaching_head(net, x):
    """What comes out of the frozen part, seen by the first live module."""
    seen = []
    handle = net.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    net(x)
    handle.remove()
    return seen[0]


# --- buffers ----------------------------------------------------------------------------------


def test_case_01_batch_norm_buffers_below_the_cut_keep_every_bit_in_train_mode(freezing):
    kinds = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: 2}
    changed = {}

    for kind, dims in kinds.items():
        net, x = made(lambda kind=kind: kind(6), dims=dims)
        freezing.freeze(net, BODY, x)
        before = buffers(net.body)
        train(net, x)
        changed[kind.__name__] = moved(net.body, before)

    assert changed == {kind.__name__: [] for kind in kinds}


def test_case_02_batch_norm_without_weights_or_momentum_keeps_its_counter_too(freezing):
    net, x = made(lambda: nn.BatchNorm2d(6, affine=False), lambda: nn.BatchNorm2d(6, momentum=None))
    freezing.freeze(net, BODY, x)
    before = buffers(net.body)

    train(net, x)

    assert {"1.num_batches_tracked", "2.num_batches_tracked"} <= before.keys()
    assert moved(net.body, before) == []


class Meter(nn.Module):
    """Counts its calls and follows the mean of what it sees, in either mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x


def test_case_03_instance_norm_spectral_norm_and_buffers_of_ones_own_keep_every_bit(freezing):
    net, x = made(
        lambda: nn.InstanceNorm2d(6, track_running_stats=True),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 1)),
        Meter,
    )
    freezing.freeze(net, BODY, x)
    before = buffers(net.body)

    train(net, x)
    net.eval()
    net(x)

    assert {"1.running_mean", "2.parametrizations.weight.0._u", "3.calls"} <= before.keys()
    assert moved(net.body, before) == []


# --- parameters -------------------------------------------------------------------------------


def test_case_04_frozen_weights_keep_every_bit_under_decay_and_momentum(freezing):
    makers = [adamw, sgd, lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True)]

    for make in makers:
        net, x = made(lambda: nn.GroupNorm(2, 6))
        freezing.freeze(net, BODY, x)
        before, head = bits(net.body), bits(net.head)
        train(net, x, optimizer=make(net.parameters()))

        assert moved(net.body, before) == []
        assert moved(net.head, head) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_case_05_stale_gradients_and_momentum_move_nothing_that_was_frozen_later(freezing):
    for make in (adamw, sgd):
        net, x = made(lambda: nn.GroupNorm(2, 6))
        optimizer = make(net.parameters())
        train(net, x, steps=3, optimizer=optimizer, set_to_none=False)
        freezing.freeze(net, BODY, x)
        before = bits(net.body)
        train(net, x, steps=5, optimizer=optimizer, set_to_none=False)

        assert moved(net.body, before) == []


def test_case_05_a_pending_gradient_moves_nothing_that_was_frozen_later(freezing):
    net, x = made(lambda: nn.GroupNorm(2, 6))
    optimizer = sgd(net.parameters())
    net(x).square().mean().backward()
    freezing.freeze(net, BODY, x)
    before = bits(net.body)

    optimizer.step()
    net(x).square().mean().backward()
    optimizer.step()

    assert moved(net.body, before) == []


def test_case_05_a_backward_pass_begun_before_the_freeze_moves_nothing(freezing):
    net, x = made(lambda: nn.GroupNorm(2, 6))
    optimizer = sgd(net.parameters())
    loss = net(x).square().mean()
    freezing.freeze(net, BODY, x)
    before = bits(net.body)

    loss.backward()
    optimizer.step()

    assert moved(net.body, before) == []


# --- chance, and neighbours -------------------------------------------------------------------


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class LayerDrop(nn.Module):
    """Leaves whole layers out while it trains."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            if not (self.training and torch.rand(()) < 0.5):
                x = x + layer(x)
        return x


def test_case_06_dropout_drop_path_stochastic_depth_and_layerdrop_below_the_cut_are_off(freezing):
    from timm.layers import DropPath
    from torchvision.ops import StochasticDepth

    kinds = {
        "dropout": lambda: nn.Dropout(0.5),
        "channels": lambda: nn.Dropout2d(0.5),
        "path": lambda: DropPath(0.5),
        "stochastic depth": lambda: StochasticDepth(0.5, "row"),
        "function": FunctionalDropout,
        "layerdrop": LayerDrop,
    }
    same = {}

    for kind, make in kinds.items():
        net, x = made(make)
        freezing.freeze(net, BODY, x)
        still = reaching_head(net.eval(), x)
        net.train()
        same[kind] = all(torch.equal(reaching_head(net, x), still) for _ in range(3))

    assert same == dict.fromkeys(kinds, True)


class DropsItself(nn.Module):
    """A root that drops out and leaves layers out in its own forward, below the cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = F.dropout(self.stem(x), 0.5, self.training)
        for layer in self.layers:
            if not (self.training and torch.rand(()) < 0.5):
                x = layer(x)
        return self.head(x)


def test_case_06_chance_in_a_partly_frozen_parents_forward_is_off_below_the_cut(freezing):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = DropsItself(), torch.randn(8, 5)
    freezing.freeze(net, -1, x)
    still = reaching_head(net.eval(), x)

    net.train()

    assert all(torch.equal(reaching_head(net, x), still) for _ in range(5))


def test_case_07_a_sample_leaves_the_frozen_part_the_same_whatever_its_batch_mates(freezing):
    net, x = made(lambda: nn.BatchNorm2d(6), lambda: nn.InstanceNorm2d(6, track_running_stats=True))
    others = torch.cat([x[:1], 3 * x[1:].flip(0) + 1])
    freezing.freeze(net, BODY, x)
    net.train()

    alone, among_others = reaching_head(net, x)[0], reaching_head(net, others)[0]

    assert torch.equal(alone, among_others)


# --- modes ------------------------------------------------------------------------------------


def test_case_08_cycles_of_train_and_eval_move_nothing_and_leave_the_live_modes_to_the_user(freezing):
    net, x = made(lambda: nn.BatchNorm2d(6), lambda: nn.Dropout(0.5))
    freezing.freeze(net, BODY, x)
    before, modes = bits(net.body), []

    for mode in (True, False, True):
        net.train(mode)
        modes.append((net.training, net.head.training, net.head[1].training))
        train(net, x, steps=2)
        net.eval()
        with torch.no_grad():
            net.train()(x)

    assert modes == [(True,) * 3, (False,) * 3, (True,) * 3]
    assert not net.body[1].training
    assert moved(net.body, before) == []


def test_case_08_a_live_module_that_the_user_put_to_eval_stays_there(freezing):
    net, x = made(lambda: nn.BatchNorm2d(6))
    net.train()
    net.head[1].eval()

    freezing.freeze(net, BODY, x)

    assert (net.training, net.head.training, net.head[1].training) == (True, True, False)


# --- what belongs to the frozen part, and what was there before -------------------------------


def test_case_09_weights_of_the_root_itself_are_frozen_with_the_stages_that_read_them(freezing):
    one = specimen("attention")
    before = bits(one.model)
    freezing.freeze(one.model, 2, one.example)

    train(one.model, one.example, optimizer=adamw(one.model.parameters()))

    changed = moved(one.model, before)
    assert {"token", "positions"} <= before.keys()
    assert {name.split(".")[0] for name in changed} == {"blocks", "norm", "head"}
    assert not any(name.startswith("blocks.0") for name in changed)


def test_case_10_unfreezing_gives_back_each_flag_and_each_mode_that_was_there(freezing):
    net, x = made(lambda: nn.BatchNorm2d(6))
    net.train()
    net.body[0].bias.requires_grad_(False)
    net.body[1].eval()
    flags = {name: weight.requires_grad for name, weight in net.named_parameters()}
    modes = {name: module.training for name, module in net.named_modules()}

    freezing.freeze(net, BODY, x)
    freezing.unfreeze(net)

    assert {name: weight.requires_grad for name, weight in net.named_parameters()} == flags
    assert {name: module.training for name, module in net.named_modules()} == modes


def test_case_10_unfrozen_weights_and_buffers_move_again(freezing):
    net, x = made(lambda: nn.BatchNorm2d(6))
    freezing.freeze(net, BODY, x)
    freezing.unfreeze(net)
    before = bits(net.body)

    # A norm in train mode takes away what the bias before it adds, so only weight decay is sure to move that bias.
    train(net, x, optimizer=adamw(net.parameters()))

    assert set(moved(net.body, before)) == before.keys()


def test_case_11_weights_tied_across_the_cut_are_refused_and_nothing_is_frozen(freezing):
    one = specimen("tied")
    before = [weight.requires_grad for weight in one.model.parameters()]

    with pytest.raises(CutBlocked, match=r"embed\.weight"):
        freezing.freeze(one.model, 1, one.example)

    assert [weight.requires_grad for weight in one.model.parameters()] == before


def test_case_12_a_module_used_on_both_sides_of_the_cut_is_refused_with_the_reason(freezing):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.middle = nn.Linear(6, 6)

        def forward(self, x):
            return self.head(self.shared(self.middle(self.shared(self.stem(x)).relu())))

    with pytest.raises(CutBlocked, match=r"shared\.weight"):
        freezing.freeze(Twice(), 2, torch.randn(4, 5))


# --- each case can fail -----------------------------------------------------------------------

BROKEN = {"Flags": {1, 2, 3, 5, 6, 7, 8, 10, 11, 12}, "Modes": {3, 4, 5, 6, 8, 9, 10, 11, 12}}


def test_broken_freeze_fails_exactly_the_cases_that_it_should(broken, cases_failed_by):
    assert cases_failed_by(globals(), broken) == BROKEN[broken.__name__]


def test_every_case_is_seen_to_fail():
    assert set(itertools.chain(*BROKEN.values())) == set(range(1, 13))
