"""The flow: from a task to a choice, a delta, the evidence and a report; only this module knows the order.

A run lives in one folder. Every file there is whole or absent, and whatever was paid for once
(the votes, the plan, the stores, each trial) is read again when the same run is started again.
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from frostline import search
from frostline.carrying import carried
from frostline.choosing import choose
from frostline.claims import gather
from frostline.comparing import by_key, chain_of
from frostline.copies import copy_of
from frostline.cost import stage_seconds, step_seconds
from frostline.data import Samples, decoding_seconds, feed_of
from frostline.delta import apply_delta, save_delta
from frostline.engines import LEAD, PRECISIONS, quickest
from frostline.errors import BadArgument, CutNotProven, FrostlineError, RunOfOtherArguments
from frostline.events import Event, Listener, silent
from frostline.executors import Worker, in_turn
from frostline.files import append_record, check_writable, free_bytes, hold, read_record, read_records, write_record
from frostline.heap import kept_heap
from frostline.probing import Pooled, probe
from frostline.records import (
    Arguments,
    Choice,
    Cost,
    DataSummary,
    Delta,
    Doubt,
    EngineReport,
    Evidence,
    ModelCard,
    ModelSource,
    Plan,
    Prior,
    Rates,
    Recipe,
    Score,
    Trial,
    TrialSpec,
)
from frostline.reporting import report
from frostline.result import Result
from frostline.scoring import outputs_of, score
from frostline.seeing import see
from frostline.site import (
    BATCH,
    Site,
    diary,
    fill,
    live_flops,
    most_views,
    passed,
    proof,
    read_all,
    rows_of,
    set_out,
)
from frostline.splitting import Split, split
from frostline.task import Task
from frostline.tuning import load_best, train_step, tune

logger = logging.getLogger(__name__)

COUNTED = ("trace", "probe", "measure", "prove", "store", "train", "test")
"""Phases that a full fine-tune is compared with; reading pictures, compiling and the report stand apart."""

BRIEF_STEP = 0.15
"""Seconds: where a step on a processor takes less, a full fine-tune takes a minute or two, and finding out whether
fewer bits are quicker takes a hundredth of that."""

PROOF_PER_TRACE = 1.5
"""What proving one cut takes, in traces: about the median of the architectures in `docs/zoo.md`."""


def fit(
    task: Task,
    *,
    depth: int | str = "auto",
    budget: float = search.USUAL_LIMIT,
    epochs: int | None = None,
    views: int | None = None,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    disk: int | None = None,
    out: Path | str | None = None,
    listener: Listener | None = None,
) -> Result:
    """Find how many initial stages to freeze, train the rest, and write the evidence.

    Started again with the same arguments it goes on from what the folder holds and ends with
    the same choice. All is computed where the task's network is: on a GPU, if that is where it was put.

    Args:
        task: Network and labelled parts.
        depth: "auto" searches; a number, a negative number or a stage's name is taken as it is.
        budget: The most that the run may cost, in full fine-tunes.
        epochs: Epochs of a full fine-tune; None takes about 600 steps' worth.
        views: Stored views of each training sample, of which the first is the plain one; None lets the plan choose 2
            or 4 where that costs next to nothing, of samples that are pictures or have so many.
        seed: Of the order of samples, dropout and augmentation.
        engine: What runs the frozen part: "torch", "openvino", "compile" (torch.compile), or "auto", which measures.
        precision: "auto" computes kept rows in bfloat16 where that is measured to be worth it and differs by at most a
            hundredth of the largest value, and trains in it where the machine computes in it and steps are measured to
            be 1.2 times as fast; "float32" never does. Votes and scores are always computed in float32.
        disk: Bytes that kept rows may take; None, or more than that, takes what is free. The rows of depths for which
            there is no room are computed anew in every epoch, at a price that the plan names. The plan settles it, so
            that a run that is gone on with keeps to what it has.
        out: Run folder; None makes one under `runs/`, named after the task.
        listener: Hears every `Event`.

    Returns:
        The choice, its scores and cost, and the tuned network, which is where the task's is.

    Raises:
        RunOfOtherArguments: The folder holds a run of other data, weights or settings.
        RunBusy: Another process works in the folder.
        CutNotProven: The asked depth cannot be split without changing what the network computes.
        AllTrialsFailed: No trial finished.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> part = [fl.TensorSamples(x[i::3], (x[i::3, 0] > 0).long()) for i in range(3)]
        >>> fl.fit(fl.Task(net, *part), depth=1, epochs=2, engine="torch", out=tmp / "run").depth
        1
    """
    check_arguments(budget, epochs, views, precision, disk)
    folder = Path(out) if out is not None else Path("runs") / task.fingerprint[:8]
    asked = Arguments(
        task=task.fingerprint,
        depth=str(depth),
        budget=budget,
        epochs=epochs,
        views=views,
        seed=seed,
        engine=engine,
        precision=precision,
    )
    check_writable(folder)
    with hold(folder):
        claim(folder, asked)
        if not (folder / "evidence.json").exists():
            carry_out(task, folder, asked, depth, disk, listener or silent)
        if not (folder / "report.html").exists():
            report(folder)
        # The evidence is written last: from here on nobody needs the weights of the trials.
        shutil.rmtree(folder / "weights", ignore_errors=True)
        return Result(folder, read_record(folder / "evidence.json", Evidence), task.model)


def check_arguments(budget: float, epochs: int | None, views: int | None, precision: str, disk: int | None) -> None:
    """Refuse values outside their range before any work."""
    if not budget > 0:
        raise BadArgument(
            f"BadArgument: budget is {budget}; it must be above 0 full fine-tunes. {search.USUAL_LIMIT} is the default."
        )
    if epochs is not None and epochs < 1:
        raise BadArgument(f"BadArgument: epochs is {epochs}; at least 1 is needed. Leave it out for the default.")
    if views is not None and views < 1:
        raise BadArgument(f"BadArgument: views is {views}; at least 1 is needed, the plain picture.")
    if precision not in PRECISIONS:
        raise BadArgument(f"BadArgument: precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    if disk is not None and disk < 0:
        raise BadArgument(f"BadArgument: disk is {disk}; it must be at least 0 bytes. Leave it out for what is free.")


def claim(folder: Path, asked: Arguments) -> None:
    """Take a new folder for these arguments, or make sure that it is theirs already."""
    file = folder / "arguments.json"
    if not file.exists():
        write_record(file, asked)
        return
    held = read_record(file, Arguments)
    names = {"task": "data, split, preprocessing or weights"}
    other = [
        f"{names.get(name, name)} ({getattr(held, name)} there, {getattr(asked, name)} asked)"
        for name in Arguments.model_fields
        if getattr(held, name) != getattr(asked, name)
    ]
    if other:
        raise RunOfOtherArguments(
            f"RunOfOtherArguments: {folder} holds a run with other {', '.join(other)}. Nothing was changed. "
            "Give another folder with --out, or remove this one.",
            folder=folder,
        )


def carry_out(
    task: Task, folder: Path, asked: Arguments, depth: int | str, disk: int | None, listener: Listener
) -> None:
    """Do whatever of the flow the folder does not hold yet."""
    with diary(folder, listener) as listen:
        site = set_out(task, folder, listen)
        wanted = None if depth == "auto" else site.graph.resolve(depth)
        prior, plan = prepare(site, asked, wanted, disk=disk)
        trials = race(site, prior, plan, wanted)
        choice = choose(site.graph, trials)
        conclude(site, asked, prior, plan, trials, choice)


def prepare(
    site: Site, asked: Arguments, wanted: int | None, *, disk: int | None, at: Path | None = None
) -> tuple[Prior, Plan]:
    """Votes and plan, each computed once and then read from the folder; `at` is where else rows would be kept."""
    prior_file, plan_file = site.folder / "prior.json", site.folder / "plan.json"
    if plan_file.exists():
        site.listener(Event(phase="measure", note="plan written", done=1, total=1))
        read_all(site)
        return read_record(prior_file, Prior), read_record(plan_file, Plan)
    prior, found = first_pass(site, asked)
    write_record(prior_file, prior)
    read_all(site)
    free = free_bytes(at or site.folder)
    with site.spent("measure"):
        recipe, rates = measure(site, found, Recipe(batch_size=BATCH), precision=asked.precision)
        plan = search.plan(
            site.graph,
            prior,
            rates,
            limit=asked.budget,
            epochs=asked.epochs,
            train_samples=len(site.task.train),
            valid_samples=len(site.task.valid),
            test_samples=len(site.task.test),
            seed=asked.seed,
            views=asked.views,
            most_views=most_views(site.task.train),
            depth=wanted,
            recipe=recipe,
            notes=site.task.notes,
            disk=free if disk is None else min(disk, free),
        )
    write_record(plan_file, plan)
    site.listener(Event(phase="measure", note="plan written", done=1, total=1))
    return prior, plan


def first_pass(site: Site, asked: Arguments) -> tuple[Prior, EngineReport]:
    """Pick the engine, and let every depth vote while the training pictures are decoded."""
    train = site.task.train
    feed = feed_of(train, device=site.device)
    with site.spent("compile"):
        site.listener(Event(phase="measure", note="trying the engines", done=0, total=1))
        example = feed.read(range(min(BATCH, len(train))), 0)
        rows = len(train) * (asked.views or 1) + len(site.task.valid)
        # What votes goes up to the deepest cut, as what is kept does; what was tried on the one is ready to run for it.
        pooled = feed.before(Pooled(site.base, site.graph))
        found = quickest(pooled, example, engine=asked.engine, precision=asked.precision, rows=rows)
    with site.spent("probe"):
        before = decoding_seconds(train)
        prior = probe(
            site.graph,
            train,
            # Votes differ by less than fewer bits would add, so they are always computed in full precision.
            found.in_full,
            folder=site.folder,
            read=feed.read,
            balanced=site.task.is_balanced,
            listener=site.listener,
            batch_size=BATCH,
        )
        site.clock.move(decoding_seconds(train) - before, source="probe", target="read")
    return prior, found.report


def measure(site: Site, engine: EngineReport, recipe: Recipe, *, precision: str) -> tuple[Recipe, Rates]:
    """Time five training steps with nothing frozen, and where a forward pass spends its seconds.

    The recipe comes back in bfloat16 where that may be, is computed by the machine itself, and pays.
    """
    rows = range(min(BATCH, len(site.task.train)))
    *inputs, labels = carried((*site.task.train.read(rows), site.task.train.labels[: len(rows)]), site.device)
    site.listener(Event(phase="measure", note="timing five steps", done=0, total=1))
    median, low, high = timed(site, tuple(inputs), labels, recipe)
    is_brief = site.device.type == "cpu" and median < BRIEF_STEP
    if precision == "auto" and not is_brief and has_bfloat16(site.device):
        fewer = recipe.model_copy(update={"precision": "bfloat16"})
        # What torch refuses to mix with float32 is trained in float32; five steps are timed where one is quicker.
        with suppress(RuntimeError):
            if LEAD * timed(site, tuple(inputs), labels, fewer, repeats=1)[0] <= median:
                quick = timed(site, tuple(inputs), labels, fewer)
                if LEAD * quick[0] <= median:
                    recipe, (median, low, high) = fewer, quick
    boundaries = [stage.name for stage in site.graph.stages]
    shares = stage_seconds(copy_of(site.base), tuple(inputs), boundaries)
    with torch.no_grad():
        forward, _, _ = step_seconds(lambda: site.base(*inputs), device=site.device)
    return recipe, Rates(
        step_seconds=median,
        step_low=low,
        step_high=high,
        stage_seconds=shares,
        score_seconds=forward / len(inputs[0]),
        spent_seconds=site.clock.seconds(*COUNTED),
        proof_seconds=PROOF_PER_TRACE * site.clock.seconds("trace"),
        engine=engine,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def timed(
    site: Site, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor, recipe: Recipe, *, repeats: int = 5
) -> tuple[float, float, float]:
    """Median, lowest and highest seconds of a training step with nothing frozen."""
    whole = split(site.base, site.graph, 0).live
    # A network that learns the one batch by heart has gradients so small that a processor takes seconds over them.
    still = recipe.model_copy(update={"learning_rate": 0.0, "head_learning_rate": 0.0})
    step = train_step(whole, inputs, labels, recipe=still, head=site.graph.head)
    with kept_heap():
        return step_seconds(step, repeats, device=site.device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether it computes in bfloat16 itself; older ones only seem to, in float32."""
    if device.type == "cpu":
        known = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
        return any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def race(site: Site, prior: Prior, plan: Plan, wanted: int | None) -> tuple[Trial, ...]:
    """The one search loop: ask the strategy, run what it wants, until it wants nothing more."""
    file = site.folder / "trials.jsonl"
    trials = tuple(read_records(file, Trial)) if file.exists() else ()
    worker = worker_for(site, prior, plan, must=wanted)
    while specs := search.strategy(site.graph, prior, plan, trials, ()):
        for trial in in_turn(worker, specs):
            append_record(file, trial)
            trials += (trial,)
    return trials


