import copy
import inspect
import io
import pickle
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

from frostline.freezing import freeze, unfreeze
from frostline.holding import lifted
from frostline.testing import ROUGH, SAME, specimen


class Net(nn.Module):
    """A body, a middle and a head; the root does what it is given in between."""

    def __init__(self, *body, between=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), *body, nn.ReLU())
        self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.between = between

    def forward(self, x):
        x = self.body(x)
        x = self.between(self, x) if self.between else x
        return self.head(self.middle(x).relu())


def batch():
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def frozen(net, depth=1, x=None):
    freeze(net, depth, batch() if x is None else x)
    return net.train()


def reaching(module, call):
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call()
    handle.remove()
    return seen[-1]


# --- buffers ----------------------------------------------------------------------------------


class Writer(nn.Module):
    """Writes its buffers in either mode: in place, by another tensor, where there was none."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("late", None)
        self.again = self.calls
        self.register_buffer("twin", self.calls)
        self.seen = []

    def forward(self, x):
        self.calls += 1
        self.mean = self.mean + x.detach().mean(0)
        self.late = torch.ones(1)
        self.seen.append(int(self.twin))
        return x + self.mean


def test_buffers_that_a_frozen_forward_writes_are_put_back():
    net = frozen(Net(Writer()))
    before = {name: (id(tensor), tensor.clone()) for name, tensor in net.state_dict(keep_vars=True).items()}

    net(batch())
    net.eval()(batch())

    after = net.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(id(tensor) == before[name][0] for name, tensor in after.items())
    assert all(torch.equal(tensor, before[name][1]) for name, tensor in after.items())


def test_one_buffer_under_two_names_stays_one_within_the_pass():
    net = frozen(Net(Writer()))

    net(batch())

    assert net.body[1].seen[-1] == 1


def test_buffers_are_put_back_when_the_forward_fails():
    class Failing(Writer):
        def forward(self, x):
            super().forward(x)
            raise KeyboardInterrupt

    net = Net(Writer())
    frozen(net)
    net.body[1].__class__ = Failing

    with pytest.raises(KeyboardInterrupt):
        net(batch())

    assert int(net.body[1].calls) == 0
    assert torch.is_grad_enabled()


def test_buffers_of_a_parametrized_module_of_ones_own_are_put_back():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(6, 6)
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    net = frozen(Net(nn.utils.parametrizations.weight_norm(Counting())), 2)

    net(batch())

    assert int(net.body[1].calls) == 0


def test_an_embedding_with_a_largest_norm_keeps_its_weights():
    ids = torch.arange(4)
    net = nn.Sequential(nn.Embedding(4, 6, max_norm=0.5), nn.Linear(6, 3))
    frozen(net, 1, ids)
    weight = net[0].weight
    nn.init.normal_(weight)
    before = weight.detach().clone()

    seen = reaching(net[1], lambda: net(ids))

    assert net[0].weight is weight
    assert torch.equal(weight, before)
    torch.testing.assert_close(seen, F.embedding(ids, before.clone(), max_norm=0.5))


class Normalised(nn.Module):
    """A root that follows the mean of its inputs below the cut, and of its outputs above it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("outputs", torch.zeros(3))

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        x = self.head(self.body(x - self.mean))
        self.outputs += x.detach().mean(0)
        return x


def test_buffers_of_the_root_are_held_below_the_cut_and_written_above_it():
    net = frozen(Normalised())

    net(batch())

    assert not net.mean.any()
    assert net.outputs.any()


# --- modes ------------------------------------------------------------------------------------


def test_no_call_of_train_reaches_a_frozen_module():
    net = frozen(Net(nn.BatchNorm1d(6), nn.Dropout()))

    for module in net.modules():
        module.train()

    assert [module.training for module in net.body.modules()] == [False] * 5
    assert [net.training, net.middle.training] == [True, True]


def test_a_mode_that_is_set_by_hand_does_not_reach_the_frozen_forward():
    net = frozen(Net(nn.BatchNorm1d(6)))
    before = net.body[1].running_mean.clone()
    net.body[1].training = True

    net(batch())

    torch.testing.assert_close(net.body[1].running_mean, before, **SAME)


def test_averaging_weights_leaves_frozen_statistics_alone_and_measures_live_ones():
    net = frozen(Net(nn.BatchNorm1d(6)))
    net.head = nn.Sequential(nn.BatchNorm1d(6), net.head)
    averaged = AveragedModel(net)
    averaged.update_parameters(net)
    before = net.state_dict()

    update_bn([batch()], averaged)

    after = averaged.module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("body."))
    assert not torch.equal(after["head.0.running_mean"], before["head.0.running_mean"])


