"""The six claims together: what is asked for, what it costs, what is said."""

import math

import pytest
from weighing.planted import failed, trained

from frostline.exhibits import CLAIMS, Claim
from frostline.weighing import foreseen, judged, price, wanted
from frostline.weighing.arms import Setting


def answer(attempt):
    """What a network that can learn would make of any attempt."""
    if attempt.kind == "memory":
        return trained(attempt, 0.0, peak_bytes=1_000_000, state_bytes=1000)
    if attempt.kind == "probe":
        return trained(attempt, 0.0)
    scatter = 0.01 * (attempt.trial.seed % 3)
    return trained(attempt, 0.7 + scatter, train_loss=0.1, train_accuracy=0.9, similarity=(1.0, 0.5), drift=(0.0, 0.1))


def paid(evidence, claims, *, seeds=3, budget=math.inf, respond=answer):
    """Carry out what is asked for, in its order, until the budget is spent."""
    outcomes = {}
    while asked := wanted(evidence, claims, outcomes, seeds=seeds):
        for attempt in asked:
            budget -= price(evidence, attempt)
            if budget < 0:
                return outcomes
            outcomes[attempt.key] = respond(attempt)
    return outcomes


def verdicts(evidence, claims, outcomes, *, seeds=3):
    return {claim.name: claim.verdict for claim in judged(evidence, claims, outcomes, seeds=seeds)}


# --- what is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_ends_and_is_judged(fake_evidence, name):
    evidence = fake_evidence()

    outcomes = paid(evidence, (name,))

    assert verdicts(evidence, (name,), outcomes)[name] != "not measured"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_ends_where_everything_fails(fake_evidence, name):
    evidence = fake_evidence()

    outcomes = paid(evidence, (name,), respond=failed)

    assert verdicts(evidence, (name,), outcomes)[name] in ("not decided", "not measured")


def test_claims_are_paid_for_in_the_order_given(fake_evidence):
    evidence = fake_evidence()

    assert wanted(evidence, ("data", "reuse"), {}, seeds=3) == wanted(evidence, ("data",), {}, seeds=3)


def test_nothing_is_asked_for_where_all_is_known(fake_evidence):
    evidence = fake_evidence()

    assert wanted(evidence, CLAIMS, paid(evidence, CLAIMS), seeds=3) == ()


def test_trainings_that_claims_share_are_asked_for_once(fake_evidence):
    evidence = fake_evidence()

    apart = sum(len(paid(evidence, (name,))) for name in CLAIMS)

    assert len(paid(evidence, CLAIMS)) < apart


def test_seeds_are_not_that_of_the_search(fake_evidence):
    evidence = fake_evidence()

    seeds = {outcome.attempt.trial.seed for outcome in paid(evidence, CLAIMS).values()}

    assert seeds == {evidence.plan.seed + n for n in (1, 2, 3)}


def test_what_is_foreseen_costs_what_is_paid(fake_evidence):
    evidence = fake_evidence()

    beforehand = sum(price(evidence, attempt) for attempt in foreseen(evidence, CLAIMS, {}, seeds=3))

    paid_for = sum(price(evidence, outcome.attempt) for outcome in paid(evidence, CLAIMS).values())
    assert beforehand == pytest.approx(paid_for)


def test_nothing_is_foreseen_where_all_is_known(fake_evidence):
    evidence = fake_evidence()

    def slow_is_better(attempt):
        return trained(attempt, 0.8 if attempt.trial.recipe.learning_rate < 1e-3 else 0.7)

    outcomes = paid(evidence, ("convergence",), respond=slow_is_better)

    assert foreseen(evidence, ("convergence",), outcomes, seeds=3) == ()


# --- what is said -----------------------------------------------------------------------------


def test_every_claim_is_named_whatever_was_asked(fake_evidence):
    claims = judged(fake_evidence(), ("data",), {}, seeds=3)

    assert tuple(claim.name for claim in claims) == CLAIMS


def test_a_claim_not_asked_for_is_not_measured_though_its_trainings_were_made(fake_evidence):
    evidence = fake_evidence()

    assert verdicts(evidence, ("data",), paid(evidence, CLAIMS))["convergence"] == "not measured"


def test_a_budget_that_ends_leaves_the_rest_not_measured(fake_evidence):
    evidence = fake_evidence()
    enough = sum(price(evidence, outcome.attempt) for outcome in paid(evidence, ("reuse",)).values())

    outcomes = paid(evidence, CLAIMS, budget=enough + 1e-6)

    found = verdicts(evidence, CLAIMS, outcomes)
    assert [found["reuse"] == "not measured", found["data"]] == [False, "not measured"]


