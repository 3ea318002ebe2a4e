"""Claim 1: what pretrained features are worth."""

import pytest
from weighing.planted import carried_out, failed, trained

from frostline.records import Vote
from frostline.weighing.arms import Setting
from frostline.weighing.reuse import judge, wanted

WOBBLE = {1: 0.0, 2: 0.005, 3: -0.005}


@pytest.fixture
def setting(fake_evidence):
    return Setting(fake_evidence(), (1, 2, 3))


def respond(*, random=0.4, matched=0.45, learnt=0.8, kept=0.85):
    """Accuracies by what lies below the cut, where all above it starts anew."""
    by_prefix = {"pretrained": learnt, "random": random, "matched": matched}

    def answer(attempt):
        if attempt.kind == "probe":
            votes = (Vote(depth=7, accuracy=0.3, low=0.2, high=0.4, loss=2, penalty=1, features=8),)
            return trained(attempt, 0.5, votes=votes)
        accuracy = by_prefix[attempt.prefix] if attempt.rest == "random" else kept
        changed = {"similarity": (0.9, 0.2, 0.7), "drift": (0.1, 0.3, 0.2)} if not attempt.trial.depth else {}
        return trained(attempt, accuracy + WOBBLE[attempt.trial.seed], **changed)

    return answer


def judged(setting, answer):
    return judge(setting, carried_out(wanted, setting, answer))


def test_pretrained_features_far_above_random_ones_hold(setting):
    assert judged(setting, respond()).verdict == "holds"


def test_value_is_the_distance_to_the_better_control(setting):
    assert judged(setting, respond(random=0.4, matched=0.45, learnt=0.8)).value == pytest.approx(35.0)


def test_a_prefix_no_better_than_random_refutes_the_claim(setting):
    assert judged(setting, respond(random=0.8, matched=0.5, learnt=0.8)).verdict == "does not hold"


def test_either_control_can_refute_the_claim(setting):
    assert judged(setting, respond(random=0.4, matched=0.8, learnt=0.8)).verdict == "does not hold"


def test_seeds_that_disagree_are_not_decided(setting):
    def answer(attempt):
        by_seed = {1: 0.7, 2: 0.75, 3: 0.8}
        return respond(random=by_seed[attempt.trial.seed], matched=0.3, learnt=0.78)(attempt)

    assert judged(setting, answer).verdict == "not decided"


def test_sentence_says_where_and_how_much(setting):
    sentence = judged(setting, respond()).sentence

    assert sentence.startswith("Frozen up to blocks.3.0, the pretrained features are worth 35.0 points (")


def test_verdict_rests_on_two_seeds_at_least(setting):
    outcomes = carried_out(wanted, setting, respond())
    kept = {key: outcome for key, outcome in outcomes.items() if outcome.attempt.trial.seed == 1}

    assert judge(setting, kept).verdict == "not measured"


def test_controls_that_failed_decide_nothing(setting):
    answer = respond()

    claim = judged(setting, lambda attempt: failed(attempt) if attempt.prefix == "random" else answer(attempt))

    assert claim.verdict == "not decided"


def test_all_that_is_compared_starts_anew_above_the_cut(setting):
    at_cut = [attempt for attempt in wanted(setting, {}) if attempt.prefix != "pretrained" and attempt.kind == "train"]

    assert {attempt.rest for attempt in at_cut} == {"random"}


def test_two_more_depths_are_tried_once(setting):
    elsewhere = [a for a in wanted(setting, {}) if a.kind == "train" and a.trial.depth not in (0, setting.depth)]

    assert [(attempt.trial.depth, attempt.trial.seed) for attempt in elsewhere] == [(2, 1), (18, 1)]


def test_loss_by_drawing_the_stages_above_anew_is_told(setting):
    assert dict(judged(setting, respond(learnt=0.8, kept=0.85)).facts)[
        "lost where the stages above are drawn anew"
    ].startswith("5.0 points")


def test_panels_show_probes_trainings_and_change(setting):
    panels = judged(setting, respond()).panels

    assert [len(panel.series) for panel in panels] == [3, 4, 2]


def test_stage_that_changed_most_is_named(setting):
    stage = setting.evidence.graph.stages[1].name

    assert dict(judged(setting, respond()).facts)["changed most by full fine-tuning"] == f"{stage}, similarity .200"
