"""The six claims counted again from `attempts.jsonl`, by the words of `docs/claims.md`."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from recount_page import (
    UNKNOWN,
    Figure,
    Node,
    Texts,
    byte_count,
    decimal,
    duration,
    points,
    rate,
    scaled,
    share,
    told,
    written,
)
from recount_statistics import (
    Effect,
    Rows,
    by_chance,
    is_guessing,
    points_of,
    ratio_of,
    spread_ratio_of,
    times_as_many,
)

Record = dict[str, Any]
Arm = list[Record]

NOISE, DECAY, SLOWER, NEARLY, OWN, HEAD_RATE = 0.2, 0.1, 1 / 3, 0.98, 0.95, 1e-3
LEAST = {"reuse": 2.0, "data": 1.1, "convergence": 1.1, "stability": 1.1, "regularisation": 1.0, "resources": 1.1}
"""The smallest effect that matters, in points or as a ratio."""


class Found(NamedTuple):
    """What a claim comes to; without a number where there is none."""

    verdict: str
    effect: Effect | None
    facts: dict[str, Texts]


NOT_DECIDED = Found("not decided", None, {})


def verdict_of(effect: Effect, least: float, none: float) -> str:
    if effect.low > none and effect.value >= least:
        return "holds"
    return "does not hold" if effect.high < least else "not decided"


def in_points(name: str, effect: Effect, facts: dict[str, Texts]) -> Found:
    return Found(verdict_of(effect, LEAST[name], 0.0), effect, facts)


def in_times(name: str, effect: Effect, facts: dict[str, Texts]) -> Found:
    return Found(verdict_of(effect, LEAST[name], 1.0), effect, facts)


# --- what was tried ---------------------------------------------------------------------------


def keyed_lines(file: Path, field: str) -> dict[str, Record]:
    """Lines of a file by the digest of one field's text, as plans and claims name them."""
    found = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        begin = line.index(f'"{field}":') + len(field) + 3
        _, end = json.JSONDecoder().raw_decode(line, begin)
        found[hashlib.sha256(line[begin:end].encode()).hexdigest()[:16]] = json.loads(line)
    return found


def hits(arm: Sequence[Record]) -> Rows:
    return np.array([row["test_hits"] for row in arm], dtype=np.float64)


def accuracy(arm: Sequence[Record]) -> float:
    return fmean(fmean(row["test_hits"]) for row in arm)


def paired(*arms: Arm) -> list[Arm]:
    """The seeds at which every arm has an answer that did not fail."""
    by_seed = [{row["attempt"]["trial"]["seed"]: row for row in arm if not row["failure"]} for arm in arms]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    return [[arm[seed] for seed in seeds] for arm in by_seed]


