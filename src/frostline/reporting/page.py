"""What the report says, as text: every figure written out, every table a tuple of rows."""

import math
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any

from frostline.amounts import byte_count, decimal, duration, interval, rate, scaled, share, visible
from frostline.comparing import accuracy_interval
from frostline.cost import wilson
from frostline.plots import chain_names, chains
from frostline.records import Choice, Evidence, Rival, Score, Stage, Trial
from frostline.reporting.foretelling import foretold

Row = dict[str, Any]

_MOST_CLASSES = 12
"""Rows of a table of classes that stand open; more are folded away."""


def page(evidence: Evidence) -> Row:
    """Say everything that the template lays out.

    Args:
        evidence: The record.

    Returns:
        Texts, and rows of texts, by the names that the template uses.

    Example:
        >>> headline(Choice(depth=2, stage_name="b", max_depth=4, trial="", rule="", reason=""))
        'Freeze the first 2 of 4 stages, up to b.'
    """
    choice, graph = evidence.choice, evidence.graph
    return {
        "evidence": evidence,
        "choice": choice,
        "headline": headline(choice),
        "lead": lead(choice),
        "when": when(evidence.created),
        "cards": cards(evidence),
        "strip": strip(evidence),
        "frozen_work": frozen_work(evidence),
        "live_share": _whole_percent(1 - graph.frozen_share(choice.depth)),
        "rivals": rivals(evidence),
        "caveats": caveats(evidence),
        "depths": depths(evidence),
        "stages": stages(evidence),
        "trials": trials(evidence),
        "mistakes": mistakes(evidence),
        "classes": classes(evidence),
        "rows": _rows_read(evidence),
        "changed": f"{round(evidence.disagreement * evidence.test.samples):,} of {evidence.test.samples:,}",
        "cost": cost(evidence),
        "data": data(evidence),
        "usage": usage(evidence),
        "repeat": repeat(evidence),
        "said": said(evidence),
    }


def headline(choice: Choice) -> str:
    """Say the choice in one sentence.

    Example:
        >>> headline(Choice(depth=0, stage_name="nothing", max_depth=4, trial="", rule="", reason=""))
        'Freeze nothing: fine-tune all 5 stages.'
    """
    # Counted as people give a depth: the head is the last stage and never frozen.
    total = choice.max_depth
    if choice.depth == 0:
        return f"Freeze nothing: fine-tune all {total + 1} stages."
    if choice.depth == total:
        return f"Freeze everything but the head: all {total} stages before it."
    many = f"the first {choice.depth} of {total} stages" if choice.depth > 1 else f"the first of {total} stages"
    return f"Freeze {many}, up to {visible(choice.stage_name)}."


def lead(choice: Choice) -> str:
    """Give the reason without its opening, which the headline above it has said.

    Example:
        >>> lead(
        ...     Choice(depth=2, stage_name="b", max_depth=4, trial="", rule="", reason="Freeze 2 of 4 stages: it pays.")
        ... )
        'It pays.'
    """
    opening, _, rest = choice.reason.partition(": ")
    return f"{rest[0].upper()}{rest[1:]}" if rest else opening


def when(created: str) -> str:
    """Write a date as people read it; what is no date stays as it is.

    Example:
        >>> when("2026-03-02T14:21:07+01:00")
        '2 March 2026, 14:21'
    """
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def cards(evidence: Evidence) -> tuple[Row, ...]:
    """The key numbers of the first screen."""
    choice, cost, test, graph = evidence.choice, evidence.cost, evidence.test, evidence.graph
    live = evidence.parameters_live
    return (
        {
            "name": "Test accuracy",
            "value": share(test.accuracy),
            "spread": f"({share(test.low)}–{share(test.high)})",
            "note": f"95 % interval, {test.samples:,} samples",
        },
        {
            "name": "Cost",
            "value": share(cost.share_seconds),
            "spread": "full fine-tunes",
            "note": f"{duration(cost.seconds)} against {duration(cost.full_finetune_seconds)}; "
            f"{share(cost.share_flops)} by operations"
            + (f", {share(cost.share_search)} of it to choose" if cost.share_search is not None else ""),
        },
        {
            "name": "Frozen stages",
            "value": str(choice.depth),
            "spread": f"of {graph.max_depth} before the head",
            "note": frozen_work(evidence) if choice.depth else "the whole network is trained",
        },
        {
            "name": "Live parameters",
            "value": scaled(live),
            "spread": f"of {scaled(graph.parameters)}",
            "note": f"delta file of {byte_count(evidence.delta.bytes)}",
        },
    )


