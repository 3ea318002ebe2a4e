"""`benchmarks/recount.py` agrees with a report that is right, and finds what was changed behind its back."""

import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.attempts import Outcome
from frostline.exhibits import CLAIMS
from frostline.files import append_record, read_record, write_record
from frostline.records import EpochPoint, Evidence, Vote
from frostline.reporting import report
from frostline.weighing import judged, wanted

SCRIPTS = Path(__file__).parent.parent / "benchmarks"
CLASSES, TESTED = 3, 60


@pytest.fixture(scope="module")
def recount():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import recount

        yield recount
    for name in [name for name in sys.modules if name.startswith("recount")]:
        del sys.modules[name]


# --- a run, and what is made up for its claims ------------------------------------------------


def points(seed, samples, order):
    """Samples that lie class by class, as pictures in folders do, or not."""
    x = torch.randn(samples, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    labels = (x.mean(dim=(1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1.0).long()
    rows = order(labels)
    return fl.TensorSamples(x[rows], labels[rows])


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES)),
        )


def fitted(folder, order, *, depth=1, budget=1.0, goal="accuracy", disk=None):
    parts = (points(seed, samples, order) for seed, samples in enumerate((136, 40, TESTED)))
    asked = {"depth": depth, "epochs": 3, "budget": budget, "engine": "torch", "disk": disk}
    fl.fit(fl.Task(network(), *parts, goal=goal), **asked, out=folder)
    return folder


def made_up(attempt):
    """An outcome drawn for its attempt, alike but for chance; frozen stages and right labels help a little."""
    draw = random.Random(attempt.key)
    trial = attempt.trial
    level = 0.8 + 0.08 * bool(trial.depth) - 0.2 * attempt.noise - 0.1 * (attempt.prefix != "pretrained")
    level -= 0 if attempt.samples is None else 2 / attempt.samples
    hits = tuple(draw.random() < level for _ in range(TESTED))
    if attempt.kind == "probe":
        votes = [
            Vote(depth=depth, accuracy=0.4, low=0.3, high=0.5, loss=1.0, penalty=1.0, features=4) for depth in (1, 2)
        ]
        return Outcome(attempt=attempt, votes=tuple(votes))
    if attempt.kind == "memory":
        return Outcome(attempt=attempt, peak_bytes=draw.randrange(10**9), state_bytes=draw.randrange(10**6))
    return Outcome(
        attempt=attempt,
        curve=tuple(look(epoch, draw, trial.depth) for epoch in range(4)),
        best_epoch=2,
        test_hits=hits,
        test_confidences=tuple(draw.uniform(0.3, 1) for _ in hits),
        train_loss=draw.random(),
        train_accuracy=draw.uniform(0.8, 1),
        similarity=(1.0, draw.random()),
        drift=(0.0, draw.random()),
        seconds=draw.uniform(3, 4) * (1 if trial.depth else 2),
        pass_seconds=0.3 if trial.depth else 0.0,
        flops=draw.uniform(1e9, 2e9),
        pass_flops=1e8 if trial.depth else 0.0,
        joules=draw.uniform(500, 5000),
    )


def look(epoch, draw, depth):
    return EpochPoint(
        epoch=epoch,
        train_loss=None if epoch == 0 else 1.2 / (epoch + draw.random()),
        valid_loss=draw.uniform(0.3, 0.9),
        valid_accuracy=min(1.0, 0.5 + 0.12 * epoch * draw.uniform(0.7, 1) + 0.05 * bool(depth)),
        learning_rate=1e-3,
        seconds=draw.uniform(0.5, 1),
        gradient_norm=None if epoch == 0 else draw.uniform(1, 2),
        gradient_spread=None if epoch == 0 else draw.uniform(0.1, 0.5),
    )


