"""The flow of the evidence: ask what the claims rest on, try it, and judge; only this module knows the order.

Every attempt is a line of `attempts.jsonl` in the run's folder and is paid for once. What is asked for next
follows from those lines alone, so that an interrupted call goes on and ends with the same claims.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import nn

from frostline.attempts import Attempt, Outcome
from frostline.carrying import carried
from frostline.copies import copy_of
from frostline.data import Rows, Samples, TensorSamples
from frostline.energy import metered
from frostline.engines import compiled
from frostline.errors import BadArgument, FrostlineError, NotARun, RunOfOtherArguments
from frostline.events import Event, Listener, silent
from frostline.exhibits import CLAIMS, ClaimName
from frostline.features import FeatureStore
from frostline.files import append_record, hold, read_record, read_records, write_record
from frostline.footprint import Request, measure_memory
from frostline.probing import Pooled, probe
from frostline.records import EpochPoint, Evidence, Plan
from frostline.redrawing import redrawn
from frostline.reporting import report
from frostline.result import Result
from frostline.sampling import Chosen, drawn, mislabelled
from frostline.scoring import outputs_of, score
from frostline.similarity import FEWEST, similarity
from frostline.site import BATCH, Site, diary, live_flops, passed, proof, read_all, rows_of, set_out
from frostline.sources import load_task
from frostline.splitting import Split, split
from frostline.task import Task
from frostline.tuning import tune
from frostline.weighing import foreseen, judged, price, wanted

logger = logging.getLogger(__name__)

COMPARED = 512
"""Validation samples at most on which a trained network's features are compared with the pretrained ones."""

SETTLED = 4
"""Batches from which norms of a redrawn network take their statistics."""


def evidence(
    run: Path | str | Result,
    *,
    claims: Sequence[str] | None = None,
    budget: float = 20.0,
    seeds: int = 5,
    listener: Listener | None = None,
    task: Task | None = None,
) -> Evidence:
    """Put what freezing is said to bring to the test on a finished run's own data.

    Each claim gets a verdict with its number, its interval, and the control that could have refuted it. The
    predicted cost is told before anything is paid. Started again it goes on from what the folder holds; claims
    of an earlier call that are not asked for now stay as they were.

    Args:
        run: A finished run, or its folder.
        claims: Of "reuse", "data", "convergence", "stability", "regularisation" and "resources" those to
            measure, in the order in which they are paid for; None takes all.
        budget: The most that they may cost, earlier attempts of these claims included, in full fine-tunes.
        seeds: How often each training is repeated, with another seed each time.
        listener: Hears every `Event`.
        task: What `fit` was given; needed where the run's data cannot be read again by its name.

    Returns:
        The run's evidence with its claims, which `evidence.json` and the report hold too.

    Raises:
        BadArgument: No such claim, or a value outside its range, or a task is needed.
        NotARun: The folder holds no finished run.
        RunBusy: Another process works in the folder.
        RunOfOtherArguments: Data or network are no longer those of the run.

    Example:
        >>> fl.evidence(tmp / "nothing")
        Traceback (most recent call last):
        ...
        frostline.errors.NotARun: NotARun: ...
    """
    names = names_of(claims)
    check_arguments(budget, seeds)
    folder = run.folder if isinstance(run, Result) else Path(run)
    if not (folder / "evidence.json").is_file():
        raise NotARun(
            f"NotARun: {folder} holds no finished run (no evidence.json). Give the folder that `frostline fit` "
            "printed; where fit was interrupted, run it again first.",
            run=str(folder),
        )
    with hold(folder), diary(folder, listener or silent) as listen:
        known = read_record(folder / "evidence.json", Evidence)
        paid = pay_for(known, names, folder=folder, budget=budget, seeds=seeds, listener=listen, task=task)
        earlier = {claim.name: claim for claim in known.claims if claim.name not in names}
        found = tuple(earlier.get(claim.name, claim) for claim in judged(known, names, paid, seeds=seeds))
        whole = known.model_copy(update={"claims": found})
        write_record(folder / "evidence.json", whole)
        report(folder)
        return whole


def names_of(claims: Sequence[str] | None) -> tuple[ClaimName, ...]:
    """The claims asked for, each once."""
    asked = CLAIMS if claims is None else tuple(dict.fromkeys(claims))
    unknown = [name for name in asked if name not in CLAIMS]
    if unknown or not asked:
        raise BadArgument(
            f"BadArgument: claims is {', '.join(unknown) or 'empty'}; it must be some of {', '.join(CLAIMS)}.",
            claims=tuple(asked),
        )
    return cast("tuple[ClaimName, ...]", asked)