def strip(evidence: Evidence) -> tuple[Row, ...]:
    """The stages as segments whose widths are their shares of the forward operations."""
    total = max(1, evidence.graph.flops)
    return tuple(
        {
            "number": stage.index + 1,
            "share": f"{stage.flops / total:.5f}",
            "state": "frozen" if stage.index < evidence.choice.depth else "live",
            "is_wide": stage.flops / total >= 0.035,
            "title": f"{stage.index + 1}  {visible(stage.name)}: "
            f"{_percent(stage.flops / total)} of the operations, {stage.parameters:,} parameters",
        }
        for stage in evidence.graph.stages
    )


def chosen_score(evidence: Evidence) -> Score:
    """The validation score of the chosen depth, counted as its rivals' are, so that they stand in one column.

    The loss is the one after the best temperature, and where every class counts alike, so it does in the accuracy.
    """
    valid, trial = evidence.valid, evidence.chosen_trial
    if trial is None or trial.failure or not trial.losses:
        return valid
    if not trial.sample_weights:
        return valid.model_copy(update={"loss": trial.loss})
    low, high = accuracy_interval(trial)
    return valid.model_copy(update={"loss": trial.loss, "accuracy": trial.accuracy, "low": low, "high": high})


def rivals(evidence: Evidence) -> tuple[Row, ...]:
    """The chosen depth and every other depth that was trained, shallowest first."""
    choice, valid, chosen = evidence.choice, chosen_score(evidence), evidence.chosen_trial
    rows = [
        (
            choice.depth,
            {
                "depth": choice.depth,
                "stage": visible(choice.stage_name),
                "epochs": f"{chosen.epochs:.3g}" if chosen else "",
                "accuracy": interval(valid.accuracy, valid.low, valid.high),
                "loss": decimal(valid.loss),
                "difference": "",
                "verdict": "chosen",
                "is_chosen": True,
            },
        ),
        *((rival.depth, _rival(rival)) for rival in choice.rivals),
    ]
    return tuple(row for _, row in sorted(rows, key=lambda pair: pair[0]))


def _rival(rival: Rival) -> Row:
    difference = "not measured"
    if math.isfinite(rival.loss_difference):
        difference = f"{rival.loss_difference:+.3f} ± {rival.standard_error:.3f}".replace("-", "−", 1)
    return {
        "depth": rival.depth,
        "stage": visible(rival.stage_name),
        "epochs": f"{rival.epochs:.3g}",
        "accuracy": interval(rival.accuracy, rival.low, rival.high),
        "loss": decimal(rival.loss),
        "difference": difference,
        "verdict": visible(rival.verdict),
        "is_chosen": False,
    }


def frozen_work(evidence: Evidence) -> str:
    """How much of the work is frozen, and how often that is computed."""
    depth = evidence.choice.depth
    often = "in every epoch" if depth in evidence.plan.computed else "once"
    return f"{_whole_percent(evidence.graph.frozen_share(depth))} of the work, computed {often}"


def _rows_read(evidence: Evidence) -> str:
    return "rows that are computed anew" if evidence.choice.depth in evidence.plan.computed else "the stored rows"


def caveats(evidence: Evidence) -> tuple[str, ...]:
    """What a reader could misread, in words."""
    choice, test = evidence.choice, evidence.test
    tried = {choice.depth, *(rival.depth for rival in choice.rivals)}
    found = []
    if len(tried) == 1:
        found.append("Only this depth was trained, so nothing here compares it with another one.")
    else:
        found.append(
            f"Validation picked among {len(tried)} depths, which flatters the picked one. The test part was read once, "
            "after the choice, and stands for what to expect of new samples of the same kind."
        )
        baselines = {0: "nothing frozen", choice.max_depth: "all but the head frozen"}
        for depth, name in baselines.items():
            if depth not in tried:
                found.append(f"Depth {depth} ({name}) was not trained in this run: its cost is a prediction.")
    found.append(
        f"A network that differs from this one on one sample in ten has a standard error of "
        f"{share(math.sqrt(0.1 / max(1, test.samples)))} on {test.samples:,} test samples: smaller differences are not "
        "decided by them."
    )
    if failed := [trial for trial in evidence.trials if trial.failure]:
        found.append(f"{len(failed)} of {len(evidence.trials)} trials failed; the table of trials says why.")
    if evidence.disagreement:
        count = round(evidence.disagreement * test.samples)
        found.append(
            f"{count:,} of {test.samples:,} test predictions ({share(evidence.disagreement)}) come out differently "
            f"when made from {_rows_read(evidence)}; the accuracy shown is that of the whole network in plain PyTorch."
        )
    return (*found, *map(visible, evidence.plan.notes))


