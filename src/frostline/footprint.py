"""What training takes of memory: a few steps in a fresh process, whose peak nothing else has raised."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from frostline.files import read_record, write_record
from frostline.records import ModelSource, Recipe, Record
from frostline.sources import load_model
from frostline.splitting import Split, split
from frostline.tracing import trace
from frostline.tuning import train_step

STEPS = 5
"""Training steps; from the second on the optimizer's state is there too."""


class Footprint(Record):
    """What training took of memory.

    Args:
        peak_bytes: Growth of the process's resident memory, at most, over what it had before the network was built.
        state_bytes: Gradients, and the two moments of each that AdamW keeps.
    """

    peak_bytes: int
    state_bytes: int


class Request(Record):
    """What a fresh process is to train.

    Args:
        source: The network's name; None reads the network itself from a file.
        image_size: Side of its pictures, pixels.
        depth: Number of frozen stages.
        is_stored: Whether rows of the frozen part are given, or samples from which it computes them at each step.
        recipe: How to train.
        threads: Of torch.
    """

    source: ModelSource | None
    image_size: int | None
    depth: int
    is_stored: bool
    recipe: Recipe
    threads: int


def measure_memory(
    request: Request,
    rows: tuple[torch.Tensor, ...],
    *,
    example: tuple[torch.Tensor, ...],
    labels: torch.Tensor,
    network: nn.Module,
    folder: Path,
) -> Footprint:
    """Train a few steps in a fresh process and see how far its memory grows.

    Args:
        request: What to train.
        rows: One batch of what is trained on: kept rows (B, ...), or samples.
        example: Inputs to trace the network with.
        labels: (B,) class numbers.
        network: Handed over where it has no name by which it could be made again.
        folder: Where what is handed over is written.

    Returns:
        Peak and state.

    Raises:
        RuntimeError: The process did not end well; the message is the last line that it said.

    Example:
        >>> import inspect
        >>> list(inspect.signature(measure_memory).parameters)[:2]
        ['request', 'rows']
    """
    write_record(folder / "request.json", request)
    torch.save({"rows": rows, "example": example, "labels": labels}, folder / "rows.pt")
    if request.source is None:
        torch.save(network, folder / "network.pt")
    # What the user's own classes are imported from must be found there as it is here.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(
        [sys.executable, "-m", "frostline.footprint", str(folder)], capture_output=True, text=True, env=environment
    )
    if process.returncode:
        raise RuntimeError(f"the fresh process failed: {(process.stderr.splitlines() or [''])[-1]}")
    return read_record(folder / "found.json", Footprint)


def main(folder: Path) -> None:
    """Do what `measure_memory` has written into the folder; runs in the fresh process."""
    request = read_record(folder / "request.json", Request)
    torch.set_num_threads(request.threads)
    given = torch.load(folder / "rows.pt", weights_only=True)
    _warm_up()
    before = _resident()
    network = _network(request, folder)
    parts = split(network, trace(network, given["example"]), request.depth)
    trainee, head = (parts.live, parts.graph.head) if request.is_stored else _Recomputed.of(parts)
    del network, parts
    with _peak() as peak:
        step = train_step(trainee, given["rows"], given["labels"], recipe=request.recipe, head=head)
        for _ in range(STEPS):
            step()
    gradients = [weight.grad for weight in trainee.parameters() if weight.grad is not None]
    state = 3 * sum(gradient.numel() * gradient.element_size() for gradient in gradients)
    write_record(folder / "found.json", Footprint(peak_bytes=max(0, peak[0] - before), state_bytes=state))


def _network(request: Request, folder: Path) -> nn.Module:
    if request.source is None:
        network: nn.Module = torch.load(folder / "network.pt", weights_only=False)
        return network
    # What the weights are plays no part, so none are fetched.
    source = request.source
    return load_model(source.name, source.outputs, image_size=request.image_size, pretrained=False).model


class _Recomputed(nn.Module):
    """A network whose frozen part computes at each step what a store would keep."""

    def __init__(self, parts: Split) -> None:
        super().__init__()
        self.live = parts.live
        self._frozen = parts.frozen

    @classmethod
    def of(cls, parts: Split) -> tuple["_Recomputed", str | None]:
        """The network, and the name of the head in it."""
        return cls(parts), None if parts.graph.head is None else f"live.{parts.graph.head}"

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.live(*self._frozen(*inputs))
        return output


def _warm_up() -> None:
    """Load what the first step of any training loads, which belongs to no network."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    train_step(net, (torch.zeros(4, 1, 4, 4),), torch.zeros(4, dtype=torch.int64), recipe=Recipe(), head=None)()


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Yield a list that holds the largest resident bytes of what was done inside, once that is over."""
    gc.collect()
    found: list[int] = []
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        # 5 sets the high-water mark to what is resident now.
        reset.write_text("5")
    yield found
    found.append(_high_water())


def _resident() -> int:
    """Bytes of this process in memory now; where only a high-water mark is told, that."""
    status = Path("/proc/self/status")
    return _told(status, "VmRSS") if status.exists() else _high_water()


def _high_water() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`: Linux hands that of the parent on to a process that it starts.
        return _told(status, "VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _told(status: Path, name: str) -> int:
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
