"""Freezing held to the same cases: frostline's, and that of the tools that people use today.

    python benchmarks/frozen_elsewhere.py --json OUT [--case 1 5 ...] [--tool timm ...] [--again]

A case is one claim about what is frozen. It runs in a process of its own on each tool that has something to run it
with, in the tool's own training loop where it has one, on small networks on a CPU. A row says whether the claim holds
(`holds`; null where the tool is not installed) and what was seen (`note`). Started again, it runs the rows that are
missing or of another version. Needs the extra `bench`.
"""

import argparse
import contextlib
import copy
import dataclasses
import datetime
import importlib.metadata
import io
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.layers import DropPath
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

import frostline as fl
from frostline import claims

Seen = tuple[bool, str]
Batch = tuple[torch.Tensor, torch.Tensor]
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """A body, which each tool freezes, and a head."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*body), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


def net_of(*layers: nn.Module, dims: int = 2) -> Net:
    torch.manual_seed(0)
    return Net(CONVS[dims](3, 6, 3, padding=1), *layers, nn.ReLU())


def batch_of(dims: int = 2, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, *(5,) * dims, generator=draw), torch.randint(3, (8,), generator=draw)


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that changed; one that is gone is case 33's to find."""
    now = module.state_dict()
    return [name for name, tensor in before.items() if name in now and not torch.equal(now[name], tensor)]


# --- the tools --------------------------------------------------------------------------------


class Torch:
    """`requires_grad_(False)`, then a plain loop that gives all weights to its optimizer."""

    package = "torch"

    def __init__(self, net: Net, x: torch.Tensor) -> None:
        self.net, self.x = net, x
        self.optimizer: torch.optim.Optimizer | None = None

    def freeze(self) -> None:
        self.net.body.requires_grad_(False)

    def unfreeze(self) -> None:
        self.net.body.requires_grad_(True)

    def modes(self) -> None:
        self.net.train()

    def train(self, batches: list[Batch], *, lr: float = 0.01) -> None:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, weight_decay=0.1)
        self.modes()
        for x, y in batches:
            self.optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(self.net(x), y).backward()
            self.optimizer.step()


class TorchEval(Torch):
    """The same with `body.eval()` after each `train()`, as careful people write it."""

    def modes(self) -> None:
        self.net.train()
        self.net.body.eval()


class Frostline(Torch):
    """`fl.freeze`, then the same plain loop."""

    package = "frostline"

    def freeze(self) -> None:
        fl.freeze(self.net, -1, self.x)

    def unfreeze(self) -> None:
        fl.unfreeze(self.net)


class Timm(Torch):
    """`timm.utils.freeze`, then the same plain loop."""

    package = "timm"

    def freeze(self) -> None:
        timm.utils.freeze(self.net, ["body"])

    def unfreeze(self) -> None:
        timm.utils.unfreeze(self.net, ["body"])


class Peft(Torch):
    """LoRA on the head, the rest frozen by PEFT, then the same plain loop."""

    package = "peft"

    def freeze(self) -> None:
        from peft import LoraConfig, get_peft_model

        self.model = get_peft_model(self.net, LoraConfig(target_modules=["head"], r=2))

    def unfreeze(self) -> None:
        self.model.unload()


class Fastai(Torch):
    """`Learner.freeze` and `Learner.fit`, as they are by default."""

    package = "fastai"
    train_bn = True

    def __init__(self, net: Net, x: torch.Tensor) -> None:
        import fastai.callback.progress  # noqa: F401 - gives a learner its `no_bar`
        from fastai.data.core import DataLoaders
        from fastai.learner import Learner

        def splitter(model: Net) -> list[list[nn.Parameter]]:
            return [list(model.body.parameters()), list(model.head.parameters())]

        super().__init__(net, x)
        self.learner = Learner(
            DataLoaders([], []), net, loss_func=F.cross_entropy, splitter=splitter,
            train_bn=self.train_bn, wd=0.1, cbs=self.callbacks(),
        )  # fmt: skip

    def callbacks(self) -> list[object]:
        return []

    def freeze(self) -> None:
        self.learner.freeze()

    def unfreeze(self) -> None:
        self.learner.unfreeze()

    def train(self, batches: list[Batch], *, lr: float = 0.01) -> None:
        from fastai.data.core import DataLoaders

        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        self.learner.dls = DataLoaders(loader, loader)
        with self.learner.no_bar(), self.learner.no_logging():
            self.learner.fit(1, lr=lr)


