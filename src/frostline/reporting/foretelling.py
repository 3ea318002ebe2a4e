"""What the plan's rates foretold for what was carried out, beside the seconds that it took."""

from typing import Any

from frostline.amounts import UNKNOWN, duration, share
from frostline.prices import rung_seconds
from frostline.records import Evidence, Trial


def foretold(evidence: Evidence) -> tuple[dict[str, Any], ...]:
    """Compare predicted seconds with measured ones: the stores, the race, the last trainings, and all of them.

    The prediction made beforehand holds for the dearest way that a search may go. This one is for
    the way it went, from the same rates, which were measured before anything was trained.

    Args:
        evidence: The record.

    Returns:
        Rows of texts; `ratio` is the measured seconds over the predicted ones.
    """
    trials = [trial for trial in evidence.trials if not trial.failure]
    rows = [
        ("rows kept of all depths", _stores(evidence), dict(evidence.cost.by_phase).get("store", 0.0)),
        *(
            (name, sum(_training(evidence, trial) for trial in some), sum(trial.seconds for trial in some))
            for name, some in (
                ("the race", [trial for trial in trials if trial.spec.recipe.schedule == "constant"]),
                ("the last trainings", [trial for trial in trials if trial.spec.recipe.schedule != "constant"]),
            )
            if some
        ),
    ]
    together = ("together", sum(predicted for _, predicted, _ in rows), sum(took for *_, took in rows))
    return tuple(
        {
            "name": name,
            "predicted": duration(predicted) if predicted else UNKNOWN,
            "took": duration(took),
            "ratio": share(took / predicted if predicted else None),
        }
        for name, predicted, took in (*rows, together)
    )


def _stores(evidence: Evidence) -> float:
    """Seconds of one pass to the deepest cut tried whose rows are kept, and of the test part's at the chosen one.

    What is computed anew is so for the last scoring of the validation part, too.
    """
    plan, choice = evidence.plan, evidence.choice
    tried = [trial.spec.depth for trial in evidence.trials] or [choice.depth]
    deepest = max((depth for depth in tried if depth not in plan.computed), default=0)
    kept = sum(forecast.store_seconds for forecast in plan.forecasts if forecast.depth == deepest)
    rate = plan.rates.engine.rows_per_second
    scored = evidence.test.samples + (evidence.valid.samples if choice.depth in plan.computed else 0)
    tested = sum(plan.rates.stage_seconds[: choice.depth]) * scored
    return kept + (tested / rate if rate else 0.0)


def _training(evidence: Evidence, trial: Trial) -> float:
    """Seconds of that many epochs at that depth, with their scorings and the saving."""
    plan, depth = evidence.plan, trial.spec.depth
    whole = sum(forecast.train_seconds for forecast in plan.forecasts if forecast.depth == depth)
    scoring = plan.rates.scoring_seconds(depth, evidence.valid.samples)
    return rung_seconds(trial.spec.epochs, whole / plan.budget.epochs, scoring)