def test_train_of_a_frozen_module_gives_the_module_like_any_other():
    net = frozen(Net())

    assert net.body.train() is net.body
    assert net.body.eval() is net.body


def drop(net, x):
    return F.dropout(x, 0.5, net.training)


def test_dropout_of_the_root_is_live_right_above_the_cut():
    net = frozen(Net(between=drop), 1)
    torch.manual_seed(0)

    dropped = reaching(net.middle, lambda: net(batch()))

    assert (dropped == 0).sum() > (net.body(batch()) == 0).sum()


def test_dropout_of_the_root_is_off_below_the_cut():
    net = frozen(Net(between=drop), 2)

    dropped = reaching(net.middle, lambda: net(batch()))

    assert torch.equal(dropped, net.body(batch()))


def test_modes_are_the_users_again_after_each_pass():
    net = frozen(Net(between=drop), 2)

    net(batch())

    assert [net.training, net.middle.training, net.head.training] == [True, False, True]


def test_modes_are_the_users_again_when_the_frozen_part_fails():
    net = frozen(Net(between=lambda net, x: x / (net is None)), 2)
    net.between = lambda net, x: x.no_such_name

    with pytest.raises(AttributeError, match="no_such_name"):
        net(batch())

    assert net.training


class Shared(nn.Module):
    """One dropout for all layers."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = self.drop(layer(x))
        return self.head(x)


def test_a_module_that_is_used_on_both_sides_is_frozen_below_the_cut_only():
    net = frozen(Shared(), 2, torch.randn(8, 6))

    below, above = (reaching(module, lambda: net(torch.ones(1, 6))) for module in (net.layers[2], net.head))

    assert not (below == 0).any()
    assert (above == 0).any()
    assert net.drop.training


class Registered(nn.Module):
    """Its first module holds the one that is used last."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.first.last = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, x):
        return self.first.last(self.first(x))


def test_a_live_module_inside_a_frozen_one_follows_the_user():
    net = Registered()
    freeze(net, 1, batch())

    modes = [net.train(mode).first.last[1].training for mode in (True, False, True)]

    assert modes == [True, False, True]
    assert [weight.requires_grad for weight in net.parameters()] == [False, False, True, True]


class Remembering(nn.Linear):
    """Keeps its weight's double in eval mode and drops it when it trains, as LeViT does."""

    kept = None

    def train(self, mode=True):
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x @ (2 * self.weight)
        self.kept = 2 * self.weight if self.kept is None else self.kept
        return x @ self.kept


def test_what_a_module_keeps_in_eval_mode_is_dropped_when_it_thaws():
    net = frozen(Net(Remembering(6, 6)), 2)
    net(batch())
    held = net.body[1].kept

    unfreeze(net)

    assert held is not None
    assert net.body[1].kept is None


def test_a_compiled_child_is_frozen_with_the_rest():
    net = Net(nn.BatchNorm1d(6), nn.Dropout())
    net.body = torch.compile(net.body, backend="eager")
    before = {name: tensor.clone() for name, tensor in net.body.state_dict().items()}
    frozen(net)

    once, again = (reaching(net.middle, lambda: net.train()(batch())) for _ in range(2))

    torch.compiler.reset()
    assert torch.equal(once, again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.body.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_scripted_child_is_frozen_with_the_rest():
    net = Net(nn.BatchNorm1d(6), nn.Dropout())
    net.body = torch.jit.script(net.body)
    before = {name: tensor.clone() for name, tensor in net.body.state_dict().items()}
    frozen(net)

    once, again = (reaching(net.middle, lambda: net.train()(batch())) for _ in range(2))

    assert torch.equal(once, again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.body.state_dict().items())
    assert not once.requires_grad


# --- gradients --------------------------------------------------------------------------------


def test_an_input_that_crosses_the_cut_keeps_its_gradient():
    one = specimen("several_inputs")
    left, right = (tensor.clone().requires_grad_() for tensor in one.inputs)
    freeze(one.model, 1, one.example)

    one.model(left, right).sum().backward()

    assert left.grad is None
    assert right.grad is not None


def test_flags_that_are_set_again_start_no_graph_below_the_cut():
    net = frozen(Net(), 2).requires_grad_(True)
    inside = reaching(net.body[1], lambda: net(batch()))

    net(batch()).sum().backward()

    assert not inside.requires_grad
    assert [weight.grad is None for weight in net.parameters()] == [True] * 4 + [False] * 2


def test_glue_below_the_cut_makes_no_graph_for_an_input_that_asks_for_gradients():
    net = frozen(Net(between=lambda net, x: x.exp()), 2)
    seen = []
    net.body.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    x = batch().requires_grad_()

    net(x).sum().backward()

    assert seen == [False]
    assert x.grad is None


def test_a_view_that_leaves_the_frozen_part_may_be_written_into():
    class Views(Net):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3)), nn.Flatten())
            self.shift = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            x = self.body(x)
            x += self.shift
            return self.head(x)

    net = frozen(Views())

    net(batch()).sum().backward()

    assert net.shift.grad is not None