class FastaiBnFreeze(Fastai):
    """The same with `train_bn=False` and the callback `BnFreeze`."""

    train_bn = False

    def callbacks(self) -> list[object]:
        from fastai.callback.training import BnFreeze

        return [BnFreeze()]


class Lightning(Torch):
    """A `BaseFinetuning` callback and a `Trainer`, as they are by default."""

    package = "lightning"
    train_bn = True

    def __init__(self, net: Net, x: torch.Tensor) -> None:
        super().__init__(net, x)
        self.is_frozen = False

    def freeze(self) -> None:
        self.is_frozen = True

    def unfreeze(self) -> None:
        from lightning.pytorch.callbacks import BaseFinetuning

        self.is_frozen = False
        BaseFinetuning.make_trainable(self.net.body)

    def callbacks(self) -> list[object]:
        from lightning.pytorch.callbacks import BaseFinetuning

        train_bn = self.train_bn

        class Freeze(BaseFinetuning):
            def freeze_before_training(self, module):
                self.freeze(module.net.body, train_bn=train_bn)

            def finetune_function(self, module, epoch, optimizer):
                pass

        return [Freeze()] if self.is_frozen else []

    def train(self, batches: list[Batch], *, lr: float = 0.01) -> None:
        trainer = trainer_of(callbacks=self.callbacks(), max_epochs=1)
        trainer.fit(lightning_module(self.net, lr), torch.utils.data.DataLoader(batches, batch_size=None))


class LightningEval(Lightning):
    """The same with `train_bn=False`."""

    train_bn = False


class Scheduled(Lightning):
    """finetuning-scheduler in phase 0, which trains the head, and a `Trainer`."""

    package = "finetuning-scheduler"
    track = True

    def callbacks(self) -> list[object]:
        from finetuning_scheduler import FinetuningScheduler

        phase = {0: {"params": ["net.head.weight", "net.head.bias"]}}
        options = {"max_depth": 0, "restore_best": False, "frozen_bn_track_running_stats": self.track}
        return [FinetuningScheduler(ft_schedule=phase, **options)] if self.is_frozen else []


class ScheduledFlat(Scheduled):
    """The same with `frozen_bn_track_running_stats=False`."""

    track = False


class Skorch(Torch):
    """`skorch.callbacks.Freezer` and `NeuralNet.fit`."""

    package = "skorch"

    def __init__(self, net: Net, x: torch.Tensor) -> None:
        super().__init__(net, x)
        self.callback: list[object] = []

    def freeze(self) -> None:
        from skorch.callbacks import Freezer

        self.callback = [("freeze", Freezer("body.*"))]

    def unfreeze(self) -> None:
        from skorch.callbacks import Unfreezer

        self.callback = [("unfreeze", Unfreezer("body.*", at=1))]

    def train(self, batches: list[Batch], *, lr: float = 0.01) -> None:
        from skorch import NeuralNet

        fitted = NeuralNet(
            self.net, nn.CrossEntropyLoss, optimizer=torch.optim.AdamW, optimizer__weight_decay=0.1, lr=lr,
            max_epochs=1, train_split=None, callbacks=self.callback, verbose=0, batch_size=len(batches[0][0]),
            iterator_train__shuffle=False,
        )  # fmt: skip
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        fitted.fit(x, y)


def lightning_module(net: nn.Module, lr: float):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            live = [weight for weight in self.parameters() if weight.requires_grad]
            return torch.optim.AdamW(live, lr=lr, weight_decay=0.1)

    return Module()


def trainer_of(**options):
    import lightning

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet | options)


