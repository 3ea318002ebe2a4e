"""Freeze a pretrained network under fastai's Learner, with one learning rate for each stage.

Run it with `python examples/freeze_fastai.py`, after `pip install fastai`. It needs no download.
"""

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl

DEPTH = 14


def loaders() -> DataLoaders:
    """Read 192 handwritten digits to train on and 96 to validate, as pictures of 64 pixels."""
    digits = load_digits()
    grey = torch.tensor(digits.images[:288], dtype=torch.float32).unsqueeze(1) / 8 - 1
    x, y = F.interpolate(grey, size=64, mode="bicubic").repeat(1, 3, 1, 1), torch.tensor(digits.target[:288])
    parts = TensorDataset(x[:192], y[:192]), TensorDataset(x[192:], y[192:])
    return DataLoaders(*(DataLoader(part, batch_size=32, shuffle=part is parts[0]) for part in parts))


def main() -> None:
    """Freeze first, then let fastai train with its own loop and optimizer."""
    torch.manual_seed(0)
    data = loaders()
    network = fl.load_model("efficientnet_lite0", 10, image_size=64).model
    print(fl.freeze(network, DEPTH, torch.zeros(4, 3, 64, 64)))
    before = {name: value.clone() for name, value in network.state_dict().items()}

    groups = fl.param_groups(network, 1e-3, layer_decay=0.8)
    learner = Learner(
        data,
        network,
        loss_func=nn.CrossEntropyLoss(),
        # fastai's groups are ours. Not `fine_tune`, `freeze` or `unfreeze`: they are fastai's own way to freeze.
        splitter=lambda _: [group["params"] for group in groups],
        metrics=accuracy,
    )
    with learner.no_logging():
        learner.fit(2, lr=[group["lr"] for group in groups])

    loss, share = learner.validate()
    print(f"\nvalidation after two epochs: loss {loss:.3f}, accuracy {share:.3f}")
    print(fl.verify(network, before))


if __name__ == "__main__":
    main()
