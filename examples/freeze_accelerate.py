"""Thaw a network little by little under accelerate, and go on from a checkpoint.

Run it with `python examples/freeze_accelerate.py`, after `pip install accelerate`. It needs no download.
"""

from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl


def network() -> nn.Module:
    """Make a small network of three stages and a head; imagine that it was trained before."""
    stages = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)) for _ in range(3)]
    return nn.Sequential(*stages, nn.Linear(64, 10))


def digits() -> TensorDataset:
    """Read 640 handwritten digits."""
    read = load_digits()
    return TensorDataset(torch.tensor(read.data[:640], dtype=torch.float32) / 16, torch.tensor(read.target[:640]))


def main() -> None:
    """Train four epochs: the head alone, then more and more."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, samples = network(), digits()

    # Before `prepare`, which wraps the model where several processes train.
    thaw = fl.Thaw(model, {0: -1, 1: 1, 3: 0}, torch.zeros(4, 64))
    print(fl.layer_status(model), end="\n\n")

    optimizer = torch.optim.AdamW(thaw.param_groups(1e-2, layer_decay=0.7))
    loader = DataLoader(samples, batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(thaw)

    with TemporaryDirectory() as folder:
        for epoch in range(4):
            depth = thaw.depth
            before = {name: value.clone() for name, value in model.state_dict().items()}
            model.train()
            for x, y in loader:
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
            print(f"epoch {epoch}, {depth} stages frozen, loss {loss.item():.3f}. {fl.verify(model, before)}")
            thaw.step()
            if epoch == 1:
                accelerator.save_state(folder)

        accelerator.load_state(folder)
        print(f"\nback at the checkpoint after epoch 1, {thaw.depth} stages are frozen:")
        print(fl.layer_status(model))


if __name__ == "__main__":
    main()
