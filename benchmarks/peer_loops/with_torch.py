"""A plain loop over the whole network."""

import copy
import math

import torch
from torch.nn import functional as F

from peer_loops import Job, given

RATE = 1e-3


def run(job: Job, *, is_tuned: bool) -> dict[str, str]:
    torch.manual_seed(job.seed)
    train, valid = (given.loader(job, part, in_memory=is_tuned) for part in ("train", "valid"))
    network = given.Net(len(job.classes))
    if is_tuned:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    steps = len(train)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, (lambda step: factor(step, steps, job.epochs * steps)) if is_tuned else (lambda step: 1.0)
    )
    best, kept = math.inf, {}
    for _ in range(job.epochs):
        network.train()
        if is_tuned:
            given.keep_statistics(network)
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            schedule.step()
        loss = checked(network, valid)
        if loss < best or not kept:
            best, kept = loss, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    job.mark("trained")
    job.details = {"batch_size": given.BATCH, "workers": train.num_workers}
    return given.answers(job, network)


def factor(step: int, steps: int, total: int) -> float:
    """Share of the peak rate: up over the first epoch, then down a cosine."""
    if step < steps:
        return (step + 1) / steps
    return 0.5 * (1 + math.cos(math.pi * (step - steps) / max(1, total - steps)))


@torch.no_grad()
def checked(network: torch.nn.Module, valid: torch.utils.data.DataLoader) -> float:
    network.eval()
    return sum(float(F.cross_entropy(network(x), y, reduction="sum")) for x, y in valid)
