"""The flow of the evidence: what is carried out, paid for, kept, resumed and refused."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import frostline as fl
from frostline import trying
from frostline.attempts import Attempt, Outcome
from frostline.errors import BadArgument, BadSample, CutNotProven, NotARun, RunBusy, RunOfOtherArguments
from frostline.events import silent
from frostline.exhibits import CLAIMS
from frostline.files import hold, read_record, read_records
from frostline.footprint import Footprint
from frostline.records import Evidence, Recipe, TrialSpec
from frostline.weighing import price

RECIPE = Recipe(learning_rate=1e-2)


def points(seed, samples=64):
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))
    return fl.TensorSamples(x, (x[:, 0] + x[:, 1] > 0).long())


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
        )


def small_task():
    return fl.Task(network(), points(0), points(1), points(2))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def bench(run):
    known = read_record(run / "evidence.json", Evidence)
    return trying.set_up(known, run, listener=silent, task=small_task())


def asked(depth=1, *, seed=1, epochs=1, **others):
    return Attempt(trial=TrialSpec(depth=depth, recipe=RECIPE, seed=seed, epochs=epochs), **others)


def attempts_in(folder):
    return read_records(folder / "attempts.jsonl", Outcome)


# --- the whole --------------------------------------------------------------------------------

STABILITY = {"claims": ["stability"], "seeds": 2, "budget": 20.0}


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """The folder of a run whose claim on stability was measured, what came of it, and what was told meanwhile."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("measured") / "run")
    heard = []
    told = fl.evidence(folder, **STABILITY, task=small_task(), listener=heard.append)
    return folder, told, heard


def test_claims_asked_for_are_measured_and_the_others_are_not(measured):
    _, told, _ = measured

    verdicts = {claim.name: claim.verdict for claim in told.claims}

    assert tuple(verdicts) == CLAIMS
    assert verdicts["stability"] != "not measured"
    assert {verdicts[name] for name in CLAIMS if name != "stability"} == {"not measured"}


def test_evidence_and_report_hold_what_is_returned(measured):
    folder, told, _ = measured

    claim = told.claims[CLAIMS.index("stability")]

    assert read_record(folder / "evidence.json", Evidence) == told
    assert claim.sentence.split(",")[0] in (folder / "report.html").read_text("utf-8")


def test_the_cost_is_told_before_anything_is_paid(measured):
    folder, _, heard = measured

    first = heard[0]

    assert first.note.startswith(f"predicted: {len(attempts_in(folder))} attempts for ")
    assert first.total == len(attempts_in(folder))
    assert "more are wanted" not in first.note


def test_a_broken_off_call_goes_on_and_ends_with_the_claims_of_an_unbroken_one(run, measured):
    whole, told, _ = measured

    def stop(event):
        if len(attempts_in(run)) == 4:
            raise ValueError("the pipe is closed")

    with pytest.raises(ValueError, match="the pipe is closed"):
        fl.evidence(run, **STABILITY, task=small_task(), listener=stop)
    kept = attempts_in(run)
    gone_on = fl.evidence(run, **STABILITY, task=small_task())

    assert len(kept) == 4
    assert attempts_in(run)[:4] == kept
    assert [each.attempt for each in attempts_in(run)] == [each.attempt for each in attempts_in(whole)]
    assert gone_on.claims == told.claims


def test_what_was_paid_for_is_not_paid_for_again(measured):
    folder, told, _ = measured
    lines = attempts_in(folder)

    # Nothing is left to carry out, so that the data is not asked for either.
    again = fl.evidence(folder, **STABILITY)

    assert attempts_in(folder) == lines
    assert again == told


def test_claims_of_an_earlier_call_stay_as_they_were(measured, tmp_path):
    folder, earlier, _ = measured

    told = fl.evidence(shutil.copytree(folder, tmp_path / "run"), claims=["reuse"], seeds=2, budget=0.001)

    assert told.claims[CLAIMS.index("stability")] == earlier.claims[CLAIMS.index("stability")]


