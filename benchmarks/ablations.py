"""What each part of the search is worth: the search with one part changed, on the tasks that have a truth.

    python benchmarks/ablations.py rules --json OUT
    python benchmarks/ablations.py trained TASK --work FOLDER [--json OUT] [--jobs 2] [--samples 50 200]
    python benchmarks/ablations.py summary [--json OUT]

`rules` trains nothing. The truth (benchmarks/truth.py) holds every depth as an arm of a race at each rate,
scored after 10, 20, 40 and 80 steps, and trained in full; so a search with other arms, laps, judges or ties
is played through, and the depth that it ends with is worth what the truth says. Regret is to the cross-fitted
oracle of benchmarks/regret.py; cost is in full fine-tunes, by operations.

`trained` varies what the truth does not hold, on one task (benchmarks/ablation_parts.py): the start of the head,
going on from an arm of the race, stored views, half precision in the store, only the norms or only the first
stage trained, shorter trainings, fewer samples, regressions in closed form, the tangent probe. Rows are kept under
FOLDER; started again, it goes on where it stopped.

`summary` compares what was trained with the truth's own training of that depth, over all tasks.
"""

import argparse
import base64
import json
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from ablation_parts import (
    ALONE,
    CLOSED,
    FEWER,
    SAMPLES,
    SHORTER,
    TANGENT,
    TANGENT_ROWS,
    Truth,
    best_rate,
    depth_at,
    in_full,
    train_all,
    whole,
)
from regret import RESULTS, TRUTH, bootstrap, hits_of, regret, truth_of, worth
from rivals import share_of
from stamps import stamp
from tasks import TASKS

from frostline.comparing import paired
from frostline.laps import THIRD
from frostline.search import LEARNING_RATES, LIVE_TARGETS, USUAL_LIMIT
from frostline.tangent import Normalisation

PARTS = RESULTS / "ablations"
TANGENT_EPOCHS = 2
"""Epochs of a full fine-tune on its rows that the tangent probe takes at least."""