LOOPS: dict[str, type[Torch]] = {
    "frostline": Frostline,
    "torch": Torch,
    "torch, body.eval() after train()": TorchEval,
    "timm": Timm,
    "fastai": Fastai,
    "fastai, train_bn=False and BnFreeze": FastaiBnFreeze,
    "lightning": Lightning,
    "lightning, train_bn=False": LightningEval,
    "finetuning-scheduler": Scheduled,
    "finetuning-scheduler, frozen_bn_track_running_stats=False": ScheduledFlat,
    "skorch": Skorch,
    "peft": Peft,
}


# --- cases that run in every tool's loop ------------------------------------------------------


def buffers_kept(tool: type[Torch], kinds: dict[str, tuple[Callable[[], nn.Module], int]]) -> Seen:
    """Freeze, train for ten steps, and see which buffers of the body moved."""
    wrong = []
    for kind, (make, dims) in kinds.items():
        net, (x, y) = net_of(make(), dims=dims), batch_of(dims)
        loop = tool(net, x)
        loop.freeze()
        before = {name: tensor.detach().clone() for name, tensor in net.body.named_buffers()}
        loop.train([(x, y)] * 10)
        if names := moved(net.body, before):
            wrong.append(f"{kind}: {len(names)} of {len(before)} buffers moved")
    return not wrong, "; ".join(wrong) or f"no buffer moved: {', '.join(kinds)}"


def case_1(tool: type[Torch]) -> Seen:
    kinds = {"BatchNorm1d": 1, "BatchNorm2d": 2, "BatchNorm3d": 3, "SyncBatchNorm": 2}
    return buffers_kept(tool, {kind: (lambda kind=kind: getattr(nn, kind)(6), dims) for kind, dims in kinds.items()})


def case_2(tool: type[Torch]) -> Seen:
    return buffers_kept(
        tool,
        {
            "affine=False": (lambda: nn.BatchNorm2d(6, affine=False), 2),
            "momentum=None": (lambda: nn.BatchNorm2d(6, momentum=None), 2),
        },
    )


def case_5(tool: type[Torch]) -> Seen:
    net, (x, y) = net_of(nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6)), batch_of()
    loop = tool(net, x)
    loop.train([(x, y)] * 5)
    loop.freeze()
    before = {name: weight.detach().clone() for name, weight in net.body.named_parameters()}
    loop.train([(x, y)] * 5)
    names = moved(net.body, before)
    plain = ", one optimizer throughout, gradients zeroed in place" * (tool.train is Torch.train)
    return not names, f"{len(names)} of {len(before)} weights moved after train, freeze, train{plain}"


def reaching_head(net: Net) -> list[torch.Tensor]:
    """A list that fills with what comes out of the body while a tool trains."""
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            seen.append(args[0].detach().clone())

    net.head.register_forward_pre_hook(note)
    return seen


class FunctionalDropout(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, self.training)


def case_6(tool: type[Torch]) -> Seen:
    kinds: dict[str, Callable[[], nn.Module]] = {
        "Dropout": nn.Dropout,
        "DropPath": lambda: DropPath(0.5),
        "StochasticDepth": lambda: StochasticDepth(0.5, "row"),
        "functional dropout": FunctionalDropout,
    }
    rolls = []
    for kind, make in kinds.items():
        net, batch = net_of(make()), batch_of()
        seen = reaching_head(net)
        loop = tool(net, batch[0])
        loop.freeze()
        loop.train([batch] * 3, lr=0.0)
        if not all(torch.equal(one, seen[0]) for one in seen):
            rolls.append(kind)
    return not rolls, f"rolls in the frozen part: {', '.join(rolls)}" if rolls else f"off: {', '.join(kinds)}"


def case_7(tool: type[Torch]) -> Seen:
    net, (x, y) = net_of(nn.BatchNorm2d(6)), batch_of()
    others = torch.cat([x[:1], 3 * x[1:].flip(0) + 1])
    seen = reaching_head(net)
    loop = tool(net, x)
    loop.freeze()
    loop.train([(x, y), (others, y)], lr=0.0)
    far = float((seen[0][0] - seen[1][0]).abs().max())
    return far == 0, f"features of one sample with other batch mates differ by up to {far:.2g}"