class Tried:
    """The attempts that one claim names, as the arms that it compares."""

    def __init__(self, evidence: Record, rows: list[Record], specs: dict[str, Record]) -> None:
        self.evidence, self.plan, self.graph = evidence, evidence["plan"], evidence["graph"]
        self.rows = rows
        self.specs = specs
        self.train, self.valid, _ = (sum(row[part] for row in evidence["data"]["counts"]) for part in range(3))
        tests = [row[2] for row in evidence["data"]["counts"]]
        self.chance = max(tests) / max(1, sum(tests))
        self.first_seed = self.plan["seed"] + 1

    @property
    def head_only(self) -> int:
        return len(self.graph["stages"]) - 1

    @property
    def deepest(self) -> int:
        return max(cut["depth"] for cut in self.graph["cuts"] if cut["blocked"] is None)

    @cached_property
    def depth(self) -> int:
        """What the search chose; where that is nothing, the deepest that was raced beside the head."""
        raced = [depth for depth in self.plan["candidates"] if 0 < depth < self.deepest]
        return self.evidence["choice"]["depth"] or max(raced, default=self.deepest)

    @cached_property
    def frozen_rate(self) -> float:
        """The rate that the search settled on at that depth."""
        if self.depth == self.head_only:
            return HEAD_RATE
        chosen = self.specs.get(self.evidence["choice"]["trial"])
        if chosen and self.evidence["choice"]["depth"]:
            return chosen["spec"]["recipe"]["learning_rate"]
        own = [trial for trial in self.specs.values() if trial["spec"]["depth"] == self.depth and not trial["failure"]]
        last = max(own or [chosen], key=lambda trial: (epochs_of(trial), -fmean(trial["losses"])))
        return last["spec"]["recipe"]["learning_rate"]

    @cached_property
    def full_rate(self) -> float:
        """The rate of the plan with the lowest validation loss of all looks, nothing frozen, at the first seed."""
        tuned = {rate: self.of(0, rate, seed=self.first_seed) for rate in self.plan["learning_rates"]}
        return min(tuned, key=lambda rate: (lowest_loss(tuned[rate]), -rate))

    def of(self, depth: int, rate: float | None = None, *, decay: float | None = None, **asked: Any) -> Arm:
        """Trainings at that depth and rate, by seed."""
        seed = asked.pop("seed", None)
        wanted = {"kind": "train", "prefix": "pretrained", "rest": "pretrained", "samples": None, "noise": 0.0} | asked
        decay = self.plan["recipe"]["weight_decay"] if decay is None else decay
        found = []
        for row in self.rows:
            trial = row["attempt"]["trial"]
            if any(row["attempt"][name] != value for name, value in wanted.items()):
                continue
            recipe = trial["recipe"]
            if trial["depth"] == depth and recipe["weight_decay"] == decay and seed in (None, trial["seed"]):
                found += [row] if rate in (None, recipe["learning_rate"]) else []
        return sorted(found, key=lambda row: row["attempt"]["trial"]["seed"])

    def frozen(self, **asked: Any) -> Arm:
        return self.of(self.depth, self.frozen_rate, **asked)

    def full(self, *, slower: float = 1.0, **asked: Any) -> Arm:
        return self.of(0, self.full_rate * slower, **asked)

    def anew(self, prefix: str) -> Arm:
        """Live stages drawn anew, where there are any but the head."""
        return self.frozen(prefix=prefix, rest="pretrained" if self.depth == self.head_only else "random")

    def memory(self, depth: int, *, is_stored: bool) -> Record:
        found = self.of(depth, kind="memory", is_stored=is_stored)
        return found[0] if found and not found[0]["failure"] else {"peak_bytes": None, "state_bytes": None}


def epochs_of(trial: Record) -> float:
    return trial["spec"]["first_epoch"] + trial["spec"]["epochs"]


def lowest_loss(arm: Arm) -> float:
    losses = [point["valid_loss"] for row in arm if not row["failure"] for point in row["curve"]]
    return min(losses, default=math.inf)


# --- the claims -------------------------------------------------------------------------------


def reuse(tried: Tried) -> Found:
    learnt, *controls = paired(*map(tried.anew, ("pretrained", "random", "matched")))
    if len(learnt) < 2:
        return NOT_DECIDED
    effect = points_of(hits(learnt) - max(map(hits, controls), key=np.mean))
    facts: dict[str, Texts] = {"seeds": (str(len(learnt)),)}
    anew, kept = paired(tried.anew("pretrained"), tried.frozen())
    if anew and tried.depth != tried.deepest:
        facts["lost where the stages above are drawn anew"] = written(points, *points_of(hits(kept) - hits(anew)))
    votes = {"pretrained": tried.evidence["prior"]["votes"]}
    for prefix in ("random", "matched"):
        for row in tried.of(0, kind="probe", prefix=prefix):
            votes |= {} if row["failure"] else {prefix: row["votes"]}
    words = {"matched": "random, with the mean and spread of each pretrained tensor"}
    here = [
        [f"{words.get(prefix, prefix)} {text}" for text in written(share, vote["accuracy"])]
        for prefix, found in votes.items()
        for vote in found
        if vote["depth"] == tried.depth
    ]
    if here:
        facts[f"accuracy of a linear probe at depth {tried.depth}"] = tuple(map(", ".join, itertools.product(*here)))
    for row in [row for row in tried.full(seed=tried.first_seed) if not row["failure"] and row["similarity"]][:1]:
        least = min(row["similarity"])
        stage = tried.graph["stages"][row["similarity"].index(least)]["name"]
        facts["changed most by full fine-tuning"] = tuple(
            f"{stage}, similarity {text}" for text in written(share, least)
        )
    return in_points("reuse", effect, facts)