# --- searches that are played through ---------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """A search of depths, as the truth can answer it.

    Args:
        targets: Live shares at which it looks, beside the deepest depth.
        rates: Learning rates that are raced: the two largest, and the third where the second is sure.
        sure: Standard errors by which the second of them has to be ahead to have a third tried, and that to be taken.
        ahead: The same for the smaller of the two largest.
        rates_of: Where they are raced: at the "shallowest" depth alone or the "middle" one, the others running at the
            rate that is taken; at "each"; or at "all", by what they promise on average.
        trend: Rates are judged by what the loss would be after so many times the fall of the second half of the lap.
        depth_trend: The same of depths.
        mark: Steps of a lap.
        second: Steps after which the two are compared again where neither is sure, or None.
        judge: What an arm is ahead by: "loss" or "accuracy".
        tie: Standard errors within which another arm than the leader is taken.
        last_tie: The same for the winner and head only, both trained to the end.
        deeper: Whether a tie goes to the deeper of two, and not to the shallower.
        votes: A vote that names the depth in place of a race, or None.
        goes_on: Whether the winner goes on from where it is; a restart pays for its first steps again.
    """

    targets: tuple[float, ...] = LIVE_TARGETS
    rates: tuple[float, ...] = LEARNING_RATES
    sure: float = THIRD
    ahead: float = 0.0
    rates_of: str = "shallowest"
    trend: float = 1.0
    depth_trend: float = 1.0
    mark: int = 40
    second: int | None = None
    judge: str = "loss"
    tie: float = 2.0
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
    "depths by their loss at the end of the lap": Search(depth_trend=0.0),
    "rates raced at the middle depth": Search(rates_of="middle"),
    "rates raced at every depth": Search(rates_of="each"),
    "the rate that suits all depths on average": Search(rates_of="all"),
    "the larger rate unless 1.5 errors behind": Search(ahead=1.5),
    "a second lap where no rate is sure": Search(second=80, ahead=1.0),
    "the third rate by the lowest promise": Search(sure=0.0),
    "laps of 20 steps": Search(mark=20),
    "laps of 80 steps": Search(mark=80),
    "rates by their loss at the end of the lap": Search(trend=0.0),
    "rates by half of their trend": Search(trend=0.5),
    "rates by three times their trend": Search(trend=3.0),
    "one rate, the largest": Search(rates=LEARNING_RATES[:1]),
    "one rate, the middle one": Search(rates=LEARNING_RATES[1:2]),
    "two depths": Search(targets=(0.9,)),
    "two depths, one of them half-way": Search(targets=(0.5,)),
    "four depths": Search(targets=(0.9, 0.65, 0.38)),
    "five depths": Search(targets=(0.9, 0.75, 0.55, 0.38)),
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
        self.full = in_full(truth)
        self.arms = {(row["depth"], row["learning_rate"]): row for row in truth["rows"] if "marks" in row}

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


def play(search: Search, truth: Truth) -> Played:
    """The search on this truth."""
    asked = Answers(truth)
    if search.votes:
        return voted(search.votes, asked)
    arms = sorted({depth_at(truth, target) for target in search.targets})
    groups = {"shallowest": [arms[:1]], "middle": [[arms[len(arms) // 2]]], "each": [[depth] for depth in arms]}
    races = {tuple(group): race(search, asked, group) for group in groups.get(search.rates_of, [arms])}
    raced = {depth: outcome for group, outcome in races.items() for depth in group}
    common = next(iter(races.values())).rate
    rates = {depth: raced[depth].rate if depth in raced else common for depth in arms}
    cost = sum(outcome.cost for outcome in races.values())
    cost += sum(asked.live(depth) for depth in arms if depth not in raced) * search.mark / asked.steps
    found = {
        depth: promised(asked, depth, rates[depth], search.mark, search.judge, search.depth_trend) for depth in arms
    }
    winner = ahead({depth: lap for depth, lap in found.items() if lap}, search)
    steps, rate = raced[winner].steps if winner in raced else search.mark, rates[winner]
    left = max(0.0, USUAL_LIMIT - cost - fixed(asked))
    share = min(1.0, left / max(asked.live(winner), 1e-9) + (steps / asked.steps if search.goes_on else 0.0))
    cost += asked.live(winner) * (share - (steps / asked.steps if search.goes_on else 0.0)) + fixed(asked)
    depth, row = last_word(asked, winner, rate, search)
    return Played(depth, rate, row["test_hits"], cost)


def fixed(asked: Answers) -> float:
    """The pass of the votes, the stores and what is set aside, about."""
    return 0.05 + 2 / (3 * asked.truth["epochs"])


class Raced(NamedTuple):
    """The rate that is taken, what the laps cost in full fine-tunes, and the steps after which it goes on."""

    rate: float
    cost: float
    steps: int


def race(search: Search, asked: Answers, depths: Sequence[int]) -> Raced:
    """Of two rates the one that promises more, or a third that is sure where the second is."""
    step = sum(asked.live(depth) for depth in depths) / asked.steps
    lap, (first, *others) = step * search.mark, search.rates
    if not others:
        return Raced(first, lap, search.mark)
    second, *third = others
    larger, smaller = (promises(search, asked, depths, rate, search.mark) for rate in (first, second))
    if leads(smaller, larger, search.sure):
        if third and leads(promises(search, asked, depths, third[0], search.mark), smaller, search.sure):
            second = third[0]
        return Raced(second, lap * len(search.rates), search.mark)
    if search.second is None or leads(larger, smaller, search.sure):
        return Raced(second if leads(smaller, larger, search.ahead) else first, 2 * lap, search.mark)
    larger, smaller = (promises(search, asked, depths, rate, search.second) for rate in (first, second))
    return Raced(second if leads(smaller, larger, search.ahead) else first, 2 * step * search.second, search.second)


def leads(one: Sequence[float], other: Sequence[float], errors: float) -> bool:
    difference, error = paired(other, one)
    return difference > errors * error


def promises(search: Search, asked: Answers, depths: Sequence[int], rate: float, mark: int) -> list[float]:
    """By sample, what the depths promise at this rate on average; above all others where one failed."""
    laps = [promised(asked, depth, rate, mark, search.judge, search.trend) for depth in depths]
    if not all(laps):
        return [1e3] * len(asked.truth["rows"][0]["valid_hits"])
    return np.mean(laps, axis=0).tolist()


def promised(asked: Answers, depth: int, rate: float, mark: int, judge: str, trend: float) -> list[float] | None:
    """By sample, where a lap would come to after the trend of its second half; None where the arm failed."""
    early, late = (asked.at(depth, rate, each) for each in (mark // 2, mark))
    if not early or not late:
        return None
    before, after = (np.array(figures(look, judge)) for look in (early, late))
    return (after - trend * (before - after)).tolist()


def figures(look: Mapping[str, Any], judge: str) -> Sequence[float]:
    """By sample: its loss, or how wrong it is."""
    return losses_of(look) if judge == "loss" else [1.0 - right for right in rights_of(look)]


def ahead(standing: Mapping[int, Sequence[float]], search: Search) -> int:
    """Of the arms within the tie of the leader, the shallowest, or the deepest."""
    leader = min(standing, key=lambda depth: (statistics.fmean(standing[depth]), depth))
    gaps = {depth: paired(lap, standing[leader]) for depth, lap in standing.items()}
    tied = [depth for depth, (gap, error) in gaps.items() if gap <= search.tie * error + 1e-12]
    if not search.tie:
        return leader
    return max(tied) if search.deeper else min(tied)


def last_word(asked: Answers, winner: int, rate: float, search: Search) -> tuple[int, Mapping[str, Any]]:
    """Winner or head only, by the rule of `choose`."""
    mine, head = asked.ended(winner, rate), asked.ended(asked.deepest, rate)
    if mine["failure"]:
        return asked.deepest, head
    is_mine = (mine["valid_accuracy"], -mine["valid_loss"]) >= (head["valid_accuracy"], -head["valid_loss"])
    first, other = (mine, head) if is_mine else (head, mine)
    gaps = [paired(figures(other, judge), figures(first, judge)) for judge in ("accuracy", "loss")]
    tied = search.last_tie > 0 and all(gap <= search.last_tie * error + 1e-12 for gap, error in gaps)
    is_head = search.deeper if tied else not is_mine
    return (asked.deepest, head) if is_head else (winner, mine)


def voted(vote: str, asked: Answers) -> Played:
    """The depth that a vote of the first pass puts first, trained at the largest rate."""
    entries = {entry["depth"]: entry[vote] for entry in asked.truth["votes"] if entry.get(vote) is not None}
    return taken(entries, asked, 1 / (3 * asked.truth["epochs"]))


def foretold(normalisation: str, figure: str, truth: Truth) -> Played:
    """The same by the tangent probe."""
    asked, sign = Answers(truth), -1.0 if figure == "loss" else 1.0
    votes = next(row["votes"] for row in parts_of(truth["task"]) if row["name"] == TANGENT)[normalisation]
    rows = truth["samples"]["train"]
    passes = TANGENT_EPOCHS * min(TANGENT_ROWS, rows) / rows
    return taken({vote["depth"]: sign * vote[figure] for vote in votes}, asked, passes / truth["epochs"])


def taken(votes: Mapping[int, float], asked: Answers, price: float) -> Played:
    """Of the depths that were trained the one with the most votes, at the largest rate."""
    depth = max((depth for depth in votes if depth in asked.depths), key=lambda depth: (votes[depth], depth))
    row = asked.ended(depth, LEARNING_RATES[0])
    return Played(depth, LEARNING_RATES[0], row["test_hits"], asked.live(depth) + price)


def parts_of(task: str) -> list[dict[str, Any]]:
    """What `trained` has found on one task; nothing where it was not run."""
    file = PARTS / f"{task}.json"
    return json.loads(file.read_text())["rows"] if file.exists() else []


def players(truths: Sequence[Truth]) -> dict[str, Callable[[Truth], Played]]:
    """The searches, and beside them the tangent probe where it was run on all tasks."""
    found: dict[str, Callable[[Truth], Played]] = {name: partial(play, search) for name, search in SEARCHES.items()}
    if all(any(row["name"] == TANGENT for row in parts_of(truth["task"])) for truth in truths):
        for normalisation, figure in product(get_args(Normalisation), ("accuracy", "loss")):
            name = f"vote of the tangent probe, {normalisation}, by {figure}"
            found[name] = partial(foretold, normalisation, figure)
    return found


def table(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    """A row for each search: its mean regret and cost over the tasks."""
    rows = []
    for name, player in players(truths).items():
        played = {truth["task"]: player(truth) for truth in truths}
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
    """Test accuracy of each depth with the norms' own statistics, over two seeds, and with learnt ones, at one rate."""
    return [
        {
            "depth": row["depth"],
            "own": usual(truth, row["depth"], row["learning_rate"]),
            "learnt": row["test_accuracy"],
        }
        for row in whole(truth, "train")
    ]