def check_arguments(budget: float, seeds: int) -> None:
    """Refuse values outside their range before any work."""
    if not budget > 0:
        raise BadArgument(f"BadArgument: budget is {budget}; it must be above 0 full fine-tunes. 20 is the default.")
    if seeds < 2:
        raise BadArgument(f"BadArgument: seeds is {seeds}; an interval needs at least 2. 5 is the default.")


# --- paying -----------------------------------------------------------------------------------


def pay_for(
    known: Evidence,
    claims: tuple[ClaimName, ...],
    *,
    folder: Path,
    budget: float,
    seeds: int,
    listener: Listener,
    task: Task | None,
) -> dict[str, Outcome]:
    """Carry out what the claims ask for, as far as the budget goes; what was paid earlier is taken from the folder."""
    file = folder / "attempts.jsonl"
    made = {outcome.attempt.key: outcome for outcome in read_records(file, Outcome)}
    ahead = affordable(known, claims, made, budget=budget, seeds=seeds)
    cost = sum(price(known, attempt) for attempt in ahead)
    note = (
        f"predicted: {len(ahead)} attempts for {cost:.2f} full fine-tunes, about "
        f"{cost * known.plan.full_finetune_seconds:,.0f} seconds"
    )
    if left_out := len(foreseen(known, claims, made, seeds=seeds)) - len(ahead):
        note += f"; {left_out} more are wanted than a budget of {budget:g} pays for"
    listener(Event(phase="measure", note=note, done=0, total=len(ahead), unit="attempts"))
    if not ahead:
        return settle(known, claims, made, budget=budget, seeds=seeds, pay=_unforeseen)
    bench = set_up(known, folder, listener=listener, task=task)

    def pay(attempt: Attempt) -> Outcome:
        outcome = try_out(bench, attempt)
        append_record(file, outcome)
        made[attempt.key] = outcome
        done = sum(one.key in made for one in ahead)
        listener(Event(phase="measure", note="the evidence", done=done, total=len(ahead), unit="attempts"))
        return outcome

    try:
        return settle(known, claims, made, budget=budget, seeds=seeds, pay=pay)
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)


def settle(
    known: Evidence,
    claims: tuple[ClaimName, ...],
    made: Mapping[str, Outcome],
    *,
    budget: float,
    seeds: int,
    pay: Callable[[Attempt], Outcome],
) -> dict[str, Outcome]:
    """Answer the first attempt that is wanted and can be paid for, until there is none.

    What was made before counts in the budget as if it were paid for now, so that a call that was interrupted
    ends where an unbroken one does; beyond the budget it is taken all the same.
    """
    paid: dict[str, Outcome] = {}
    spent = 0.0

    def is_paid_for(attempt: Attempt) -> bool:
        return attempt.key in made or spent + price(known, attempt) <= budget

    def open_attempts() -> Iterator[Attempt]:
        for claim in claims:
            yield from wanted(known, (claim,), paid, seeds=seeds)

    while attempt := next(filter(is_paid_for, open_attempts()), None):
        paid[attempt.key] = made[attempt.key] if attempt.key in made else pay(attempt)
        spent += price(known, attempt)
    return paid


def affordable(
    known: Evidence, claims: tuple[ClaimName, ...], made: Mapping[str, Outcome], *, budget: float, seeds: int
) -> tuple[Attempt, ...]:
    """What the budget will be spent on, if every training goes equally well."""
    ahead: list[Attempt] = []
    point = EpochPoint(epoch=0, train_loss=None, valid_loss=1.0, valid_accuracy=0.0, learning_rate=0.0, seconds=0.0)

    def imagine(attempt: Attempt) -> Outcome:
        ahead.append(attempt)
        return Outcome(attempt=attempt, curve=(point,))

    settle(known, claims, made, budget=budget, seeds=seeds, pay=imagine)
    return tuple(ahead)


def _unforeseen(attempt: Attempt) -> Outcome:
    raise AssertionError(f"an attempt is wanted that was not foreseen: {attempt}")


