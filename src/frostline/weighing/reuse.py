"""Claim 1, reuse: the first layers of a pretrained network have learnt something that this data can use."""

from frostline.amounts import share
from frostline.attempts import Attempt, Outcome, Weights
from frostline.exhibits import Claim, Panel, Series
from frostline.records import Vote
from frostline.weighing.arms import (
    FEWEST_SEEDS,
    Outcomes,
    Setting,
    accuracy_line,
    by_seed,
    good,
    hits_of,
    together,
    undecided,
)
from frostline.weighing.deciding import Effect, mean_of, points_of, points_text, verdict_of

LEAST = 2.0
"""Points that pretrained features must be worth more than random ones."""

_PREFIXES: tuple[Weights, ...] = ("pretrained", "random", "matched")

_WORDS = {
    "pretrained": "pretrained",
    "random": "random",
    "matched": "random, with the mean and spread of each pretrained tensor",
}


def wanted(setting: Setting, outcomes: Outcomes) -> tuple[Attempt, ...]:
    """Frozen prefixes of three kinds under layers drawn anew, probes of random networks, and full fine-tuning."""
    return (
        *_probes(setting),
        *by_seed([*(_anew(setting, prefix) for prefix in _PREFIXES), setting.frozen_arm]),
        *_elsewhere(setting),
        *setting.tuning,
    )


def judge(setting: Setting, outcomes: Outcomes) -> Claim:
    """Compare pretrained stages with the better of two random ones, all under layers that start from random weights."""
    arms = [_anew(setting, prefix) for prefix in _PREFIXES]
    learnt, *controls = together(arms, outcomes)
    if len(learnt) < FEWEST_SEEDS:
        return undecided("reuse", [attempt for arm in arms for attempt in arm], outcomes)
    best = max(controls, key=lambda control: mean_of(hits_of(control)).value)
    effect = points_of(hits_of(learnt) - hits_of(best))
    verdict = verdict_of(effect, least=LEAST)
    opening = {
        "holds": "the pretrained features are worth {points} more than random ones",
        "does not hold": "the pretrained features are hardly worth more than random ones: {points}",
        "not decided": "it cannot be told whether the pretrained features are worth more than random ones: {points}",
    }[verdict]
    ours, drawn, matched = (share(mean_of(hits_of(arm)).value) for arm in (learnt, *controls))
    return Claim(
        name="reuse",
        verdict=verdict,
        sentence=f"{setting.place}, {opening.format(points=points_text(effect))}.{setting.note}",
        measure="accuracy with frozen pretrained stages less that with the better of two kinds of frozen random "
        "stages, the stages above drawn anew in all",
        **effect._asdict(),
        unit="points",
        control=f"Frozen stages with weights drawn as for a new network reach {drawn}, and with the mean "
        f"and spread of each pretrained tensor {matched}, where the pretrained ones reach {ours}.",
        facts=(("seeds", str(len(learnt))), *_facts(setting, outcomes)),
        panels=_panels(setting, outcomes),
    )


def _anew(setting: Setting, prefix: Weights) -> list[Attempt]:
    return [setting.frozen(seed, prefix=prefix, rest="random") for seed in setting.seeds]


def _probes(setting: Setting) -> tuple[Attempt, Attempt]:
    return setting.probe("random"), setting.probe("matched")


def _elsewhere(setting: Setting) -> list[Attempt]:
    """The same at up to two more depths, with the first seed, for the shape of the curve."""
    others = [depth for depth in setting.evidence.plan.candidates if depth not in (0, setting.depth)]
    return [
        setting.frozen(setting.seeds[0], depth=depth, rest="random") for depth in sorted({*others[:1], *others[-1:]})
    ]


