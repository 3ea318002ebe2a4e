"""`vision_learner` and `fine_tune`, as fastai's own course does it."""

from pathlib import Path

import fastai.callback.channelslast  # noqa: F401 - gives a learner its `to_channelslast`
import numpy as np
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    PILImage,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

from peer_loops import Job, given


def architecture(pretrained: bool = True):
    """What `vision_learner` cuts its body from."""
    return given.pretrained()


def run(job: Job, *, augments: bool, is_tuned: bool) -> dict[str, str]:
    set_seed(job.seed)
    dls = loaders(job, augments=augments, is_tuned=is_tuned)
    learner = vision_learner(dls, architecture, metrics=accuracy, path=job.scratch)
    if is_tuned:
        learner.to_channelslast(use_amp=False)
    # fastai trains such a body at a hundredth of the head's rate, which leaves it short of what it could learn; lr_find
    # names .002 and .003 here, and ten epochs at .01 end better on both sets on which they were compared.
    rate = {"base_lr": 1e-2} if is_tuned else {}
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(job.epochs, **rate)
        job.mark("trained")
        outputs, _ = learner.get_preds(dl=dls.test_dl(job.files("test")))
    job.details = {"batch_size": dls.bs, "workers": dls.fake_l.num_workers}
    assert list(dls.vocab) == job.classes
    return given.named(job, outputs.argmax(dim=1).tolist())


def loaders(job: Job, *, augments: bool, is_tuned: bool):
    batch = [*(aug_transforms() if augments else ()), Normalize.from_stats(given.MEAN, given.STD)]
    if not is_tuned:
        return ImageDataLoaders.from_folder(job.data, item_tfms=Resize(job.image_size), batch_tfms=batch)
    files = job.files("train") + job.files("valid")
    kept = dict(zip(files, given.small(files, job.image_size), strict=True))

    class Kept(PILImage):
        @classmethod
        def create(cls, file: Path):
            pixels: np.ndarray | None = kept.get(Path(file))
            return PILImage.create(given.middle(file, job.image_size) if pixels is None else pixels)

    return ImageDataLoaders.from_folder(job.data, batch_tfms=batch, img_cls=Kept, bs=given.BATCH, num_workers=0)
