"""Choosing the depth: the plan, and the strategy that spends the budget.

The strategy is a pure function of what has happened. It races a few learning rates at the
shallowest of a few well separated depths, then the depths at the best rate, and lets the best
depth go on to the end without a restart.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from frostline.amounts import byte_count, interval, share
from frostline.comparing import by_key
from frostline.laps import THIRD, Lap, is_ahead, shallowest_ahead
from frostline.prices import CHEAP, Prices, Race, affordable_epochs, apart, head_scale, most_cost
from frostline.records import Budget, CutGraph, Plan, Prior, Rates, Recipe, Trial, TrialSpec

STEPS = 600
"""Optimizer steps of a full fine-tune by default. Where nine tenths of the operations are trained, the test part (64
pixels, one seed) came out after about 240, 300 and 600 steps at .993, 1.000 and .993 on sign digits, .858, .840 and
.834 on TrashNet, .955, .940 and .957 on Caltech-25, and .829, .859 and .879 on the 136 letters of Omniglot: few classes
need no more than 300, many gain by more. With 400 the race and what is set aside left Omniglot two epochs: .735."""

USUAL_LIMIT = 0.85
"""The most that a search costs by default, in full fine-tunes: the last training of a shallow depth has some two thirds
of the epochs then."""

FEWEST_EPOCHS, MOST_EPOCHS = 4, 60

LAP_STEPS = 40
"""Steps of one lap of the race. After 10 steps on sign digits the smallest rate was ahead of the largest (.57 against
.76 nats), after 40 far behind it (.35 against .25)."""

SHORT_LAP_STEPS = 20
"""The same where the budget has no room for longer ones, though they name a rate too small now and then."""

RISE_STEPS = 10
"""Steps over which the rate rises at the start of an arm."""

AVERAGING = 0.98
"""What the running average of an arm's weights keeps of itself at each step, less in the first steps. At a constant
rate the noise of the last steps hides what a depth is good for: after 40 steps on sign digits the weights with nothing
frozen were right in .674 of the pictures, their average in .944."""

LEARNING_RATES = (1e-3, 3e-4, 1e-4)
"""In the order of trial: from what convolutions on small pictures need to what attention networks bear."""

LIVE_TARGETS = (0.9, 0.38)
"""Where the race looks beside the deepest cut: share of the operations that is trained. A third depth between them has
not been worth its lap: `benchmarks/ablations.py rules`."""

NEIGHBOURHOOD = 0.08
"""Cuts whose live shares are that close cost about the same; the probe picks among them."""

LEAST_FINISH = 0.4
"""Share of the planned epochs that the dearest arm must still be able to go on for, or the race is made smaller."""

SAFE_RATE = 3e-4
"""Where no race of rates can be paid for: short of the best for convolutions, borne by attention."""

FEW = 200
"""Validation samples below which the plan says how coarse the comparison is."""

FEWEST_A_CLASS = 10
"""Labelled samples a class, for training and validation together, below which there is no race."""

VIEWS = (4, 2)
"""Stored views of each training sample that the plan may choose in place of 1. With four tenths of the operations
trained 2 views gained 1.1 points on ten tasks (.3 to 1.8) and 4 views 1.4 (.3 to 2.5); 8 gained no more."""

VIEWS_SHARE = 0.02
"""The most that computing the further views may cost for that, in full fine-tunes by operations. So there are several
where samples are few and epochs, which take turns among them, are many; there they gain most."""

DISAGREEMENT = 0.1
"""Share of samples on which two good depths differ, which sets the standard error of their difference."""

USUAL_RACES = ((3, 3, LAP_STEPS), (3, 2, LAP_STEPS))
"""Depths and learning rates that a race may have at most, and the steps of a lap, in the order of preference. A third
rate is seldom tried even where it is paid for."""

SMALLER_RACES = (
    (3, 2, SHORT_LAP_STEPS),
    (2, 2, LAP_STEPS),
    *((depths, rates, SHORT_LAP_STEPS) for depths, rates in ((2, 2), (3, 1), (2, 1))),
)
"""The same where the budget pays for none of these. The shallow depth has been the best one most often, so it goes
late."""


def plan(
    graph: CutGraph,
    prior: Prior,
    rates: Rates,
    *,
    limit: float,
    epochs: int | None,
    train_samples: int,
    valid_samples: int,
    test_samples: int = 0,
    seed: int,
    views: int | None,
    most_views: int = 1,
    depth: int | None,
    recipe: Recipe,
    notes: Sequence[str] = (),
    disk: int | None = None,
) -> Plan:
    """Say which depths will be tried, and what everything will cost.

    Where the budget is too small for the whole race, learning rates and depths are left out of
    it; where it is too small for any, the deepest open cut alone is trained.

    Args:
        graph: The network's stages and cuts.
        prior: Votes before training.
        rates: What this machine does in a second; for the forecast only, never for a decision.
        limit: The most that a search may cost, in full fine-tunes.
        epochs: Epochs of a full fine-tune; None takes about 600 steps' worth, 4 to 60.
        train_samples: N of the training part.
        valid_samples: N of the validation part.
        test_samples: N of the test part.
        seed: Of every draw.
        views: Stored views of each sample; None takes several where they cost next to nothing and fit on the disk.
        most_views: Views of each sample that there can be.
        depth: None searches; a number trains that depth alone, whatever the limit.
        recipe: How every arm is trained but for its rate.
        notes: What the user should know of the data, in words.
        disk: Bytes that kept rows may take; the rows of what does not fit are computed anew in every epoch. None
            keeps all.

    Returns:
        The plan.

    Example:
        >>> from frostline.records import EngineReport
        >>> import torch
        >>> net = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(6)])
        >>> graph = fl.trace(net, torch.ones(2, 4))
        >>> seconds = {"step_seconds": 0.1, "step_low": 0.1, "step_high": 0.1, "score_seconds": 0.001}
        >>> engine = EngineReport(engine="torch")
        >>> rates = Rates(**seconds, stage_seconds=(1 / 6,) * 6, engine=engine, threads=1, torch="2.8")
        >>> sizes = {"train_samples": 960, "valid_samples": 320, "seed": 0, "views": 1, "limit": 1.0, "epochs": None}
        >>> plan(graph, Prior(votes=(), samples=960), rates, depth=None, recipe=Recipe(), **sizes).candidates
        (1, 4, 5)
    """
    steps = max(1, -(-train_samples // recipe.batch_size))
    epochs = epochs or usual_epochs(steps)
    recipe = recipe.model_copy(update={"warmup": min(1.0, RISE_STEPS / steps)})
    priced = partial(
        Prices,
        graph,
        rates,
        recipe,
        epochs=epochs,
        train_samples=train_samples,
        valid_samples=valid_samples,
        test_samples=test_samples,
        disk=disk,
    )
    meant = partial(_meant, prior=prior, depth=depth, limit=limit)
    prices, (race, budget, added) = _with_views(views, most_views, priced, meant)
    said = (*notes, *added, *_said_of_computed(prices, race, budget), *_said_of_samples(valid_samples, prior))
    seconds = prices.search_seconds(race, budget)
    if depth is None and seconds > limit * prices.full_seconds:
        said += (_FAST.format(seconds=seconds, limit=share(limit), allowed=limit * prices.full_seconds),)
    votes = {vote.depth: vote for vote in prior.votes}
    return Plan(
        budget=budget,
        rates=rates,
        recipe=recipe,
        candidates=race.depths,
        learning_rates=race.rates,
        forecasts=tuple(prices.forecast(d, votes.get(d), race) for d in graph.open_depths),
        seconds=seconds,
        store_bytes=sum(prices.store_bytes(d) for d in race.depths if d not in race.computed),
        full_finetune_seconds=prices.full_seconds,
        seed=seed,
        views=prices.views,
        notes=said,
        reason=_expectation(graph, prior, race) if depth is None else "",
        computed=race.computed,
    )


def _expectation(graph: CutGraph, prior: Prior, race: Race) -> str:
    """What the votes say, and what is tried because training may say otherwise."""
    tried, trained = (
        ", ".join(figures[:-1]) + f" and {figures[-1]}"
        for figures in (
            [str(depth) for depth in race.depths],
            [f"{100 * (1 - graph.frozen_share(depth)):.0f} %" for depth in race.depths],
        )
    )
    parts = []
    if prior.votes:
        best = max(prior.votes, key=lambda vote: (vote.accuracy, vote.depth))
        alike = [vote.depth for vote in prior.votes if vote.high >= best.low]
        parts.append(
            f"Before any training a linear fit does best on what depth {best.depth} computes, "
            f"{interval(best.accuracy, best.low, best.high)}"
            + (f"; depths {min(alike)} to {max(alike)} cannot be told from it." if len(alike) > 1 else ".")
        )
    if len(race.depths) > 1:
        parts.append(
            f"What training gains it cannot say, so depths {tried} are tried, which train {trained} of the operations."
        )
    return " ".join(parts)


_Meant = tuple[Race, Budget, tuple[str, ...]]
"""What will be raced, within which budget, and what is to be said of it."""


def _with_views(
    views: int | None, most: int, priced: Callable[..., Prices], meant: Callable[[Prices], _Meant]
) -> tuple[Prices, _Meant]:
    """The prices with so many views; None is the most that cost next to nothing and leave the race as it is."""
    prices = priced(views=views or 1)
    found = meant(prices)
    race = found[0]
    # Where nothing is kept, every epoch would augment anew.
    if views is None and race.deepest_kept and not race.computed:
        for more in (more for more in VIEWS if more <= most):
            cost = prices.graph.frozen_share(race.deepest_kept) * (more - 1) / (3 * prices.epochs)
            several = priced(views=more)
            if cost <= VIEWS_SHARE and (other := meant(several))[0] == race:
                said = _VIEWS.format(views=more, more=more - 1, cost=share(cost))
                return several, (race, other[1], (*other[2], said))
    return prices, found


def usual_epochs(steps: int) -> int:
    """Epochs of a full fine-tune by default, where an epoch has so many steps.

    Example:
        >>> usual_epochs(40), usual_epochs(7), usual_epochs(3000)
        (15, 60, 4)
    """
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, -(-STEPS // steps)))


def epochs_for(wanted: int, steps: int, most: float) -> float:
    """Epochs that hold so many optimizer steps, where an epoch has so many; whole ones where these are about as many.

    Example:
        >>> epochs_for(40, 39, 5.0), epochs_for(40, 7, 5.0), epochs_for(40, 50, 5.0), epochs_for(40, 400, 5.0)
        (1.0, 5.0, 0.8, 0.1)
    """
    part = wanted / steps
    whole = float(round(part))
    return min(most, whole if abs(part - whole) <= 0.1 * part else part)


_TOO_SMALL = (
    "A budget of {limit} full fine-tunes is less than a race of depths needs. Only the last part, from stage "
    "{depth} on, is trained; give a larger budget to have depths compared by training."
)
_FEW = (
    "There are {samples:.1f} labelled samples a class to train and to validate on, too few to tell depths apart by "
    "training: only the head is trained, from its closed form. What the votes say comes from leaving each training "
    "sample out in turn."
)
_SMALLER = (
    "A budget of {limit} full fine-tunes pays for a smaller race than usual: {depths} depths and {rates} of the "
    "learning rates, {steps} steps a lap."
)
_DEARER = (
    "A given depth is trained for all its epochs whatever the budget: {needed} full fine-tunes at most, with the race "
    "of learning rates, where the budget is {limit}."
)
_VIEWS = (
    "Of each training sample {views} views are kept, {more} of them augmented, since computing these costs {cost} full "
    "fine-tunes; --views 1 (views=1) keeps the plain one alone."
)
_COARSE = (
    "With {samples} validation samples, depths whose accuracy is less than about {points:.0f} points apart cannot be "
    "told apart; ties go to the one that trains more."
)
_DOUBTS = (
    "Training samples that look like another class to linear fits that have not seen them: {count}. Their labels may "
    "be wrong; the report lists them."
)
_NO_HEAD = (
    "No linear layer of the network yields its outputs directly, so there is no warm head: every trial starts from the "
    "network's own outputs."
)
_FAST = (
    "The search is predicted to take {seconds:.0f} s, more than {limit} full fine-tunes ({allowed:.0f} s): this "
    "network is so fast that passes and proofs weigh more than training."
)

_COMPUTED = (
    "The rows of depth {depth} would take {needed}, and kept rows may take {allowed}{others}: they are computed anew "
    "in every epoch, which costs {more} of a full fine-tune more over all epochs."
)


def _said_of_samples(valid_samples: int, prior: Prior) -> Iterator[str]:
    if valid_samples < FEW:
        yield _COARSE.format(samples=valid_samples, points=100 * math.sqrt(DISAGREEMENT / max(1, valid_samples)))
    if prior.doubts:
        yield _DOUBTS.format(count=len(prior.doubts))
    if prior.head is None:
        yield _NO_HEAD


def _said_of_computed(prices: Prices, race: Race, budget: Budget) -> Iterator[str]:
    kept = [depth for depth in race.depths if depth and depth not in race.computed]
    taken = byte_count(sum(map(prices.kept_bytes, kept)))
    others = f", of which those of depth {' and '.join(map(str, kept))} take {taken}" if kept else ""
    with_rows = budget.model_copy(update={"pass_shares": ()})
    for depth in race.computed:
        yield _COMPUTED.format(
            depth=depth,
            needed=byte_count(prices.kept_bytes(depth)),
            allowed=byte_count(prices.disk or 0),
            others=others,
            more=share(budget.cost(depth, budget.epochs) - with_rows.cost(depth, budget.epochs)),
        )


def _meant(prices: Prices, prior: Prior, depth: int | None, limit: float) -> _Meant:
    if depth is not None:
        return _fixed(prices, depth, limit)
    samples = (prices.train_samples + prices.valid_samples) / (prices.graph.outputs or 1)
    if samples >= FEWEST_A_CLASS:
        return _searched(prices, _candidates(prices.graph, prior), limit)
    race, budget, said = _head_alone(prices, limit)
    return race, budget, (_FEW.format(samples=samples), *(said if budget.limit > limit else ()))


def _searched(prices: Prices, depths: tuple[int, ...], limit: float) -> _Meant:
    """The largest race that leaves enough for its dearest arm to go on."""
    finish = LEAST_FINISH * prices.epochs
    for most, count, lap in (*USUAL_RACES, *SMALLER_RACES):
        kept = depths if most >= len(depths) else depths[-most:]
        race = _race(kept, LEARNING_RATES[:count] if count > 1 else (SAFE_RATE,), lap, prices)
        budget = prices.budget(race, limit=limit)
        if most_cost(budget, race, finish) <= limit:
            smaller = _SMALLER.format(
                limit=share(limit), depths=len(kept), rates=len(race.rates), steps=round(race.epochs * prices.steps)
            )
            return race, budget, () if (most, count, lap) in USUAL_RACES else (smaller,)
    return _head_alone(prices, limit)


def _head_alone(prices: Prices, limit: float) -> _Meant:
    """No race: the deepest open cut is taken, whose training starts from the closed form."""
    deepest = prices.graph.open_depths[-1]
    race = _race((deepest,), (SAFE_RATE,), LAP_STEPS, prices)
    budget = prices.budget(race, limit=limit)
    said = _TOO_SMALL.format(limit=share(limit), depth=deepest)
    return race, _raised(budget, budget.reserve + budget.cost(deepest, 1)), (said,)


def _race(depths: tuple[int, ...], rates: tuple[float, ...], lap: int, prices: Prices) -> Race:
    epochs = epochs_for(lap, prices.steps, prices.epochs / 6)
    return Race(depths, rates, epochs=epochs, computed=prices.computed(depths))


def _fixed(prices: Prices, depth: int, limit: float) -> _Meant:
    """One depth: only its learning rate is raced, and where the head alone is trained not even that."""
    is_cheap = 1.0 - prices.graph.frozen_share(depth) <= CHEAP
    rates = (prices.recipe.learning_rate,) if is_cheap else LEARNING_RATES
    race = _race((depth,), rates, LAP_STEPS, prices)
    budget = prices.budget(race, limit=limit)
    needed = most_cost(budget, race, budget.epochs)
    notes = (_DEARER.format(limit=share(limit), needed=share(needed)),) if needed > limit else ()
    return race, _raised(budget, needed), notes


def _raised(budget: Budget, needed: float) -> Budget:
    return budget.model_copy(update={"limit": max(budget.limit, needed)})


def _candidates(graph: CutGraph, prior: Prior) -> tuple[int, ...]:
    """A shallow, a middle and the deepest open depth, the probe picking among those that cost about the same."""
    votes = {vote.depth: vote.accuracy for vote in prior.votes}
    deepest = graph.open_depths[-1]
    inner = [d for d in graph.open_depths if 0 < d < deepest]
    picked = {deepest}
    for target in LIVE_TARGETS:
        if not inner:
            break
        away = {d: abs(1.0 - graph.frozen_share(d) - target) for d in inner}
        near = [d for d in inner if away[d] <= NEIGHBOURHOOD] or [min(inner, key=lambda d: (away[d], -d))]
        picked.add(max(near, key=lambda d: (votes.get(d, 0.0), d)))
    if len(picked) == 1:
        # A network of one open cut: the race is between head only and nothing frozen.
        picked.add(graph.open_depths[0])
    return tuple(sorted(picked))


# --- the strategy -----------------------------------------------------------------------------


def strategy(
    graph: CutGraph, prior: Prior, plan: Plan, trials: Iterable[Trial], pending: Iterable[TrialSpec]
) -> tuple[TrialSpec, ...]:
    """Say what to run next; empty when the search is done.

    The shallowest depth runs a lap at the two largest learning rates, and at the third where the second is clearly
    ahead; the other depths that train more than the head run one at the rate that was taken. What counts in a lap is
    the validation loss that it promises: what it would be after another one, if it falls by as much again as in the
    second half.
    All see the same mini-batches and are scored by an average of their weights, half-way and at the end. The
    shallowest depth goes on that is within two paired standard errors of the lowest promise; without a restart, its
    rate brought down to zero. Head only goes on beside it.

    Args:
        graph: The network's stages and cuts.
        prior: Votes before training.
        plan: Depths, rates and prices.
        trials: What happened so far, in any order.
        pending: What was asked for and has not ended.

    Returns:
        Specs that are neither finished nor pending.

    Example:
        >>> import inspect
        >>> list(inspect.signature(strategy).parameters)
        ['graph', 'prior', 'plan', 'trials', 'pending']
    """
    done = by_key(trials)
    waiting = {spec.key for spec in pending}
    for rung in _rungs(plan, done):
        if any(spec.key not in done for spec in rung):
            return tuple(spec for spec in rung if spec.key not in done and spec.key not in waiting)
    return ()


_T = TypeVar("_T")
_Rungs = Generator[tuple[TrialSpec, ...], None, _T]


class _Purse:
    """What is left of the budget; a spec that it cannot pay for is not asked for."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.left = budget.limit - budget.reserve

    def pay(self, specs: Iterable[TrialSpec]) -> tuple[TrialSpec, ...]:
        """Those of the specs that can be paid for."""
        paid = []
        for spec in specs:
            price = self.budget.cost(spec.depth, spec.epochs, spec.first_epoch)
            if price <= self.left + 1e-9:
                self.left -= price
                paid.append(spec)
        return tuple(paid)


