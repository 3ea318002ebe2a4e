"""Whether freezing saves anything: planted seconds, a pass that eats what is saved, and memory."""

import pytest
from weighing.planted import carried_out, failed, look, trained

from frostline.amounts import byte_count, scaled
from frostline.attempts import Outcome
from frostline.weighing.arms import Setting
from frostline.weighing.resources import judge, wanted

PEAKS = {(7, True): 400_000_000, (7, False): 900_000_000, (0, True): 1_200_000_000}


@pytest.fixture(scope="module")
def setting(fake_evidence):
    return Setting(fake_evidence(), seeds=(1, 2, 3))


def judged(setting, *, frozen=100.0, full=(300.0, 306.0, 294.0), pass_seconds=10.0, measure=None, joules=None):
    """The claim where these seconds were spent: by each seed of the frozen arm, and seed by seed of the other."""

    def respond(attempt):
        trial = attempt.trial
        if attempt.kind == "memory":
            peak = PEAKS[trial.depth, attempt.is_stored]
            return measure(attempt) if measure else Outcome(attempt=attempt, peak_bytes=peak, state_bytes=peak // 10)
        if trial.depth:
            more = {"seconds": frozen, "pass_seconds": pass_seconds, "flops": 1e12, "pass_flops": 2e11}
        else:
            more = {"seconds": full[trial.seed - 1], "flops": 4.8e12}
        return trained(attempt, 0.9, joules=joules and joules(trial), **more)

    return judge(setting, carried_out(wanted, setting, respond))


# --- what is asked for ------------------------------------------------------------------------


def test_memory_is_measured_with_and_without_a_store_and_with_nothing_frozen(setting):
    asked = [(a.trial.depth, a.is_stored) for a in wanted(setting, {}) if a.kind == "memory"]

    assert asked == list(PEAKS)


def test_each_seed_is_paid_for_whole_before_the_next(setting):
    outcomes = carried_out(wanted, setting, lambda attempt: trained(attempt, 0.9))

    rows = wanted(setting, outcomes)[len(setting.tuning) : -3]

    assert [(attempt.trial.depth, attempt.trial.seed) for attempt in rows] == [
        (7, 1),
        (0, 1),
        (7, 2),
        (0, 2),
        (7, 3),
        (0, 3),
    ]


# --- verdicts ---------------------------------------------------------------------------------


def test_time_saved_holds(setting):
    claim = judged(setting)

    assert claim.verdict == "holds"
    assert claim.value == pytest.approx(300 / 110, rel=1e-3)
    assert (
        "training takes 1 min 50 s, the one pass over the samples counted; with nothing frozen 5 min 0 s"
        in claim.sentence
    )


def test_equal_cost_does_not_hold(setting):
    claim = judged(setting, frozen=300.0, pass_seconds=0.0)

    assert claim.verdict == "does not hold"


def test_pass_that_eats_what_training_saves_refutes(setting):
    claim = judged(setting, pass_seconds=200.0)

    assert claim.verdict == "does not hold"


def test_seconds_that_scatter_widely_decide_nothing(setting):
    claim = judged(setting, full=(600.0, 100.0, 150.0))

    assert claim.verdict == "not decided"


def test_nothing_paid_is_not_measured(setting):
    assert judge(setting, {}).verdict == "not measured"


def test_training_that_failed_at_all_seeds_is_not_decided(setting):
    def respond(attempt):
        return failed(attempt) if attempt.trial.depth else trained(attempt, 0.9, seconds=1.0)

    claim = judge(setting, carried_out(wanted, setting, respond))

    assert claim.verdict == "not decided"


# --- what else is told ------------------------------------------------------------------------


def test_control_compares_freezing_without_a_store(setting):
    share = setting.evidence.graph.frozen_share(7)

    control = judged(setting).control

    assert f"{3 / (3 - 2 * share):.2f} times as many as freezing without a store" in control
    assert "4.00 times as many as freezing with one" in control
    assert "the peak of memory is 900 MB without a store and 400 MB with one" in control


def test_rows_computed_anew_are_said_to_be(setting):
    plan = setting.evidence.plan.model_copy(update={"computed": (7,)})

    claim = judged(Setting(setting.evidence.model_copy(update={"plan": plan}), seeds=(1, 2, 3)), pass_seconds=0.0)

    assert "the passes over the samples in every epoch counted" in claim.sentence
    assert "as many as freezing with rows computed anew in every epoch" in claim.control


def test_memory_that_could_not_be_measured_leaves_the_verdict(setting):
    claim = judged(setting, measure=failed)

    assert claim.verdict == "holds"
    assert dict(claim.facts)["peak memory"].startswith("frozen not measured, ")


def test_facts_tell_bytes_operations_and_parameters(setting):
    graph, store = setting.evidence.graph, next(f for f in setting.evidence.plan.forecasts if f.depth == 7)
    live = sum(stage.parameters for stage in graph.stages[7:])

    facts = dict(judged(setting).facts)

    assert facts["time without the pass"] == "frozen 1 min 40 s, nothing frozen 5 min 0 s"
    assert facts["operations, the pass counted"] == "frozen 1.20 TFLOP, nothing frozen 4.80 TFLOP"
    assert facts["gradients and optimizer"] == "frozen 40.0 MB, nothing frozen 120 MB"
    assert facts["peak memory"] == "frozen 400 MB, without a store 900 MB, nothing frozen 1.20 GB"
    assert facts["store on disk"] == byte_count(store.store_bytes)
    assert facts["trained parameters"] == f"frozen {scaled(live)}, nothing frozen {scaled(graph.parameters)}"


def test_energy_of_both_arms_is_told_where_it_was_read(setting):
    claim = judged(setting, joules=lambda trial: (400.0 if trial.depth else 1600.0) + 100 * trial.seed)

    assert dict(claim.facts)["energy without the pass"] == "frozen 600 J, nothing frozen 1.80 kJ"


@pytest.mark.parametrize(
    "joules",
    [None, lambda trial: None if trial.depth else 9.0, lambda trial: 9.0 if trial.seed > 1 else None],
    ids=["of none", "of one arm", "of some seeds"],
)
def test_energy_that_was_not_read_of_every_training_is_not_measured(setting, joules):
    facts = dict(judged(setting, joules=joules).facts)

    assert facts["energy without the pass"] == "not measured"


def test_plot_begins_with_the_pass_and_adds_up(setting):
    def respond(attempt):
        curve = tuple(look(epoch, 0.5, seconds=2.0 if attempt.trial.depth else 5.0) for epoch in range(3))
        return trained(attempt, 0.9, curve=curve, seconds=1.0, pass_seconds=7.0 if attempt.trial.depth else 0.0)

    (panel,) = judge(setting, carried_out(wanted, setting, respond)).panels

    frozen, full = panel.series
    assert frozen.x == full.x == (0.0, 1.0, 2.0)
    assert (frozen.y, full.y) == ((9.0, 11.0, 13.0), (5.0, 10.0, 15.0))