def depths(evidence: Evidence) -> tuple[Row, ...]:
    """The depth curve as a table: probe, trained accuracy and predicted cost of every depth."""
    choice = evidence.choice
    votes = {vote.depth: vote for vote in evidence.prior.votes}
    trained: dict[int, Any] = {rival.depth: rival for rival in choice.rivals} | {choice.depth: chosen_score(evidence)}
    forecasts = {forecast.depth: forecast for forecast in evidence.plan.forecasts}
    stores = {depth: byte_count(forecast.store_bytes) for depth, forecast in forecasts.items()}
    stores |= dict.fromkeys(evidence.plan.computed, "computed anew")
    rows = []
    for depth in sorted({*votes, *trained, *forecasts}):
        vote, score, forecast = votes.get(depth), trained.get(depth), forecasts.get(depth)
        rows.append(
            {
                "depth": depth,
                "stage": visible(forecast.stage_name if forecast else evidence.graph.stage_name(depth)),
                "probe": interval(vote.accuracy, vote.low, vote.high) if vote else "",
                "valid": interval(score.accuracy, score.low, score.high) if score else "",
                "cost": share(forecast.full_finetunes) if forecast else "",
                "store": stores.get(depth, ""),
                "is_chosen": depth == choice.depth,
            }
        )
    return tuple(rows)


def stages(evidence: Evidence) -> tuple[Row, ...]:
    """One row for each stage: what it is, what it costs, and whether the network can be cut after it."""
    graph, depth = evidence.graph, evidence.choice.depth
    return tuple(
        {
            "number": stage.index + 1,
            "name": visible(stage.name),
            "parameters": f"{stage.parameters:,}",
            "share": _percent(stage.flops / max(1, graph.flops)),
            "flops": scaled(stage.flops, "FLOP"),
            "bytes": byte_count(graph.cuts[stage.index + 1].bytes_per_sample) if stage.index < graph.max_depth else "",
            "cut": _cut(evidence, stage),
            "is_blocked": _blocked(evidence, stage) is not None,
            "state": "frozen" if stage.index < depth else "live",
            "is_last_frozen": stage.index == depth - 1,
        }
        for stage in graph.stages
    )


def _blocked(evidence: Evidence, stage: Stage) -> str | None:
    at = stage.index + 1
    return evidence.graph.cuts[at].blocked if at < len(evidence.graph.cuts) else None


def _cut(evidence: Evidence, stage: Stage) -> str:
    if stage.index == evidence.graph.max_depth:
        return "the head, always live"
    reason = _blocked(evidence, stage)
    return "open" if reason is None else f"blocked: {visible(reason)}"


def trials(evidence: Evidence) -> tuple[Row, ...]:
    """Every trial in the order of its chain."""
    found = chains(evidence.trials)
    rows = []
    for chain, name in zip(found, chain_names(found), strict=True):
        for trial in chain:
            rows.append(_trial(trial, name, is_chosen=trial.spec.key == evidence.choice.trial))
    return tuple(rows)


def _trial(trial: Trial, name: str, *, is_chosen: bool) -> Row:
    spec = trial.spec
    recipe = spec.recipe
    first = spec.first_epoch + 1
    last = trial.epochs
    return {
        "name": name,
        "epochs": f"{last:.3g}" if first >= last else f"{first:.3g}–{last:.3g}",
        "rate": f"{rate(recipe.learning_rate)}, {rate(recipe.head_learning_rate)}",
        "schedule": recipe.schedule,
        "norms": recipe.norm_mode,
        "best": f"{trial.best_epoch:.3g}",
        "loss": decimal(trial.loss),
        "accuracy": share(trial.accuracy) if trial.hits and not trial.failure else "",
        "seconds": duration(trial.seconds),
        "outcome": "chosen" if is_chosen else (f"failed: {visible(trial.failure)}" if trial.failure else "finished"),
        "is_chosen": is_chosen,
        "is_failed": trial.failure is not None,
    }


def mistakes(evidence: Evidence, most: int = 10) -> tuple[Row, ...]:
    """The pairs of classes that are most often taken for each other on the test part."""
    names, matrix = evidence.data.classes, evidence.test.confusion
    pairs = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return tuple(
        {
            "label": visible(names[i]),
            "prediction": visible(names[j]),
            "count": count,
            "of": sum(matrix[i]),
            "share": share(count / sum(matrix[i])),
        }
        for count, i, j in pairs[:most]
    )