def worker_for(site: Site, prior: Prior, plan: Plan, *, must: int | None) -> Worker:
    """A worker that runs one trial: prove the cuts and fill the stores once, all together, then train."""
    proofs: dict[int, str | None] = {}

    def work(spec: TrialSpec) -> Trial:
        if not proofs:
            # Every candidate is tried, so what their frozen parts have in common is computed once for all of them.
            proofs.update({depth: proof(site, depth) for depth in plan.candidates})
            fill(site, [depth for depth, reason in proofs.items() if reason is None], plan)
        if reason := proofs[spec.depth]:
            if spec.depth == must:
                raise CutNotProven(
                    f"CutNotProven: frozen up to {site.graph.stage_name(spec.depth)}, the live part alone does not "
                    f"give the network's own output: {reason}. Take another depth, or depth='auto'.",
                    depth=spec.depth,
                    reason=reason,
                )
            return Trial(spec=spec, failure=f"the cut is not proven: {reason}")
        return run_trial(site, prior, plan, spec)

    return work


def run_trial(site: Site, prior: Prior, plan: Plan, spec: TrialSpec) -> Trial:
    """Train one rung at one depth; what goes wrong inside becomes the trial's failure."""
    parts = split(site.base, site.graph, spec.depth)
    train = rows_of(site, parts, site.task.train, part="train", plan=plan)
    valid = rows_of(site, parts, site.task.valid, part="valid", plan=plan)
    weights = site.folder / "weights"
    weights.mkdir(exist_ok=True)
    before = passed(train, valid)
    try:
        trial = tune(
            parts.live,
            train,
            valid,
            train_labels=site.task.train.labels,
            valid_labels=site.task.valid.labels,
            spec=spec,
            head=site.graph.head,
            warm=site.folder / prior.head if prior.head else None,
            start=weights / f"{spec.parent}.safetensors" if spec.parent else None,
            save_to=weights / f"{spec.key}.safetensors",
            valid_weights=site.task.valid_weights,
            flops_per_sample=live_flops(site.graph, spec.depth),
            listener=site.listener,
        )
    except FrostlineError:
        raise
    except Exception as error:
        logger.warning("trial at depth %d failed", spec.depth, exc_info=True)
        trial = Trial(spec=spec, failure=f"{type(error).__name__}: {error}")
    below = site.graph.flops - live_flops(site.graph, spec.depth)
    return trial.model_copy(update={"flops": trial.flops + below * (passed(train, valid) - before)})