def case_10(tool: type[Torch]) -> Seen:
    net, batch = net_of(nn.BatchNorm2d(6)), batch_of()
    net.body[0].bias.requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in net.named_parameters()}
    loop = tool(net, batch[0])
    loop.freeze()
    loop.train([batch])
    loop.unfreeze()
    if any(weight.requires_grad for weight in net.parameters()):
        loop.train([batch])
    flags = {name: weight.requires_grad for name, weight in net.named_parameters()}
    wrong = [name for name, flag in before.items() if flags.get(name) != flag]
    return not wrong, f"requires_grad is not what it was: {', '.join(wrong)}" if wrong else "each requires_grad is back"


def case_13(tool: type[Torch]) -> Seen:
    net, (x, y) = net_of(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)), batch_of()
    loop = tool(net, x)
    loop.freeze()
    loop.train([(x, y)])
    kept = saved_bytes(net, lambda: loop.train([(x, y)]))
    features = net.body(x).flatten(2).mean(2).detach()
    alone = saved_bytes(net, lambda: F.cross_entropy(net.head(features), y).backward())
    return kept <= alone, f"{kept:,} bytes kept for the backward pass; {alone:,} by the live part alone"


def saved_bytes(net: nn.Module, step: Callable[[], object]) -> int:
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())


def case_33(tool: type[Torch]) -> Seen:
    net, batch = net_of(nn.BatchNorm2d(6)), batch_of()
    keys = list(net.state_dict())
    loop = tool(net, batch[0])
    loop.freeze()
    loop.train([batch])
    lost = [key for key in keys if key not in net.state_dict()]
    added = [key for key in net.state_dict() if key not in keys]
    says = [f"gone: {', '.join(lost)}"] * bool(lost) + [f"new: {', '.join(added)}"] * bool(added)
    return not says, "; ".join(says) or "the keys are what they were"


# --- cases of single tools --------------------------------------------------------------------


def two_norms() -> Net:
    """A frozen and a live norm of equal values."""
    torch.manual_seed(0)
    net = Net(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU())
    net.head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))
    return net


def case_9_frostline() -> Seen:
    return root_weights(lambda net, x: fl.freeze(net, "blocks.1", x))


def case_9_timm() -> Seen:
    return root_weights(
        lambda net, x: timm.utils.freeze(net, ["patch_embed", "pos_drop", "norm_pre", "blocks.0", "blocks.1"])
    )


def case_9_peft() -> Seen:
    from peft import LoraConfig, get_peft_model

    return root_weights(lambda net, x: get_peft_model(net, LoraConfig(target_modules=r"blocks\.[2-9].*qkv", r=2)))


def root_weights(freeze_two: Callable[[nn.Module, torch.Tensor], object]) -> Seen:
    """Freeze a ViT up to its second block and train it: its class token and positions stay."""
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=3)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4) % 3
    freeze_two(net, x)
    before = {"cls_token": net.cls_token.detach().clone(), "pos_embed": net.pos_embed.detach().clone()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(2):
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()
    names = moved(net, before)
    return not names, f"moved though what reads them is frozen: {', '.join(names)}" if names else "both stayed"


def case_16_frostline() -> Seen:
    return checkpointed(lambda net, x: fl.freeze(net, 1, x))


def case_16_torch() -> Seen:
    return checkpointed(lambda net, x: net[0].requires_grad_(False))


def checkpointed(freeze_first: Callable[[nn.Module, torch.Tensor], object]) -> Seen:
    class Checkpointed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[2](checkpoint(self[1], self[0](x), use_reentrant=False))

    torch.manual_seed(0)
    net, x = Checkpointed(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)), torch.randn(8, 5)
    freeze_first(net, x)
    net.train()(x).square().mean().backward()
    has = net[1].weight.grad is not None
    return has, f"the first live layer has {'a' if has else 'no'} gradient with use_reentrant=False"


def case_27_frostline() -> Seen:
    net, (x, _) = two_norms(), batch_of()
    groups = fl.Thaw(net, {0: -1, 1: 0}, x).param_groups(0.1)
    return all_grouped(net, [weight for group in groups for weight in group["params"]])