def classes(evidence: Evidence) -> Row:
    """Recall of every class on the test part, and its samples in each part, weakest class first."""
    data, matrix = evidence.data, evidence.test.confusion
    largest = max([sum(counts) for counts in data.counts], default=1) or 1
    rows: list[Row] = []
    for k, name in enumerate(data.classes):
        total, right = sum(matrix[k]), matrix[k][k]
        counts = data.counts[k] if k < len(data.counts) else (0, 0, 0)
        rows.append(
            {
                "name": visible(name),
                "train": f"{counts[0]:,}",
                "valid": f"{counts[1]:,}",
                "test": f"{counts[2]:,}",
                "widths": tuple(f"{100 * count / largest:.2f}" for count in counts),
                "right": f"{right:,} of {total:,}",
                "recall": interval(right / total, *wilson(right, total)) if total else "none in this part",
                "order": (right / total if total else 2.0, -total),
            }
        )
    weakest = sorted(rows, key=lambda row: row["order"])
    return {"rows": rows, "weakest": weakest, "is_long": len(rows) > _MOST_CLASSES}


def cost(evidence: Evidence) -> Row:
    """Predicted against actual cost, and where the seconds went."""
    spent, plan = evidence.cost, evidence.plan
    phases = [(name, seconds) for name, seconds in spent.by_phase if seconds > 0]
    full = spent.full_finetune_seconds
    longest = max(plan.seconds, spent.seconds, full, 1e-9)
    slowest = max([seconds for _, seconds in phases], default=1.0)
    return {
        "bars": tuple(
            {
                "name": name,
                "kind": kind,
                "value": duration(seconds),
                "in_full": share(seconds / full) if full else "not measured",
                "width": f"{100 * seconds / longest:.2f}",
            }
            for name, kind, seconds in (
                ("predicted for this run", "predicted", plan.seconds),
                ("this run", "frozen", spent.seconds),
                ("one full fine-tune, from five timed steps", "neutral", full),
            )
        ),
        "foretold": foretold(evidence),
        "phases": tuple(
            {"name": visible(name), "seconds": duration(seconds), "width": f"{100 * seconds / slowest:.2f}"}
            for name, seconds in phases
        ),
        "flops": scaled(spent.flops, "FLOP"),
        "full_flops": scaled(spent.full_finetune_flops, "FLOP"),
        "share_flops": share(spent.share_flops),
        "store": byte_count(plan.store_bytes),
        "step": f"{duration(plan.rates.step_seconds)} "
        f"({duration(plan.rates.step_low)}–{duration(plan.rates.step_high)})",
    }


def data(evidence: Evidence) -> Row:
    """How many samples each part holds, and what was found wrong with files and labels."""
    summary = evidence.data
    totals = [sum(counts[part] for counts in summary.counts) for part in range(3)]
    return {
        "name": visible(summary.name),
        "parts": tuple(f"{total:,}" for total in totals),
        "total": f"{sum(totals):,}",
        "duplicates": tuple(tuple(map(visible, group)) for group in summary.duplicates),
        "conflicts": tuple(tuple(map(visible, group)) for group in summary.conflicts),
        "doubts": tuple(
            {
                "sample": doubt.sample,
                "label": visible(summary.classes[doubt.label]),
                "prediction": visible(summary.classes[doubt.prediction]),
                "confidence": share(doubt.confidence),
            }
            for doubt in evidence.prior.doubts
        ),
        "skipped": tuple((visible(file), visible(reason)) for file, reason in summary.skipped),
    }


def usage(evidence: Evidence) -> Row:
    """Code to paste."""
    run = run_folder(evidence)
    return {
        "shell": f"frostline predict {shlex.quote(run)} photo.jpg more_photos/\nfrostline report {shlex.quote(run)}",
        "python": "\n".join(
            [
                "import frostline as fl",
                "",
                f"for found in fl.predict({run!r}, ['photo.jpg']):",
                "    print(found.path, found.label, found.probability)",
            ]
        ),
        "torch": "\n".join(
            [
                "import torch",
                "import frostline as fl",
                "",
                f"model = fl.load_tuned({run!r}).model      # the network's own class, in eval mode",
                "torch.save(model.state_dict(), 'tuned.pt')  # loads in plain PyTorch, without frostline",
            ]
        ),
    }


def run_folder(evidence: Evidence) -> str:
    """Name the run's folder as commands take it.

    Example:
        >>> from frostline.records import Delta
        >>> run_folder(Evidence.model_construct(delta=Delta.model_construct(file="runs/pets/delta.safetensors")))
        'runs/pets'
    """
    folder = str(PurePath(evidence.delta.file).parent)
    return visible(folder if folder != "." else "RUN")