def _rungs(plan: Plan, done: Mapping[str, Trial]) -> _Rungs[None]:
    """What is to be run, rung by rung; the next rung is drawn only when the one before is done."""
    budget, purse = plan.budget, _Purse(plan.budget)
    if len(plan.candidates) == len(plan.learning_rates) == 1:
        yield (_alone(plan, purse),)
        return
    cheap, dear = apart(budget, plan.candidates)
    best = None
    while dear and not best:
        shallowest, *dear = dear
        best = yield from _race_of_rates(plan, purse, done, shallowest)
    rate = best.rate if best else SAFE_RATE
    others = yield from _lapped(plan, purse, done, [(depth, rate) for depth in dear])
    winner = shallowest_ahead([best, *others]) if best else None
    rung = purse.pay(_begun(plan, depth, rate, budget.race_epochs) for depth in cheap)
    yield rung
    going_on = [done[spec.key] for spec in rung if not done[spec.key].failure]
    if winner:
        going_on.append(winner.late)
    yield tuple(spec for trial in going_on for spec in _finished(plan, purse, trial))


def _lapped(
    plan: Plan, purse: _Purse, done: Mapping[str, Trial], arms: Iterable[tuple[int, float]]
) -> _Rungs[list[Lap]]:
    """Run a lap at each depth and rate; of those that did not fail, what came of it."""
    half = plan.budget.race_epochs / 2
    rung = purse.pay(_begun(plan, depth, rate, half) for depth, rate in arms)
    yield rung
    early = {spec.key: done[spec.key] for spec in rung if not done[spec.key].failure}
    rung = purse.pay(_continued(trial, half) for trial in early.values())
    yield rung
    return [Lap(early[str(spec.parent)], done[spec.key]) for spec in rung if not done[spec.key].failure]


