"""What things cost: in full fine-tunes for decisions, in seconds and bytes for people to read."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, combinations
from typing import NamedTuple

from frostline.records import Budget, CutGraph, Forecast, Rates, Recipe, Vote

OVERHEAD = 0.07
"""Share of a full fine-tune set aside for what is not counted in operations, and for what the timings missed, such as
saving and loading between the rungs of a race. Of thirty searches with .08, whose full fine-tunes take 34 to 55 s, the
median cost came out .09 below the limit by the clock, and two above it."""

SAVING_SECONDS = 0.3
"""What saving and loading the state of a trial takes at the end of a rung, about; for the forecast only."""

LEAST_SECONDS = 10.0
"""A full fine-tune counts as at least this long where passes, proofs and timings are set against it: on a network that
trains in a second they weigh more than training, and there is nothing to save."""

STEP = 0.05
"""Shares of a step's seconds are rounded up to multiples of this, so that two plans on machines alike agree."""

TIMED_STEPS = 6
"""Steps with nothing frozen that are timed before the plan, warming up included."""

CHEAP = 0.05
"""Live share up to which a depth is trained to the end in any case; head only nearly always is."""

SOFT_HEAD = 0.3
"""Factor on the warm head where more than the head is trained. Calibrated as it comes it is so sure of the
training samples that little gradient reaches the stages below: with 9 of 18 stages frozen the validation loss
after one epoch was .77 on sign digits and 2.60 on Omniglot, and .60 and 1.97 with the softer start."""


class Race(NamedTuple):
    """What is compared by short trainings: the learning rates at the shallowest depth, the others at the best rate.

    Args:
        depths: Cuts, each an arm, from the shallowest.
        rates: Learning rates, in the order of trial.
        epochs: Of a lap.
        computed: Of the depths, those whose rows are computed anew in every epoch.

    Example:
        >>> Race(depths=(3, 7, 18), rates=(1e-3, 3e-4), epochs=1).depths
        (3, 7, 18)
    """

    depths: tuple[int, ...]
    rates: tuple[float, ...]
    epochs: float
    computed: tuple[int, ...] = ()

    @property
    def deepest_kept(self) -> int:
        """The deepest cut whose rows are kept; 0 where none are."""
        return max((depth for depth in self.depths if depth not in self.computed), default=0)

    @property
    def first(self) -> float:
        """Epochs of a lap; 0 where there is nothing to compare, and so no lap."""
        return 0.0 if len(self.depths) == len(self.rates) == 1 else self.epochs

    def laps(self, budget: Budget, price: Callable[[int, float, float], float]) -> float:
        """What all laps take at most, from what a rung takes: of a depth, so many epochs, after the first ones.

        What costs next to nothing runs one in one rung, the others one in two; the shallowest of these at each rate.
        """
        cheap, dear = apart(budget, self.depths)
        half = self.first / 2
        whole = [price(depth, self.first, 0.0) for depth in cheap]
        halves = [price(depth, half, 0.0) + price(depth, half, half) for depth in dear]
        return sum(whole) + sum(halves) + (len(self.rates) - 1) * sum(halves[:1])


def apart(budget: Budget, depths: Iterable[int]) -> tuple[list[int], list[int]]:
    """Depths that cost next to nothing, and the others.

    Example:
        >>> apart(Budget(limit=1, reserve=0, epochs=9, race_epochs=1, live_shares=(1.0, 0.4, 0.01)), (0, 1, 2))
        ([2], [0, 1])
    """
    cheap = [depth for depth in depths if budget.share(depth) <= CHEAP]
    return cheap, [depth for depth in depths if depth not in cheap]


def worth_keeping(seconds: Mapping[int, float], row_bytes: Mapping[int, int], disk: int) -> tuple[int, ...]:
    """Of some depths those whose rows are best kept on disk, where not all fit.

    Any of them may be the one that is trained to the end, and an epoch needs each row once at every depth. So those
    are kept whose passes take the most seconds together. A race has few depths, so that all sets of them are tried.

    Args:
        seconds: By depth: what the frozen part's pass takes that keeping the rows spares an epoch.
        row_bytes: By depth: what all its rows take.
        disk: Bytes that kept rows may take in all.

    Returns:
        The depths whose rows are kept; of sets that spare the same, the larger one, then the one of fewer bytes.

    Example:
        >>> worth_keeping({3: 2.0, 7: 5.0, 18: 9.0}, {3: 900, 7: 400, 18: 8}, 1000)
        (7, 18)
    """
    sets = chain.from_iterable(combinations(seconds, count) for count in range(len(seconds) + 1))
    fit = ((kept, taken) for kept in sets if (taken := sum(row_bytes[depth] for depth in kept)) <= disk)
    return max(fit, key=lambda one: (math.fsum(seconds[depth] for depth in one[0]), len(one[0]), -one[1]))[0]