def case_27_lightning() -> Seen:
    from lightning.pytorch.callbacks import BaseFinetuning

    net = two_norms()
    BaseFinetuning.freeze(net.body, train_bn=False)
    optimizer = torch.optim.AdamW(net.head.parameters(), lr=0.1)
    BaseFinetuning.unfreeze_and_add_param_group(net.body, optimizer)
    return all_grouped(net, [weight for group in optimizer.param_groups for weight in group["params"]])


def all_grouped(net: nn.Module, grouped: list[nn.Parameter]) -> Seen:
    ids = [id(weight) for weight in grouped]
    left_out = [name for name, weight in net.named_parameters() if id(weight) not in ids]
    says = f"in no group after thawing: {', '.join(left_out)}" if left_out else "each weight is in one group"
    return not left_out and len(set(ids)) == len(ids), says


SCHEDULERS: dict[str, Callable] = {
    "StepLR": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    "CosineAnnealingLR": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
    "OneCycleLR": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8),
    "LambdaLR": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "WarmRestarts": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "ReduceLROnPlateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
}


def case_28_frostline() -> Seen:
    def start(net: Net, x: torch.Tensor) -> tuple[torch.optim.Optimizer, Callable[[], object]]:
        thaw = fl.Thaw(net, {0: -1, 2: 0}, x)
        return torch.optim.AdamW(thaw.param_groups(0.01)), lambda: thaw.step()

    return schedulers_work(start)


def case_28_torch() -> Seen:
    def start(net: Net, x: torch.Tensor) -> tuple[torch.optim.Optimizer, Callable[[], object]]:
        epochs = iter(range(9))
        net.body.requires_grad_(False)
        optimizer = torch.optim.AdamW(net.head.parameters(), lr=0.01)

        def thaw() -> None:
            if next(epochs) == 1:
                net.body.requires_grad_(True)
                optimizer.add_param_group({"params": list(net.body.parameters())})

        return optimizer, thaw

    return schedulers_work(start)


def schedulers_work(start: Callable) -> Seen:
    """Train the head for two epochs, then all for two, under each scheduler."""
    failed = []
    for name, make in SCHEDULERS.items():
        net, (x, y) = net_of(nn.GroupNorm(2, 6)), batch_of()
        optimizer, thaw = start(net, x)
        rates = make(optimizer)
        try:
            for _ in range(4):
                optimizer.zero_grad()
                F.cross_entropy(net.train()(x), y).backward()
                optimizer.step()
                thaw()
                rates.step(*[1.0] * (name == "ReduceLROnPlateau"))
        except (KeyError, ValueError, IndexError) as error:
            failed.append(f"{name} ({type(error).__name__})")
    return not failed, f"fail: {', '.join(failed)}" if failed else f"work: {', '.join(SCHEDULERS)}"


def case_30_frostline() -> Seen:
    net, (x, y) = net_of(nn.GroupNorm(2, 6)), batch_of()
    thaw = fl.Thaw(net, {0: -1, 1: 0}, x)
    optimizer = torch.optim.AdamW(thaw.param_groups(0.01))
    F.cross_entropy(net.train()(x), y).backward()
    optimizer.step()
    before = optimizer.state[net.head.weight]["exp_avg"].clone()
    thaw.step()
    kept = torch.equal(optimizer.state[net.head.weight]["exp_avg"], before)
    return kept, f"the head's moments are {'kept' if kept else 'lost'} when the body thaws"


def case_30_fastai() -> Seen:
    net, batch = net_of(nn.GroupNorm(2, 6)), batch_of()
    loop = Fastai(net, batch[0])
    loop.freeze()
    loop.train([batch] * 2)
    before = "grad_avg" in loop.learner.opt.state[net.head.weight]
    loop.unfreeze()
    kept = before and "grad_avg" in loop.learner.opt.state[net.head.weight]
    return kept, f"the head's moments are {'kept' if kept else 'lost'} when the body thaws"


