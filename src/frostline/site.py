"""Where a run stands: its folder, its copy of the network, its clock, and the rows that a live part reads."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from frostline.carrying import carried, device_of
from frostline.copies import copy_of
from frostline.cost import Clock
from frostline.data import Pictures, Rows, Samples, settle
from frostline.engines import Compiled, Compiler, compiled
from frostline.errors import BadArgument
from frostline.events import Event, Listener
from frostline.features import FeatureStore, cache_all
from frostline.files import append_record, read_record, write_record
from frostline.recomputing import Recomputed
from frostline.records import CutGraph, Plan, Spent
from frostline.splitting import Frozen, Split, depths_of, prove
from frostline.task import Task
from frostline.tracing import trace

BATCH = 32


@dataclass(frozen=True)
class Site:
    """What every step of one run needs; `base` is the run's own copy of the network, `example` inputs where that is."""

    task: Task
    folder: Path
    base: nn.Module
    example: tuple[torch.Tensor, ...]
    graph: CutGraph
    clock: Clock
    listener: Listener
    engines: dict[tuple[tuple[int, ...], str, str, torch.dtype], Compiled] = field(default_factory=dict)
    recomputed: dict[tuple[str, int], Recomputed] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the network is, and so where everything is computed."""
        return device_of(self.base)

    def spent(self, phase: str) -> AbstractContextManager[None]:
        """Count what happens inside as seconds of this phase."""
        return spent(phase, self.folder, self.clock)


@contextmanager
def diary(folder: Path, listener: Listener) -> Iterator[Listener]:
    """A listener that also keeps the beginning and the end of every phase in `events.jsonl`.

    What the user's listener raises ends the run as it is; it must not pass for a failed trial.
    """

    def hear(event: Event) -> None:
        # One line for each unit of work would make a file of thousands, each flushed to the disk.
        if event.done in (0, event.total):
            append_record(folder / "events.jsonl", event)
        try:
            listener(event)
        except Exception as error:
            raise _ListenerRaised(error) from error

    try:
        yield hear
    except _ListenerRaised as raised:
        raise raised.error from None


class _ListenerRaised(BaseException):
    """Carries what a listener raised past `run_trial`, which takes an `Exception` for the trial's own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def spent(phase: str, folder: Path, clock: Clock) -> Iterator[None]:
    """Count seconds, and keep the count in the folder for a run that is gone on with."""
    with clock.phase(phase):
        yield
    write_record(folder / "clock.json", Spent(by_phase=clock.by_phase))


def set_out(task: Task, folder: Path, listener: Listener) -> Site:
    """Copy the network, watch it once, and find its stages."""
    file = folder / "clock.json"
    clock = Clock(read_record(file, Spent).by_phase if file.exists() else ())
    with spent("trace", folder, clock):
        listener(Event(phase="trace", note="watching one forward pass", done=0, total=1))
        base = copy_of(task.model).eval()
        if any(parameter.dim() == 4 for parameter in base.parameters()):
            # Convolutions on CPUs run up to twice as fast with the channels last, and a GPU's bfloat16 wants them so.
            base = base.to(memory_format=torch.channels_last)
        example = carried(task.example(4), device_of(base))
        graph = trace(base, example)
        listener(Event(phase="trace", note=f"{len(graph.stages)} stages", done=1, total=1))
    return Site(task=task, folder=folder, base=base, example=example, graph=graph, clock=clock, listener=listener)


def read_all(site: Site) -> None:
    """Decode the pictures that no pass has asked for, so that none turns out to be damaged once training has begun."""
    with site.spent("read"):
        settle(site.task.train, site.task.valid, site.task.test, listener=site.listener)


def proof(site: Site, depth: int) -> str | None:
    """None where the cut is proven, else why it is not."""
    with site.spent("prove"):
        note = f"depth {depth} of {site.graph.max_depth}"
        site.listener(Event(phase="prove", note=note, done=0, total=1))
        reason = prove(site.base, site.graph, depth, example=site.example)
        site.listener(Event(phase="prove", note=note, done=1, total=1))
        return reason