# --- what is tried with -----------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What every attempt needs; what several of them share is computed once.

    Args:
        site: The run's own.
        known: The run's evidence.
        scratch: Folder of what nobody needs afterwards.
        proofs: By depth, None where the cut is proven, else why it is not.
    """

    site: Site
    known: Evidence
    scratch: Path
    proofs: dict[int, str | None] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The run's plan."""
        return self.known.plan

    @cached_property
    def head_inputs(self) -> torch.Tensor:
        """What the pretrained network's head is given for each training sample, (N, D)."""
        return head_inputs(self, self.site.base)

    @cached_property
    def compared(self) -> list[torch.Tensor]:
        """The pretrained network's features of some validation samples, (n, D) by open depth."""
        return compared_features(self, self.site.base)

    def proof(self, depth: int) -> str | None:
        """None where the cut is proven, else why it is not."""
        if depth not in self.proofs:
            self.proofs[depth] = proof(self.site, depth)
        return self.proofs[depth]


def set_up(known: Evidence, folder: Path, *, listener: Listener, task: Task | None) -> Bench:
    """Read the run's data and network again, and make sure that they are what they were."""
    task = task or task_of(known, folder, listener)
    if task.fingerprint != dict(known.arguments)["task"]:
        raise RunOfOtherArguments(
            f"RunOfOtherArguments: {folder} holds a run on other data, another split, preprocessing or other weights "
            "than these. Nothing was changed. Put back what fit was given, or run fit again.",
            folder=folder,
        )
    scratch = folder / "trying"
    shutil.rmtree(scratch, ignore_errors=True)
    # A cut at which the run has trained was proven there.
    proven: dict[int, str | None] = {trial.spec.depth: None for trial in known.trials if not trial.failure}
    site = set_out(task, folder, listener)
    read_all(site)
    return Bench(site=site, known=known, scratch=scratch, proofs=proven)


def task_of(known: Evidence, folder: Path, listener: Listener) -> Task:
    """The task as `load_task` made it for the run."""
    asked = dict(known.data.asked)
    if not asked or known.preprocessing is None:
        raise BadArgument(
            f"BadArgument: the run in {folder} was not made from a folder of pictures, so its data cannot be read "
            "again by name. Give task=, the one that fit was given.",
            folder=folder,
        )
    pictures = folder / "pictures"
    task: Task = load_task(
        known.data.name,
        model=known.source.name,
        goal=asked.get("goal", "accuracy"),
        image_size=known.preprocessing.image_size,
        weights=known.source.weights,
        valid=float(asked["valid"]),
        test=float(asked["test"]),
        seed=int(asked.get("split_seed", known.plan.seed)),
        skip_bad=asked["skip_bad"] == "True",
        folder=pictures if pictures.is_dir() else None,
        listener=listener,
    )
    return task


# --- one attempt ------------------------------------------------------------------------------


