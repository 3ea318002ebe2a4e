"""A stopped training goes on as if nothing had been, and what is saved is a network like any other."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(),
            nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3),
        )  # fmt: skip


def batch(epoch):
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(epoch))


class Training:
    """The user's own loop, with all that a checkpoint has to hold."""

    def __init__(self, freezing, seed=0):
        self.net = network(seed)
        self.thaw = freezing.Thaw(self.net, {0: -1, 2: 2, 4: 0}, batch(0))
        self.optimizer = torch.optim.AdamW(self.thaw.param_groups(0.01, layer_decay=0.8), weight_decay=0.1)
        self.rates = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 6)

    def parts(self):
        return {"net": self.net, "thaw": self.thaw, "optimizer": self.optimizer, "rates": self.rates}

    def run(self, first, last):
        for epoch in range(first, last):
            self.optimizer.zero_grad()
            self.net.train()(batch(epoch)).square().mean().backward()
            self.optimizer.step()
            self.rates.step()
            self.thaw.step()

    def save(self):
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, file)
        return file.getvalue()

    def load(self, content):
        for name, state in torch.load(io.BytesIO(content), weights_only=True).items():
            self.parts()[name].load_state_dict(state)

    def facts(self):
        return (
            self.thaw.depth,
            [weight.requires_grad for weight in self.net.parameters()],
            [module.training for module in self.net],
            [group["lr"] for group in self.optimizer.param_groups],
            [tensor.numpy().tobytes() for tensor in self.net.state_dict().values()],
        )


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_case_31_a_training_stopped_at_any_epoch_goes_on_like_the_unbroken_one(freezing, epoch):
    unbroken, first, second = Training(freezing), Training(freezing), Training(freezing, seed=9)
    unbroken.run(0, epoch)
    first.run(0, epoch)

    second.load(first.save())

    second.net.train(unbroken.net.training)
    assert second.facts() == unbroken.facts()
    unbroken.run(epoch, 6)
    second.run(epoch, 6)
    assert second.facts() == unbroken.facts()


def test_case_33_freezing_changes_no_key_and_what_is_saved_loads_in_plain_torch(freezing):
    net, plain = network(), network(seed=9)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    freezing.freeze(net, 2, batch(0))

    saved = net.state_dict()
    assert list(saved) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in saved.items())
    plain.load_state_dict(saved, strict=True)
    assert torch.equal(plain.eval()(batch(1)), net.eval()(batch(1)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deep", "pickle"])
def test_case_33_a_copy_of_a_frozen_network_is_frozen_too(freezing, copied):
    net = network()
    freezing.freeze(net, 2, batch(0))

    other = copied(net)

    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    other.train()(batch(1)).square().mean().backward()
    optimizer.step()
    moved = {name.split(".")[0] for name, tensor in other.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"6", "8"}


# --- each case can fail -----------------------------------------------------------------------


def test_thaw_that_forgets_where_it_was_fails_case_31(freezing, monkeypatch):
    monkeypatch.setattr(freezing.Thaw, "load_state_dict", lambda self, state: None)

    with pytest.raises(AssertionError):
        test_case_31_a_training_stopped_at_any_epoch_goes_on_like_the_unbroken_one(freezing, 3)


def test_frozen_norm_of_another_class_fails_case_33():
    class WithoutCounter:
        """What a frozen batch norm without its counter does to a network."""

        @staticmethod
        def freeze(model, depth, example):
            del model[1].num_batches_tracked

    with pytest.raises(AssertionError):
        test_case_33_freezing_changes_no_key_and_what_is_saved_loads_in_plain_torch(WithoutCounter)