def live_flops(graph: CutGraph, depth: int) -> int:
    """Forward operations above the cut for one sample."""
    return sum(stage.flops for stage in graph.stages[depth:])


def most_views(samples: Samples) -> int:
    """How many views of each sample there can be."""
    return sys.maxsize if isinstance(samples, Pictures) else samples.views


def with_views(samples: Samples, views: int) -> Samples:
    """The same samples with so many views of each, where they can make them."""
    if samples.views >= views:
        return samples
    if not isinstance(samples, Pictures):
        raise BadArgument(
            f"BadArgument: views is {views}; these samples have {samples.views}. Use views={samples.views}, or "
            "pictures, of which frostline makes further views.",
            views=views,
        )
    return samples.with_views(views)


def fill(site: Site, depths: Sequence[int], plan: Plan) -> None:
    """Keep the rows of all these depths that the plan keeps, in one pass over each of training and validation part."""
    kept = [depth for depth in depths if depth and depth not in plan.computed]
    frozen = [Frozen(site.base, site.graph, depth) for depth in kept]
    if frozen:
        for part, samples in (("train", site.task.train), ("valid", site.task.valid)):
            _stored(site, frozen, samples, part=part, plan=plan)


def rows_of(site: Site, parts: Split, samples: Samples, *, part: str, plan: Plan) -> Rows:
    """What the live part reads: the samples themselves at depth 0, else rows, kept or computed anew by the plan."""
    if parts.depth == 0:
        return with_views(samples, _views(part, plan))
    if parts.depth in plan.computed:
        return _recomputed(site, parts.frozen, samples, part=part, plan=plan)
    return _stored(site, [parts.frozen], samples, part=part, plan=plan)[0]


def passed(*rows: Rows) -> int:
    """How many of these rows were computed anew so far."""
    return sum(each.passed for each in rows if isinstance(each, Recomputed))


def _views(part: str, plan: Plan) -> int:
    return plan.views if part == "train" else 1


def _stored(
    site: Site, frozen: Sequence[Frozen], samples: Samples, *, part: str, plan: Plan
) -> tuple[FeatureStore, ...]:
    report, views = plan.rates.engine, _views(part, plan)
    with site.spent("store"):
        return cache_all(
            frozen,
            with_views(samples, views),
            [site.folder / "store" / f"{part}-{each.depths[0]:02d}" for each in frozen],
            engine=report.engine,
            precision=report.precision,
            views=views,
            batch_size=BATCH,
            compiler=_compiler(site, report.piece),
            listener=site.listener,
        )


def _recomputed(site: Site, frozen: Frozen, samples: Samples, *, part: str, plan: Plan) -> Recomputed:
    report, views, key = plan.rates.engine, _views(part, plan), (part, frozen.depths[0])
    if key not in site.recomputed:
        with site.spent("store"):
            site.recomputed[key] = Recomputed(
                frozen,
                with_views(samples, views),
                engine=report.engine,
                precision=report.precision,
                compiler=_compiler(site, report.piece),
                views=views,
                batch_size=BATCH,
            )
    return site.recomputed[key]


def _compiler(site: Site, piece: int) -> Compiler:
    def compiler(module: nn.Module, example: tuple[torch.Tensor, ...], *, engine: str, precision: str) -> Compiled:
        # Compiling takes seconds; training, validation and test part of the same cuts share it.
        # Further views of a picture are no bytes, so the training part may be fed otherwise than the others.
        key = (depths_of(module), engine, precision, example[0].dtype)
        if key not in site.engines:
            with site.spent("compile"):
                site.engines[key] = compiled(module, example, engine=engine, precision=precision, piece=piece)
        return site.engines[key]

    return compiler