def test_a_lifted_network_trains_and_carries_nothing():
    net = lifted(copy.deepcopy(frozen(Net(nn.BatchNorm1d(6)), 2)))

    assert all(module.training for module in net.train().modules())
    assert [name for module in net.modules() for name in vars(module) if "frostline" in name] == []
    assert "forward" not in vars(net)


# --- what others do with the network ----------------------------------------------------------


def test_forward_keeps_its_signature():
    net = Net()
    before = inspect.signature(net.forward)

    frozen(net)

    assert inspect.signature(net.forward) == before


def statically(net):
    held = net.forward
    net.forward = lambda x: 2 * held(x)


def as_a_function(net):
    function = net.forward.__func__
    net.forward = types.MethodType(lambda net, x: 2 * function(net, x), net)


@pytest.mark.parametrize("wrap", [statically, as_a_function])
def test_what_others_wrap_around_a_forward_stays_there_through_every_change(wrap):
    net = frozen(Net(nn.BatchNorm1d(6), between=drop), 2)
    expected = 2 * net(batch())
    wrap(net)

    assert torch.equal(net(batch()), expected)
    freeze(net, 1)
    freeze(net, 2)
    assert torch.equal(net(batch()), expected)
    unfreeze(net)
    net(batch()).sum().backward()
    assert net.body[1].num_batches_tracked == 1
    assert net.body[0].weight.grad is not None


def test_a_copy_of_a_network_whose_forward_others_bound_runs_itself():
    net = frozen(Net(between=drop), 2)
    as_a_function(net)
    other = copy.deepcopy(net)
    nn.init.zeros_(other.body[0].weight)

    assert torch.equal(other(batch()), other(0 * batch()))
    assert not torch.equal(net(batch()), other(batch()))


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch")
def test_accelerate_wraps_and_unwraps_a_frozen_network_for_mixed_precision():
    accelerate = pytest.importorskip("accelerate")
    # It remembers the precision of the first one of the process.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    net = frozen(Net(nn.BatchNorm1d(6), between=drop), 2)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    net = accelerator.prepare(net)
    freeze(net, 1)
    freeze(net, 2)

    mixed, again = net(batch()), net(batch())
    unwrapped = accelerator.unwrap_model(net, keep_fp32_wrapper=False)

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    torch.testing.assert_close(mixed, again, **SAME)
    torch.testing.assert_close(unwrapped(batch()), mixed, **ROUGH)
    assert not torch.equal(unwrapped(batch()), mixed)


def test_a_step_that_is_passed_through_the_forward_may_call_the_network_twice():
    net = frozen(Net(between=drop), 2)
    expected, plain = net(batch()), net.forward

    def step(x):
        net.forward = plain
        return net(x), net(x)

    net.forward = step
    found = net(batch())

    assert all(torch.equal(one, expected) for one in found)


def test_a_forward_of_the_users_own_instance_is_called_and_given_back():
    net = Net()
    net.middle.forward = mine = lambda x: x.square()

    frozen(net)
    seen = reaching(net.head, lambda: net(batch()))
    unfreeze(net)

    assert torch.equal(seen, net.body(batch()).square())
    assert vars(net.middle)["forward"] is mine


def through_a_file(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), through_a_file],
    ids=["deep", "pickle", "file"],
)
def test_a_copy_is_held_by_itself(copied):
    net = frozen(Net(Writer(), nn.BatchNorm1d(6), nn.Dropout()), 2)

    other = copied(net)
    unfreeze(net)

    other.train()
    assert not other.body.training
    assert torch.equal(other(batch()), other.eval()(batch()))
    assert int(other.body[1].calls) == 0
    unfreeze(other.train())
    assert other.body.training


def test_copying_and_pickling_work_between_a_pass_and_the_next():
    net = frozen(Net(Writer(), between=drop), 2)
    net(batch())

    other = pickle.loads(pickle.dumps(copy.deepcopy(net)))

    assert torch.equal(other(batch()), net(batch()))
