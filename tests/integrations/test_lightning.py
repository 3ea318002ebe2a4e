"""Lightning's own Trainer, small networks, a few steps."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.errors import BadArgument, FrozenMoved, MissingExtra

lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra `test`")

from frostline.integrations.lightning import Freeze  # noqa: E402

EXAMPLE = torch.zeros(4, 6)

pytestmark = [
    # A network of four layers needs no worker to read it.
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # They are the frozen ones.
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
    # Of torch, in Lightning's own code (2.6.6).
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]


def chain():
    """Three stages and a head, with batch norm and dropout in each stage."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5)) for _ in range(3)),
        nn.Linear(6, 3),
    )


class Classifier(lightning.LightningModule):
    """A user's module: everything in one optimizer, with momentum and weight decay."""

    def __init__(self, losses=()):
        super().__init__()
        self.network = chain()
        self.losses = list(losses)
        self.depths = []

    def training_step(self, batch, index):
        pictures, labels = batch
        return F.cross_entropy(self.network(pictures), labels)

    def on_train_epoch_start(self):
        self.depths.append(fl.layer_status(self.network).depth)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)


class Validated(Classifier):
    """One that logs a loss, the given one for each epoch where there are such."""

    def validation_step(self, batch, index):
        pictures, labels = batch
        loss = F.cross_entropy(self.network(pictures), labels)
        self.log("val_loss", self.losses[self.current_epoch] if self.losses else loss)


def data(shuffle=False):
    draw = torch.Generator().manual_seed(1)
    samples = TensorDataset(torch.randn(16, 6, generator=draw), torch.randint(3, (16,), generator=draw))
    return DataLoader(samples, batch_size=4, shuffle=shuffle)


