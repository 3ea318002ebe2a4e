"""Energy that a device draws, read from the device's own counters through codecarbon and never estimated."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

Counter = Callable[[], float | None]
"""Gives the joules drawn since it was made; None where its source fell silent."""

SECONDS_BETWEEN_READINGS = 30.0
"""A processor's counter has 32 bits and begins anew after 66 or 262 kJ: at 400 W after 160 seconds at the soonest."""

_JOULES_PER_KWH = 3.6e6


@dataclass
class Drawn:
    """What a device drew.

    Args:
        joules: None until the block has ended, and where they cannot be read.
    """

    joules: float | None = None


@contextlib.contextmanager
def metered(
    device: torch.device,
    *,
    counter_of: Callable[[torch.device], Counter | None] | None = None,
    seconds_between: float = SECONDS_BETWEEN_READINGS,
) -> Iterator[Drawn]:
    """Read what a device draws while the block runs, the share of other programs included.

    Where codecarbon is missing or the device has no counter that may be read, nothing is said. What codecarbon would
    make of the processor's nominal power is no measurement and is not asked for.

    Args:
        device: The processor, or the one graphics card, that does the work of the block.
        counter_of: Finds the device's counter; None where it has none. By default codecarbon's.
        seconds_between: Readings while the block runs, so that a counter which begins anew is noticed each time.

    Example:
        >>> with metered(torch.device("cpu"), counter_of=lambda device: lambda: 12.5) as drawn:
        ...     numbers = list(range(10))
        >>> drawn.joules
        12.5
    """
    drawn, ended = Drawn(), threading.Event()
    with _silent_codecarbon():
        counter = (counter_of or own_counter)(device)
        if counter is None:
            yield drawn
            return

        def watch() -> None:
            while not ended.wait(seconds_between):
                counter()

        watcher = threading.Thread(target=watch, name="frostline energy", daemon=True)
        watcher.start()
        try:
            yield drawn
        finally:
            ended.set()
            watcher.join()
            drawn.joules = counter()


def own_counter(device: torch.device) -> Counter | None:
    """Find the counter of a processor (RAPL under Linux) or of an NVIDIA card.

    Args:
        device: Whose.

    Returns:
        The counter, or None where there is none, it may not be read, or codecarbon is not installed.

    Example:
        >>> own_counter(torch.device("meta"))
    """
    finders = {"cpu": _of_processor, "cuda": _of_card}
    if device.type not in finders:
        return None
    try:
        return finders[device.type](device)
    # Missing packages, files and permissions, another system, and counters that hold no number.
    except (ImportError, OSError, SystemError, ValueError):
        return None


def _of_processor(device: torch.device) -> Counter:
    # Not codecarbon's own choice of a way to track, which falls back on the nominal power of a processor.
    from codecarbon.core.cpu import IntelRAPL
    from codecarbon.core.units import Time

    packages = IntelRAPL()
    packages.start()
    total: float | None = 0.0

    def counter() -> float | None:
        nonlocal total
        found = packages.get_cpu_details(Time(SECONDS_BETWEEN_READINGS))
        drawn = sum(kwh for name, kwh in found.items() if name.startswith("Processor Energy Delta"))
        # A counter that stands still, as in some virtual machines, or that failed in between counts nothing.
        total = None if total is None or drawn <= 0 else total + drawn * _JOULES_PER_KWH
        return total

    return counter


def _of_card(device: torch.device) -> Counter | None:
    from codecarbon.core.gpu import AllGPUDevices, is_gpu_details_available
    from pynvml import NVMLError

    if not is_gpu_details_available():
        return None
    try:
        cards = AllGPUDevices()
    except NVMLError:
        return None
    own = str(torch.cuda.get_device_properties(device).uuid)

    def millijoules() -> float | None:
        # The counter itself: where a card has none, its energy since the last look would be an estimate.
        found = (card for card in cards.get_gpu_details() if card["uuid"].endswith(own))
        return next((card["total_energy_consumption"] for card in found), None)

    first = millijoules()

    def counter() -> float | None:
        now = millijoules()
        return None if first is None or now is None or now <= first else (now - first) / 1000

    return counter


@contextlib.contextmanager
def _silent_codecarbon() -> Iterator[None]:
    """Let codecarbon say nothing, and undo the logging that it sets up when it is imported."""
    log = logging.getLogger("codecarbon")
    kept = log.handlers[:], log.level, log.propagate, log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.handlers[:], level, log.propagate, log.disabled = kept
        log.setLevel(level)