def lost(attempt):
    """The same, but full fine-tuning breaks down at two seeds, and one frozen arm does no better than guessing."""
    trial = attempt.trial
    if attempt.kind == "train" and trial.depth == 0 and trial.seed > 2:
        return Outcome(attempt=attempt, failure="the loss is nan")
    if attempt.kind == "train" and trial.depth and trial.seed == 4:
        return made_up(attempt).model_copy(update={"test_hits": (True, False, False, False) * (TESTED // 4)})
    return made_up(attempt)


def nothing_learnt(attempt):
    hits = (True, False, False) * (TESTED // 3)
    return made_up(attempt).model_copy(update={"test_hits": hits} if attempt.kind == "train" else {})


def equally_good(attempt):
    """As many right answers in each arm, of which none has an energy: no difference, and no spread but rounding's."""
    hits = tuple(place % 10 > 1 for place in range(TESTED))
    return made_up(attempt).model_copy(update={"test_hits": hits, "joules": None} if attempt.kind == "train" else {})


def claimed(folder, answer, *, seeds=4):
    """Put the six claims to the test on made-up outcomes."""
    known, outcomes = read_record(folder / "evidence.json", Evidence), {}
    while asked := wanted(known, CLAIMS, outcomes, seeds=seeds):
        for attempt in asked:
            outcomes[attempt.key] = answer(attempt)
            append_record(folder / "attempts.jsonl", outcomes[attempt.key])
    claims = judged(known, CLAIMS, outcomes, seeds=seeds)
    write_record(folder / "evidence.json", known.model_copy(update={"claims": claims}))
    report(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("plain") / "run", torch.argsort)


@pytest.fixture(scope="module")
def finished(plain, tmp_path_factory):
    return claimed(shutil.copytree(plain, tmp_path_factory.mktemp("claimed") / "run"), made_up)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def wrong(recount, run):
    figures, _ = recount.recounted(run)
    return {figure.name for figure in figures if not figure.agrees}


# --- a report that is right -------------------------------------------------------------------


def test_report_of_a_finished_run_is_as_counted_again(recount, finished):
    figures, left_out = recount.recounted(finished)

    assert [str(figure) for figure in figures if not figure.agrees] == []
    assert left_out == []


def test_report_of_a_run_whose_rows_were_computed_anew_is_as_counted_again(recount, tmp_path):
    figures, _ = recount.recounted(fitted(tmp_path / "run", torch.argsort, disk=0))

    assert [str(figure) for figure in figures if not figure.agrees] == []
    assert {figure.found for figure in figures if figure.name == "predicted store at depth 1"} == {"computed anew"}


def test_every_claim_has_number_and_interval_and_every_kept_depth_its_vote(recount, finished):
    names = {figure.name for figure in recount.recounted(finished)[0]}

    for claim in CLAIMS:
        assert {f"number of {claim}", f"interval of {claim}", f"verdict on {claim}"} <= names
    assert {"leave-one-out vote at depth 1", "rows of store train-01", "store at depth 1"} <= names


def test_made_up_outcomes_give_numbers_to_all_claims(finished):
    claims = read_record(finished / "evidence.json", Evidence).claims

    assert all(claim.value is not None for claim in claims)


def test_facts_are_counted_again(recount, finished):
    figures = recount.recounted(finished)[0]
    claims = read_record(finished / "evidence.json", Evidence).claims

    told = Counter(figure.name.split(", ")[0] for figure in figures if ", " in figure.name)
    assert {claim.name: told[claim.name] for claim in claims} == {
        claim.name: len(claim.facts) - (claim.name == "regularisation") for claim in claims
    }


@pytest.mark.parametrize("answer", [lost, nothing_learnt, equally_good], ids=lambda answer: answer.__name__)
def test_claims_that_chance_or_failure_spoilt_are_counted_again(recount, plain, tmp_path, answer):
    run = claimed(shutil.copytree(plain, tmp_path / "run"), answer)

    figures, _ = recount.recounted(run)

    assert [str(figure) for figure in figures if not figure.agrees] == []


def test_report_of_a_race_whose_classes_count_alike_is_as_counted_again(recount, tmp_path):
    run = fitted(tmp_path / "run", torch.argsort, depth="auto", budget=5.0, goal="balanced_accuracy")

    figures, left_out = recount.recounted(run)

    names = {figure.name for figure in figures}
    assert [str(figure) for figure in figures if not figure.agrees] == []
    assert {f"leave-one-out vote at depth {depth}" for depth in (1, 2)} <= names
    assert [name for name in names if name.startswith("difference of losses")]
    assert left_out == []


def test_votes_are_left_out_where_the_run_does_not_tell_the_classes_of_its_rows(recount, tmp_path):
    run = fitted(tmp_path / "run", lambda labels: torch.arange(len(labels)), depth=2)

    figures, left_out = recount.recounted(run)

    assert "do not lie class by class" in left_out[0]
    assert not [figure for figure in figures if "vote at depth" in figure.name]
    assert all(figure.agrees for figure in figures)


# --- one that was changed ---------------------------------------------------------------------


def changed(file, old, new):
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")


def test_one_flipped_hit_is_found(recount, run):
    lines = [json.loads(line) for line in (run / "attempts.jsonl").read_text("utf-8").splitlines()]
    raw = (run / "attempts.jsonl").read_text("utf-8").splitlines()
    frozen = next(
        number
        for number, line in enumerate(lines)
        if line["attempt"]["kind"] == "train" and line["attempt"]["noise"] == 0.2 and line["attempt"]["trial"]["depth"]
    )
    hit = json.dumps(lines[frozen]["test_hits"][0])
    raw[frozen] = raw[frozen].replace(f'"test_hits":[{hit}', f'"test_hits":[{"false" if hit == "true" else "true"}', 1)
    (run / "attempts.jsonl").write_text("\n".join(raw) + "\n", "utf-8")

    found = wrong(recount, run)

    assert {"number of regularisation", "interval of regularisation"} & found
    assert not [name for name in found if "resources" in name]


def test_one_changed_byte_of_a_store_is_found(recount, run):
    file = run / "store" / "train-01" / "wire0.bin"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)

    assert wrong(recount, run) == {"blocks of train-01/wire0.bin with the right CRC-32"}


def test_a_store_that_lost_its_end_is_found(recount, run):
    file = run / "store" / "valid-01" / "wire0.bin"
    file.write_bytes(file.read_bytes()[:-4])

    assert "bytes of valid-01/wire0.bin" in wrong(recount, run)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_wrong_interval_is_found(recount, run, claim):
    known = read_record(run / "evidence.json", Evidence)
    found = next(one for one in known.claims if one.name == claim)
    other = found.model_copy(update={"low": found.low - 0.1 * abs(found.value) - 0.1})
    claims = tuple(other if one.name == claim else one for one in known.claims)
    write_record(run / "evidence.json", known.model_copy(update={"claims": claims}))
    report(run)

    assert wrong(recount, run) == {f"interval of {claim}"}


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("</span> holds</span>", "</span> does not hold</span>", "verdict on"),
        (
            "time, the pass counted</th><td>frozen 3",
            "time, the pass counted</th><td>frozen 4",
            "resources, time, the pass",
        ),
    ],
)
def test_wrong_words_of_the_page_are_found(recount, run, old, new, name):
    changed(run / "report.html", old, new)

    (found,) = wrong(recount, run)

    assert found.startswith(name)


def test_a_wrong_vote_is_found(recount, run):
    known = read_record(run / "evidence.json", Evidence)
    votes = tuple(vote.model_copy(update={"accuracy": vote.accuracy - 0.02}) for vote in known.prior.votes)
    prior = known.prior.model_copy(update={"votes": votes})
    write_record(run / "evidence.json", known.model_copy(update={"prior": prior}))
    report(run)

    assert "leave-one-out vote at depth 1" in wrong(recount, run)


def test_a_trial_that_the_report_does_not_show_is_found(recount, run):
    lines = [json.loads(line) for line in (run / "trials.jsonl").read_text("utf-8").splitlines()]
    line = (run / "trials.jsonl").read_text("utf-8").splitlines()[-1]
    hit = json.dumps(lines[-1]["hits"][0])
    changed(
        run / "trials.jsonl", line, line.replace(f'"hits":[{hit}', f'"hits":[{"false" if hit == "true" else "true"}')
    )

    assert "validation accuracy at depth 1" in wrong(recount, run)


def test_figures_are_printed_one_a_line_and_a_wrong_one_ends_with_1(recount, run, capsys):
    right = recount.main([str(run)])
    said = capsys.readouterr().out.splitlines()
    changed(run / "report.html", "</span> holds</span>", "</span> does not hold</span>")

    wronged = recount.main([str(run), "--json"])

    told = json.loads(capsys.readouterr().out)
    assert (right, wronged) == (0, 1)
    assert said[-1] == f"{len(said) - 1} of {len(said) - 1} figures are as they were counted again"
    assert [figure["found"] for figure in told["figures"] if not figure["agrees"]] == ["does not hold"]


# --- the sums ---------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 4, 59, 410])
def test_quantiles_are_those_of_scipy(recount, freedom):
    from recount_statistics import f_975, t_975
    from scipy.special import fdtri, stdtrit

    assert t_975(freedom) == pytest.approx(stdtrit(freedom, 0.975), rel=1e-9)
    assert f_975(freedom, 3) == pytest.approx(fdtri(freedom, 3, 0.975), rel=1e-9)


@pytest.mark.parametrize("width", [5, 40])
def test_rows_left_out_in_closed_form_are_those_left_out_by_hand(recount, width):
    from recount_rows import left_out

    draw = np.random.default_rng(0)
    features, targets = draw.normal(3.0, 1.0, (20, width)), np.eye(3)[draw.integers(3, size=20)]

    ((_, residuals),) = left_out(features, targets, np.array([0.7]))

    for row in range(20):
        others = np.arange(20) != row
        middle, mean = features[others].mean(axis=0), targets[others].mean(axis=0)
        centred = features[others] - middle
        weight = np.linalg.solve(centred.T @ centred + 0.7 * np.eye(width), centred.T @ (targets[others] - mean))
        predicted = (features[row] - middle) @ weight + mean
        assert targets[row] - predicted == pytest.approx(residuals[row], abs=1e-9)


def test_no_script_that_counts_again_imports_frostline_but_for_the_answers():
    for file in SCRIPTS.glob("recount*.py"):
        text = file.read_text("utf-8")

        at_the_top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in at_the_top if "frostline" in line or "torch" in line or "scipy" in line]
        assert text.count("import frostline") == text.count("def answers(")