def conclude(
    site: Site, asked: Arguments, prior: Prior, plan: Plan, trials: tuple[Trial, ...], choice: Choice
) -> Evidence:
    """Leave the delta, score the test part for the first and only time, and write the evidence."""
    trial = next(trial for trial in trials if trial.spec.key == choice.trial)
    parts = split(site.base, site.graph, choice.depth)
    load_best(parts.live, site.folder / "weights" / str(trial.weights))
    delta = save_delta(
        site.task.model,
        parts.merge(),
        site.folder / "delta.safetensors",
        keys=tuple(parts.live.state_dict()),
        depth=choice.depth,
    )
    with site.spent("test"):
        site.listener(Event(phase="test", note="the merged network in plain torch", done=0, total=1))
        merged = apply_delta(site.task.model, Path(delta.file)).eval()
        test = score(outputs_of(merged, site.task.test, batch_size=BATCH), site.task.test.labels)
        site.listener(Event(phase="test", note="the merged network in plain torch", done=1, total=1))
    look(site, merged, test, prior.doubts)
    from_rows = live_outputs(site, parts, site.task.test, part="test", plan=plan).argmax(1)
    differ = float((from_rows != torch.tensor(test.predictions)).float().mean())
    valid = score(live_outputs(site, parts, site.task.valid, part="valid", plan=plan), site.task.valid.labels)
    write_record(site.folder / "model.json", model_card(site, choice, delta))
    data = site.task.summary or summary_of(site.task)
    evidence = gather(
        arguments=(*((name, str(value)) for name, value in asked), *data.asked),
        data=data,
        source=site.task.source or source_of(site.task),
        preprocessing=site.task.preprocessing,
        graph=site.graph,
        prior=prior,
        plan=plan,
        trials=trials,
        choice=choice,
        valid=valid,
        test=test,
        disagreement=differ,
        delta=delta,
        cost=cost_of(site, plan, trials, choice),
    )
    write_record(site.folder / "evidence.json", evidence)
    return evidence


