"""What each part of the search is worth: the search with one part changed, on the tasks that have a truth.

    python benchmarks/ablations.py rules --json OUT
    python benchmarks/ablations.py trained TASK --work FOLDER [--json OUT] [--jobs 2]

`rules` trains nothing. The truth (benchmarks/truth.py) holds every depth as an arm of a race at each rate,
scored after 10, 20, 40 and 80 steps, and trained in full; so a search with other arms, laps, judges or ties
is played through, and the depth that it ends with is worth what the truth says. Regret is to the cross-fitted
oracle of benchmarks/regret.py; cost is in full fine-tunes, by operations.

`trained` varies what the truth does not hold, at one middle depth of one task: the start of the head, a restart
in place of going on, stored views, half precision in the store, only the norms or only the first stage
trained, fewer samples. Rows are kept under FOLDER; started again, it goes on where it stopped.
"""

import argparse
import base64
import json
import os
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from regret import RESULTS, TRUTH, bootstrap, hits_of, regret, truth_of, worth
from rivals import share_of
from safetensors.torch import load_file, save_file
from stamps import stamp
from tasks import TASKS
from torch import nn
from truth import BATCH, SEEDS, Bench, arm_of, bits, opened, rows_in, spec_of

import frostline as fl
from frostline.comparing import paired
from frostline.probing import Pooled, ridge
from frostline.records import TrialSpec
from frostline.sampling import Chosen, drawn
from frostline.scoring import outputs_of
from frostline.search import LEARNING_RATES, LIVE_TARGETS, USUAL_LIMIT
from frostline.tuning import tune

Truth = dict[str, Any]