# --- parts that were trained ------------------------------------------------------------------


class Gap(NamedTuple):
    """What one part is worth on one task.

    Args:
        part: What was changed, and beside what.
        task: Of benchmarks/tasks.py.
        points: Of test accuracy, above what it is compared with; None where the training failed.
    """

    part: str
    task: str
    points: float | None


def gaps(truth: Truth) -> Iterator[Gap]:
    """All comparisons on one task, each beside the mean over the seeds of what is not changed."""
    rows, task, asked = parts_of(truth["task"]), truth["task"], Answers(truth)
    for row in rows:
        depth, rate = row["depth"], row["rate"]
        if row["name"] in CLOSED:
            yield Gap(f"{row['name']}, beside head only", task, points(row, usual(truth, depth, LEARNING_RATES[0])))
        elif row["name"] in ALONE:
            yield Gap(f"{row['name']}, beside nothing frozen", task, points(row, usual(truth, 0, best_rate(truth, 0))))
        elif row["name"] in SHORTER:
            nearest = min(LIVE_TARGETS, key=lambda target: abs(asked.live(depth) - target))
            beside = f"{row['name']}, about {nearest:g} of the operations live"
            yield Gap(beside, task, points(row, usual(truth, depth, rate)))
        elif row["name"] not in (TANGENT, FEWER):
            yield Gap(row["name"], task, points(row, usual(truth, depth, rate)))
    fewer = {(row["samples"], row["depth"]): row for row in rows if row["name"] == FEWER and not row["failure"]}
    for samples, depth in fewer:
        if depth:
            name = "head only" if depth == asked.deepest else "four tenths live"
            beside = f"{samples} pictures: {name}, beside nothing frozen"
            yield Gap(beside, task, points(fewer[samples, depth], fewer[samples, 0]["test_accuracy"]))
    modes = norm_modes(truth)
    yield Gap("learnt norm statistics", task, 100 * statistics.fmean(mode["learnt"] - mode["own"] for mode in modes))
    for depth in {row["depth"] for row in rows if row["name"] == "half precision"}:
        one, two = seeds_at(truth, depth, best_rate(truth, depth))
        yield Gap("another seed", task, 100 * (two - one))


