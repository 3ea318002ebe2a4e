"""The comparison says which runs may be compared, and what of it is decided."""

import pytest

from frostline.reporting.comparison import comparison
from frostline.reporting.sides import sides


def told(*evidence):
    return sides(*comparison([(f"runs/{k}", one) for k, one in enumerate(evidence)], "page.html"))


def of(evidence, task, **changes):
    return evidence.model_copy(update={"arguments": (("task", task),), **changes})


def test_runs_on_one_test_part_are_headed_by_their_data(fake_evidence):
    said = told(fake_evidence(), fake_evidence(depth=3))

    assert said["headline"] == "2 runs on sign digits, side by side"
    assert said["lead"].startswith("All were tested on the same 400 samples. ")
    assert said["notice"] == ""


def test_runs_on_other_data_are_told_apart_everywhere(fake_evidence):
    said = told(of(fake_evidence(), "a"), of(fake_evidence(), "b"), of(fake_evidence(), "a"))

    assert said["headline"] == "3 runs on 2 test parts, side by side"
    assert said["notice"].startswith("These runs were tested on 2 different sets of samples.")
    assert [[card["letter"] for card in group["cards"]] for group in said["groups"]] == [["A", "B"], ["C"]]
    assert said["caveats"][0].startswith("A higher accuracy on other samples says nothing")
    assert [row["pair"] for row in said["differences"]] == ["A less B"]


def test_equal_answers_are_not_told_apart(fake_evidence):
    said = told(fake_evidence(), fake_evidence())

    assert said["lead"].endswith("Not told apart by their answers: A and B.")
    assert said["differences"][0]["amount"] == "+0.000 ± 0.000"
    assert said["differences"][0]["verdict"] == "not decided"


def test_a_clear_difference_is_said_in_the_lead(fake_evidence):
    worse = fake_evidence()
    guesses = tuple((guess + 5) % 10 if k < 40 else guess for k, guess in enumerate(worse.test.predictions))
    losses = tuple(9.0 if k < 40 else loss for k, loss in enumerate(worse.test.losses))
    hits = round(worse.test.accuracy * 400) - sum(loss < 0.6 for loss in worse.test.losses[:40])
    test = worse.test.model_copy(update={"predictions": guesses, "losses": losses, "accuracy": hits / 400})

    said = told(worse.model_copy(update={"test": test}), fake_evidence())

    assert "B is more accurate than A by 0.0" in said["lead"]
    assert said["differences"][0]["amount"].startswith("−0.0")
    assert said["differences"][0]["p_value"] == "below .001"
    assert said["differences"][0]["is_decided"]


@pytest.mark.parametrize(
    "name",
    [
        "Data",
        "Network",
        "Choice",
        "Test accuracy",
        "Cost by seconds, full fine-tunes",
        "Cost by operations, full fine-tunes",
        "Live parameters",
        "Epochs of the chosen trial",
        "Budget, full fine-tunes",
        "Seed",
    ],
)
def test_every_figure_has_a_value_for_each_run(fake_evidence, name):
    rows = {row["name"]: row["values"] for row in told(fake_evidence(), fake_evidence(depth=3))["figures"]}

    assert len(rows[name]) == 2
    assert all(rows[name])


def test_what_is_the_same_for_all_is_marked(fake_evidence):
    rows = {row["name"]: row["is_same"] for row in told(fake_evidence(), fake_evidence(depth=3))["figures"]}

    assert rows["Network"]
    assert not rows["Choice"]


def test_other_processors_warn_of_the_seconds(fake_evidence):
    other = fake_evidence().model_copy(update={"machine": (("processor", "another"),)})

    assert any("different processors" in caveat for caveat in told(fake_evidence(), other)["caveats"])
    assert not any("different processors" in caveat for caveat in told(fake_evidence(), fake_evidence())["caveats"])


def test_command_makes_the_page_again(fake_evidence):
    assert told(fake_evidence(), fake_evidence())["command"] == "frostline compare runs/0 runs/1"