def _race_of_rates(plan: Plan, purse: _Purse, done: Mapping[str, Trial], depth: int) -> _Rungs[Lap | None]:
    """Run a lap at the two largest rates, and at the third where the second is clearly ahead of the first.

    Returns:
        Of the first two the lap that promises more, or the third where that is clearly ahead; None where all failed.
    """
    first, third = plan.learning_rates[:2], plan.learning_rates[2:]
    laps = yield from _lapped(plan, purse, done, [(depth, rate) for rate in first])
    best = min(laps, key=lambda lap: (lap.promise, -lap.rate), default=None)
    larger = next((lap for lap in laps if lap.rate == first[0]), None)
    if not best or is_ahead(best, larger, THIRD):
        laps = yield from _lapped(plan, purse, done, [(depth, rate) for rate in third])
        best = next((lap for lap in laps if is_ahead(lap, best, THIRD)), best)
    return best


def _begun(plan: Plan, depth: int, rate: float, epochs: float) -> TrialSpec:
    """An arm of the race, from the pretrained weights."""
    return _started(plan, depth, epochs, learning_rate=rate, schedule="constant", averaging=AVERAGING)


def _started(plan: Plan, depth: int, epochs: float, **recipe: float | str) -> TrialSpec:
    recipe["head_scale"] = head_scale(depth, len(plan.budget.live_shares) - 1)
    return TrialSpec(depth=depth, recipe=plan.recipe.model_copy(update=recipe), seed=plan.seed, epochs=epochs)


def _alone(plan: Plan, purse: _Purse) -> TrialSpec:
    """The only depth at the only rate, for as long as can be paid for."""
    depth = plan.candidates[0]
    epochs = affordable_epochs(purse.left, depth, plan.budget, 0.0)
    return _started(plan, depth, max(1, epochs), learning_rate=plan.learning_rates[0], schedule="cosine")


def _finished(plan: Plan, purse: _Purse, trial: Trial) -> tuple[TrialSpec, ...]:
    """The same training gone on with, its rate brought down to zero, if it can be paid for."""
    epochs = affordable_epochs(purse.left, trial.spec.depth, plan.budget, trial.epochs)
    return purse.pay((_continued(trial, epochs, schedule="cosine"),)) if epochs else ()


def _continued(trial: Trial, epochs: float, *, schedule: str = "constant") -> TrialSpec:
    spec = trial.spec
    return TrialSpec(
        depth=spec.depth,
        recipe=spec.recipe.model_copy(update={"schedule": schedule}),
        seed=spec.seed,
        epochs=epochs,
        parent=spec.key,
        first_epoch=spec.first_epoch + spec.epochs,
    )