def test_the_budget_holds_and_is_spent_in_the_order_of_the_claims(run):
    known, heard = read_record(run / "evidence.json", Evidence), []

    told = fl.evidence(run, claims=["data", "reuse"], seeds=2, budget=3.0, task=small_task(), listener=heard.append)

    paid = [each.attempt for each in attempts_in(run)]
    assert 2.0 < sum(price(known, attempt) for attempt in paid) <= 3.0
    assert paid[0].trial.depth == 0
    assert "more are wanted than a budget of 3 pays for" in heard[0].note
    assert sum(claim.cost for claim in told.claims) == pytest.approx(sum(price(known, attempt) for attempt in paid))


def test_nothing_is_left_lying_about(run):
    before = {file.name for file in run.iterdir()}

    fl.evidence(run, claims=["reuse"], seeds=2, budget=2.0, task=small_task())

    assert {file.name for file in run.iterdir()} == before | {"attempts.jsonl"}


def test_the_user_s_network_is_left_as_it_was(run):
    task = small_task()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}

    fl.evidence(run, claims=["reuse"], seeds=2, budget=2.0, task=task)

    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"claims": ["speed"]}, "claims is speed; it must be some of reuse, data"),
        ({"claims": []}, "claims is empty"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"budget": math.nan}, "budget is nan"),
        ({"seeds": 1}, "seeds is 1; an interval needs at least 2"),
    ],
)
def test_values_outside_their_range_are_refused(run, arguments, said):
    with pytest.raises(BadArgument, match=said):
        fl.evidence(run, task=small_task(), **arguments)


def test_a_folder_without_a_finished_run_is_refused_and_not_made(tmp_path):
    with pytest.raises(NotARun, match="no finished run"):
        fl.evidence(tmp_path / "nothing")

    assert not (tmp_path / "nothing").exists()


def test_a_run_that_is_in_use_is_refused(run):
    with hold(run), pytest.raises(RunBusy):
        fl.evidence(run, task=small_task())


def test_a_run_of_samples_from_memory_needs_its_task(run):
    with pytest.raises(BadArgument, match="Give task="):
        fl.evidence(run, claims=["data"])


def test_another_task_is_refused(run):
    with pytest.raises(RunOfOtherArguments, match="other data"):
        fl.evidence(run, claims=["data"], task=fl.Task(network(), points(7), points(1), points(2)))

    assert not attempts_in(run)


# --- one attempt ------------------------------------------------------------------------------


def test_an_attempt_is_the_same_each_time(bench):
    attempt = asked(prefix="random", rest="random", samples=20, noise=0.2)

    first, second = trying.try_out(bench, attempt), trying.try_out(bench, attempt)

    clocks = {"seconds": 0.0, "pass_seconds": 0.0, "curve": (), "joules": None}
    assert first.model_copy(update=clocks) == second.model_copy(update=clocks)
    assert [point.valid_loss for point in first.curve] == [point.valid_loss for point in second.curve]


def test_a_training_is_scored_on_every_test_sample(bench):
    outcome = trying.try_out(bench, asked(epochs=4))

    assert outcome.failure is None
    assert len(outcome.test_hits) == len(outcome.test_confidences) == 64
    assert outcome.accuracy > 0.8
    assert outcome.train_accuracy > 0.8


def test_the_head_that_training_starts_from_has_seen_no_right_label_that_the_attempt_does_not_give(bench):
    wrong = trying.try_out(bench, asked(epochs=0, noise=1.0))
    right = trying.try_out(bench, asked(epochs=0))

    assert wrong.accuracy < 0.2 < 0.8 < right.accuracy


def test_the_head_that_training_starts_from_has_seen_no_other_sample(bench):
    few = trying.try_out(bench, asked(epochs=0, samples=2, seed=3))
    whole = trying.try_out(bench, asked(epochs=0))

    assert few.train_accuracy == 1.0
    assert few.test_confidences != whole.test_confidences


def test_frozen_stages_keep_features_and_weights_and_live_ones_do_not(bench):
    outcome = trying.try_out(bench, asked(epochs=4))

    assert len(outcome.similarity) == len(outcome.drift) == len(bench.site.graph.stages) - 1 == 2
    assert outcome.similarity[0] == 1.0 > outcome.similarity[1] > 0.2
    assert outcome.drift[0] == 0.0 < outcome.drift[1]