def live_outputs(site: Site, parts: Split, samples: Samples, *, part: str, plan: Plan) -> torch.Tensor:
    """Run the live part over what it reads; rows that are not kept are computed meanwhile, at a cost."""
    rows = rows_of(site, parts, samples, part=part, plan=plan)
    with site.spent("store") if parts.depth in plan.computed else nullcontext():
        return outputs_of(parts.live, rows, batch_size=BATCH)


def look(site: Site, tuned: nn.Module, test: Score, doubts: Sequence[Doubt]) -> None:
    """Keep pictures of what each stage sees, of the most confident mistakes, and of labels in doubt."""
    with site.spent("look"):
        site.listener(Event(phase="look", note="what each stage sees", done=0, total=1))
        task = site.task
        album = see(
            tuned,
            site.graph,
            task.train,
            test=task.test,
            score=test,
            classes=task.classes,
            preprocessing=task.preprocessing,
            doubts=doubts,
        )
        write_record(site.folder / "album.json", album)
        site.listener(Event(phase="look", note="what each stage sees", done=1, total=1))


def summary_of(task: Task) -> DataSummary:
    """Counts by class, for samples that came from memory."""
    parts = [torch.bincount(part.labels, minlength=len(task.classes)) for part in (task.train, task.valid, task.test)]
    counts = torch.stack(parts, dim=1).tolist()
    return DataSummary(name="tensors", classes=task.classes, counts=tuple((a, b, c) for a, b, c in counts))


