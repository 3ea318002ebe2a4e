"""The choice: which depth is kept, by which rule, against which rivals, and why in words."""

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from frostline.amounts import interval
from frostline.comparing import accuracy_interval, by_key, hit_gap, is_within, loss_gap
from frostline.errors import AllTrialsFailed
from frostline.records import Choice, CutGraph, Rival, Trial

RULE = (
    "Of the depths that were trained to the end, the one with the most right answers on the validation part leads. "
    "The shallowest one that is within one standard error of it, paired by sample, both in accuracy and in loss, is "
    "chosen: where the samples cannot tell two depths apart, the one that trains more was the better one more often. "
    "Accuracy has the last word, and a loss that is clearly worse breaks what looks like a tie."
)


def choose(graph: CutGraph, trials: Iterable[Trial]) -> Choice:
    """Pick the depth: the most accurate, or the shallowest that cannot be told from it.

    A depth whose accuracy is within one paired standard error of the leader's counts as equal
    only if its loss is, too. A leader is never given up for its loss alone: networks trained
    for long are sure of themselves, and right.

    Args:
        graph: The network's stages and cuts.
        trials: What happened, in any order.

    Returns:
        The choice, its rule, its reason in words, and its rivals.

    Raises:
        AllTrialsFailed: No trial finished.

    Example:
        >>> import torch
        >>> from frostline.records import Recipe, TrialSpec
        >>> graph = fl.trace(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), torch.ones(2, 4))
        >>> deep, full = (
        ...     Trial(
        ...         spec=TrialSpec(depth=depth, recipe=Recipe(), seed=0, epochs=5), losses=(0.1, 0.2), hits=(True, True)
        ...     )
        ...     for depth in (1, 0)
        ... )
        >>> fl.choose(graph, [full, deep]).depth
        0

    Source:
        The rule of one standard error is Breiman et al., Classification and regression trees, 1984,
        section 3.4.3; here it is paired by sample, and favours what trains more (`docs/depth.md` has the figures).
    """
    trials = tuple(by_key(trials).values())
    continued = {trial.spec.parent for trial in trials if _is_finish(trial)}
    arms = _furthest(trials, continued)
    if not arms:
        failures = tuple(sorted({str(trial.failure) for trial in trials}))
        raise AllTrialsFailed(
            f"AllTrialsFailed: none of {len(trials)} trials finished: {'; '.join(failures) or 'none was run'}. "
            "If the loss is not finite, look at the input's scale and at the weights; the network's own output on "
            "the training pictures must be finite.",
            failures=failures,
        )
    finished = _finished(arms, continued)
    leader = max(finished, key=lambda trial: (trial.accuracy, -trial.loss, -trial.spec.depth))
    tied = [trial for trial in finished if is_within(*hit_gap(leader, trial)) and is_within(*loss_gap(trial, leader))]
    picked = min(tied, key=lambda trial: trial.spec.depth)
    duels = [_Duel(trial, _peer(picked, trial, trials)) for trial in arms if trial is not picked]
    return Choice(
        depth=picked.spec.depth,
        stage_name=graph.stage_name(picked.spec.depth),
        max_depth=graph.max_depth,
        trial=picked.spec.key,
        rule=RULE,
        reason=_reason(graph, picked, duels),
        rivals=tuple(_rival(graph, duel) for duel in duels),
    )


class _Duel(NamedTuple):
    """A rival and the trial of the chosen depth that it is fairly compared with."""

    rival: Trial
    peer: Trial


def _furthest(trials: Iterable[Trial], continued: Container[str | None]) -> list[Trial]:
    """By depth the trial that was trained longest; of two, the one that was to go on, else the lower loss."""
    best: dict[int, Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.spec.key):
        if trial.failure or not trial.losses:
            continue
        held = best.get(trial.spec.depth)
        if held is None or _rank(trial, continued) < _rank(held, continued):
            best[trial.spec.depth] = trial
    return [best[depth] for depth in sorted(best)]


def _rank(trial: Trial, continued: Container[str | None]) -> tuple[float, bool, float]:
    return -trial.epochs, trial.spec.key not in continued, trial.loss


def _finished(arms: Sequence[Trial], continued: Container[str | None]) -> Sequence[Trial]:
    """Those whose rate was brought down to zero, or was to be; an arm that left the race early is no candidate."""
    return [trial for trial in arms if _is_finish(trial) or trial.spec.key in continued] or arms