def case_31_frostline() -> Seen:
    def started() -> dict:
        net, (x, _) = net_of(nn.BatchNorm2d(6)), batch_of()
        thaw = fl.Thaw(net, {0: -1, 2: 0}, x)
        return {"net": net, "thaw": thaw, "optimizer": torch.optim.AdamW(thaw.param_groups(0.01))}

    def train(parts: dict, first: int, last: int) -> None:
        for epoch in range(first, last):
            x, y = batch_of(seed=epoch)
            parts["optimizer"].zero_grad()
            F.cross_entropy(parts["net"].train()(x), y).backward()
            parts["optimizer"].step()
            parts["thaw"].step()

    wrong = []
    for stop in (1, 2, 3):
        unbroken, first, second = started(), started(), started()
        train(unbroken, 0, 4)
        train(first, 0, stop)
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in first.items()}, file)
        file.seek(0)
        for name, state in torch.load(file, weights_only=True).items():
            second[name].load_state_dict(state)
        train(second, stop, 4)
        if moved(second["net"], bits(unbroken["net"])):
            wrong.append(stop)
    return resumed(wrong)


def case_31_lightning() -> Seen:
    import lightning
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            net = net_of(nn.BatchNorm2d(6))
            self.backbone, self.head = net.body, net.head

        def training_step(self, batch, index):
            x, y = batch_of(seed=self.current_epoch)
            return F.cross_entropy(self.head(self.backbone(x).flatten(2).mean(2)), y)

        def configure_optimizers(self):
            return torch.optim.AdamW(filter(lambda weight: weight.requires_grad, self.parameters()), lr=0.01)

    def fitted(epochs: int, start: Path | None = None, save: Path | None = None) -> nn.Module:
        module = Module()
        trainer = trainer_of(
            max_epochs=epochs, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=0.01)]
        )
        trainer.fit(module, torch.utils.data.DataLoader([0.0], batch_size=None), ckpt_path=start)
        if save:
            trainer.save_checkpoint(save)
        return module

    wrong, whole = [], fitted(4)
    with tempfile.TemporaryDirectory() as folder:
        for stop in (1, 2, 3):
            file = Path(folder) / f"{stop}.ckpt"
            fitted(stop, save=file)
            try:
                names = moved(fitted(4, start=file), bits(whole))
            except Exception as error:
                wrong.append(f"{stop} ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
            else:
                wrong += [stop] if names else []
    return resumed(wrong)


def resumed(wrong: list) -> Seen:
    says = "stopped after epoch {} of 4 and resumed, the weights differ or it fails; the body thaws at 2"
    return not wrong, says.format(", ".join(map(str, wrong))) if wrong else "resumed at any epoch, no bit differs"


def trained_norms() -> tuple[Net, Batch]:
    return net_of(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), batch_of()


def case_32_frostline() -> Seen:

    net, (x, y) = trained_norms()
    base = copy.deepcopy(net)
    fl.freeze(net, 1, x)
    plain_steps(net, x, y)
    with tempfile.TemporaryDirectory() as folder:
        delta = fl.save_delta(base, net, Path(folder) / "delta.safetensors", depth=1)
        again = fl.apply_delta(base, delta.file)
    return same_network(again, net)


def case_32_peft() -> Seen:
    from peft import LoraConfig, PeftModel, get_peft_model

    net, (x, y) = trained_norms()
    base = copy.deepcopy(net)
    tuned = get_peft_model(net, LoraConfig(target_modules=["body.2"], modules_to_save=["head"], r=2))
    plain_steps(tuned, x, y)
    with tempfile.TemporaryDirectory() as folder:
        tuned.save_pretrained(folder)
        again = PeftModel.from_pretrained(base, folder)
    return same_network(again, tuned)


def plain_steps(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()


def same_network(again: nn.Module, tuned: nn.Module) -> Seen:
    names = moved(again, bits(tuned))
    return (
        not names,
        f"not what was trained: {', '.join(names)}" if names else "base and saved file give every bit back",
    )


def case_41_frostline() -> Seen:
    def frozen(net: nn.Module) -> None:
        fl.freeze(net, 1, torch.randn(8, 5))

    return two_ranks(frozen, lambda net: fl.freeze(net, 0))


def case_41_torch() -> Seen:
    return two_ranks(lambda net: net[0].requires_grad_(False), lambda net: net[0].requires_grad_(True))


def case_41_torch_deeper() -> Seen:
    return two_ranks(lambda net: net[0].requires_grad_(False), lambda net: net[1].requires_grad_(False))


def two_ranks(freeze_first: Callable[[nn.Module], object], change: Callable[[nn.Module], object]) -> Seen:
    """Freeze, wrap, change what is frozen and train on two ranks: an error, or equal weights."""
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", init_method=os.environ["MEET"], rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    freeze_first(net)
    wrapped = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.manual_seed(rank + 1)
    try:
        change(net)
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
    except (RuntimeError, ValueError) as error:
        return True, f"refused: {str(error).splitlines()[0][:160]}"
    flat = torch.cat([weight.detach().flatten() for weight in net.parameters()])
    both = [torch.zeros_like(flat) for _ in range(2)]
    distributed.all_gather(both, flat)
    far = float((both[0] - both[1]).abs().max())
    return far == 0, f"the ranks' weights differ by up to {far:.2g} after 3 steps, and nothing says so"


def case_42_frostline() -> Seen:
    return compiled(lambda net, depth, x: fl.freeze(net, depth, x))


def case_42_torch() -> Seen:
    def change(net: nn.Module, depth: int, x: torch.Tensor) -> None:
        for index, layer in enumerate(net):
            layer.requires_grad_(index >= depth)

    return compiled(change)


def compiled(freeze_to: Callable) -> Seen:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)), torch.randn(8, 5)
    freeze_to(net, 2, x)
    fast = torch.compile(net, backend="aot_eager")
    wrong = []
    for depth in (2, 1, 0, 2, 1):
        freeze_to(net, depth, x)
        net.zero_grad()
        fast(x).square().mean().backward()
        if [layer.weight.grad is not None for layer in net] != [index >= depth for index in range(3)]:
            wrong.append(depth)
    return not wrong, f"wrong gradients at depth {wrong}" if wrong else "gradients follow each change of depth"