def data(tried: Tried) -> Found:
    fewest = max(2 * len(tried.evidence["data"]["classes"]), 16)
    sizes = [tried.train // part for part in (8, 4, 2, 1) if tried.train // part >= fewest]
    asked = [*sizes[:-1], None]
    arms = paired(*[tried.frozen(samples=size) for size in asked], *[tried.full(samples=size) for size in asked])
    if len(arms[0]) < 2:
        return NOT_DECIDED
    curves = np.stack([hits(arm) for arm in arms], axis=1)
    frozen, full = curves[:, : len(sizes)], curves[:, len(sizes) :]
    names = {
        f"frozen up to {tried.graph['stages'][tried.depth - 1]['name']}": tried.frozen,
        "nothing frozen": tried.full,
    }
    if tried.depth != tried.deepest:
        is_head = tried.deepest == tried.head_only
        head_rate = HEAD_RATE if is_head else tried.frozen_rate
        names["head only" if is_head else "all frozen that can be"] = partial(tried.of, tried.deepest, head_rate)
    facts = {}
    for size, part in zip(sizes, asked, strict=True):
        known = {name: [row for row in arm(samples=part) if not row["failure"]] for name, arm in names.items()}
        texts = [[f"{name} {text}" for text in written(share, accuracy(arm))] for name, arm in known.items() if arm]
        facts[f"accuracy with {size} samples"] = tuple(map(", ".join, itertools.product(*texts)))
    if is_guessing(frozen[:, -1], tried.chance) and is_guessing(full[:, -1], tried.chance):
        return Found("does not hold", None, facts)
    return in_times("data", times_as_many(frozen, full, sizes), facts)


class Reach(NamedTuple):
    epochs: float
    flops: float
    seconds: float


def reach(tried: Tried, row: Record, target: float) -> Reach:
    """What was spent at the first look that reached a target, the pass included.

    A sample trained on is three forward passes, one looked at is one.
    """
    curve = row["curve"]
    passes = [3 * tried.train * point["epoch"] + tried.valid * number for number, point in enumerate(curve, 1)]
    place = next(number for number, point in enumerate(curve) if point["valid_accuracy"] >= target)
    return Reach(
        curve[place]["epoch"],
        row["pass_flops"] + row["flops"] * passes[place] / passes[-1],
        row["pass_seconds"] + sum(point["seconds"] for point in curve[: place + 1]),
    )


def convergence(tried: Tried) -> Found:
    arms = paired(tried.frozen(), tried.full())
    if len(arms[0]) < 2:
        return NOT_DECIDED
    ends = [[row["curve"][-1]["valid_accuracy"] for row in arm] for arm in arms]
    targets = [NEARLY * min(pair) for pair in zip(*ends, strict=True)]
    spent = [[reach(tried, row, target) for row, target in zip(arm, targets, strict=True)] for arm in arms]
    own = [
        [reach(tried, row, OWN * end) for row, end in zip(arm, last, strict=True)]
        for arm, last in zip(arms, ends, strict=True)
    ]

    def both(write: Callable[[float], str], reached: list[list[Reach]], name: str) -> Texts:
        return told(write, *(fmean(getattr(each, name) for each in arm) for arm in reached))

    def flop(value: float) -> str:
        return scaled(value, "FLOP")

    facts = {
        "seeds": (str(len(targets)),),
        "common target, validation accuracy": written(share, fmean(targets)),
        "epochs to it": both("{:.1f}".format, spent, "epochs"),
        "operations to it": both(flop, spent, "flops"),
        "seconds to it, pass counted": both(duration, spent, "seconds"),
        "epochs to 95 % of its own end": both("{:.1f}".format, own, "epochs"),
        "operations to 95 % of its own end": both(flop, own, "flops"),
    }
    moving = [pair for pair in zip(*spent, strict=True) if any(each.epochs for each in pair)]
    if len(moving) < 2:
        return Found("not decided", None, facts)
    # What was spent is known to an epoch.
    grain = math.hypot(*(fmean(1 / max(1.0, each.epochs) for each in arm) for arm in spent))
    effect = ratio_of([full.flops for _, full in moving], [frozen.flops for frozen, _ in moving], grain)
    return in_times("convergence", effect, facts)


class Scatter:
    """An arm whose accuracies scatter; runs are lost that failed or did no better than guessing."""

    def __init__(self, name: str, runs: Arm, chance: float) -> None:
        self.name, self.runs = name, runs
        self.kept = [row for row in runs if not row["failure"] and not is_guessing(hits([row]), chance)]
        self.accuracies = [fmean(row["test_hits"]) for row in self.kept]
        self.lost = len(runs) - len(self.kept)
        self.points = 100 * stdev(self.accuracies) if len(self.kept) > 1 else math.nan

    def steadier_than(self, other: "Scatter") -> bool:
        mine, theirs = (self.lost / len(self.runs), other.lost / len(other.runs))
        return mine < theirs or (mine == theirs and self.points < other.points)

    @property
    def mean(self) -> float:
        return fmean(self.accuracies) if self.kept else 0.0


def stability(tried: Tried) -> Found:
    frozen = Scatter("frozen", tried.frozen(), tried.chance)
    full = Scatter("nothing frozen", tried.full(), tried.chance)
    slower = Scatter("nothing frozen at a third of the rate", tried.full(slower=SLOWER), tried.chance)
    if min(len(frozen.runs), len(full.runs)) < 2:
        return NOT_DECIDED
    facts = scatter_facts(tried, [arm for arm in (frozen, full, slower) if arm.runs])
    is_better = len(slower.runs) > 1 and slower.steadier_than(full) and 100 * slower.mean >= 100 * full.mean - 1
    rival = slower if is_better else full
    ours, theirs = (frozen.lost, len(frozen.runs)), (rival.lost, len(rival.runs))
    if by_chance(theirs, ours) <= 0.05:
        return Found("holds", None, facts)
    if by_chance(ours, theirs) <= 0.05:
        return Found("does not hold", None, facts)
    if min(len(frozen.kept), len(rival.kept)) < 2:
        return Found("not decided", None, facts)
    grain = 1 / len(frozen.kept[0]["test_hits"])
    found = in_times("stability", spread_ratio_of(rival.accuracies, frozen.accuracies, grain), facts)
    # Nothing is decided against the arm that lost fewer.
    against = "holds" if frozen.lost > rival.lost else "does not hold"
    return found._replace(verdict="not decided") if frozen.lost != rival.lost and found.verdict == against else found


def scatter_facts(tried: Tried, arms: list[Scatter]) -> dict[str, Texts]:
    def each(tell: Callable[[Scatter], Texts]) -> Texts:
        texts = [[f"{arm.name} {text}" for text in tell(arm)] for arm in arms]
        return tuple(map(", ".join, itertools.product(*texts)))

    def mean(figures: list[float]) -> Texts:
        return written("{:.2f}".format, fmean(figures)) if figures else (UNKNOWN,)

    def unrest(row: Record) -> list[float]:
        looks = [(point["gradient_spread"], point["gradient_norm"]) for point in row["curve"]]
        return [spread / norm for spread, norm in looks if spread is not None and norm]

    frozen_rates = [tried.of(tried.depth, rate, seed=tried.first_seed) for rate in tried.plan["learning_rates"]]
    full_rates = [tried.of(0, rate, seed=tried.first_seed) for rate in tried.plan["learning_rates"]]
    widths = f"nothing frozen {width(full_rates)}"
    if tried.depth != tried.deepest:
        widths = f"frozen {width(frozen_rates)}, {widths}"
    return {
        "scatter over seeds, points": each(
            lambda arm: written("{:.2f}".format, arm.points) if len(arm.kept) > 1 else (UNKNOWN,)
        ),
        "mean test accuracy": each(lambda arm: written(share, arm.mean) if arm.kept else (UNKNOWN,)),
        "runs failed or no better than guessing": each(lambda arm: (f"{arm.lost} of {len(arm.runs)}",)),
        "best less last epoch, validation points": each(
            lambda arm: mean([100 * (best(row) - row["curve"][-1]["valid_accuracy"]) for row in arm.kept])
        ),
        "gradient norm, deviation over mean": each(lambda arm: mean([fmean(r) for r in map(unrest, arm.kept) if r])),
        "learning rates within a point of the best": (widths,),
    }


def best(row: Record) -> float:
    return max(point["valid_accuracy"] for point in row["curve"])


def width(tuned: list[Arm]) -> str:
    known = [row for arm in tuned for row in arm if not row["failure"]]
    if len(known) < 2:
        return UNKNOWN
    near = [row for row in known if 100 * best(row) >= 100 * max(map(best, known)) - 1]
    names = ", ".join(rate(row["attempt"]["trial"]["recipe"]["learning_rate"]) for row in near)
    return f"{len(near)} of {len(tuned)} ({names})"


def regularisation(tried: Tried) -> Found:
    right = tried.frozen(), tried.full()
    wrong = tried.frozen(noise=NOISE), tried.full(noise=NOISE), tried.full(noise=NOISE, decay=DECAY)
    frozen, full, noisy, full_noisy, decayed = paired(*right, *wrong)
    if len(frozen) < 2:
        return NOT_DECIDED
    better = max(hits(full_noisy), hits(decayed), key=np.mean)
    effect = points_of((hits(full) - better) - (hits(frozen) - hits(noisy)))
    gaps = [fmean(100 * (row["train_accuracy"] - fmean(row["test_hits"])) for row in arm) for arm in (frozen, full)]
    facts = {
        "test accuracy, right labels": told(share, accuracy(frozen), accuracy(full)),
        "test accuracy, a fifth wrong": told(share, accuracy(noisy), accuracy(full_noisy)),
        "training less test accuracy, points": told("{:.1f}".format, *gaps),
        "validation less training loss at the same training loss, nats": matched_gaps(frozen, full),
        "calibration error, right labels": told(share, calibration(frozen), calibration(full)),
        "calibration error, a fifth wrong": told(share, calibration(noisy), calibration(full_noisy)),
    }
    found = in_points("regularisation", effect, facts)
    return found._replace(verdict="does not hold") if is_guessing(hits(frozen), tried.chance) else found


def calibration(arm: Arm) -> float:
    """Expected calibration error over 15 bins of equal width, the upper end of each belonging to it."""
    errors = []
    for row in arm:
        excess = [0.0] * 16
        for sure, hit in zip(row["test_confidences"], row["test_hits"], strict=True):
            excess[min(15, max(1, math.ceil(sure * 15)))] += sure - hit
        errors.append(sum(map(abs, excess)) / len(row["test_hits"]))
    return fmean(errors)


def matched_gaps(frozen: Arm, full: Arm) -> Texts:
    """Validation less training loss where both arms fit the training samples as well as the worse of them ever does."""
    pairs = [
        [[(p["train_loss"], p["valid_loss"]) for p in row["curve"] if p["train_loss"] is not None] for row in pair]
        for pair in zip(frozen, full, strict=True)
    ]
    pairs = [pair for pair in pairs if all(pair)]
    if not pairs:
        return (UNKNOWN,)
    levels = [max(min(train for train, _ in curve) for curve in pair) for pair in pairs]
    gaps = [[first_at(level, curve) - level for curve in pair] for pair, level in zip(pairs, levels, strict=True)]
    means = [fmean(column) for column in zip(*gaps, strict=True)]

    def text(one: float, other: float, level: float) -> str:
        return f"frozen {decimal(one)}, nothing frozen {decimal(other)} (at {decimal(level)})"

    return written(text, *means, fmean(levels))


def first_at(level: float, curve: list[tuple[float, float]]) -> float:
    """Validation loss where the training loss first comes down to a level, straight between two looks."""
    place = next(number for number, (train, _) in enumerate(curve) if train <= level)
    (before, held), (train, valid) = curve[max(0, place - 1)], curve[place]
    return valid if before <= train else held + (before - level) / (before - train) * (valid - held)


def resources(tried: Tried) -> Found:
    frozen, full = paired(tried.frozen(), tried.full())
    if len(frozen) < 2:
        return NOT_DECIDED
    both = frozen, full
    seconds = [[row["seconds"] + row["pass_seconds"] for row in arm] for arm in both]
    stored = tried.memory(tried.depth, is_stored=True)
    unstored, whole = tried.memory(tried.depth, is_stored=False), tried.memory(0, is_stored=True)
    peaks = [known(run["peak_bytes"]) for run in (stored, unstored, whole)]
    live = [sum(stage["parameters"] for stage in tried.graph["stages"][depth:]) for depth in (tried.depth, 0)]
    store = next((f["store_bytes"] for f in tried.plan["forecasts"] if f["depth"] == tried.depth), None)
    joules = [row.get("joules") for arm in both for row in arm]
    facts = {
        "time, the pass counted": told(duration, *map(fmean, seconds)),
        "time without the pass": told(duration, *(fmean(row["seconds"] for row in arm) for arm in both)),
        "operations, the pass counted": told(
            lambda value: scaled(value, "FLOP"),
            *(fmean(row["flops"] + row["pass_flops"] for row in arm) for arm in both),
        ),
        "trained parameters": told(scaled, *live),
        "gradients and optimizer": (
            f"frozen {known(stored['state_bytes'])}, nothing frozen {known(whole['state_bytes'])}",
        ),
        "peak memory": ("frozen {}, without a store {}, nothing frozen {}".format(*peaks),),
        "store on disk": (known(store),),
        "energy without the pass": (UNKNOWN,)
        if None in joules
        else told(lambda value: scaled(value, "J"), *(fmean(row["joules"] for row in arm) for arm in both)),
    }
    return in_times("resources", ratio_of(seconds[1], seconds[0]), facts)


def known(count: int | None) -> str:
    return UNKNOWN if count is None else byte_count(count)


CLAIMS: dict[str, Callable[[Tried], Found]] = {
    "reuse": reuse,
    "data": data,
    "convergence": convergence,
    "stability": stability,
    "regularisation": regularisation,
    "resources": resources,
}


# --- against the report -----------------------------------------------------------------------


def of_the_claims(run: Path, evidence: Record, page: dict[str, Node]) -> Iterator[Figure]:
    outcomes, specs = keyed_lines(run / "attempts.jsonl", "attempt"), keyed_lines(run / "trials.jsonl", "spec")
    for claim in evidence["claims"]:
        if claim["verdict"] == "not measured":
            continue
        name, rows = claim["name"], [outcomes[key] for key in claim["attempts"] if key in outcomes]
        yield Figure(f"attempts of {name}", (str(len(claim["attempts"])),), str(len(rows)), "attempts")
        found = CLAIMS[name](Tried(evidence, rows, specs))
        card = page.get(f"claim-{name}", Node("missing"))
        yield Figure(f"verdict on {name}", (found.verdict,), (card.first("span", "badge") or "")[2:])
        number, spread = shown(found.effect, "points" if name in ("reuse", "regularisation") else "times")
        yield Figure(f"number of {name}", number, next((p.first("strong") for p in card.all("p", "number")), None))
        yield Figure(f"interval of {name}", spread, card.first("span", "spread"))
        facts = card.pairs()
        for fact, texts in found.facts.items():
            yield Figure(f"{name}, {fact}", texts, facts.get(fact))


def shown(effect: Effect | None, unit: str) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Number and interval as a card has them."""
    if effect is None:
        return (None,), (None,)

    def amount(value: float) -> str:
        return (f"{value:.1f}" if unit == "points" else f"{value:.2f}").replace("-", "−")

    def ends(low: float, high: float) -> str:
        return f"({amount(low)} to {amount(high)})" if math.isfinite(high) else f"({amount(low)} or more)"

    number = written(lambda value: f"{amount(value)} {unit}", effect.value)
    return number, written(ends, effect.low, effect.high)
