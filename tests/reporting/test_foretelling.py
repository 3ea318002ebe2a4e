"""What was predicted for what was carried out stands beside what it took."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frostline.amounts import duration, share
from frostline.prices import SAVING_SECONDS, rung_seconds
from frostline.reporting import render
from frostline.reporting.foretelling import foretold

of_fixture = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def told(evidence, name):
    return next(row for row in foretold(evidence) if row["name"] == name)


def rung(evidence, trial):
    """What a trial takes by the plan's rates."""
    plan, epochs = evidence.plan, trial.spec.epochs
    whole = next(forecast.train_seconds for forecast in plan.forecasts if forecast.depth == trial.spec.depth)
    scoring = plan.rates.live_seconds_share(trial.spec.depth) * plan.rates.score_seconds * evidence.valid.samples
    return rung_seconds(epochs, whole / plan.budget.epochs, scoring)


def with_trials(evidence, change):
    return evidence.model_copy(update={"trials": tuple(change(trial) for trial in evidence.trials)})


@of_fixture
@given(factor=st.floats(0.2, 5.0))
def test_trainings_that_take_a_factor_of_what_was_predicted_say_so(fake_evidence, factor):
    evidence = fake_evidence()

    def slowed(trial):
        return trial.model_copy(update={"seconds": factor * rung(evidence, trial)})

    slower = with_trials(evidence, slowed)

    assert told(slower, "the race")["ratio"] == told(slower, "the last trainings")["ratio"] == share(factor)


def test_every_training_is_foretold_with_its_saving_and_one_scoring_for_the_part_of_an_epoch(fake_evidence):
    evidence = fake_evidence(failed=False)
    last = [trial for trial in evidence.trials if trial.spec.parent]
    longer = with_trials(
        evidence, lambda t: t.model_copy(update={"spec": t.spec.model_copy(update={"epochs": t.spec.epochs + 1.0})})
    )
    added = sum(
        forecast.train_seconds / evidence.plan.budget.epochs
        for trial in last
        for forecast in evidence.plan.forecasts
        if forecast.depth == trial.spec.depth
    )
    saving = sum(rung(evidence, trial) for trial in last)

    assert saving > len(last) * SAVING_SECONDS
    assert told(evidence, "the last trainings")["predicted"] == duration(saving)
    assert told(longer, "the last trainings")["predicted"] == duration(saving + added)


def test_the_rows_of_all_depths_are_one_pass_to_the_deepest_and_the_test_part_at_the_chosen(fake_evidence):
    evidence = fake_evidence()
    deepest = max(trial.spec.depth for trial in evidence.trials)
    forecast = next(forecast for forecast in evidence.plan.forecasts if forecast.depth == deepest)
    rates = evidence.plan.rates
    tested = sum(rates.stage_seconds[: evidence.choice.depth]) * evidence.test.samples / rates.engine.rows_per_second

    row = told(evidence, "rows kept of all depths")

    assert (row["predicted"], row["took"]) == (duration(forecast.store_seconds + tested), duration(12.1))
    assert row["ratio"] == share(12.1 / (forecast.store_seconds + tested))


def test_depths_whose_rows_are_computed_anew_have_no_pass_but_that_of_the_last_scoring(fake_evidence):
    evidence = fake_evidence()
    raced = {trial.spec.depth for trial in evidence.trials}
    plan = evidence.plan.model_copy(update={"computed": tuple(sorted(raced))})
    rates = plan.rates
    scored = sum(rates.stage_seconds[: evidence.choice.depth]) * (evidence.test.samples + evidence.valid.samples)

    row = told(evidence.model_copy(update={"plan": plan}), "rows kept of all depths")

    assert row["predicted"] == duration(scored / rates.engine.rows_per_second)


def test_race_and_last_trainings_are_told_apart_and_added_up(fake_evidence):
    evidence = fake_evidence(failed=False)
    last = sum(trial.seconds for trial in evidence.trials if trial.spec.parent)
    everything = sum(trial.seconds for trial in evidence.trials)

    assert told(evidence, "the last trainings")["took"] == duration(last)
    assert told(evidence, "the race")["took"] == duration(everything - last)
    assert told(evidence, "together")["took"] == duration(everything + 12.1)


def test_a_trial_that_failed_is_compared_with_nothing(fake_evidence):
    whole, failed = fake_evidence(failed=False), fake_evidence(failed=True)

    assert len(failed.trials) == len(whole.trials) + 1
    assert foretold(failed) == foretold(whole)


def test_what_no_rate_was_measured_for_is_not_shown_as_a_ratio(fake_evidence):
    evidence = fake_evidence(depth=0)
    plan = evidence.plan
    engine = plan.rates.engine.model_copy(update={"rows_per_second": 0.0})
    update = {
        "rates": plan.rates.model_copy(update={"engine": engine}),
        "forecasts": tuple(forecast.model_copy(update={"store_seconds": 0.0}) for forecast in plan.forecasts),
    }

    row = told(evidence.model_copy(update={"plan": plan.model_copy(update=update)}), "rows kept of all depths")

    assert (row["predicted"], row["ratio"]) == ("not measured", "not measured")


@pytest.mark.parametrize("name", ["rows kept of all depths", "the race", "the last trainings", "together"])
def test_the_report_shows_it(fake_evidence, name, tmp_path):
    evidence = fake_evidence()

    text = render(evidence, tmp_path / "report.html").read_text("utf-8")

    row = told(evidence, name)
    assert f'<th scope="row">{name}</th><td class="n">{row["predicted"]}</td><td class="n">{row["took"]}</td>' in text
