"""A frozen part costs no graph, no backward pass and, once kept, no second forward pass."""

import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import frostline as fl
from frostline.records import Recipe, TrialSpec


class Net(nn.Module):
    """Four stages and a head; three are what the cases freeze."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.last(self.body(x)))


def made():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(), torch.randn(8, 3, 6, 6)


def saved_bytes(net, x):
    """Bytes that a training step keeps for its backward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = net.train()(x).square().mean()
    loss.backward()
    return sum(kept.values())


def suffix(net):
    return nn.Sequential(net.last, net.head)


def test_case_13_a_step_keeps_no_more_for_its_backward_pass_than_the_live_part_alone(freezing):
    net, x = made()
    wire = net.body.eval()(x).detach()
    alone = saved_bytes(suffix(net), wire)

    freezing.freeze(net, 3, x)

    assert saved_bytes(net, x) <= alone


def test_case_14_an_input_that_asks_for_gradients_starts_no_backward_pass_below_the_cut(freezing):
    net, x = made()
    wire = net.body.eval()(x).detach()
    alone = saved_bytes(suffix(net), wire)
    freezing.freeze(net, 3, x)
    x.requires_grad_(True)

    kept = saved_bytes(net, x)

    assert kept <= alone
    assert x.grad is None
    assert net.head.weight.grad is not None


def operations(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_case_15_a_training_step_on_kept_rows_counts_the_operations_of_the_live_part_only(tmp_path):
    net, x = made()
    parts = fl.split(net, fl.trace(net, x), 3)
    store = fl.cache(parts.frozen, fl.TensorSamples(x, torch.arange(8) % 3), tmp_path / "store", engine="torch")
    wire = net.body.eval()(x).detach()

    ours = operations(lambda: parts.live.train()(*store.read(range(8))).square().mean().backward())

    assert ours == operations(lambda: suffix(net).train()(wire).square().mean().backward())


class Counted(nn.Conv2d):
    """Counts the rows it is given, over all its copies."""

    rows = 0

    def forward(self, x):
        type(self).rows += len(x)
        return super().forward(x)


def test_case_15_each_view_passes_the_frozen_part_once_for_all_seeds_and_epochs(tmp_path):
    net, x = made()
    net.body[0] = Counted(3, 8, 3, padding=1)
    samples = fl.TensorSamples(x, torch.arange(8) % 3)
    graph = fl.trace(net, x)
    rows = {}

    for depth in (1, 3):
        Counted.rows = 0
        frozen = fl.split(net, graph, depth).frozen
        store = fl.cache(frozen, samples, tmp_path / f"{depth}", engine="torch", batch_size=4)
        rows[f"keeping at {depth}"] = Counted.rows
        for seed in (0, 1):
            spec = TrialSpec(depth=depth, recipe=Recipe(batch_size=4), seed=seed, epochs=2)
            labels = {"train_labels": samples.labels, "valid_labels": samples.labels}
            live = fl.split(net, graph, depth).live
            fl.tune(live, store, store, **labels, spec=spec, save_to=tmp_path / "trial.safetensors")
        rows[f"training at {depth}"] = Counted.rows - rows[f"keeping at {depth}"]

    assert rows == {"keeping at 1": 8, "training at 1": 0, "keeping at 3": 8, "training at 3": 0}


def test_case_16_checkpointing_right_after_the_cut_still_trains(freezing):
    class Checkpointed(Net):
        def forward(self, x):
            return self.head(checkpoint(self.last, self.body(x), use_reentrant=False))

    gradients = []
    for kind in (Net, Checkpointed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net, x = kind(), torch.randn(8, 3, 6, 6)
        freezing.freeze(net, 3, x)
        net.train()(x).square().mean().backward()
        gradients.append([weight.grad for weight in net.last.parameters()])

    plain, checkpointed = gradients
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("samples", [32, 256])
def test_case_17_building_a_store_holds_a_few_batches_whatever_the_number_of_samples(tmp_path, samples):
    net, x = made()
    frozen = fl.split(net, fl.trace(net, x), 3).frozen
    alive, most = weakref.WeakSet(), []

    class Watched(fl.TensorSamples):
        def read(self, rows, view=0):
            tensors = super().read(rows, view)
            alive.update(tensors)
            return tensors

    def note(module, args, output):
        alive.update(output if isinstance(output, tuple) else [output])
        most.append(sum(tensor.nbytes for tensor in alive))

    for module in frozen.module.modules():
        module.register_forward_hook(note)
    held = Watched(torch.randn(samples, 3, 6, 6), torch.arange(samples) % 3)

    store = fl.cache(frozen, held, tmp_path / "store", engine="torch", batch_size=8)

    batch = 8 * (3 + 8) * 36 * 4
    assert len(store) == samples
    assert max(most) <= 4 * batch


# --- each case can fail -----------------------------------------------------------------------

BROKEN = {"Flags": {14}, "Modes": {13, 14}}


def test_broken_freeze_fails_exactly_the_cases_that_it_should(broken, cases_failed_by):
    assert cases_failed_by(globals(), broken) == BROKEN[broken.__name__]


def test_every_case_of_a_freeze_but_checkpointing_is_seen_to_fail():
    assert set(itertools.chain(*BROKEN.values())) == {13, 14}


def test_reentrant_checkpointing_right_after_the_cut_is_what_case_16_guards_against():
    net, x = made()
    wire = net.body(x).detach()

    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        out = checkpoint(net.last, wire, use_reentrant=True)

    assert not out.requires_grad
