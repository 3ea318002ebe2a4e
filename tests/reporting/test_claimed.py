"""Each claim is told with its verdict, its number, its interval and what could have refuted it."""

import math

import pytest
from exhibited import six_claims

from frostline.exhibits import CLAIMS, Claim
from frostline.reporting.claimed import claim_figures, claimed, measured, number


def claim_of(value=2.0, low=1.5, high=3.0, unit="times", **changes):
    return Claim(name="data", verdict="holds", sentence="", value=value, low=low, high=high, unit=unit, **changes)


def told(fake_evidence, claims):
    return claimed(fake_evidence().model_copy(update={"claims": tuple(claims)}))


def test_claims_are_told_in_the_order_of_the_six(fake_evidence):
    shuffled = six_claims()[::-1]

    row = told(fake_evidence, shuffled)

    assert [card["name"] for card in row["cards"]] == list(CLAIMS[:5])


def test_a_run_without_claims_says_how_to_measure_each(fake_evidence):
    row = told(fake_evidence, ())

    assert row["cards"] == ()
    assert [missing["command"].split()[-1] for missing in row["missing"]] == list(CLAIMS)
    assert row["missing"][0]["command"] == "frostline evidence runs/sign-digits-3f9c --claims reuse"


def test_a_claim_that_was_not_paid_for_says_why(fake_evidence):
    (missing,) = told(fake_evidence, six_claims())["missing"]

    assert missing["title"] == "Fewer resources"
    assert missing["reason"] == "The budget of 20 full fine-tunes was spent before it."


def test_folder_of_the_run_is_one_word_of_the_command(fake_evidence):
    evidence = fake_evidence()
    delta = evidence.delta.model_copy(update={"file": "my runs; rm x/delta.safetensors"})

    missing = claimed(evidence.model_copy(update={"delta": delta}))["missing"]

    assert "'my runs; rm x'" in missing[0]["command"]


def test_every_verdict_has_a_sign_and_a_kind_of_its_own(fake_evidence):
    row = told(fake_evidence, six_claims())

    badges = [one["badge"] for one in (*row["cards"], *row["missing"])]
    assert len({badge["verdict"] for badge in badges}) == 4
    for part in ("sign", "kind"):
        assert len({badge[part] for badge in badges}) == 4


def test_lead_counts_the_verdicts(fake_evidence):
    lead = told(fake_evidence, six_claims())["lead"]

    assert lead.endswith("On this data 2 hold, 1 does not hold, 2 are not decided and 1 is not measured.")


def test_lead_of_six_equal_verdicts_is_a_sentence(fake_evidence):
    claims = [Claim(name=name, verdict="holds", sentence="") for name in CLAIMS]

    assert told(fake_evidence, claims)["lead"].endswith("On this data 6 hold.")


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        (claim_of(), "2.00 times (1.50 to 3.00)"),
        (claim_of(12.34, 10, 15.2), "12.34 times (10.00 to 15.20)"),
        (claim_of(31.24, 28.1, 34.3, "points"), "31.2 points (28.1 to 34.3)"),
        (claim_of(-1.3, -3.9, 1.4, "points"), "−1.3 points (−3.9 to 1.4)"),
        (claim_of(1.02, 0.97, 1.07), "1.02 times (0.97 to 1.07)"),
        (claim_of(low=None), "2.00 times (3.00 or less)"),
        (claim_of(high=math.inf), "2.00 times (1.50 or more)"),
        (claim_of(value=math.inf, high=None), "without limit times (1.50 or more)"),
        (claim_of(low=None, high=None), "2.00 times (not measured)"),
        (claim_of(value=None, low=None, high=None, unit=""), "no number"),
    ],
)
def test_number_and_interval_are_written_in_their_unit(claim, says):
    assert number(claim) == says


def test_every_plot_of_every_card_has_its_figure(fake_evidence):
    evidence = fake_evidence().model_copy(update={"claims": six_claims()})

    asked = [panel["figure"] for card in claimed(evidence)["cards"] for panel in card["panels"]]

    assert len(asked) == 5
    assert sorted(asked) == sorted(claim_figures(evidence))


def test_table_of_a_plot_holds_every_point_with_its_interval(fake_evidence):
    (panel,) = told(fake_evidence, six_claims())["cards"][1]["panels"]

    assert len(panel["rows"]) == 12
    assert panel["rows"][0] == {"series": "7 stages frozen", "x": "154", "y": "81.0 % (79.0 % to 83.0 %)"}


def test_a_plot_is_told_to_those_who_cannot_see_it(fake_evidence):
    (panel,) = told(fake_evidence, six_claims())["cards"][1]["panels"]

    assert panel["said"].startswith("Accuracy by number of training samples: test accuracy by training samples. ")
    assert "from 81.0 % (79.0 % to 83.0 %) at 154 to 98.4 % (96.4 % to 100.4 %) at 1,236" in panel["said"]


def test_a_claim_that_is_not_measured_is_not_among_the_measured(fake_evidence):
    evidence = fake_evidence().model_copy(update={"claims": six_claims()})

    assert [claim.name for claim in measured(evidence)] == list(CLAIMS[:5])