# --- searches that are played through ---------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """A search of depths, as the truth can answer it.

    Args:
        targets: Live shares at which it looks, beside the deepest depth.
        rates: Learning rates that are raced: the two largest, and smaller ones while these are ahead clearly.
        clear: Standard errors by which a smaller rate than these two has to be ahead.
        alone: Whether rates are raced at the middle depth alone, and not at every depth.
        shared: Whether the rate is the best of all depths on average, and not that of the depth that goes on.
        trend: Rates are judged by what the loss would be after so many times the fall of the second half of the lap.
        mark: Steps of a lap.
        second: Steps after which the two ahead are compared again where two errors do not tell them apart, or None.
        judge: What an arm is ahead by: "loss" or "accuracy".
        tie: Standard errors within which another arm than the leader is taken.
        own: Whether a depth is judged by the best of its rates, and not by the one that is taken.
        last_tie: The same for the winner and head only, both trained to the end.
        deeper: Whether a tie goes to the deeper of two, and not to the shallower.
        votes: A vote that names the depth in place of a race, or None.
        goes_on: Whether the winner goes on from where it is; a restart pays for its first steps again.
    """

    targets: tuple[float, ...] = LIVE_TARGETS
    rates: tuple[float, ...] = LEARNING_RATES
    clear: float = 2.0
    alone: bool = False
    shared: bool = False
    trend: float = 1.0
    mark: int = 40
    second: int | None = None
    judge: str = "loss"
    tie: float = 2.0
    own: bool = True
    last_tie: float = 1.0
    deeper: bool = False
    votes: str | None = None
    goes_on: bool = True


SEARCHES = {
    "the search": Search(),
    "judged by accuracy": Search(judge="accuracy"),
    "ties to the deeper": Search(deeper=True),
    "the leader, without ties": Search(tie=0.0, last_tie=0.0),
    "the leader of the race": Search(tie=0.0),
    "the more accurate at last": Search(last_tie=0.0),
    "the shallower within one error": Search(tie=1.0),
    "the rate that suits all depths on average": Search(shared=True),
    "depths judged at that rate": Search(own=False),
    "the same, within one error": Search(own=False, tie=1.0),
    "laps of 20 steps": Search(mark=20),
    "laps of 80 steps": Search(mark=80),
    "a second lap of the two ahead": Search(second=80),
    "rates at the middle depth alone": Search(alone=True),
    "rates by their loss at the end of the lap": Search(trend=0.0),
    "rates by half of their trend": Search(trend=0.5),
    "rates by three times their trend": Search(trend=3.0),
    "the smallest rate by its lowest promise": Search(clear=0.0),
    "one rate, the largest": Search(rates=LEARNING_RATES[:1]),
    "one rate, the middle one": Search(rates=LEARNING_RATES[1:2]),
    "two depths": Search(targets=(0.9,)),
    "two depths, one of them half-way": Search(targets=(0.5,)),
    "four depths": Search(targets=(0.9, 0.65, 0.38)),
    "with nothing frozen": Search(targets=(1.0, 0.38)),
    "vote of the ridge probe alone": Search(votes="accuracy"),
    "vote of the nearest neighbours alone": Search(votes="knn"),
    "restart in place of going on": Search(goes_on=False),
}


class Played(NamedTuple):
    """What a search came to: the depth, its rate, its test hits, and the cost in full fine-tunes."""

    depth: int
    rate: float
    hits: str
    cost: float


class Answers:
    """A truth, asked as a search asks."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.depths: list[int] = truth["depths"]
        self.deepest = max(self.depths)
        self.steps = truth["epochs"] * -(-truth["samples"]["train"] // 32)
        rows = truth["rows"]
        self.full = {
            (row["depth"], row["learning_rate"]): row
            for row in rows
            if "marks" not in row and row["norm_mode"] == "eval" and row["seed"] == 1
        }
        self.arms = {(row["depth"], row["learning_rate"]): row for row in rows if "marks" in row}

    def live(self, depth: int) -> float:
        return 1.0 - share_of(self.truth, depth)

    def at(self, depth: int, rate: float, mark: int) -> Mapping[str, Any] | None:
        """The look at an arm after that many steps; None where it failed. Head only has one rate."""
        row = self.arms[depth, LEARNING_RATES[0] if depth == self.deepest else rate]
        look = row["marks"].get(str(mark))
        return look if look and not look["failure"] else None

    def ended(self, depth: int, rate: float) -> Mapping[str, Any]:
        return self.full[depth, LEARNING_RATES[0] if depth == self.deepest else rate]


def losses_of(look: Mapping[str, Any]) -> Sequence[float]:
    return np.frombuffer(base64.b64decode(look["valid_losses"]), dtype="<f2").astype(float).tolist()


def rights_of(look: Mapping[str, Any]) -> Sequence[float]:
    return hits_of(look["valid_hits"]).tolist()


def behind(look: Mapping[str, Any], other: Mapping[str, Any], judge: str) -> tuple[float, float]:
    """How far one look is behind another, and the paired standard error."""
    if judge == "loss":
        return paired(losses_of(look), losses_of(other))
    return paired(rights_of(other), rights_of(look))


def play(search: Search, truth: Truth) -> Played:
    """The search on this truth."""
    asked = Answers(truth)
    if search.votes:
        return voted(search.votes, asked)
    inner = [depth for depth in asked.depths if depth != asked.deepest]
    arms = sorted({min(inner, key=lambda depth: abs(asked.live(depth) - target)) for target in search.targets})
    racing = [arms[len(arms) // 2]] if search.alone else arms
    raced, cost = rates_of(search, asked, arms, racing)
    common = rate_for(search, asked, racing, raced)
    judged = raced if search.own and not search.alone else (common,)
    looks = {depth: best_look(asked, depth, judged, search.mark, search.judge) for depth in arms}
    standing = {depth: look for depth, look in looks.items() if look}
    lap = search.mark
    if search.second and len(standing) > 1:
        first, second = sorted(standing, key=lambda depth: level(standing[depth], search.judge))[:2]
        difference, error = behind(standing[second], standing[first], search.judge)
        if difference <= 2 * error:
            again = {depth: best_look(asked, depth, judged, search.second, search.judge) for depth in (first, second)}
            standing = {depth: look for depth, look in again.items() if look} or standing
            cost += (asked.live(first) + asked.live(second)) * (search.second - search.mark) / asked.steps
            lap = search.second
    winner = ahead(standing, search)
    rate = common if search.alone or search.shared or not search.own else rate_for(search, asked, [winner], raced)
    left = max(0.0, USUAL_LIMIT - cost - fixed(asked))
    share = min(1.0, left / max(asked.live(winner), 1e-9) + (lap / asked.steps if search.goes_on else 0.0))
    cost += asked.live(winner) * (share - (lap / asked.steps if search.goes_on else 0.0)) + fixed(asked)
    depth, row = last_word(asked, winner, rate, search)
    return Played(depth, rate, row["test_hits"], cost)


def fixed(asked: Answers) -> float:
    """The pass of the votes, the stores and what is set aside, about."""
    return 0.05 + 2 / (3 * asked.truth["epochs"])


def best_look(asked: Answers, depth: int, rates: Sequence[float], mark: int, judge: str) -> Mapping[str, Any] | None:
    """The look after that many steps at which this depth is best."""
    looks = [look for rate in rates if (look := asked.at(depth, rate, mark))]
    return min(looks, key=lambda look: level(look, judge), default=None)


def rates_of(
    search: Search, asked: Answers, arms: Sequence[int], racing: Sequence[int]
) -> tuple[tuple[float, ...], float]:
    """The rates that are tried, and what all first laps cost: a third only where the second is clearly ahead."""
    lap, cost = sum(asked.live(depth) for depth in racing) * search.mark / asked.steps, 0.0
    raced: tuple[float, ...] = ()
    for rate in search.rates:
        cost += lap
        raced += (rate,)
        if len(raced) > 1:
            larger, smaller = (promises(search, asked, racing, each) for each in raced[-2:])
            difference, error = paired(larger, smaller)
            if not difference > search.clear * error:
                break
    return raced, cost + sum(asked.live(depth) for depth in arms if depth not in racing) * search.mark / asked.steps


def rate_for(search: Search, asked: Answers, depths: Sequence[int], raced: Sequence[float]) -> float:
    """The rate that promises these depths most on average; a third only where it is clearly ahead."""
    best, held = raced[0], promises(search, asked, depths, raced[0])
    for number, rate in enumerate(raced[1:], 1):
        found = promises(search, asked, depths, rate)
        difference, error = paired(held, found)
        if difference > (search.clear * error if number > 1 else 0.0):
            best, held = rate, found
    return best


def promises(search: Search, asked: Answers, depths: Sequence[int], rate: float) -> list[float]:
    """By sample, the loss after the trend, on average over the depths; above all others where one failed."""
    columns = []
    for depth in depths:
        looks = [asked.at(depth, rate, mark) for mark in (search.mark // 2, search.mark)]
        if not all(looks):
            return [1e3] * len(asked.truth["rows"][0]["valid_hits"])
        before, after = (np.array(figures(look, search.judge)) for look in looks if look)
        columns.append(after - search.trend * (before - after))
    return np.mean(columns, axis=0).tolist()


def figures(look: Mapping[str, Any], judge: str) -> Sequence[float]:
    """By sample: its loss, or how wrong it is."""
    return losses_of(look) if judge == "loss" else [1.0 - right for right in rights_of(look)]


def level(look: Mapping[str, Any], judge: str) -> float:
    return statistics.fmean(figures(look, judge))


def ahead(standing: Mapping[int, Mapping[str, Any]], search: Search) -> int:
    """Of the arms within the tie of the leader, the shallowest, or the deepest."""
    leader = min(standing, key=lambda depth: (level(standing[depth], search.judge), depth))
    gaps = {depth: behind(look, standing[leader], search.judge) for depth, look in standing.items()}
    tied = [depth for depth, (gap, error) in gaps.items() if gap <= search.tie * error + 1e-12]
    if not search.tie:
        return leader
    return max(tied) if search.deeper else min(tied)


def last_word(asked: Answers, winner: int, rate: float, search: Search) -> tuple[int, Mapping[str, Any]]:
    """Winner or head only, by the rule of `choose`."""
    mine, head = asked.ended(winner, rate), asked.ended(asked.deepest, rate)
    if mine["failure"]:
        return asked.deepest, head
    leads = (mine["valid_accuracy"], -mine["valid_loss"]) >= (head["valid_accuracy"], -head["valid_loss"])
    first, other = (mine, head) if leads else (head, mine)
    gaps = [behind(other, first, judge) for judge in ("accuracy", "loss")]
    tied = search.last_tie > 0 and all(gap <= search.last_tie * error + 1e-12 for gap, error in gaps)
    is_head = search.deeper if tied else not leads
    return (asked.deepest, head) if is_head else (winner, mine)


def voted(vote: str, asked: Answers) -> Played:
    """The depth that a vote puts first, trained at the largest rate."""
    votes = [entry for entry in asked.truth["votes"] if entry["depth"] in asked.depths and entry.get(vote) is not None]
    depth = max(votes, key=lambda entry: (entry[vote], entry["depth"]))["depth"]
    row = asked.ended(depth, LEARNING_RATES[0])
    return Played(depth, LEARNING_RATES[0], row["test_hits"], asked.live(depth) + 1 / (3 * asked.truth["epochs"]))


def table(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    """A row for each search: its mean regret and cost over the tasks."""
    rows = []
    for name, search in SEARCHES.items():
        played = {truth["task"]: play(search, truth) for truth in truths}
        regrets = {
            truth["task"]: regret(worth(truth), hits_of(played[truth["task"]].hits), draw=random.Random(0))
            for truth in truths
        }
        rows.append(
            {
                "search": name,
                "mean_regret": round(statistics.fmean(regrets.values()), 3),
                "interval": bootstrap(list(regrets.values())),
                "worst_regret": round(max(regrets.values()), 3),
                "mean_cost": round(statistics.fmean(outcome.cost for outcome in played.values()), 3),
                "depths": {task: outcome.depth for task, outcome in played.items()},
                "regrets": {task: round(value, 3) for task, value in regrets.items()},
            }
        )
    return rows


def norm_modes(truth: Truth) -> list[dict[str, Any]]:
    """Test accuracy of each depth with batch norm's own statistics and with learnt ones, at the same rate and seed."""
    kept = [row for row in truth["rows"] if "marks" not in row and row["seed"] == SEEDS[0]]
    learnt = [row for row in kept if row["norm_mode"] == "train"]
    return [
        {
            "depth": row["depth"],
            "own": own["test_accuracy"],
            "learnt": row["test_accuracy"],
        }
        for row in learnt
        for own in kept
        if own["norm_mode"] == "eval" and (own["depth"], own["learning_rate"]) == (row["depth"], row["learning_rate"])
    ]


# --- searches whose parts are trained ---------------------------------------------------------

RESTART_STEPS = 40
SAMPLES = (50, 100, 200, 500, 1000)
VIEWS = (2, 4, 8)
SHORTER = {"half the epochs": 0.5, "three quarters of the epochs": 0.75}


class Variant(NamedTuple):
    """One training that differs from the product's in one thing.

    Args:
        name: What differs.
        depth: Number of frozen stages.
        rate: Peak learning rate.
        samples: Of the training part; None takes all.
    """

    name: str
    depth: int
    rate: float
    samples: int | None = None

    @property
    def key(self) -> str:
        return f"{self.name} {self.depth} {self.rate:g} {self.samples or ''}".strip()


class Halved:
    """Rows as a store in half precision would give them."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.views = rows.views

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.half().float() for tensor in self.rows.read(rows, view))


def variants(bench: Bench, truth: Truth) -> Iterator[Variant]:
    """Everything that is tried on one task: at the middle depth and its best rate, and where nothing is frozen."""
    asked = Answers(truth)
    middle = min(asked.depths[:-1], key=lambda depth: abs(asked.live(depth) - LIVE_TARGETS[-1]))
    best = {depth: best_rate(asked, depth) for depth in asked.depths}
    for name in ("random head", "trained head", "ridge head", "calibrated ridge head", "restart", "half precision"):
        yield Variant(name, middle, best[middle])
    shallow = min(asked.depths[:-1], key=lambda depth: abs(asked.live(depth) - LIVE_TARGETS[0]))
    for name in SHORTER:
        yield Variant(name, shallow, best[shallow])
        yield Variant(name, middle, best[middle])
    for count in VIEWS:
        yield Variant(f"{count} views", middle, best[middle])
    for name in CLOSED:
        yield Variant(name, asked.deepest, 0.0)
    for rate in LEARNING_RATES[:2]:
        yield Variant("norms only", 0, rate)
        yield Variant("first stage only", 0, rate)
    for samples in SAMPLES:
        if samples < len(bench.task.train):
            for depth in (0, middle, asked.deepest):
                yield Variant("fewer samples", depth, best[depth], samples)


def best_rate(asked: Answers, depth: int) -> float:
    rates = [rate for at, rate in asked.full if at == depth and not asked.full[at, rate]["failure"]]
    return min(rates, key=lambda rate: asked.full[depth, rate]["valid_loss"])


def tried(bench: Bench, variant: Variant) -> dict[str, Any]:
    """One variant, and its answers on the test part."""
    if variant.name in CLOSED:
        right = in_closed_form(bench, variant.name)
        return answered(variant, right)
    return trained(bench, variant)


def answered(variant: Variant, right: torch.Tensor) -> dict[str, Any]:
    hits = {"test_accuracy": float(right.float().mean()), "test_hits": bits(right.tolist())}
    return {"key": variant.key, **variant._asdict(), "failure": None, **hits}


CLOSED = ("ridge over all depths", "ridge at the deepest")


def in_closed_form(bench: Bench, name: str) -> torch.Tensor:
    """Whether a ridge regression on pooled features is right, by test sample."""
    pooled = Pooled(bench.base, bench.graph)
    seen = {}
    for part in ("train", "test"):
        samples = bench.parts[part]
        with torch.no_grad():
            batches = [
                pooled(*samples.read(range(first, min(first + BATCH, len(samples)))))
                for first in range(0, len(samples), BATCH)
            ]
        columns = [torch.cat(column) for column in zip(*batches, strict=True)]
        # The last column is the head's own input.
        seen[part] = torch.cat([scaled(column) for column in columns[:-1]], 1) if "all" in name else columns[-1]
    targets = nn.functional.one_hot(bench.task.train.labels, len(bench.task.classes)).double()
    fit = ridge(seen["train"], targets)
    outputs = seen["test"].double() @ fit.weight.T + fit.bias
    return outputs.argmax(1) == bench.task.test.labels


def scaled(features: torch.Tensor) -> torch.Tensor:
    """Each depth counts the same, whatever its width and size."""
    return features / features.square().sum(1).mean().sqrt()


def trained(bench: Bench, variant: Variant) -> dict[str, Any]:
    """Train one variant and score the test part with the weights of its best epoch."""
    live = fl.split(bench.base, bench.graph, variant.depth).live
    spec = spec_of(bench, variant.depth, variant.rate)
    rows, labels = bench.store(variant.depth)["train"], bench.task.train.labels
    warm: Path | None = bench.warm_head()
    start = None
    if variant.samples:
        numbers = drawn(labels, variant.samples, seed=0)
        rows, labels = Chosen(rows, numbers), labels[numbers]
    if variant.name == "half precision":
        rows = Halved(rows)
    elif variant.name.endswith(" views"):
        rows = viewed(bench, variant.depth, int(variant.name.split()[0]))
    elif variant.name in SHORTER:
        spec = spec.model_copy(update={"epochs": SHORTER[variant.name] * spec.epochs})
    elif variant.name in ALONE:
        keep(live, bench, variant.name)
    elif variant.name == "restart":
        start, spec = begun(bench, variant, spec)
    else:
        warm, spec = head_of(bench, variant.name, spec)
    trial = tune(
        live,
        rows,
        bench.store(variant.depth)["valid"],
        train_labels=labels,
        valid_labels=bench.task.valid.labels,
        spec=spec,
        head=bench.graph.head,
        warm=warm,
        start=start,
        save_to=(file := bench.work / "weights" / f"{variant.key}.safetensors"),
    )
    file.unlink(missing_ok=True)
    if trial.failure:
        return {"key": variant.key, **variant._asdict(), "failure": trial.failure}
    test = outputs_of(live, bench.store(variant.depth)["test"], batch_size=BATCH).argmax(1)
    seconds = {"valid_accuracy": trial.accuracy, "seconds": round(trial.seconds, 2)}
    return answered(variant, test == bench.task.test.labels) | seconds


def viewed(bench: Bench, depth: int, count: int) -> Any:
    samples = bench.task.train.with_views(count)
    frozen = fl.split(bench.base, bench.graph, depth).frozen
    folder = bench.work / "store" / f"train-{depth:02d}-{count}"
    return fl.cache(frozen, samples, folder, batch_size=BATCH, views=count)


ALONE = ("norms only", "first stage only")


def keep(live: nn.Module, bench: Bench, name: str) -> None:
    """Let only the norms, or only the first stage, and the head be trained."""
    first, head = set(bench.graph.stages[0].keys), f"{bench.graph.head}."
    for key, parameter in live.named_parameters():
        chosen = parameter.ndim == 1 if name == "norms only" else key in first
        parameter.requires_grad_(chosen or key.startswith(head))


def begun(bench: Bench, variant: Variant, spec: TrialSpec) -> tuple[Path, TrialSpec]:
    """An arm of forty steps at a constant rate, and the spec that goes on from it to the same end."""
    steps = -(-len(bench.task.train) // BATCH)
    part = RESTART_STEPS / steps
    first = arm_of(bench, variant.depth, variant.rate).model_copy(update={"epochs": part})
    bench.tuned(first)
    rest = {
        "recipe": first.recipe.model_copy(update={"schedule": "cosine"}),
        "epochs": spec.epochs - part,
        "parent": first.key,
        "first_epoch": part,
    }
    return bench.state_of(first.key), spec.model_copy(update=rest)


def head_of(bench: Bench, name: str, spec: TrialSpec) -> tuple[Path | None, TrialSpec]:
    """The file of another warm head, and the spec that takes it as it is."""
    if name not in ("random head", "trained head", "ridge head", "calibrated ridge head"):
        return bench.warm_head(), spec
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"head_scale": 1.0})})
    if name == "random head":
        return None, spec
    if name == "calibrated ridge head":
        return bench.warm_head(), spec
    file = bench.work / f"{name}.safetensors"
    if name == "ridge head":
        temperature = json.loads((bench.work / "prior.json").read_text())["temperature"]
        tensors = {key: tensor / temperature for key, tensor in load_file(bench.warm_head()).items()}
    else:
        _, live, _ = bench.tuned(spec_of(bench, bench.graph.max_depth, LEARNING_RATES[0]))
        tensors = dict(live.get_submodule(str(bench.graph.head)).state_dict())
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    return file, spec


def attempt(name: str, work: Path, threads: int, variant: Variant) -> dict[str, Any]:
    return tried(opened(name, work, threads), variant)


def train_all(task: str, work: Path, file: Path, jobs: int) -> None:
    """Train what is not there yet, one process a job, and write each row when it is done."""
    rows, truth = work / "ablations.jsonl", truth_of(task)
    bench = opened(task, work, torch.get_num_threads())
    done = {row["key"] for row in rows_in(rows)}
    wanted = [variant for variant in variants(bench, truth) if variant.key not in done]
    for depth in {variant.depth for variant in wanted}:
        bench.store(depth)
    bench.warm_head()
    threads, began = max(1, (os.cpu_count() or 1) // jobs), time.perf_counter()
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool, rows.open("a") as out:
        for end in as_completed([pool.submit(attempt, task, work, threads, variant) for variant in wanted]):
            row = end.result()
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"{time.perf_counter() - began:.0f} s: {row['key']}: test {row.get('test_accuracy')}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"task": task, "rows": rows_in(rows), **stamp()}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    rules = kinds.add_parser("rules")
    rules.add_argument("--json", type=Path, default=RESULTS / "ablations" / "rules.json")
    rules.add_argument("--tasks", nargs="+", default=[task for task in TASKS if (TRUTH / f"{task}.json").exists()])
    parts = kinds.add_parser("trained")
    parts.add_argument("task", choices=TASKS)
    parts.add_argument("--work", type=Path, required=True)
    parts.add_argument("--json", type=Path)
    parts.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.kind == "trained":
        work = options.work / options.task
        to = options.json or RESULTS / "ablations" / f"{options.task}.json"
        train_all(options.task, work, to, options.jobs)
        return
    truths = [truth_of(task) for task in options.tasks]
    rows = table(truths)
    for row in rows:
        print(
            f"{row['search']:40} regret {row['mean_regret']:+.2f} ({row['interval'][0]:+.2f} to "
            f"{row['interval'][1]:+.2f}), worst {row['worst_regret']:+.2f}, cost {row['mean_cost']:.2f}"
        )
    found = {"rows": rows, "norm_modes": {truth["task"]: norm_modes(truth) for truth in truths}, **stamp()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
