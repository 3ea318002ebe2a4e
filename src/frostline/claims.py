"""Everything a run can say for itself, gathered into one record."""

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from frostline.records import (
    Choice,
    Claim,
    Cost,
    CutGraph,
    DataSummary,
    Delta,
    Evidence,
    ModelSource,
    Plan,
    Preprocessing,
    Prior,
    Score,
    Trial,
)

_PACKAGES = ("torch", "torchvision", "timm", "openvino", "datasets", "numpy", "scikit-learn", "pillow", "safetensors")
"""Packages whose version can change a number in the report."""


def gather(
    *,
    arguments: Sequence[tuple[str, str]],
    data: DataSummary,
    source: ModelSource,
    preprocessing: Preprocessing | None,
    graph: CutGraph,
    prior: Prior,
    plan: Plan,
    trials: Sequence[Trial],
    choice: Choice,
    valid: Score,
    test: Score,
    disagreement: float,
    delta: Delta,
    cost: Cost,
    parameters_live: int | None = None,
    claims: Sequence[Claim] = (),
) -> Evidence:
    """Put the pieces of a run together, with the date, the machine and the version.

    Args:
        arguments: What the run was asked for, as (name, value).
        data: What was read.
        source: The network.
        preprocessing: How a picture becomes an input, or None.
        graph: Its stages and cuts.
        prior: Votes before training.
        plan: What was meant.
        trials: What happened, failed trials included.
        choice: The depth picked.
        valid: Score of the chosen weights on the validation part.
        test: Score of the merged network on the test part.
        disagreement: Share of test predictions that differ when made from the store, 0 to 1.
        delta: The file that was left.
        cost: What it cost.
        parameters_live: Trained parameter elements; None counts those of the live stages.
        claims: Verdicts on what freezing is said to bring.

    Returns:
        The record that `render` shows.

    Example:
        >>> import inspect
        >>> set(inspect.signature(gather).parameters) == set(Evidence.model_fields) - {
        ...     "frostline",
        ...     "created",
        ...     "machine",
        ... }
        True
    """
    if parameters_live is None:
        parameters_live = sum(stage.parameters for stage in graph.stages[choice.depth :])
    return Evidence(
        frostline=metadata.version("frostline"),
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        machine=machine(),
        arguments=tuple(arguments),
        data=data,
        source=source,
        preprocessing=preprocessing,
        graph=graph,
        prior=prior,
        plan=plan,
        trials=tuple(trials),
        choice=choice,
        valid=valid,
        test=test,
        disagreement=disagreement,
        delta=delta,
        cost=cost,
        parameters_live=parameters_live,
        claims=tuple(claims),
    )


def machine() -> tuple[tuple[str, str], ...]:
    """Say what this run was computed on: processor, threads, memory, system and versions.

    Nothing is imported for it: the threads of torch are listed only where torch is loaded. No
    user, host or folder is named, since reports are handed on.

    Returns:
        Pairs of (name, value), the same on each call of a process.

    Example:
        >>> dict(machine())["python"] == platform.python_version()
        True
    """
    facts = [
        ("processor", _processor()),
        ("cores", str(_cores())),
        ("memory", _memory()),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("python", platform.python_version()),
    ]
    if torch := sys.modules.get("torch"):
        facts.append(("threads of torch", str(torch.get_num_threads())))
    for package in _PACKAGES:
        try:
            facts.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple((name, value) for name, value in facts if value)


def _processor() -> str:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        first = ""
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    name = facts.get("model name") or platform.processor() or platform.machine()
    # Virtual machines call different generations by one name, of which the newer may compute twice as fast.
    if "cpu family" in facts and "model" in facts:
        name += f", family {facts['cpu family']}, model {facts['model']}"
    return name


def _cores() -> int:
    # A container may be given fewer cores than the machine has; only Linux says how many.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return ""
    return f"{pages * page_bytes / 2**30:.1f} GiB"