def head_scale(depth: int, max_depth: int) -> float:
    """Factor on the warm head at the start of a training: 1 where the head alone is trained.

    Example:
        >>> head_scale(18, 18), head_scale(9, 18)
        (1.0, 0.3)
    """
    return 1.0 if depth == max_depth else SOFT_HEAD


def race_cost(budget: Budget, race: Race) -> float:
    """The most that a race costs, whoever is ahead, and the reserve.

    Args:
        budget: The prices.
        race: What is compared.

    Returns:
        Cost in full fine-tunes.

    Example:
        >>> budget = Budget(limit=1.0, reserve=0.1, epochs=10, race_epochs=1, live_shares=(1.0, 0.5, 0.0))
        >>> round(race_cost(budget, Race((1, 2), (1e-3, 3e-4), epochs=1)), 3)
        0.2
    """
    return budget.reserve + race.laps(budget, budget.cost)


def most_cost(budget: Budget, race: Race, finish: float) -> float:
    """The most that a race costs of which the winner goes on until so many epochs are trained.

    Args:
        budget: The prices.
        race: What is compared.
        finish: Epochs of the winner, those of the race included.

    Returns:
        Cost in full fine-tunes, the reserve included.

    Example:
        >>> budget = Budget(limit=1.0, reserve=0.1, epochs=10, race_epochs=1, live_shares=(1.0, 0.5, 0.0))
        >>> round(most_cost(budget, Race((1, 2), (1e-3, 3e-4), epochs=1), 5), 3)
        0.4
    """
    cheap, dear = apart(budget, race.depths)
    spent = sum(budget.cost(depth, budget.epochs - race.first, race.first) for depth in cheap)
    first = min(finish, race.first)
    spent += max((budget.cost(depth, finish - first, first) for depth in dear), default=0.0)
    return race_cost(budget, race) + spent


