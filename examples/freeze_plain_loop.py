"""Freeze a pretrained network in a loop of your own, and see what `requires_grad_(False)` leaves moving.

Run it with `python examples/freeze_plain_loop.py`. It needs no download: the digits come with
scikit-learn, the pretrained weights with a package that frostline depends on.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import frostline as fl

DEPTH = 14


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Read 192 handwritten digits as pictures of 64 pixels, between -1 and 1."""
    digits = load_digits()
    grey = torch.tensor(digits.images[:192], dtype=torch.float32).unsqueeze(1) / 8 - 1
    return F.interpolate(grey, size=64, mode="bicubic").repeat(1, 3, 1, 1), torch.tensor(digits.target[:192])


def train(network: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> float:
    """Train as everybody does, and give the last loss."""
    x, y = pictures()
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(x)).split(32):
            loss = F.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copy everything that the network keeps."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def main() -> None:
    """Freeze by frostline, then by hand."""
    torch.manual_seed(0)
    network = fl.load_model("efficientnet_lite0", 10, image_size=64).model
    status = fl.freeze(network, DEPTH, pictures()[0][:4])
    print(status)

    before = tensors(network)
    optimizer = torch.optim.AdamW(fl.param_groups(network, 1e-3, layer_decay=0.8, weight_decay=0.1))
    print(f"\nloss after two epochs {train(network, optimizer, epochs=2):.3f}")
    print(fl.verify(network, before))

    by_hand = fl.load_model("efficientnet_lite0", 10, image_size=64).model
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad_(dict(network.named_parameters())[name].requires_grad)
    before = tensors(by_hand)
    optimizer = torch.optim.AdamW([weight for weight in by_hand.parameters() if weight.requires_grad], 1e-3)
    train(by_hand, optimizer, epochs=1)
    found = fl.verify(by_hand, before)
    print("\nby hand, with requires_grad_(False) alone, after one epoch:")
    print(f"{len(found.moved)} of {found.compared} frozen tensors moved, such as {', '.join(found.moved[:2])}")


if __name__ == "__main__":
    main()
