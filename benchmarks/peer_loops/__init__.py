"""What `benchmarks/peers.py` runs in a process of its own: the same job by each tool's own loop."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """From a folder to a trained network.

    Args:
        data: Folder with `train/`, `valid/` and `test/`, each with a folder for each class.
        scratch: Empty folder for whatever the tool writes.
        image_size: Side of the pictures, in pixels.
        epochs: Epochs with the whole network trained, for tools that must be told.
        seed: Of the new head, the order of the pictures and the augmentation.
        moments: When what was reached, in seconds since 1970.
        details: What the tool says of itself.
    """

    data: Path
    scratch: Path
    image_size: int
    epochs: int
    seed: int
    moments: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def mark(self, moment: str) -> None:
        """Note that something is reached now; the first time counts."""
        self.moments.setdefault(moment, time.time())

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order in which every tool here numbers them."""
        return sorted(folder.name for folder in (self.data / "train").iterdir())

    def files(self, part: str) -> list[Path]:
        """Pictures of one part, sorted by class and name."""
        return sorted((self.data / part).glob("*/*"))


@dataclass(frozen=True)
class Setting:
    """One way to use one tool.

    Args:
        package: What has to be installed; its loop is the module of this folder that is named after it.
        words: The setting as a person would say it.
        options: What the loop is told.
    """

    package: str
    words: str
    options: Mapping[str, Any] = field(default_factory=dict)


IN_MEMORY = "pictures made small once and kept in memory"
LIGHTNING = (
    "head for 1 epoch, then BackboneFinetuning for 10 as by default (a tenth of the rate, doubled each epoch); Adam"
)
KERAS = "the torch network in a TorchModuleWrapper, called with training=False; head for 1 epoch, all for 10; Adam"
TRAINER = "Trainer and TrainingArguments as by default but for 10 epochs: batch 8, AdamW 5e-5 down to 0, 0 workers"
TRAINER_TUNED = f"10 epochs, batch 32, AdamW 1e-3 with warm-up and cosine, channels-last, {IN_MEMORY}, nothing saved"

SETTINGS = {
    "frostline": Setting("frostline", "fit with its defaults, the search included"),
    "frostline, budget 0.4": Setting("frostline", "fit with --budget 0.4", {"budget": 0.4}),
    "fastai, augmented": Setting(
        "fastai",
        "vision_learner with its own head, Resize, aug_transforms(), fine_tune(10), batch 64, as many workers as cores",
        {"augments": True, "is_tuned": False},
    ),
    "fastai": Setting(
        "fastai",
        "vision_learner with its own head, Resize, fine_tune(10), batch 64, as many workers as cores",
        {"augments": False, "is_tuned": False},
    ),
    "fastai, augmented, tuned": Setting(
        "fastai",
        "vision_learner with its own head, aug_transforms(), fine_tune(10, .01), batch 32, channels-last, "
        f"{IN_MEMORY}, 0 workers",
        {"augments": True, "is_tuned": True},
    ),
    "fastai, tuned": Setting(
        "fastai",
        f"vision_learner with its own head, fine_tune(10, .01), batch 32, channels-last, {IN_MEMORY}, 0 workers",
        {"augments": False, "is_tuned": True},
    ),
    "torch": Setting(
        "torch",
        "plain loop, nothing frozen, 10 epochs, batch 32, 0 workers, AdamW 1e-3 throughout, best epoch by validation",
        {"is_tuned": False},
    ),
    "torch, tuned": Setting(
        "torch",
        "plain loop, nothing frozen, 10 epochs, batch 32, AdamW 1e-3 with warm-up and cosine, batch norm's pretrained "
        f"statistics, channels-last, {IN_MEMORY}, best epoch by validation",
        {"is_tuned": True},
    ),
    "lightning": Setting(
        "lightning",
        f"{LIGHTNING} 1e-3, batch 32, 0 workers, logs and checkpoints as by default",
        {"is_tuned": False},
    ),
    "lightning, tuned": Setting(
        "lightning",
        f"{LIGHTNING} 1e-3, train_bn=False, batch 32, channels-last, {IN_MEMORY}, no logs, no checkpoints",
        {"is_tuned": True},
    ),
    "transformers, frozen": Setting(
        "transformers",
        f"backbone with requires_grad=False; {TRAINER}",
        {"freezes": True, "is_tuned": False},
    ),
    "transformers, frozen, tuned": Setting(
        "transformers",
        f"backbone with requires_grad=False and in eval mode; {TRAINER_TUNED}",
        {"freezes": True, "is_tuned": True},
    ),
    "transformers": Setting("transformers", f"nothing frozen; {TRAINER}", {"freezes": False, "is_tuned": False}),
    "transformers, tuned": Setting(
        "transformers",
        f"nothing frozen, batch norm's pretrained statistics; {TRAINER_TUNED}",
        {"freezes": False, "is_tuned": True},
    ),
    "keras": Setting(
        "keras",
        f"{KERAS} 1e-3, then 1e-5, as in its guide to fine-tuning; batch 32, 0 workers",
        {"is_tuned": False},
    ),
    "keras, tuned": Setting(
        "keras",
        f"{KERAS} 1e-3, then 1e-3 with a cosine; batch 32, channels-last, {IN_MEMORY}",
        {"is_tuned": True},
    ),
}
"""In the order in which they run: those that the bars are about stand first."""