def test_costs_of_the_claims_sum_to_what_was_paid(fake_evidence):
    evidence = fake_evidence()
    outcomes = paid(evidence, CLAIMS)

    claims = judged(evidence, CLAIMS, outcomes, seeds=3)

    paid_for = sum(price(evidence, outcome.attempt) for outcome in outcomes.values())
    assert sum(claim.cost for claim in claims) == pytest.approx(paid_for)


def test_a_claim_names_the_trainings_that_it_rests_on(fake_evidence):
    evidence = fake_evidence()
    outcomes = paid(evidence, ("convergence",))

    claims = {claim.name: claim for claim in judged(evidence, ("convergence",), outcomes, seeds=3)}

    assert set(claims["convergence"].attempts) == set(outcomes)


def test_order_of_outcomes_plays_no_part(fake_evidence):
    evidence = fake_evidence()
    outcomes = paid(evidence, CLAIMS)

    turned = dict(reversed(outcomes.items()))

    assert judged(evidence, CLAIMS, turned, seeds=3) == judged(evidence, CLAIMS, outcomes, seeds=3)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_survives_the_disk(fake_evidence, name):
    evidence = fake_evidence()

    claims = judged(evidence, (name,), paid(evidence, (name,)), seeds=3)

    assert [Claim.model_validate_json(claim.model_dump_json()) for claim in claims] == list(claims)


def test_a_network_that_can_be_cut_nowhere_is_not_measured(fake_evidence):
    evidence = fake_evidence()
    cuts = tuple(cut.model_copy(update={"blocked": "tied"} if cut.depth else {}) for cut in evidence.graph.cuts)
    evidence = evidence.model_copy(
        update={
            "graph": evidence.graph.model_copy(update={"cuts": cuts}),
            "choice": evidence.choice.model_copy(update={"depth": 0}),
            "plan": evidence.plan.model_copy(update={"candidates": (0,)}),
        }
    )

    assert wanted(evidence, CLAIMS, {}, seeds=3) == ()
    assert set(verdicts(evidence, CLAIMS, {}).values()) == {"not measured"}


@pytest.mark.parametrize("depth", [0, 18])
def test_every_claim_is_judged_where_arms_coincide(fake_evidence, depth):
    evidence = fake_evidence()
    evidence = evidence.model_copy(update={"choice": evidence.choice.model_copy(update={"depth": depth})})

    assert "not measured" not in verdicts(evidence, CLAIMS, paid(evidence, CLAIMS)).values()


# --- what it costs ----------------------------------------------------------------------------


def test_full_fine_tuning_is_the_unit(fake_evidence):
    setting = Setting(fake_evidence(), (1,))

    assert price(setting.evidence, setting.full(1, 1e-3)) == pytest.approx(1.0)


def test_half_the_samples_cost_half(fake_evidence):
    setting = Setting(fake_evidence(), (1,))
    half = setting.full(1, 1e-3, samples=setting.train_samples // 2)

    assert price(setting.evidence, half) == pytest.approx(0.5, abs=1e-3)


def test_frozen_arm_costs_its_live_part_and_one_pass(fake_evidence):
    setting = Setting(fake_evidence(), (1,))
    live, epochs = setting.evidence.plan.budget.live_shares[setting.depth], setting.evidence.plan.budget.epochs

    assert price(setting.evidence, setting.frozen(1)) == pytest.approx(live + (1 - live) / (3 * epochs))


def test_frozen_arm_whose_rows_are_computed_anew_costs_its_passes_and_none_before(fake_evidence):
    evidence = fake_evidence()
    depths = range(len(evidence.plan.budget.live_shares))
    budget = evidence.plan.budget.model_copy(update={"pass_shares": tuple(0.25 * (d == 7) for d in depths)})
    plan = evidence.plan.model_copy(update={"budget": budget, "computed": (7,)})
    setting = Setting(evidence.model_copy(update={"plan": plan}), (1,))

    assert price(setting.evidence, setting.frozen(1)) == pytest.approx(budget.live_shares[7] + 0.25)


def test_weights_drawn_anew_cost_a_pass_more(fake_evidence):
    setting = Setting(fake_evidence(), (1,))

    more = price(setting.evidence, setting.frozen(1, rest="random")) - price(setting.evidence, setting.frozen(1))

    assert more == pytest.approx(1 / 30)


def test_a_probe_costs_a_pass_and_a_look_at_memory_nothing(fake_evidence):
    setting = Setting(fake_evidence(), (1,))

    prices = [price(setting.evidence, attempt) for attempt in (setting.probe("random"), setting.memory(7))]

    assert prices == pytest.approx([1 / 30, 0.0])
