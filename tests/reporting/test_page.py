"""Every figure of the page comes from the evidence, and says what it does not know."""

import math

import pytest

from frostline.amounts import decimal, share
from frostline.records import Choice
from frostline.reporting import render
from frostline.reporting.page import headline, page, run_folder


def choice(depth, name="blocks.3.0"):
    return Choice(depth=depth, stage_name=name, max_depth=18, trial="", rule="", reason="")


def flat(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from flat(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize(
    ("depth", "sentence"),
    [
        (0, "Freeze nothing: fine-tune all 19 stages."),
        (1, "Freeze the first of 18 stages, up to blocks.3.0."),
        (7, "Freeze the first 7 of 18 stages, up to blocks.3.0."),
        (18, "Freeze everything but the head: all 18 stages before it."),
    ],
)
def test_headline_says_the_choice_in_one_sentence(depth, sentence):
    assert headline(choice(depth)) == sentence


def test_cards_carry_interval_unit_and_total(fake_evidence):
    evidence = fake_evidence()

    accuracy, cost, frozen, live = page(evidence)["cards"]

    assert accuracy["value"] == ".968"
    assert accuracy["spread"] == "(.943–.983)"
    assert (cost["value"], cost["spread"]) == (".617", "full fine-tunes")
    assert (frozen["value"], frozen["spread"]) == ("7", "of 18 before the head")
    assert live["spread"].startswith("of ")


def test_strip_is_as_wide_as_the_network_and_frozen_up_to_the_choice(fake_evidence):
    evidence = fake_evidence(depth=5)

    strip = page(evidence)["strip"]

    assert sum(float(stage["share"]) for stage in strip) == pytest.approx(1, abs=1e-3)
    assert [stage["state"] for stage in strip].count("frozen") == 5


@pytest.mark.parametrize("weights", [(), (3.0, 0.5, 0.5, 0.0) * 100], ids=["alike", "balanced"])
def test_chosen_depth_is_counted_as_its_rivals_are(fake_evidence, weights):
    evidence = fake_evidence()
    (trial,) = (one for one in evidence.trials if one.spec.key == evidence.choice.trial)
    weighted = trial.model_copy(update={"sample_weights": weights})
    others = tuple(one for one in evidence.trials if one is not trial)

    told = page(evidence.model_copy(update={"trials": (*others, weighted)}))

    accuracy = weighted.accuracy if weights else evidence.valid.accuracy
    (row,) = (row for row in told["rivals"] if row["is_chosen"])
    (curve,) = (row for row in told["depths"] if row["is_chosen"])
    assert row["loss"] == decimal(weighted.loss) != decimal(evidence.valid.loss)
    assert row["accuracy"] == curve["valid"]
    assert row["accuracy"].startswith(f"{share(accuracy)} (")


def test_every_trained_depth_is_in_the_table_of_rivals_and_one_is_chosen(fake_evidence):
    evidence = fake_evidence()

    rows = page(evidence)["rivals"]

    assert [row["depth"] for row in rows] == sorted([7, *(rival.depth for rival in evidence.choice.rivals)])
    assert [row["depth"] for row in rows if row["is_chosen"]] == [7]


def test_every_stage_says_open_or_why_not(fake_evidence):
    evidence = fake_evidence()

    rows = page(evidence)["stages"]

    assert len(rows) == 19
    assert {row["cut"] for row in rows if not row["is_blocked"]} == {"open", "the head, always live"}
    assert [row["cut"] for row in rows if row["is_blocked"]] == [f"blocked: {evidence.graph.cuts[3].blocked}"]


def test_a_baseline_that_was_not_trained_is_said_so(fake_evidence):
    caveats = " ".join(page(fake_evidence(depth=7))["caveats"])

    assert "Depth 0 (nothing frozen) was not trained" in caveats
    assert "Depth 18" not in caveats


def test_a_single_depth_is_not_called_a_comparison(fake_evidence):
    evidence = fake_evidence()
    alone = evidence.model_copy(update={"choice": evidence.choice.model_copy(update={"rivals": ()})})

    assert any("Only this depth was trained" in caveat for caveat in page(alone)["caveats"])


def test_predictions_that_differ_from_the_store_are_reported(fake_evidence):
    evidence = fake_evidence().model_copy(update={"disagreement": 0.005})

    said = page(evidence)

    assert said["changed"] == "2 of 400"
    assert any(caveat.startswith("2 of 400 test predictions (.005)") for caveat in said["caveats"])


def test_rows_that_are_computed_anew_are_said_to_be(fake_evidence, tmp_path):
    kept = fake_evidence().model_copy(update={"disagreement": 0.005})
    evidence = kept.model_copy(update={"plan": kept.plan.model_copy(update={"computed": (7,)})})

    said, before = page(evidence), page(kept)
    text = render(evidence, tmp_path / "report.html").read_text("utf-8")

    assert [row["store"] == "computed anew" for row in said["depths"]] == [r["depth"] == 7 for r in said["depths"]]
    assert said["cards"][2]["note"].endswith("of the work, computed in every epoch")
    assert before["cards"][2]["note"].endswith("of the work, computed once")
    assert any("when made from rows that are computed anew" in caveat for caveat in said["caveats"])
    assert "computed in every epoch</span>" in text
    assert "when made from rows that are computed anew: 2 of 400" in text


def test_failed_trials_say_why(fake_evidence):
    rows = page(fake_evidence(failed=True))["trials"]

    assert [row["outcome"] for row in rows if row["is_failed"]] == ["failed: loss was NaN in epoch 1"]
    assert len(rows) == 7


def test_figures_that_are_no_numbers_are_not_shown_as_numbers(fake_evidence):
    evidence = fake_evidence()
    rival = evidence.choice.rivals[0].model_copy(
        update={"loss": math.inf, "loss_difference": math.inf, "standard_error": math.nan}
    )
    odd = evidence.model_copy(
        update={
            "choice": evidence.choice.model_copy(update={"rivals": (rival,)}),
            "cost": evidence.cost.model_copy(update={"full_finetune_seconds": 0.0}),
        }
    )

    written = list(flat({name: value for name, value in page(odd).items() if name != "evidence"}))

    assert not [text for text in written if text.strip("+-− ") in ("nan", "inf")]
    assert "not measured" in written


def test_a_part_without_samples_of_a_class_is_no_division_by_zero(fake_evidence):
    evidence = fake_evidence()
    rows = [list(row) for row in evidence.test.confusion]
    rows[3] = [0] * len(rows)
    test = evidence.test.model_copy(update={"confusion": tuple(map(tuple, rows))})

    classes = page(evidence.model_copy(update={"test": test}))["classes"]

    assert classes["rows"][3]["recall"] == "none in this part"
    assert classes["weakest"][-1]["name"] == evidence.data.classes[3]


def test_command_repeats_what_was_asked(fake_evidence):
    command = page(fake_evidence())["repeat"]["command"]

    assert command.startswith("frostline fit 'photos/sign digits' --model efficientnet_lite0 --image-size 96 ")
    assert "--budget 1.0" in command
    assert "--seed 0" in command
    assert "5f2c9c0e" not in command


def test_the_seed_of_the_division_is_that_of_the_run_on_the_command_line(fake_evidence):
    evidence = fake_evidence()
    arguments = (*evidence.arguments, ("split_seed", "3"))

    command = page(evidence.model_copy(update={"arguments": arguments}))["repeat"]["command"]

    assert "split" not in command


def test_code_to_paste_names_the_run_folder_and_is_python(fake_evidence):
    usage = page(fake_evidence())["usage"]

    compile(usage["python"], "python", "exec")
    compile(usage["torch"], "torch", "exec")
    assert "runs/sign-digits-3f9c" in usage["python"]
    assert "frostline predict runs/sign-digits-3f9c " in usage["shell"]


@pytest.mark.parametrize(
    ("file", "name"), [("runs/pets\n/delta.safetensors", "runs/pets\\n"), ("delta.safetensors", "RUN")]
)
def test_run_folder_is_named_as_a_command_takes_it(fake_evidence, file, name):
    evidence = fake_evidence()

    moved = evidence.model_copy(update={"delta": evidence.delta.model_copy(update={"file": file})})

    assert run_folder(moved) == name