def _is_finish(trial: Trial) -> bool:
    return trial.spec.recipe.schedule == "cosine"


def _peer(picked: Trial, rival: Trial, trials: Iterable[Trial]) -> Trial:
    """The chosen depth after as many epochs as the rival had, where there is such a trial."""
    same = [
        trial
        for trial in trials
        if trial.spec.depth == picked.spec.depth and _are_equal(trial.epochs, rival.epochs) and not trial.failure
    ]
    shorter = rival.epochs < picked.epochs and not _is_finish(rival)
    return min(same, key=lambda trial: (trial.loss, trial.spec.key)) if shorter and same else picked


def _are_equal(ones: float, others: float) -> bool:
    return round(ones, 6) == round(others, 6)


def _rival(graph: CutGraph, duel: _Duel) -> Rival:
    trial = duel.rival
    difference, error = loss_gap(trial, duel.peer)
    low, high = accuracy_interval(trial)
    return Rival(
        depth=trial.spec.depth,
        stage_name=graph.stage_name(trial.spec.depth),
        epochs=trial.epochs,
        accuracy=trial.accuracy,
        low=low,
        high=high,
        loss=trial.loss,
        loss_difference=difference,
        standard_error=error,
        verdict=_verdict(duel),
    )


def _verdict(duel: _Duel) -> str:
    trial, peer = duel
    points, error = (100 * figure for figure in hit_gap(peer, trial))
    own, against = trial.epochs, peer.epochs
    after = f"after {_epochs(own)} " + ("each, " if _are_equal(own, against) else f"against {against:.2g}, ")
    if abs(points) <= error:
        if is_within(*loss_gap(trial, peer)) and trial.spec.depth > peer.spec.depth:
            return f"{after}as accurate, but it trains less"
        worse, _ = loss_gap(trial, peer)
        return f"{after}as accurate, but {'with a higher loss' if worse > 0 else 'it did not go on'}"
    return f"{after}{abs(points):.1f} points {'worse' if points > 0 else 'better'} (standard error {error:.1f})"


def _reason(graph: CutGraph, picked: Trial, duels: Sequence[_Duel]) -> str:
    """One sentence that a person who is no expert follows."""
    low, high = accuracy_interval(picked)
    depth, whole = picked.spec.depth, graph.max_depth
    begin = f"Freeze {depth} of {whole} stages" if depth else "Freeze nothing"
    if depth == whole:
        begin = f"Freeze all {whole} stages and train the head only"
    kind = "balanced validation accuracy" if picked.sample_weights else "validation accuracy"
    parts = [f"{begin}: {kind} {interval(picked.accuracy, low, high)}"]
    more = [duel for duel in duels if duel.rival.spec.depth > depth]
    less = [duel for duel in duels if duel.rival.spec.depth < depth]
    if more:
        parts.append(f"freezing more {_outcome(more)}")
    if less:
        nearest = max(duel.rival.spec.depth for duel in less)
        times = (1.0 - graph.frozen_share(nearest)) / max(1.0 - graph.frozen_share(depth), 1e-9)
        costs = f" and costs {times:.1f} times as much" if times < 100 else " and costs far more"
        parts.append(f"freezing less {_outcome(less)}{costs}")
    return "; ".join(parts) + "."


def _outcome(duels: Sequence[_Duel]) -> str:
    early = [duel.rival.epochs for duel in duels if not _is_finish(duel.rival) and not _is_finish(duel.peer)]
    judged = (
        f" ({'judged' if len(early) == len(duels) else 'in part judged'} after {_epochs(min(early))})" if early else ""
    )
    differences = [hit_gap(duel.peer, duel.rival) for duel in duels]
    if all(abs(difference) <= error for difference, error in differences):
        return f"gains nothing measurable{judged}"
    low, high = (100 * pick(difference for difference, _ in differences) for pick in (min, max))
    if low < 0 < high:
        return f"changes accuracy by −{high:.1f} to {-low:+.1f} points{judged}"
    verb, least, most = ("loses", low, high) if high > 0 else ("gains", -high, -low)
    return f"{verb} {f'{least:.1f}–' if f'{least:.1f}' != f'{most:.1f}' else ''}{most:.1f} points{judged}"


def _epochs(number: float) -> str:
    text = f"{number:.2g}"
    return f"{text} epoch" if text == "1" else f"{text} epochs"
