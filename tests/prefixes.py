"""Small modules as engines get them, and inputs for them."""

import torch
from torch import nn


class Prefix(nn.Module):
    """Convolutions, batch norm and dropout; gives two wires and passes whole numbers on."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.path = nn.Conv2d(8, 4, 3, stride=2)

    def forward(self, x, ids):
        h = self.stem(x)
        return self.path(h), h.flatten(2).transpose(1, 2), ids


class Odd(nn.Module):
    """What OpenVINO has no rule for."""

    def forward(self, x):
        return torch.linalg.eigvals(x @ x.transpose(-1, -2)).real


def inputs(batch, seed=0, channels_last=False):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, 12, 12, generator=draw)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, 9, (batch, 5), generator=draw)