def test_untrained_stages_are_wholly_like_the_pretrained(bench):
    outcome = trying.try_out(bench, asked(depth=0, epochs=0))

    assert outcome.similarity == pytest.approx((1.0, 1.0))
    assert outcome.drift == (0.0, 0.0)


def test_only_a_frozen_part_needs_a_pass(bench):
    full, frozen = trying.try_out(bench, asked(0)), trying.try_out(bench, asked(1))

    assert full.pass_flops == full.pass_seconds == 0.0
    assert frozen.pass_flops > 0.0 < frozen.pass_seconds
    assert frozen.flops < full.flops


def test_rows_that_are_computed_anew_are_no_pass_and_count_as_training(bench, tmp_path):
    fl.fit(small_task(), depth=1, epochs=2, engine="torch", disk=0, out=tmp_path / "anew")
    known = read_record(tmp_path / "anew" / "evidence.json", Evidence)
    other = trying.set_up(known, tmp_path / "anew", listener=silent, task=small_task())

    kept, computed = trying.try_out(bench, asked()), trying.try_out(other, asked())

    below = known.graph.frozen_share(1) * known.graph.flops
    looks = len(kept.curve)
    assert computed.pass_flops == computed.pass_seconds == 0.0
    assert computed.flops - kept.flops == pytest.approx(below * (64 + 64 * looks))
    assert computed.test_hits == kept.test_hits
    assert not (tmp_path / "anew" / "store").exists()


def test_weights_drawn_anew_have_rows_of_their_own_where_these_are_computed(tmp_path):
    found = []
    for disk in (None, 0):
        folder = tmp_path / f"disk {disk}"
        fl.fit(small_task(), depth=1, epochs=2, engine="torch", disk=disk, out=folder)
        known = read_record(folder / "evidence.json", Evidence)
        bench = trying.set_up(known, folder, listener=silent, task=small_task())
        outcomes = [trying.try_out(bench, asked(prefix=prefix)) for prefix in ("pretrained", "random")]
        found.append([[point.valid_loss for point in outcome.curve] for outcome in outcomes])

    kept, computed = found
    assert all(kept)
    assert computed == [pytest.approx(losses, rel=1e-4) for losses in kept]


def test_energy_is_that_of_the_training_alone(bench, monkeypatch):
    worked = []

    def metered_by_fake(device):
        worked.clear()
        return lambda: 42.0 if worked == ["tune"] else None

    monkeypatch.setattr(trying, "metered", partial(trying.metered, counter_of=metered_by_fake))
    for name in ("tune", "warm_head", "rows_of", "score"):
        monkeypatch.setattr(trying, name, noted(getattr(trying, name), name, worked))

    outcome = trying.try_out(bench, asked())

    assert outcome.joules == 42.0
    assert "score" in worked


def noted(work, name, worked):
    def do(*given, **named):
        worked.append(name)
        return work(*given, **named)

    return do


@pytest.mark.parametrize(
    ("prefix", "rest", "drawn"),
    [
        ("pretrained", "pretrained", set()),
        ("random", "pretrained", {"0"}),
        ("matched", "pretrained", {"0"}),
        ("pretrained", "random", {"3"}),
        ("random", "random", {"0", "3"}),
    ],
)
def test_the_weights_that_are_asked_for_are_drawn_anew_and_never_the_head(bench, prefix, rest, drawn):
    base = bench.site.base.state_dict()

    other = trying.network_of(bench, asked(prefix=prefix, rest=rest)).state_dict()

    assert {name[0] for name in base if name.endswith("weight") and not torch.equal(base[name], other[name])} - {
        "1"
    } == drawn


def test_random_rows_are_kept_apart_from_those_of_the_run(bench):
    before = sorted(bench.site.folder.rglob("*"))

    trying.try_out(bench, asked(prefix="random", rest="random"))

    assert sorted(path for path in bench.site.folder.rglob("*") if path != bench.scratch) == before