def case_43_frostline() -> Seen:
    net, (x, _) = net_of(), batch_of()
    net.body.requires_grad = False
    advice = fl.layer_status(net, x).advice
    return bool(advice), " ".join(advice)


def case_43_torch() -> Seen:
    net = net_of()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        net.body.requires_grad = False
    live = all(weight.requires_grad for weight in net.body.parameters())
    return bool(told) or not live, "body.requires_grad = False has no effect on its weights, and nothing says so"


# --- table, processes -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    number: int
    claim: str
    arms: dict[str, tuple[str, Callable[[], Seen]]]


def everywhere(case: Callable[[type[Torch]], Seen], *, but: str = "") -> dict[str, tuple[str, Callable[[], Seen]]]:
    """Each tool's loop, but those of a package that does not claim to do such a thing."""
    return {name: (tool.package, lambda tool=tool: case(tool)) for name, tool in LOOPS.items() if tool.package != but}


def alone(**arms: Callable[[], Seen]) -> dict[str, tuple[str, Callable[[], Seen]]]:
    return {name: (name, arm) for name, arm in arms.items()}


CASES = {
    case.number: case
    for case in (
        Case(1, "batch-norm buffers of the frozen part keep every bit", everywhere(case_1)),
        Case(2, "so do those without weights or with momentum=None", everywhere(case_2)),
        Case(5, "weights frozen after some training keep every bit", everywhere(case_5)),
        Case(6, "dropout and stochastic depth of the frozen part are off", everywhere(case_6)),
        Case(7, "a sample's features do not depend on its batch mates", everywhere(case_7)),
        Case(
            9,
            "class token and positions are frozen with what reads them",
            alone(frostline=case_9_frostline, timm=case_9_timm, peft=case_9_peft),
        ),
        Case(10, "unfreezing gives back the flags that were there", everywhere(case_10, but="finetuning-scheduler")),
        Case(13, "no graph is kept below the cut", everywhere(case_13)),
        Case(
            16,
            "checkpointing without re-entry right after the cut trains",
            alone(frostline=case_16_frostline, torch=case_16_torch),
        ),
        Case(27, "no thawed weight is missing", alone(frostline=case_27_frostline, lightning=case_27_lightning)),
        Case(28, "every scheduler works while stages thaw", alone(frostline=case_28_frostline, torch=case_28_torch)),
        Case(30, "the optimizer keeps what it knows", alone(frostline=case_30_frostline, fastai=case_30_fastai)),
        Case(31, "a resumed training is exact", alone(frostline=case_31_frostline, lightning=case_31_lightning)),
        Case(32, "base and saved changes give every bit", alone(frostline=case_32_frostline, peft=case_32_peft)),
        Case(33, "state-dict keys stay", everywhere(case_33, but="peft")),
        Case(
            41,
            "ranks never drift apart in silence",
            alone(frostline=case_41_frostline, torch=case_41_torch)
            | {"torch, frozen deeper": ("torch", case_41_torch_deeper)},
        ),
        Case(42, "a compiled network follows the depth", alone(frostline=case_42_frostline, torch=case_42_torch)),
        Case(43, "a flag set on a module is told", alone(frostline=case_43_frostline, torch=case_43_torch)),
    )
}


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def row_of(case: Case, tool: str) -> dict:
    package, _ = case.arms[tool]
    row = {"case": case.number, "claim": case.claim, "tool": tool, "version": version_of(package)}
    if row["version"] is None:
        return row | {"holds": None, "note": "not installed"}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [started(case, tool, rank, folder) for rank in range(2 if case.number == 41 else 1)]
        answers = [rank.communicate(timeout=300) for rank in ranks]
    (output, errors), code = answers[0], ranks[0].returncode
    if code or not output.strip():
        last = (errors.strip().splitlines() or [f"ended with {code}"])[-1]
        return row | {"holds": False, "note": f"crashed: {last[:200]}"}
    return row | json.loads(output.strip().splitlines()[-1])


