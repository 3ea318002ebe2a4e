"""Keras 3 on its torch backend. Its own zoo has no EfficientNet-Lite0, but a torch network can be a layer as it is."""

import keras
import torch
from keras import optimizers
from keras.layers import TorchModuleWrapper

from peer_loops import Job, given

RATE = 1e-3
GUIDE_RATE = 1e-5
"""Source: Keras's guide to transfer learning and fine-tuning, in which the whole model is trained at this rate."""


class Classifier(keras.Model):
    """The backbone in inference mode, as the guide has it, so that batch norm keeps its statistics; and the head."""

    def __init__(self, net: given.Net) -> None:
        super().__init__()
        self.backbone, self.head = TorchModuleWrapper(net.backbone), TorchModuleWrapper(net.head)

    def call(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x, training=False))


def run(job: Job, *, is_tuned: bool) -> dict[str, str]:
    keras.utils.set_random_seed(job.seed)
    train, valid = (given.loader(job, part, in_memory=is_tuned) for part in ("train", "valid"))
    net = given.Net(len(job.classes))
    if is_tuned:
        net.to(memory_format=torch.channels_last)
    model = Classifier(net)
    model.backbone.trainable = False
    fit(model, train, valid, epochs=1, rate=RATE)
    model.backbone.trainable = True
    whole = optimizers.schedules.CosineDecay(RATE, job.epochs * len(train)) if is_tuned else GUIDE_RATE
    fit(model, train, valid, epochs=job.epochs, rate=whole)
    job.mark("trained")
    job.details = {"batch_size": given.BATCH, "workers": train.num_workers}
    return given.answers(job, net)


def fit(model: Classifier, train, valid, *, epochs: int, rate) -> None:
    # What is trainable counts from the moment of compiling.
    model.compile(
        optimizer=optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, validation_data=valid, epochs=epochs, verbose=0)