def try_out(bench: Bench, attempt: Attempt) -> Outcome:
    """Carry one attempt out; what goes wrong inside becomes the outcome's failure."""
    workshop = bench.scratch / attempt.key
    workshop.mkdir(parents=True)
    carry_out = {"train": train, "probe": ask_votes, "memory": remember}[attempt.kind]
    try:
        return carry_out(bench, attempt, workshop)
    except FrostlineError:
        raise
    except Exception as error:
        logger.warning("an attempt at depth %d failed", attempt.trial.depth, exc_info=True)
        return Outcome(attempt=attempt, failure=f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def train(bench: Bench, attempt: Attempt, workshop: Path) -> Outcome:
    """Train the live part as asked, and score the test part with its best weights."""
    spec, graph, task = attempt.trial, bench.site.graph, bench.site.task
    if reason := bench.proof(spec.depth):
        return Outcome(attempt=attempt, failure=f"the cut is not proven: {reason}")
    site = replace(bench.site, base=network_of(bench, attempt))
    if attempt.prefix != "pretrained":
        site = replace(site, folder=workshop, engines={}, recomputed={})
    parts = split(site.base, graph, spec.depth)
    every, valid, test = (
        rows_of(site, parts, samples, part=part, plan=bench.plan)
        for part, samples in (("train", task.train), ("valid", task.valid), ("test", task.test))
    )
    numbers = drawn(task.train.labels, attempt.samples, seed=spec.seed)
    rows, labels = Chosen(every, numbers), task.train.labels[numbers]
    given = mislabelled(labels, attempt.noise, classes=len(task.classes), seed=spec.seed)
    warm = warm_head(bench, attempt, site.base, numbers=numbers, labels=given, folder=workshop)
    before = passed(every, valid)
    with metered(next(parts.live.parameters()).device) as energy:
        trial = tune(
            parts.live,
            rows,
            valid,
            train_labels=given,
            valid_labels=task.valid.labels,
            spec=spec,
            head=graph.head,
            warm=warm,
            save_to=workshop / "trial.safetensors",
            valid_weights=task.valid_weights,
            flops_per_sample=live_flops(graph, spec.depth),
            listener=site.listener,
        )
    below = graph.frozen_share(spec.depth) * graph.flops
    kept = 0 if spec.depth in bench.plan.computed else len(numbers) * bench.plan.views + len(task.valid)
    outcome = Outcome(
        attempt=attempt,
        curve=trial.curve,
        best_epoch=trial.best_epoch,
        seconds=trial.seconds,
        pass_seconds=pass_seconds(every) * len(numbers) / len(task.train) + pass_seconds(valid),
        flops=trial.flops + below * (passed(every, valid) - before),
        pass_flops=below * kept,
        joules=energy.joules,
        failure=trial.failure,
    )
    return outcome if trial.failure else scored(bench, outcome, parts, rows=rows, labels=labels, test=test)


def pass_seconds(rows: Rows) -> float:
    """What the pass over these rows took when they were kept; 0 where the samples themselves are read."""
    return rows.manifest.seconds if isinstance(rows, FeatureStore) else 0.0


def scored(bench: Bench, outcome: Outcome, parts: Split, *, rows: Rows, labels: torch.Tensor, test: Rows) -> Outcome:
    """The outcome with what its best weights are worth, and how far they have gone from the pretrained ones."""
    tested = score(outputs_of(parts.live, test, batch_size=BATCH), bench.site.task.test.labels)
    learnt = score(outputs_of(parts.live, rows, batch_size=BATCH), labels)
    right = torch.tensor(tested.predictions) == bench.site.task.test.labels
    is_own = is_pretrained(outcome.attempt) and is_whole(outcome.attempt)
    return outcome.model_copy(
        update={
            "test_hits": tuple(right.tolist()),
            "test_confidences": tested.confidences,
            "train_loss": learnt.loss,
            "train_accuracy": learnt.accuracy,
            "similarity": features_kept(bench, parts) if is_own else (),
            "drift": weights_moved(bench, parts) if is_own else (),
        }
    )


def is_pretrained(attempt: Attempt) -> bool:
    """Whether no weights are drawn anew."""
    return attempt.prefix == attempt.rest == "pretrained"


def is_whole(attempt: Attempt) -> bool:
    """Whether it may see every training sample with its right label."""
    return attempt.samples is None and not attempt.noise


def ask_votes(bench: Bench, attempt: Attempt, workshop: Path) -> Outcome:
    """Probe the network with its weights drawn anew."""
    site, samples = bench.site, bench.site.task.train
    run = pooled(bench, network_of(bench, attempt), samples)
    prior = probe(
        site.graph,
        samples,
        run,
        folder=workshop,
        listener=site.listener,
        batch_size=BATCH,
        balanced=site.task.is_balanced,
    )
    return Outcome(attempt=attempt, votes=prior.votes, pass_flops=float(site.graph.flops * prior.samples))


def remember(bench: Bench, attempt: Attempt, workshop: Path) -> Outcome:
    """Measure the memory of a few training steps in a fresh process."""
    site, spec, known = bench.site, attempt.trial, bench.known
    samples = site.task.train
    numbers = range(min(spec.recipe.batch_size, len(samples)))
    rows: Rows = samples
    if attempt.is_stored:
        rows = rows_of(site, split(site.base, site.graph, spec.depth), samples, part="train", plan=bench.plan)
    # The memory that a process holds is that of the processor, so the network is trained there.
    processor = torch.device("cpu")
    network = site.base if site.device == processor else copy_of(site.base).to(processor)
    request = Request(
        source=site.task.source,
        image_size=known.preprocessing.image_size if known.preprocessing else None,
        depth=spec.depth,
        is_stored=attempt.is_stored,
        recipe=spec.recipe,
        threads=torch.get_num_threads(),
    )
    found = measure_memory(
        request,
        carried(rows.read(numbers), processor),
        example=carried(site.example, processor),
        labels=samples.labels[list(numbers)],
        network=network,
        folder=workshop,
    )
    return Outcome(attempt=attempt, peak_bytes=found.peak_bytes, state_bytes=found.state_bytes)


# --- the network and its head -----------------------------------------------------------------


def network_of(bench: Bench, attempt: Attempt) -> nn.Module:
    """The run's network, its frozen and its live stages drawn anew where the attempt says so, the head excepted."""
    site, spec = bench.site, attempt.trial
    network, stages = site.base, site.graph.stages[:-1]
    depth = len(stages) if attempt.kind == "probe" else spec.depth
    if is_pretrained(attempt):
        return network
    labels = site.task.train.labels
    numbers = drawn(labels, SETTLED * BATCH, seed=spec.seed).tolist()
    count = max(1, len(numbers) // BATCH)
    batches = [site.task.train.read(numbers[first::count]) for first in range(count)]
    if attempt.prefix != "pretrained":
        is_matched = attempt.prefix == "matched"
        network = redrawn(network, stages[:depth], seed=spec.seed, batches=batches, is_matched=is_matched)
    if attempt.rest == "random":
        # Another seed than below the cut, so that the two are not drawn alike.
        network = redrawn(network, stages[depth:], seed=spec.seed + 1_000_003, batches=batches)
    return network


def warm_head(
    bench: Bench, attempt: Attempt, network: nn.Module, *, numbers: torch.Tensor, labels: torch.Tensor, folder: Path
) -> Path | None:
    """The head to start from: the run's own, or one fitted to what this attempt may know of the labels."""
    graph, own = bench.site.graph, bench.known.prior.head
    if graph.head is None or own is None:
        return None
    if is_pretrained(attempt) and is_whole(attempt):
        return bench.site.folder / own
    inputs = bench.head_inputs if is_pretrained(attempt) else head_inputs(bench, network)
    # The head's own inputs are all that its fit takes; the vote that comes with it is of no use.
    prior = probe(graph, TensorSamples(inputs[numbers], labels), lambda given: given, folder=folder, batch_size=BATCH)
    return folder / str(prior.head)


def head_inputs(bench: Bench, network: nn.Module) -> torch.Tensor:
    """What a network's head is given for each training sample, (N, D)."""
    samples = bench.site.task.train
    run = pooled(bench, network, samples)
    starts = range(0, len(samples), BATCH)
    return torch.cat(
        [run(samples.read(range(first, min(first + BATCH, len(samples)))))[-1].float().clone() for first in starts]
    )


def pooled(
    bench: Bench, network: nn.Module, samples: Samples
) -> Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """A function from inputs to pooled features by open depth, and the head's own inputs."""
    first = samples.read(range(min(BATCH, len(samples))))
    engine = bench.plan.rates.engine
    return compiled(Pooled(network, bench.site.graph), first, engine=engine.engine, piece=engine.piece)


# --- how far a trained network has gone -------------------------------------------------------


def features_kept(bench: Bench, parts: Split) -> tuple[float, ...]:
    """By stage below the head: how like the pretrained features the trained ones are; 1 for frozen stages."""
    depths = [depth for depth in bench.site.graph.open_depths if depth]
    if not depths or len(bench.site.task.valid) < FEWEST:
        return ()
    trained = compared_features(bench, parts.merge())
    alike = {
        depth: 1.0 if depth <= parts.depth else similarity(before, after)
        for depth, before, after in zip(depths, bench.compared, trained, strict=True)
    }
    # A stage whose cut is blocked has no features of its own: those of the next open cut stand for it.
    stages = range(1, len(bench.site.graph.stages))
    return tuple(alike[next((depth for depth in depths if depth >= stage), depths[-1])] for stage in stages)


def compared_features(bench: Bench, network: nn.Module) -> list[torch.Tensor]:
    """Pooled features of some validation samples, (n, D) by open depth above 0."""
    samples, graph = bench.site.task.valid, bench.site.graph
    numbers = range(0, len(samples), -(-len(samples) // COMPARED))
    run = compiled(Pooled(network, graph), samples.read(numbers[:BATCH]))
    batches = [run(samples.read(numbers[first : first + BATCH])) for first in range(0, len(numbers), BATCH)]
    depths = sum(depth > 0 for depth in graph.open_depths)
    return [torch.cat([batch[place] for batch in batches]) for place in range(depths)]


def weights_moved(bench: Bench, parts: Split) -> tuple[float, ...]:
    """By stage below the head: norm of the change of its weights, as a share of their own norm."""
    before, after = dict(bench.site.base.named_parameters()), dict(parts.merge().named_parameters())
    moved = []
    for stage in bench.site.graph.stages[:-1]:
        names = [name for name in stage.keys if name in before]
        own = sum(float(before[name].detach().double().square().sum()) for name in names)
        change = sum(float((after[name] - before[name]).detach().double().square().sum()) for name in names)
        moved.append((change / own) ** 0.5 if own else 0.0)
    return tuple(moved)