def trainer(tmp_path, *callbacks, epochs=1, **options):
    settings = {
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(max_epochs=epochs, callbacks=list(callbacks), **settings | options)


def tensors(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, before):
    return {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_stages_keep_every_bit_and_the_others_train(tmp_path):
    module = Validated()
    before = tensors(module.network)

    trainer(tmp_path, Freeze(2, EXAMPLE, attribute="network"), epochs=2).fit(module, data(), data())

    assert moved(module.network, before) == {"2", "3"}


def test_it_freezes_before_the_optimizers_are_made(tmp_path):
    class Filtering(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=0.1)

    module = Filtering()
    fit = trainer(tmp_path, Freeze(-1, EXAMPLE, attribute="network"))

    fit.fit(module, data())

    held = fit.optimizers[0].param_groups[0]["params"]
    assert [id(weight) for weight in held] == [id(weight) for weight in module.network[3].parameters()]


def test_frozen_stages_stay_in_eval_mode_after_a_validation(tmp_path):
    modes = []

    class Watched(Validated):
        def on_train_batch_start(self, batch, index):
            modes.append(tuple(stage.training for stage in self.network))

    trainer(tmp_path, Freeze(2, EXAMPLE, attribute="network"), epochs=3).fit(Watched(), data(), data())

    assert set(modes) == {(False, False, True, True)}


def test_the_module_itself_is_frozen_where_no_attribute_is_named(tmp_path):
    class Whole(Classifier):
        def forward(self, pictures):
            return self.network(pictures)

        def on_train_epoch_start(self):
            assert fl.layer_status(self).depth == 2

    module = Whole()
    before = tensors(module.network)

    trainer(tmp_path, Freeze("network.1", EXAMPLE)).fit(module, data())

    assert moved(module.network, before) == {"2", "3"}


def test_a_stage_that_moved_is_named_at_the_end(tmp_path):
    class Meddling(Classifier):
        def on_train_batch_end(self, outputs, batch, index):
            with torch.no_grad():
                self.network[0][1].running_mean.add_(1)

    with pytest.raises(FrozenMoved, match=r"0\.1\.running_mean"):
        trainer(tmp_path, Freeze(2, EXAMPLE, attribute="network")).fit(Meddling(), data())


def test_a_stage_that_moved_can_be_a_warning(tmp_path):
    class Meddling(Classifier):
        def on_train_batch_end(self, outputs, batch, index):
            with torch.no_grad():
                self.network[0][0].weight.add_(1)

    with pytest.warns(UserWarning, match=r"0\.0\.weight"):
        trainer(tmp_path, Freeze(2, EXAMPLE, attribute="network", verify="warn")).fit(Meddling(), data())


def test_a_network_is_left_alone_outside_a_fit(tmp_path):
    module = Validated()

    freeze = Freeze(2, EXAMPLE, attribute="network", schedule=(1,), patience=1, monitor="loss of the fit")
    trainer(tmp_path, freeze).validate(module, data(), verbose=False)

    assert all(weight.requires_grad for weight in module.parameters())


def test_schedule_by_epochs_thaws_at_those_epochs(tmp_path):
    module = Classifier()

    freeze = Freeze(-1, EXAMPLE, attribute="network", schedule={1: 1, 3: 0})
    trainer(tmp_path, freeze, epochs=4).fit(module, data())

    assert module.depths == [3, 1, 1, 0]


def test_thawed_stages_train_though_only_what_was_trainable_is_in_the_optimizer(tmp_path):
    class Filtering(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=0.1)

    module = Filtering()
    before = tensors(module.network)

    trainer(tmp_path, Freeze(-1, EXAMPLE, attribute="network", schedule={1: 1}), epochs=2).fit(module, data())

    assert moved(module.network, before) == {"1", "2", "3"}


def test_thawed_stages_are_in_train_mode_after_the_validation_that_thawed_them(tmp_path):
    module = Validated(losses=(1.0, 1.0, 1.0))
    modes = []
    module.on_train_batch_start = lambda batch, index: modes.append(tuple(stage.training for stage in module.network))

    freeze = Freeze(-1, EXAMPLE, attribute="network", schedule=(1,), patience=1)
    trainer(tmp_path, freeze, epochs=3, num_sanity_val_steps=0).fit(module, data(), data())

    assert modes[-1] == (False, True, True, True)


def test_schedule_by_patience_thaws_when_the_validation_loss_stalls(tmp_path):
    module = Validated(losses=(1.0, 0.9, 0.9, 0.9, 0.5, 0.4))

    freeze = Freeze(-1, EXAMPLE, attribute="network", schedule=(1, 0), patience=2)
    trainer(tmp_path, freeze, epochs=6, num_sanity_val_steps=0).fit(module, data(), data())

    assert module.depths == [3, 3, 3, 3, 1, 1]


def test_epochs_without_a_validation_do_not_count_as_stalled(tmp_path):
    module = Validated(losses=(1.0,) * 6)

    freeze = Freeze(-1, EXAMPLE, attribute="network", schedule=(1, 0), patience=1)
    trainer(tmp_path, freeze, epochs=6, check_val_every_n_epoch=2).fit(module, data(), data())

    assert module.depths == [3, 3, 3, 3, 1, 1]


def test_a_loss_that_was_not_logged_is_refused_with_the_names_that_were(tmp_path):
    freeze = Freeze(-1, EXAMPLE, attribute="network", schedule=(1,), patience=1, monitor="loss")

    with pytest.raises(BadArgument, match=r"`loss`.*\['val_loss'\]"):
        trainer(tmp_path, freeze).fit(Validated(), data(), data())


def test_patience_without_a_validation_is_refused_before_training(tmp_path):
    module = Classifier()

    freeze = Freeze(-1, EXAMPLE, attribute="network", schedule=(1,), patience=1)
    with pytest.raises(BadArgument, match="no validation"):
        trainer(tmp_path, freeze).fit(module, data())

    assert module.depths == []


def test_a_schedule_whose_stages_no_optimizer_holds_is_refused(tmp_path):
    class HeadOnly(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network[3].parameters(), lr=0.1)

    with pytest.raises(BadArgument, match=r"no optimizer holds, `1\.0\.weight`"):
        trainer(tmp_path, Freeze(-1, EXAMPLE, attribute="network", schedule={1: 1})).fit(HeadOnly(), data())


def test_each_fit_begins_the_schedule_anew(tmp_path):
    freeze = Freeze(-1, EXAMPLE, attribute="network", schedule={1: 0})
    first, second = Classifier(), Classifier()

    trainer(tmp_path, freeze, epochs=2).fit(first, data())
    trainer(tmp_path, freeze, epochs=2).fit(second, data())

    assert first.depths == second.depths == [3, 0]


WAYS = {
    "epochs": {"schedule": {1: 2, 2: 1, 3: 0}},
    "patience": {"schedule": (2, 1, 0), "patience": 1},
    "one depth": {},
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("when", ["train", "validation"])
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_fit_ends_with_the_bits_of_an_unbroken_one(tmp_path, way, when):
    def fit(name, epochs, checkpoint=None):
        module = Validated(losses=(1.0,) * 5)
        keep = lightning.callbacks.ModelCheckpoint(
            tmp_path / name, filename="last", save_on_train_epoch_end=when == "train"
        )
        freeze = Freeze(-1, EXAMPLE, attribute="network", **WAYS[way])
        options = {"enable_checkpointing": True, "num_sanity_val_steps": 0}
        # Dropout draws differ between a run and its second half, and Lightning does not keep the state of the draws.
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0
        trainer(tmp_path, freeze, keep, epochs=epochs, **options).fit(module, data(), data(), ckpt_path=checkpoint)
        return module, tmp_path / name / "last.ckpt"

    unbroken, _ = fit("unbroken", 5)
    _, checkpoint = fit("first half", 3)
    resumed, _ = fit("second half", 5, checkpoint)

    assert moved(resumed, tensors(unbroken)) == set()
    assert resumed.depths == unbroken.depths[3:]


def test_a_schedule_for_several_processes_is_refused(tmp_path, monkeypatch):
    fit = trainer(tmp_path, Freeze(-1, EXAMPLE, attribute="network", schedule={1: 0}))
    monkeypatch.setattr(type(fit), "world_size", 2)

    with pytest.raises(BadArgument, match="2 processes"):
        fit.fit(Classifier(), data())


TWO_PROCESSES = """
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from frostline.integrations.lightning import Freeze

torch.set_num_threads(1)


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.05)


module = Classifier()
samples = TensorDataset(torch.randn(16, 6), torch.randint(3, (16,)))
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
freeze = Freeze(1, torch.zeros(4, 6), attribute="network")
trainer = L.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", callbacks=[freeze], **quiet)
trainer.fit(module, DataLoader(samples, batch_size=4))
if trainer.is_global_zero:
    print(trainer.world_size, "processes,", trainer.global_step, "steps")
"""


@pytest.mark.slow
def test_two_processes_train_with_a_frozen_stage_and_no_word_of_unused_parameters(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)

    outcome = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, check=False)

    assert outcome.returncode == 0, outcome.stderr
    assert "2 processes, 4 steps" in outcome.stdout


def test_without_lightning_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "frostline.integrations.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)

    with pytest.raises(MissingExtra, match=r"pip install 'frostline\[lightning\]'"):
        importlib.import_module("frostline.integrations.lightning")