def test_a_probe_asks_every_depth_of_a_network_drawn_anew(bench):
    random, matched = (trying.try_out(bench, asked(0, kind="probe", prefix=kind)) for kind in ("random", "matched"))

    assert [vote.depth for vote in random.votes] == [vote.depth for vote in bench.known.prior.votes]
    assert random.votes != matched.votes
    assert bench.known.prior.votes not in (random.votes, matched.votes)


@pytest.mark.parametrize(("is_stored", "width"), [(True, 16), (False, 4)])
def test_memory_is_measured_with_kept_rows_or_with_samples(bench, monkeypatch, is_stored, width):
    given = {}

    def measured(request, rows, **others):
        given.update(request=request, rows=rows, **others)
        return Footprint(peak_bytes=7, state_bytes=5)

    monkeypatch.setattr(trying, "measure_memory", measured)

    outcome = trying.try_out(bench, asked(kind="memory", is_stored=is_stored))

    assert (outcome.peak_bytes, outcome.state_bytes) == (7, 5)
    assert given["rows"][0].shape == (32, width)
    assert given["request"].depth == 1
    assert len(given["labels"]) == 32


def test_what_goes_wrong_inside_is_the_outcome_s_failure(bench, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(trying, "tune", fail)

    outcome = trying.try_out(bench, asked())

    assert outcome.failure == "ZeroDivisionError: planted"
    assert not list(bench.scratch.iterdir())


def test_what_the_user_can_mend_is_raised(bench, monkeypatch):
    def fail(*_, **__):
        raise CutNotProven("CutNotProven: planted")

    monkeypatch.setattr(trying, "tune", fail)

    with pytest.raises(CutNotProven, match="planted"):
        trying.try_out(bench, asked())


def test_a_training_that_diverges_is_a_failed_attempt(bench):
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30, "warmup": 0.0, "clip_norm": 1e30})
    attempt = Attempt(trial=TrialSpec(depth=0, recipe=recipe, seed=0, epochs=3))

    outcome = trying.try_out(bench, attempt)

    assert "loss" in outcome.failure
    assert outcome.test_hits == ()


def test_an_unproven_cut_is_never_trained(bench, monkeypatch):
    monkeypatch.setattr(trying, "proof", lambda site, depth: "planted")

    assert trying.try_out(replace(bench, proofs={}), asked()).failure == "the cut is not proven: planted"


# --- pictures ---------------------------------------------------------------------------------

NETWORK = """
import torch
from torch import nn

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


def picture_task(folder):
    return fl.load_task(folder / "pictures", model=f"{folder}/nets.py:make", image_size=16, valid=0.3, seed=3)


@pytest.fixture
def shades(tmp_path):
    """A folder with dark and light pictures, and a network."""
    generator = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            picture = generator.normal(level, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "nets.py").write_text(NETWORK)
    return tmp_path


def test_a_damaged_picture_is_named_before_the_first_attempt(shades):
    result = fl.fit(picture_task(shades), depth=1, epochs=1, seed=3, engine="torch", out=shades / "run")
    again, heard = picture_task(shades), []
    name = again.test.names[0]
    (shades / "pictures" / name).write_bytes(b"junk")

    with pytest.raises(BadSample, match=name):
        fl.evidence(result, claims=["resources"], seeds=2, task=again, listener=heard.append)

    assert {event.phase for event in heard} <= {"measure", "trace", "read"}


@pytest.mark.slow
def test_a_run_on_pictures_is_read_again_by_its_names(shades):
    tmp_path, task = shades, picture_task(shades)
    result = fl.fit(task, depth=1, epochs=2, seed=3, engine="torch", out=tmp_path / "run")

    told = fl.evidence(result, claims=["resources"], seeds=2)

    memory = [outcome for outcome in attempts_in(tmp_path / "run") if outcome.attempt.kind == "memory"]
    assert told.claims[CLAIMS.index("resources")].verdict != "not measured"
    assert len(memory) == 3
    assert all(outcome.peak_bytes > 0 < outcome.state_bytes for outcome in memory)
    assert json.loads((tmp_path / "run" / "evidence.json").read_text())["claims"]