def _facts(setting: Setting, outcomes: Outcomes) -> list[tuple[str, str]]:
    facts = []
    # Pretrained below and above the cut: what fits together was learnt together.
    anew, kept = together([_anew(setting, "pretrained"), setting.frozen_arm], outcomes)
    if anew and not setting.is_head_only:
        lost = points_of(hits_of(kept) - hits_of(anew))
        facts.append(("lost where the stages above are drawn anew", points_text(lost)))
    votes = {
        prefix: vote.accuracy for prefix, found in _votes(setting, outcomes) for vote in found if _here(setting, vote)
    }
    if votes:
        said = ", ".join(f"{_WORDS[prefix]} {share(accuracy)}" for prefix, accuracy in votes.items())
        facts.append((f"accuracy of a linear probe at depth {setting.depth}", said))
    if changed := _fine_tuned(setting, outcomes):
        least = min(range(len(changed.similarity)), key=changed.similarity.__getitem__)
        stage = setting.evidence.graph.stages[least].name
        facts.append(("changed most by full fine-tuning", f"{stage}, similarity {share(changed.similarity[least])}"))
    return facts


def _here(setting: Setting, vote: Vote) -> bool:
    return vote.depth == setting.depth


def _votes(setting: Setting, outcomes: Outcomes) -> list[tuple[Weights, tuple[Vote, ...]]]:
    """The probe curve of the run itself, and those of the random networks that were probed."""
    drawn = [(outcome.attempt.prefix, outcome.votes) for outcome in good(_probes(setting), outcomes)]
    return [("pretrained", setting.evidence.prior.votes), *drawn]


def _fine_tuned(setting: Setting, outcomes: Outcomes) -> Outcome | None:
    """Full fine-tuning at its best rate, where it was compared with the pretrained network stage by stage."""
    rate = setting.full_rate(outcomes)
    found = good([setting.full(setting.seeds[0], rate)], outcomes) if rate is not None else ()
    return next((outcome for outcome in found if outcome.similarity), None)


# --- plots ------------------------------------------------------------------------------------


def _panels(setting: Setting, outcomes: Outcomes) -> tuple[Panel, ...]:
    panels = [_probe_panel(setting, outcomes), _trained_panel(setting, outcomes)]
    if changed := _fine_tuned(setting, outcomes):
        panels.append(_change_panel(changed))
    return tuple(panels)


def _probe_panel(setting: Setting, outcomes: Outcomes) -> Panel:
    return Panel(
        title="What a linear probe reads from the features, without training the network",
        x_name="stages below",
        y_name="leave-one-out accuracy",
        is_share=True,
        series=tuple(
            Series(
                name=_WORDS[prefix],
                x=tuple(float(vote.depth) for vote in votes),
                y=tuple(vote.accuracy for vote in votes),
                low=tuple(vote.low for vote in votes),
                high=tuple(vote.high for vote in votes),
            )
            for prefix, votes in _votes(setting, outcomes)
        ),
    )


def _trained_panel(setting: Setting, outcomes: Outcomes) -> Panel:
    lines = [
        ("pretrained below, drawn anew above", [*_anew(setting, "pretrained"), *_elsewhere(setting)]),
        ("random below, drawn anew above", _anew(setting, "random")),
        ("random of the same mean and spread below, drawn anew above", _anew(setting, "matched")),
        ("pretrained below and above", setting.frozen_arm),
    ]
    drawn = [(name, _by_depth(good(attempts, outcomes))) for name, attempts in lines]
    return Panel(
        title="Trained above frozen stages of each kind",
        x_name="frozen stages",
        y_name="test accuracy",
        is_share=True,
        series=tuple(accuracy_line(name, effects) for name, effects in drawn if effects),
    )


def _by_depth(outcomes: tuple[Outcome, ...]) -> dict[int, Effect]:
    depths = sorted({outcome.attempt.trial.depth for outcome in outcomes})
    return {
        depth: mean_of(hits_of([outcome for outcome in outcomes if outcome.attempt.trial.depth == depth]))
        for depth in depths
    }


def _change_panel(changed: Outcome) -> Panel:
    stages = tuple(float(index + 1) for index in range(len(changed.similarity)))
    lines = (
        ("similarity of the features to the pretrained ones", changed.similarity),
        ("change of the weights, as a share of their norm", changed.drift),
    )
    return Panel(
        title="What full fine-tuning changes, stage by stage",
        x_name="stage",
        y_name="share",
        series=tuple(Series(name=name, x=stages[: len(shares)], y=shares) for name, shares in lines),
    )
