"""Lightning's `BackboneFinetuning`."""

import lightning
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch.nn import functional as F

from peer_loops import Job, given

RATE = 1e-3


class Classifier(lightning.LightningModule):
    """Backbone and head under the names that the callback asks for."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        net = given.Net(classes)
        self.backbone, self.head = net.backbone, net.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        outputs = self(batch[0])
        self.log("valid_loss", F.cross_entropy(outputs, batch[1]))
        self.log("valid_accuracy", (outputs.argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self):
        # The callback adds the backbone's weights when it is their turn.
        return torch.optim.Adam(self.head.parameters(), lr=RATE)


def run(job: Job, *, is_tuned: bool) -> dict[str, str]:
    lightning.seed_everything(job.seed, verbose=False)
    train, valid = (given.loader(job, part, in_memory=is_tuned) for part in ("train", "valid"))
    module = Classifier(len(job.classes))
    if is_tuned:
        module.to(memory_format=torch.channels_last)
    spare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} if is_tuned else {}
    trainer = lightning.Trainer(
        max_epochs=1 + job.epochs,
        accelerator="cpu",
        devices=1,
        default_root_dir=job.scratch,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=not is_tuned)],
        **spare,
    )
    trainer.fit(module, train, valid)
    job.mark("trained")
    job.details = {"batch_size": given.BATCH, "workers": train.num_workers}
    return given.answers(job, module)