def started(case: Case, tool: str, rank: int, folder: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--one", str(case.number), tool]
    meet = {"RANK": str(rank), "MEET": f"file://{folder}/meet", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | meet, cwd=folder
    )


def run_one(number: str, tool: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        holds, note = CASES[int(number)].arms[tool][1]()
    print(json.dumps({"holds": bool(holds), "note": note}), flush=True)
    # A process group that the other rank has left must not hang the exit.
    os._exit(0)


def write(file: Path, rows: list[dict]) -> None:
    content = {"date": str(datetime.date.today()), "machine": machine(), "rows": rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")


def table(rows: list[dict]) -> str:
    marks = {True: "holds", False: "FAILS", None: "-"}
    lines = []
    for number, case in CASES.items():
        lines.append(f"{number:>2} {case.claim}")
        lines += [
            f"   {marks[row['holds']]:5}  {row['tool']} {row['version'] or ''}: {row['note']}"
            for row in rows
            if row["case"] == number
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", type=int, nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tool", nargs="+", help="names as in the table; all where left out")
    parser.add_argument("--again", action="store_true", help="run rows again that are there")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "TOOL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return run_one(*options.one)
    if options.json is None:
        parser.error("--json is needed")
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    rows = [row for row in rows if row["tool"] in CASES[row["case"]].arms]
    for number in options.case:
        for tool, (package, _) in CASES[number].arms.items():
            if options.tool and tool not in options.tool:
                continue
            known = [row for row in rows if (row["case"], row["tool"]) == (number, tool)]
            if known and not options.again and known[0]["version"] == version_of(package):
                continue
            row = row_of(CASES[number], tool)
            rows = [row, *(other for other in rows if other not in known)]
            rows.sort(key=lambda row: (row["case"], list(CASES[row["case"]].arms).index(row["tool"])))
            write(options.json, rows)
            print(f"case {number}, {tool}: {row['holds']}", flush=True)
    print(table(rows))
    return None


def machine() -> dict[str, str | int | None]:
    packages = ("torch", "frostline", "fastai", "lightning", "finetuning-scheduler", "timm", "skorch", "peft")
    return {
        "processor": dict(claims.machine())["processor"],
        "threads": 1,
        "python": platform.python_version(),
    } | {package: version_of(package) for package in packages}


if __name__ == "__main__":
    main()
