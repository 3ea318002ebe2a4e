"""What things cost: seconds by phase, seconds of a step, seconds by stage, and the interval of a share."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, final

from frostline.errors import BadArgument

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_NORMAL_975 = 1.959963984540054
"""97.5th percentile of the normal distribution: two sides of a 95 % interval."""


@final
class Clock:
    """Sums seconds by phase; a phase inside another is counted once, as its own.

    Args:
        earlier: Seconds of an interrupted run, to count on from.

    Example:
        >>> clock = Clock([("train", 2.0)])
        >>> with clock.phase("train"):
        ...     pass
        >>> clock.seconds("train") >= 2.0
        True
    """

    def __init__(self, earlier: Iterable[tuple[str, float]] = ()) -> None:
        self._seconds: dict[str, float] = dict(earlier)
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as this phase."""
        self._settle()
        self._open.append(name)
        self._seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def move(self, seconds: float, *, source: str, target: str) -> None:
        """Count seconds of one phase as another's, for what went on beside it; at most what the phase has."""
        self._settle()
        seconds = min(seconds, self._seconds.get(source, 0.0))
        if seconds > 0:
            self._seconds[source] -= seconds
            self._seconds[target] = self._seconds.get(target, 0.0) + seconds

    def seconds(self, *names: str) -> float:
        """Sum over these phases, or over all of them if none is named."""
        self._settle()
        return sum(self._seconds.get(name, 0.0) for name in names or self._seconds)

    @property
    def by_phase(self) -> tuple[tuple[str, float], ...]:
        """Pairs of phase and seconds, in the order in which the phases began."""
        self._settle()
        return tuple(self._seconds.items())

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now


def caught_up(device: "torch.device | None") -> None:
    """Wait until a GPU has done what it was given, for the clock would stop at its being asked; others are done.

    Example:
        >>> caught_up(None)
    """
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def step_seconds(
    step: Callable[[], object], repeats: int = 5, *, device: "torch.device | None" = None
) -> tuple[float, float, float]:
    """Time a step, after one that is not counted.

    Args:
        step: What to time.
        repeats: How many times.
        device: Where it is done, so that it is waited for; None is the processor.

    Returns:
        Median, lowest and highest seconds.

    Example:
        >>> median, low, high = step_seconds(lambda: sum(range(100)))
        >>> low <= median <= high
        True
    """
    if repeats < 1:
        raise BadArgument(f"BadArgument: repeats is {repeats}; a median needs at least 1.", repeats=repeats)
    step()
    caught_up(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        caught_up(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), min(seconds), max(seconds)


def stage_seconds(
    model: "nn.Module", example: "tuple[Tensor, ...]", boundaries: Sequence[str], repeats: int = 3
) -> tuple[float, ...]:
    """Measure which share of a forward pass each stage takes.

    A stage ends where the module that names it returns for the last time; the last stage ends
    with the pass. The model is put into eval mode and run, so hand in a copy.

    Args:
        model: A copy of the network.
        example: Inputs where the network is, batch axis first.
        boundaries: Dotted name of the last module of each stage, in order.
        repeats: Passes; the median counts, and one pass before them does not.

    Returns:
        One share for each stage; they sum to 1.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> shares = stage_seconds(net, (torch.rand(2, 4),), ("0", "1"))
        >>> round(sum(shares), 6), len(shares)
        (1.0, 2)
    """
    import torch

    device = example[0].device
    returned: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            caught_up(device)
            returned[name] = time.perf_counter()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in boundaries]
    passes: list[list[float]] = []
    model.eval()
    try:
        for _ in range(repeats + 1):
            returned.clear()
            start = time.perf_counter()
            with torch.no_grad():
                model(*example)
            caught_up(device)
            end = time.perf_counter()
            times = [returned.get(name, start) for name in boundaries[:-1]] + [end]
            # A module that returns again later, or never in this pass, must not give a negative share.
            reached = start
            passes.append([])
            for moment in times:
                passes[-1].append(max(0.0, moment - reached))
                reached = max(reached, moment)
    finally:
        for handle in handles:
            handle.remove()
    medians = [statistics.median(column) for column in zip(*passes[1:], strict=True)]
    total = sum(medians)
    return tuple(seconds / total for seconds in medians)


def effective(weights: Sequence[float]) -> float:
    """Give the number of equal samples that tell as much as weighted ones.

    Args:
        weights: What each sample counts, not all 0.

    Returns:
        At most as many as there are weights.

    Example:
        >>> effective([1.0, 1.0, 1.0]), effective([2.0, 1.0, 0.0])
        (3.0, 1.8)

    Source:
        Kish, Survey sampling, 1965, section 11.7.
    """
    return sum(weights) ** 2 / sum(weight * weight for weight in weights)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Give the 95 % interval of a share.

    Args:
        hits: How many were right.
        n: Of how many; an effective number need not be whole.

    Returns:
        Lower and upper end, 0 to 1; (0, 1) where n is 0.

    Example:
        >>> low, high = wilson(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)

    Source:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference,
        Journal of the American Statistical Association 22, 1927.
    """
    if not 0 <= hits <= n:
        raise BadArgument(f"BadArgument: {hits} hits of {n}; hits must be 0 to n.", hits=hits, n=n)
    if n == 0:
        return 0.0, 1.0
    z2 = _NORMAL_975**2
    share = hits / n
    middle = share + z2 / (2 * n)
    half = _NORMAL_975 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The ends are exact at 0 and n hits; rounding must not put them beside the share.
    low = 0.0 if hits == 0 else (middle - half) / (1 + z2 / n)
    high = 1.0 if hits == n else (middle + half) / (1 + z2 / n)
    return low, high