def seeds_at(truth: Truth, depth: int, rate: float) -> list[float]:
    """Test accuracies of the trainings in full with the norms' own statistics, by seed."""
    rows = [row for row in whole(truth) if (row["depth"], row["learning_rate"]) == (depth, rate) and not row["failure"]]
    return [row["test_accuracy"] for row in sorted(rows, key=lambda row: row["seed"])]


def usual(truth: Truth, depth: int, rate: float) -> float:
    return statistics.fmean(seeds_at(truth, depth, rate))


def points(row: Mapping[str, Any], accuracy: float) -> float | None:
    return None if row["failure"] else 100 * (row["test_accuracy"] - accuracy)


def summary(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    """A row for each part: what it is worth on average over the tasks."""
    found = [gap for truth in truths for gap in gaps(truth)]
    rows = []
    for part in dict.fromkeys(gap.part for gap in found):
        own = {gap.task: gap.points for gap in found if gap.part == part}
        worth_it = [value for value in own.values() if value is not None]
        if worth_it:
            rows.append(
                {
                    "part": part,
                    "tasks": len(worth_it),
                    "failed": len(own) - len(worth_it),
                    "points": round(statistics.fmean(worth_it), 2),
                    "interval": bootstrap(worth_it),
                    "lowest": round(min(worth_it), 2),
                    "highest": round(max(worth_it), 2),
                    "by_task": {task: None if value is None else round(value, 2) for task, value in own.items()},
                }
            )
    return rows


# --- the command ------------------------------------------------------------------------------


def print_rules(tasks: Sequence[str], file: Path) -> None:
    truths = [truth_of(task) for task in tasks]
    rows = table(truths)
    for row in rows:
        print(
            f"{row['search']:60} regret {row['mean_regret']:+.2f} ({row['interval'][0]:+.2f} to "
            f"{row['interval'][1]:+.2f}), worst {row['worst_regret']:+.2f}, cost {row['mean_cost']:.2f}"
        )
    kept(file, {"rows": rows, "norm_modes": {truth["task"]: norm_modes(truth) for truth in truths}})


def print_summary(tasks: Sequence[str], file: Path) -> None:
    rows = summary([truth_of(task) for task in tasks])
    for row in rows:
        print(
            f"{row['part']:60} {row['points']:+.1f} ({row['interval'][0]:+.1f} to {row['interval'][1]:+.1f}), "
            f"{row['lowest']:+.1f} to {row['highest']:+.1f} on {row['tasks']} tasks, {row['failed']} failed"
        )
    kept(file, {"rows": rows})


def kept(file: Path, found: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**found, **stamp()}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("rules", "summary"):
        told = kinds.add_parser(kind)
        told.add_argument("--json", type=Path, default=PARTS / f"{kind}.json")
        told.add_argument("--tasks", nargs="+", default=[task for task in TASKS if (TRUTH / f"{task}.json").exists()])
    parts = kinds.add_parser("trained")
    parts.add_argument("task", choices=TASKS)
    parts.add_argument("--work", type=Path, required=True)
    parts.add_argument("--json", type=Path)
    parts.add_argument("--jobs", type=int, default=2)
    parts.add_argument("--samples", type=int, nargs="*", default=SAMPLES, help="sizes of smaller training parts")
    options = parser.parse_args()
    if options.kind == "trained":
        to = options.json or PARTS / f"{options.task}.json"
        train_all(options.task, options.work / options.task, to, jobs=options.jobs, sizes=options.samples)
    elif options.kind == "rules":
        print_rules(options.tasks, options.json)
    else:
        print_summary(options.tasks, options.json)


if __name__ == "__main__":
    main()
