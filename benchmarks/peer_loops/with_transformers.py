"""`Trainer` on a module of one's own, with the backbone frozen and without."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, set_seed

from peer_loops import Job, given


class Classifier(nn.Module):
    """The network as `Trainer` wants it: loss and logits by name."""

    def __init__(self, net: given.Net, *, freezes: bool, keeps_statistics: bool) -> None:
        super().__init__()
        self.net, self.freezes, self.keeps_statistics = net, freezes, keeps_statistics
        net.backbone.requires_grad_(not freezes)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.keeps_statistics:
            self.net.backbone.train(mode and not self.freezes)
            given.keep_statistics(self)
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def collated(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([x for x, _ in rows]),
        "labels": torch.tensor([int(label) for _, label in rows]),
    }


def run(job: Job, *, freezes: bool, is_tuned: bool) -> dict[str, str]:
    set_seed(job.seed)
    train = given.pictures(job, "train", in_memory=is_tuned)
    net = given.Net(len(job.classes))
    if is_tuned:
        net.to(memory_format=torch.channels_last)
    tuned = {
        "per_device_train_batch_size": given.BATCH,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": -(-len(train) // given.BATCH),
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(
        output_dir=str(job.scratch / "trainer"),
        num_train_epochs=job.epochs,
        seed=job.seed,
        use_cpu=True,
        # Nothing to pin memory for; it would warn.
        dataloader_pin_memory=False,
        report_to="none",
        **(tuned if is_tuned else {}),
    )
    model = Classifier(net, freezes=freezes, keeps_statistics=is_tuned)
    Trainer(model=model, args=arguments, train_dataset=train, data_collator=collated).train()
    job.mark("trained")
    job.details = {
        "batch_size": arguments.per_device_train_batch_size,
        "workers": arguments.dataloader_num_workers,
        "learning_rate": arguments.learning_rate,
    }
    return given.answers(job, net)