def affordable_epochs(left: float, depth: int, budget: Budget, first: float) -> float:
    """Epochs that what is left pays for at this depth after the first ones, at most to the end of those planned.

    Args:
        left: What may still be spent, in full fine-tunes.
        depth: Number of frozen stages.
        budget: The prices.
        first: Epochs trained already.

    Returns:
        A number from 0; the training ends at a hundredth of a full fine-tune, or at the end of an epoch.

    Example:
        >>> budget = Budget(limit=1.0, reserve=0.1, epochs=20, race_epochs=1, live_shares=(1.0, 0.5, 0.0))
        >>> affordable_epochs(0.3, 1, budget, 1.0), affordable_epochs(0.3, 2, budget, 1.0)
        (12.0, 19.0)
    """
    parts = -(-_PARTS // budget.epochs)
    for end in range(budget.epochs * parts, math.ceil(first * parts), -1):
        if budget.cost(depth, end / parts - first, first) <= left + 1e-9:
            return end / parts - first
    return 0.0


_PARTS = 100


class Prices:
    """What one search costs, piece by piece.

    Args:
        graph: The network's stages and cuts.
        rates: What this machine does in a second.
        recipe: How every arm is trained; its batch size counts.
        epochs: E, the epochs of a full fine-tune.
        train_samples: N of the training part.
        valid_samples: N of the validation part.
        test_samples: N of the test part.
        views: Stored views of each training sample.
        disk: Bytes that kept rows may take; None keeps all.

    Example:
        >>> from frostline.records import Cut, CutGraph, EngineReport, Rates, Recipe, Stage
        >>> stages = tuple(Stage(index=i, name=f"s{i}", keys=(), parameters=10, flops=100) for i in range(2))
        >>> cuts = tuple(Cut(depth=d, name="", wires=(), bytes_per_sample=8) for d in range(2))
        >>> rates = Rates(
        ...     step_seconds=0.5,
        ...     step_low=0.5,
        ...     step_high=0.5,
        ...     stage_seconds=(0.5, 0.5),
        ...     score_seconds=0.0,
        ...     engine=EngineReport(engine="torch", rows_per_second=100.0),
        ...     threads=1,
        ...     torch="2.8",
        ... )
        >>> prices = Prices(
        ...     CutGraph(model="Net", batch=4, stages=stages, cuts=cuts),
        ...     rates,
        ...     Recipe(),
        ...     epochs=10,
        ...     train_samples=320,
        ...     valid_samples=100,
        ...     test_samples=100,
        ...     views=1,
        ... )
        >>> prices.full_seconds, prices.epoch_seconds(1), prices.store_bytes(1)
        (50.0, 2.5, 3360)
    """

    def __init__(
        self,
        graph: CutGraph,
        rates: Rates,
        recipe: Recipe,
        *,
        epochs: int,
        train_samples: int,
        valid_samples: int,
        test_samples: int,
        views: int,
        disk: int | None = None,
    ) -> None:
        self.graph = graph
        self.rates = rates
        self.recipe = recipe
        self.epochs = epochs
        self.train_samples = train_samples
        self.valid_samples = valid_samples
        self.test_samples = test_samples
        self.views = views
        self.disk = disk
        self.rows = train_samples * views + valid_samples
        self.steps = -(-train_samples // recipe.batch_size)
        self.full_seconds = rates.step_seconds * self.steps * epochs

    def budget(self, race: Race, *, limit: float) -> Budget:
        """The limit, and what passes, scoring and epochs cost: by operations or by seconds, whichever is more."""
        depths = range(self.graph.max_depth + 1)
        shares = tuple(self._live_share(depth) for depth in depths)
        passes = tuple(self._pass_share(depth) if depth in race.computed else 0.0 for depth in depths)
        return Budget(
            limit=limit,
            reserve=max(self._reserve_counted(race), self._reserve_timed(race)) + OVERHEAD,
            epochs=self.epochs,
            race_epochs=race.epochs,
            live_shares=shares,
            scoring=max(self.valid_samples / (3 * self.train_samples), self._scoring_timed()),
            pass_shares=passes if race.computed else (),
        )

    def _scoring_timed(self) -> float:
        epoch = self.rates.step_seconds * self.steps
        return self.rates.score_seconds * self.valid_samples / epoch if epoch else 0.0

    def _live_share(self, depth: int) -> float:
        timed = _rounded_up(self.rates.live_seconds_share(depth))
        counted = 1.0 - self.graph.frozen_share(depth)
        # What is cheap in operations is not made dear by rounding.
        return max(counted, timed) if counted > CHEAP else counted

    def _pass_share(self, depth: int) -> float:
        epoch = self.rates.step_seconds * self.steps
        # The last batch of an epoch is filled up, so it takes as long as a full one.
        timed = self._pass_seconds(depth, self.steps * self.recipe.batch_size) / epoch if epoch else 0.0
        return max(self.graph.frozen_share(depth) / 3, _rounded_up(timed))

    def _pass_seconds(self, depth: int, rows: int) -> float:
        rate = self.rates.engine.rows_per_second
        return sum(self.rates.stage_seconds[:depth]) * rows / rate if rate else 0.0

    def _reserve_counted(self, race: Race) -> float:
        # One pass up to the deepest fills the stores of all; what is computed anew is scored once more at the end.
        counted = self.train_samples + self.graph.frozen_share(race.deepest_kept) * self.rows
        counted += self.graph.frozen_share(max(race.computed, default=0)) * self.valid_samples
        counted += 2 * self.test_samples + TIMED_STEPS * 3 * self.recipe.batch_size
        return counted / (3 * self.train_samples * self.epochs)

    def _reserve_timed(self, race: Race) -> float:
        seconds = self.rates.spent_seconds + 2 * self.test_samples * self.rates.score_seconds
        seconds += self.store_seconds(race.deepest_kept) + len(race.depths) * self.rates.proof_seconds
        seconds += self._pass_seconds(max(race.computed, default=0), self.valid_samples)
        return seconds / max(self.full_seconds, LEAST_SECONDS)

    def computed(self, depths: Iterable[int]) -> tuple[int, ...]:
        """Of the depths of a race those whose rows are computed anew, since not all fit on the disk."""
        inner = [depth for depth in depths if depth]
        if self.disk is None:
            return ()
        seconds = {depth: self.anew_seconds(depth) for depth in inner}
        kept = worth_keeping(seconds, {depth: self.kept_bytes(depth) for depth in inner}, self.disk)
        return tuple(depth for depth in inner if depth not in kept)

    def kept_bytes(self, depth: int) -> int:
        """Bytes of all rows that may come to be kept: those of the test part, too, where the depth is chosen."""
        return self.graph.cuts[depth].bytes_per_sample * (self.rows + self.test_samples) if depth else 0

    def anew_seconds(self, depth: int) -> float:
        """Seconds in an epoch and its scoring that computing the rows anew takes."""
        return self._pass_seconds(depth, self.steps * self.recipe.batch_size + self.valid_samples)

    def epoch_seconds(self, depth: int) -> float:
        """Seconds to train one epoch on what the live part reads, and to score it."""
        steps = self.rates.live_seconds_share(depth) * self.rates.step_seconds * self.steps
        return steps + self.rates.scoring_seconds(depth, self.valid_samples)

    def store_seconds(self, depth: int) -> float:
        """Seconds of the pass that computes the kept rows, those of shallower depths beside them."""
        return self._pass_seconds(depth, self.rows)

    def store_bytes(self, depth: int) -> int:
        """Bytes of the kept rows; at depth 0 the samples themselves are read."""
        return self.graph.cuts[depth].bytes_per_sample * self.rows if depth else 0

    def forecast(self, depth: int, vote: Vote | None, race: Race) -> Forecast:
        """What freezing that many stages costs."""
        is_computed = depth in race.computed
        store = 0.0 if is_computed else self.store_seconds(depth)
        train = self._seconds(depth, race) * self.epochs
        return Forecast(
            depth=depth,
            stage_name=self.graph.stage_name(depth),
            parameters=sum(stage.parameters for stage in self.graph.stages[depth:]),
            store_bytes=0 if is_computed else self.store_bytes(depth),
            store_seconds=store,
            train_seconds=train,
            full_finetunes=(store + train) / self.full_seconds if self.full_seconds else 0.0,
            accuracy=vote.accuracy if vote else None,
            low=vote.low if vote else None,
            high=vote.high if vote else None,
            is_candidate=depth in race.depths,
        )

    def _seconds(self, depth: int, race: Race) -> float:
        return self.epoch_seconds(depth) + (self.anew_seconds(depth) if depth in race.computed else 0.0)

    def search_seconds(self, race: Race, budget: Budget) -> float:
        """Predicted seconds of the stores, the race and the dearest finish that the budget allows.

        Of the numbers of rates that may come to be tried the one that takes longest: fewer leave more to go on for.
        """
        counts = range(min(2, len(race.rates)), len(race.rates) + 1)
        races = (race._replace(rates=race.rates[:count]) for count in counts)
        return self.store_seconds(race.deepest_kept) + max(self._training_seconds(one, budget) for one in races)

    def _training_seconds(self, race: Race, budget: Budget) -> float:
        left = budget.limit - race_cost(budget, race)
        laps = race.laps(budget, lambda depth, epochs, _: self._rung_seconds(depth, race, epochs))
        ends = {depth: affordable_epochs(left, depth, budget, race.first) for depth in race.depths}
        return laps + max(self._rung_seconds(depth, race, epochs) for depth, epochs in ends.items())

    def _rung_seconds(self, depth: int, race: Race, epochs: float) -> float:
        scoring = self.rates.scoring_seconds(depth, self.valid_samples)
        return rung_seconds(epochs, self._seconds(depth, race), scoring)


def rung_seconds(epochs: float, epoch: float, scoring: float) -> float:
    """Predict what one rung takes: its steps, a scoring at the end of each epoch and of a part of one, its saving.

    Args:
        epochs: Of the rung.
        epoch: Seconds of an epoch with its scoring.
        scoring: Seconds of a scoring.

    Returns:
        Seconds; none where there is nothing to train.

    Example:
        >>> rung_seconds(1.5, epoch=4.0, scoring=1.0) == 6.0 + 0.5 + SAVING_SECONDS
        True
    """
    if not epochs:
        return 0.0
    return epochs * epoch + (math.ceil(epochs) - epochs) * scoring + SAVING_SECONDS


def _rounded_up(share: float) -> float:
    return math.ceil(share / STEP - 1e-6) * STEP