def source_of(task: Task) -> ModelSource:
    """The class's name, for a network that came from memory and can be rebuilt by its owner alone."""
    return ModelSource(name=type(task.model).__qualname__, outputs=len(task.classes))


def model_card(site: Site, choice: Choice, delta: Delta) -> ModelCard:
    """What a later process needs to rebuild the tuned network."""
    return ModelCard(
        source=site.task.source or source_of(site.task),
        classes=site.task.classes,
        preprocessing=site.task.preprocessing,
        depth=choice.depth,
        stage_name=choice.stage_name,
        delta=Path(delta.file).name,
        base=delta.base,
        frostline=version("frostline"),
    )


def cost_of(site: Site, plan: Plan, trials: tuple[Trial, ...], choice: Choice) -> Cost:
    """Add up seconds and operations, and what one full fine-tune would have taken."""
    task, graph, forward = site.task, site.graph, site.graph.flops
    trained, checked, tested = len(task.train), len(task.valid), len(task.test)
    rows = trained * plan.views + checked
    # One pass up to the deepest filled the stores of all.
    deepest = max((trial.spec.depth for trial in trials if trial.spec.depth not in plan.computed), default=0)
    stored = graph.frozen_share(deepest) * forward * rows
    below, is_computed = graph.frozen_share(choice.depth) * forward, choice.depth in plan.computed
    # What is computed anew is so for the last scoring of the validation part, too.
    scoring = forward * tested + below * (tested + is_computed * checked)
    timing = 5 * 3 * forward * BATCH
    flops = forward * trained + stored + scoring + timing + sum(trial.flops for trial in trials)
    specs = by_key(trials)
    own = sum(trial.flops for trial in chain_of(specs[choice.trial], specs))
    seconds = dict(site.clock.by_phase) | {"train": sum(trial.seconds for trial in trials)}
    steps = plan.budget.epochs * -(-trained // plan.recipe.batch_size)
    return Cost(
        seconds=sum(seconds.get(phase, 0.0) for phase in COUNTED),
        flops=flops,
        full_finetune_seconds=plan.rates.step_seconds * steps,
        full_finetune_flops=3.0 * forward * trained * plan.budget.epochs,
        by_phase=tuple(seconds.items()),
        search_flops=flops - scoring - own - (0.0 if is_computed else below * rows),
    )


def plan(
    task: Task,
    *,
    depth: int | str = "auto",
    budget: float = search.USUAL_LIMIT,
    epochs: int | None = None,
    views: int | None = None,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    disk: int | None = None,
    listener: Listener | None = None,
) -> Plan:
    """Say what every depth would cost, without training.

    Args:
        task: Network and labelled parts.
        depth: As in `fit`.
        budget: As in `fit`.
        epochs: As in `fit`.
        views: As in `fit`.
        seed: As in `fit`.
        engine: As in `fit`.
        precision: As in `fit`.
        disk: As in `fit`; None takes what is free where runs lie by default.
        listener: Hears every `Event`.

    Returns:
        Predicted seconds and bytes of every depth and of the whole search.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> part = [fl.TensorSamples(x[i::3], (x[i::3, 0] > 0).long()) for i in range(3)]
        >>> [forecast.depth for forecast in fl.plan(fl.Task(net, *part), engine="torch").forecasts]
        [0, 1]
    """
    check_arguments(budget, epochs, views, precision, disk)
    asked = Arguments(
        task=task.fingerprint,
        depth=str(depth),
        budget=budget,
        epochs=epochs,
        views=views,
        seed=seed,
        engine=engine,
        precision=precision,
    )
    with TemporaryDirectory() as folder:
        site = set_out(task, Path(folder), listener or silent)
        wanted = None if depth == "auto" else site.graph.resolve(depth)
        return prepare(site, asked, wanted, disk=disk, at=Path("runs"))[1]