def repeat(evidence: Evidence) -> Row:
    """The command and the facts that another run needs to come out the same."""
    asked = {name: value for name, value in evidence.arguments if value not in ("", "None", "False")}
    parts = ["frostline", "fit", shlex.quote(visible(evidence.data.name)), "--model", shlex.quote(evidence.source.name)]
    if evidence.source.weights:
        parts += ["--weights", shlex.quote(evidence.source.weights)]
    if evidence.preprocessing:
        parts += ["--image-size", str(evidence.preprocessing.image_size)]
    taken = {"task", "data", "name", "model", "weights", "image_size", "out", "split_seed"}
    for name, value in asked.items():
        if name not in taken:
            parts += [f"--{name.replace('_', '-')}", *([] if value == "True" else [shlex.quote(visible(value))])]
    chosen = evidence.chosen_trial
    recipe = chosen.spec.recipe if chosen else evidence.plan.recipe
    engine = evidence.plan.rates.engine
    return {
        "command": " ".join(parts),
        "arguments": _pairs(evidence.arguments),
        "machine": _pairs((("frostline", evidence.frostline), *evidence.machine)),
        "network": _pairs(
            [
                ("network", f"{evidence.source.name} ({evidence.graph.model})"),
                ("weights below the head", evidence.source.fingerprint or "not recorded"),
                ("frozen tensors of the delta", evidence.delta.base),
                *_preprocessing(evidence),
                ("frozen part runs on", f"{engine.engine}, {engine.precision}: {engine.why}".rstrip(": ")),
                ("its error against plain PyTorch", f"{engine.error:.1e} of the largest value"),
                ("warm head", "closed-form ridge" if evidence.prior.head else "none: the network has no such layer"),
            ]
        ),
        "recipe": _pairs(
            [
                (
                    "optimizer",
                    f"AdamW, weight decay {recipe.weight_decay:g}, gradient norm at most {recipe.clip_norm:g}",
                ),
                ("learning rate", f"{rate(recipe.learning_rate)}, head {rate(recipe.head_learning_rate)}"),
                ("schedule", f"{recipe.schedule}, warm-up over {100 * recipe.warmup:.0f} % of an epoch"),
                ("batch", f"{recipe.batch_size} samples"),
                ("precision of its passes", recipe.precision),
                ("batch norm of the live part", f"{recipe.norm_mode} mode"),
                ("views stored of each sample", str(evidence.plan.views)),
                ("seed", str(evidence.plan.seed)),
            ]
        ),
    }


def _preprocessing(evidence: Evidence) -> list[tuple[str, str]]:
    found = evidence.preprocessing
    if found is None:
        return []
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (found.mean, found.std))
    return [
        ("picture", f"short side to {found.image_size} px, {found.interpolation}, middle cut out"),
        ("scaling", f"(value / 255 − mean) / std, mean ({mean}), std ({std})"),
    ]


def said(evidence: Evidence) -> Row:
    """What each plot shows, for those who cannot see it."""
    choice, valid, test = evidence.choice, chosen_score(evidence), evidence.test
    votes = evidence.prior.votes
    probe = ""
    if votes:
        best = max(votes, key=lambda vote: vote.accuracy)
        probe = f"The probe without training rises to {share(best.accuracy)} at depth {best.depth}. "
    raced = "; ".join(
        f"depth {rival.depth} {interval(rival.accuracy, rival.low, rival.high)}" for rival in choice.rivals
    )
    return {
        "depth": f"Accuracy by number of frozen stages. {probe}Trained: chosen depth {choice.depth} "
        f"{interval(valid.accuracy, valid.low, valid.high)}{'; ' + raced if raced else ''}. "
        "The table below holds the same figures.",
        "strip": f"The network as {len(evidence.graph.stages)} stages: the first {choice.depth} frozen, the rest live, "
        "each as wide as its share of the forward operations.",
        "loss": f"Training and validation loss by epoch of {len(evidence.trials)} trials; the table below lists them.",
        "accuracy": f"Validation accuracy by epoch of {len(evidence.trials)} trials; the table below lists them.",
        "confusion": f"Confusion matrix of {len(evidence.data.classes)} classes on {test.samples:,} test samples: "
        f"{round(test.accuracy * test.samples):,} right. The tables below name the mistakes.",
    }


def _pairs(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((visible(name), visible(value)) for name, value in pairs)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _whole_percent(value: float) -> str:
    return f"{100 * value:.0f} %"
