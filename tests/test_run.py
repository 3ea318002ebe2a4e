"""The whole flow on small networks and pictures: what a run keeps, refuses, resumes and never looks at."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import frostline as fl
from frostline import run as flow
from frostline.converting import converted
from frostline.cost import Clock
from frostline.errors import (
    AllTrialsFailed,
    BadArgument,
    BadSample,
    CutNotProven,
    RunBusy,
    RunOfOtherArguments,
)
from frostline.events import Event
from frostline.files import hold, read_records
from frostline.records import Recipe, Trial, TrialSpec
from frostline.testing import CLOSE, specimen

NETWORK = """
import torch
from torch import nn

def make(num_classes):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(24, num_classes),
    )
"""


def points(seed: int, samples: int = 60) -> fl.TensorSamples:
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))
    return fl.TensorSamples(x, (x[:, 0] * x[:, 1] > 0).long())


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def small_task(test: fl.TensorSamples | None = None) -> fl.Task:
    return fl.Task(network(), points(0), points(1), test or points(2))


def write_stripes(folder: Path, samples: int = 40, side: int = 32) -> Path:
    """Three classes of noisy stripes: upright, level and none."""
    generator = np.random.default_rng(0)
    wave = (np.sin(np.arange(side)) > 0) * 120.0
    for name, pattern in {"upright": wave[None, :], "level": wave[:, None], "none": np.full((1, 1), 60.0)}.items():
        (folder / name).mkdir(parents=True)
        for i in range(samples):
            noise = generator.normal(60, 45, (side, side, 3))
            picture = (np.broadcast_to(pattern, (side, side))[..., None] + noise).clip(0, 255)
            Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{i:03d}.png")
    return folder


def test_a_run_leaves_every_file_of_the_design(tmp_path):
    result = fl.fit(small_task(), epochs=3, engine="torch", out=tmp_path / "run")

    held = {file.name for file in result.folder.iterdir()}
    designed = {"plan.json", "trials.jsonl", "events.jsonl", "evidence.json", "delta.safetensors", "report.html"}
    assert designed | {"album.json", "summary.md"} <= held
    assert not (result.folder / "weights").exists()


def test_the_steps_that_are_timed_teach_the_network_nothing(tmp_path, monkeypatch):
    timed = []

    def watched(live, *args, **kwargs):
        timed.append((live, {name: tensor.clone() for name, tensor in live.state_dict().items()}))
        return train_step(live, *args, **kwargs)

    train_step = flow.train_step
    monkeypatch.setattr(flow, "train_step", watched)

    fl.plan(small_task())

    [(live, before)] = timed
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.state_dict().items())


def test_the_budget_in_operations_holds(tmp_path):
    result = fl.fit(small_task(), budget=1.0, epochs=40, engine="torch", out=tmp_path / "run")

    assert result.cost.share_flops <= 1.0


def test_what_choosing_cost_is_told_apart_from_training_what_was_chosen(tmp_path):
    searched = fl.fit(small_task(), budget=4.0, epochs=12, engine="torch", out=tmp_path / "searched")
    given = fl.fit(small_task(), depth=-1, epochs=12, engine="torch", out=tmp_path / "given")

    trials = {trial.spec.key: trial for trial in searched.evidence.trials}
    trial, own = trials[searched.choice.trial], 0.0
    while trial:
        own += trial.flops
        trial = trials.get(trial.spec.parent)
    rest = sum(trial.flops for trial in trials.values()) - own
    assert own > 0
    assert rest < searched.cost.search_flops < searched.cost.flops - own
    assert given.cost.share_search < searched.cost.share_search


def test_the_race_fills_the_stores_of_all_its_depths_in_one_pass_for_each_part(tmp_path):
    heard = []

    result = fl.fit(small_task(), budget=4.0, epochs=3, engine="torch", out=tmp_path / "run", listener=heard.append)

    assert {trial.spec.depth for trial in result.evidence.trials} == {1, 2}
    assert len([event for event in heard if event.phase == "store" and event.done == 0]) == len(
        ("train", "valid", "test")
    )


def test_stores_count_as_one_pass_in_the_cost(tmp_path):
    evidence = fl.fit(small_task(), budget=4.0, epochs=3, engine="torch", out=tmp_path / "run").evidence

    forward, share = evidence.graph.flops, evidence.graph.frozen_share
    rest = evidence.cost.flops - sum(trial.flops for trial in evidence.trials)
    # One pass that votes, five timed steps of 32 samples, and the scoring of the test part.
    rest -= forward * (60 + 5 * 3 * 32 + 60 * (1 + share(evidence.choice.depth)))
    assert rest == pytest.approx(share(2) * forward * (60 + 60))


def test_the_test_part_plays_no_part_in_the_choice(tmp_path):
    plain = points(2)
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(3))
    scrambled = fl.TensorSamples(*plain.read(range(len(plain))), plain.labels[order])

    first = fl.fit(small_task(plain), epochs=3, engine="torch", out=tmp_path / "plain")
    second = fl.fit(small_task(scrambled), epochs=3, engine="torch", out=tmp_path / "scrambled")

    assert first.choice == second.choice
    assert first.valid == second.valid
    assert first.test != second.test


def test_the_same_arguments_give_the_same_choice_and_scores(tmp_path):
    first = fl.fit(small_task(), epochs=3, engine="torch", out=tmp_path / "first")
    second = fl.fit(small_task(), epochs=3, engine="torch", out=tmp_path / "second")

    assert first.choice == second.choice
    assert first.test == second.test


def test_another_seed_trains_otherwise(tmp_path):
    first = fl.fit(small_task(), depth=1, epochs=3, seed=0, engine="torch", out=tmp_path / "first")
    second = fl.fit(small_task(), depth=1, epochs=3, seed=1, engine="torch", out=tmp_path / "second")

    assert first.valid.losses != second.valid.losses


def test_a_folder_of_other_arguments_is_refused_and_untouched(tmp_path):
    fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=tmp_path / "run")
    before = (tmp_path / "run" / "evidence.json").read_bytes()

    with pytest.raises(RunOfOtherArguments, match=r"epochs \(2 there, 3 asked\).*--out"):
        fl.fit(small_task(), depth=1, epochs=3, engine="torch", out=tmp_path / "run")

    assert (tmp_path / "run" / "evidence.json").read_bytes() == before


def test_a_folder_of_other_data_is_refused(tmp_path):
    fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=tmp_path / "run")
    other = fl.Task(network(), points(7), points(1), points(2))

    with pytest.raises(RunOfOtherArguments, match="data, split, preprocessing or weights"):
        fl.fit(other, depth=1, epochs=2, engine="torch", out=tmp_path / "run")


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    with hold(folder), pytest.raises(RunBusy, match=str(os.getpid())):
        fl.fit(small_task(), epochs=2, engine="torch", out=folder)


@pytest.mark.parametrize(
    ("name", "value"), [("budget", 0.0), ("budget", -1.0), ("epochs", 0), ("views", 0), ("disk", -1)]
)
def test_values_outside_their_range_are_refused_before_any_work(tmp_path, name, value):
    with pytest.raises(BadArgument, match=name):
        fl.fit(small_task(), out=tmp_path / "run", **{name: value})

    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A run with all the disk it wants."""
    return fl.fit(small_task(), budget=9.0, epochs=3, engine="torch", out=tmp_path_factory.mktemp("roomy") / "run")


def test_a_run_without_disk_for_rows_ends_with_the_choice_and_the_answers_of_one_that_keeps_them(tmp_path, roomy):
    computed = fl.fit(small_task(), budget=9.0, epochs=3, engine="torch", disk=0, out=tmp_path / "run")

    assert not (tmp_path / "run" / "store").exists()
    assert computed.evidence.plan.computed == (1, 2)
    assert (computed.choice.depth, computed.choice.trial) == (roomy.choice.depth, roomy.choice.trial)
    assert computed.test.predictions == roomy.test.predictions
    torch.testing.assert_close(torch.tensor(computed.valid.losses), torch.tensor(roomy.valid.losses), **CLOSE)


def test_the_rows_of_what_does_not_fit_on_the_free_disk_are_computed_anew_and_the_plan_says_why(tmp_path, monkeypatch):
    # Sixteen numbers of four bytes cross either cut, for 180 samples.
    monkeypatch.setattr(flow, "free_bytes", lambda path: 180 * 64 + 100)

    result = fl.fit(small_task(), budget=9.0, epochs=2, engine="torch", disk=10**9, out=tmp_path / "run")

    plan = result.evidence.plan
    assert plan.computed == (1,)
    assert plan.store_bytes == 120 * 64
    [note] = [note for note in plan.notes if "computed anew" in note]
    assert note.startswith(
        "The rows of depth 1 would take 11.5 kB, and kept rows may take 11.6 kB, of which those of depth 2 take "
        "11.5 kB: they are computed anew in every epoch, which costs ."
    )
    assert {folder.name for folder in (tmp_path / "run" / "store").iterdir()} <= {"train-02", "valid-02", "test-02"}


def test_plans_are_as_they_were_where_all_rows_fit(roomy):
    plan = roomy.evidence.plan

    assert (plan.computed, plan.budget.pass_shares) == ((), ())
    assert not any("anew" in note for note in plan.notes)


def test_the_operations_of_what_is_computed_anew_are_counted(tmp_path, roomy):
    computed = fl.fit(small_task(), budget=9.0, epochs=3, engine="torch", disk=0, out=tmp_path / "run").evidence

    kept, share = roomy.evidence, roomy.evidence.graph.frozen_share
    for trial, other in zip(computed.trials, kept.trials, strict=True):
        live = (1 - share(trial.spec.depth)) * kept.graph.flops
        looks = len(other.curve)
        learnt = (other.flops / live - 60 * looks) / 3
        assert trial.flops - other.flops == pytest.approx(
            share(trial.spec.depth) * kept.graph.flops * (learnt + 60 * looks)
        )
    rest = computed.cost.flops - sum(trial.flops for trial in computed.trials)
    # One pass that votes, five timed steps of 32 samples, and the scoring of the test and the validation part.
    forward, frozen = kept.graph.flops, share(computed.choice.depth)
    assert rest == pytest.approx(forward * (60 + 5 * 3 * 32 + 60 * (1 + frozen) + 60 * frozen))


def test_the_budget_in_operations_holds_where_rows_are_computed_anew(tmp_path):
    result = fl.fit(small_task(), budget=1.0, epochs=40, engine="torch", disk=0, out=tmp_path / "run")

    assert result.evidence.plan.computed
    assert result.cost.share_flops <= 1.0


@pytest.mark.parametrize("disk", [0, None])
def test_a_run_that_is_gone_on_with_keeps_what_its_plan_has_settled(tmp_path, disk):
    def stop(event: Event) -> None:
        if event.phase == "train" and trials_in(tmp_path / "run") >= 1:
            raise KeyboardInterrupt

    asked = {"budget": 9.0, "epochs": 3, "engine": "torch", "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        fl.fit(small_task(), **asked, disk=disk, listener=stop)
    settled = (tmp_path / "run" / "plan.json").read_bytes()
    result = fl.fit(small_task(), **asked, disk=None if disk == 0 else 0)

    assert (tmp_path / "run" / "plan.json").read_bytes() == settled
    assert result.evidence.plan.computed == ((1, 2) if disk == 0 else ())
    assert (tmp_path / "run" / "store").exists() == (disk is None)


def test_a_plan_of_before_rows_were_computed_anew_is_gone_on_with(tmp_path, roomy):
    def stop(event: Event) -> None:
        if event.phase == "train":
            raise KeyboardInterrupt

    asked = {"budget": 9.0, "epochs": 3, "engine": "torch", "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        fl.fit(small_task(), **asked, listener=stop)
    file = tmp_path / "run" / "plan.json"
    content = json.loads(file.read_text())
    gone = content.pop("computed"), content["budget"].pop("pass_shares")
    file.write_text(json.dumps(content))

    again = fl.fit(small_task(), **asked)

    assert gone == ([], [])
    assert again.choice == roomy.choice


def test_a_given_depth_without_disk_for_its_rows_is_trained_for_all_its_epochs(tmp_path):
    result = fl.fit(small_task(), depth=1, epochs=4, engine="torch", disk=0, out=tmp_path / "run")

    assert result.evidence.plan.computed == (1,)
    assert max(trial.epochs for trial in result.evidence.trials) == 4


def test_a_trial_that_diverges_is_a_failed_trial_and_the_search_goes_on(tmp_path, monkeypatch):
    real = flow.tune

    def tune(live, *rows, spec, **others):
        if spec.depth == 1:
            with torch.no_grad():
                next(live.parameters()).fill_(float("nan"))
        return real(live, *rows, spec=spec, **others)

    monkeypatch.setattr(flow, "tune", tune)

    result = fl.fit(small_task(), budget=4.0, epochs=4, engine="torch", out=tmp_path / "run")

    failed = [trial for trial in result.evidence.trials if trial.failure]
    assert {trial.spec.depth for trial in failed} == {1}
    assert "loss" in failed[0].failure
    assert result.depth != 1


def test_a_run_whose_every_trial_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "tune", lambda *_, spec, **__: Trial(spec=spec, failure="the training loss is nan"))

    with pytest.raises(AllTrialsFailed, match="the training loss is nan"):
        fl.fit(small_task(), epochs=2, engine="torch", out=tmp_path / "run")


def test_a_run_of_before_there_was_a_precision_is_gone_on_with(tmp_path):
    first = fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=tmp_path / "run")
    file = tmp_path / "run" / "arguments.json"
    content = json.loads(file.read_text())
    asked = content.pop("precision")
    file.write_text(json.dumps(content))

    again = fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=tmp_path / "run")

    assert asked == "auto"
    assert again.test == first.test


def test_a_precision_that_does_not_exist_is_refused_before_any_work(tmp_path):
    with pytest.raises(BadArgument, match="precision is 'bfloat16'; it must be one of auto, float32"):
        fl.fit(small_task(), precision="bfloat16", out=tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_the_plan_keeps_the_engine_its_precision_and_why(tmp_path):
    fl.fit(small_task(), depth=1, epochs=2, precision="float32", out=tmp_path / "run")

    engine = json.loads((tmp_path / "run" / "plan.json").read_text())["rates"]["engine"]

    assert engine["precision"] == "float32"
    assert "rows a second" in engine["why"]
    assert engine["rows_per_second"] > 0


def test_the_votes_are_computed_by_what_was_tried_and_one_more_is_made_for_the_stores(tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    made = []

    def counting(module, example):
        made.append(type(module).__name__)
        return converted(module, example)

    monkeypatch.setattr("frostline.engines.converted", counting)

    fl.fit(small_task(), depth=2, epochs=1, engine="openvino", out=tmp_path / "run")

    assert len(made) == 2, made


def test_what_a_listener_raises_is_no_failed_trial(tmp_path):
    def listener(event: Event) -> None:
        if event.phase == "train":
            raise ValueError("the pipe is closed")

    with pytest.raises(ValueError, match="the pipe is closed"):
        fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=tmp_path / "run", listener=listener)

    assert trials_in(tmp_path / "run") == 0


def test_an_unproven_cut_is_never_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("frostline.site.prove", lambda model, graph, depth, example: "planted" if depth == 1 else None)

    result = fl.fit(small_task(), budget=4.0, epochs=4, engine="torch", out=tmp_path / "searched")

    assert all(trial.failure for trial in result.evidence.trials if trial.spec.depth == 1)
    with pytest.raises(CutNotProven, match="planted"):
        fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=tmp_path / "asked")


def test_a_search_broken_off_goes_on_from_the_trials_it_has(tmp_path):
    whole = fl.fit(small_task(), budget=4.0, epochs=3, engine="torch", out=tmp_path / "whole")

    def stop(event: Event) -> None:
        if event.phase == "train" and trials_in(tmp_path / "broken") >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fl.fit(small_task(), budget=4.0, epochs=3, engine="torch", out=tmp_path / "broken", listener=stop)
    kept = trials_in(tmp_path / "broken")
    gone_on = fl.fit(small_task(), budget=4.0, epochs=3, engine="torch", out=tmp_path / "broken")

    assert kept == 2
    assert gone_on.choice == whole.choice
    assert gone_on.test == whole.test


def striped_task(folder: Path) -> fl.Task:
    (folder / "nets.py").write_text(NETWORK)
    return fl.load_task(write_stripes(folder / "data", samples=12), model=f"{folder / 'nets.py'}:make", image_size=24)


def test_few_pictures_are_kept_in_several_views_unless_one_is_asked_for(tmp_path):
    task = striped_task(tmp_path)

    chosen, asked = (
        fl.fit(task, depth=1, engine="torch", views=views, out=tmp_path / f"run-{views}") for views in (None, 1)
    )

    assert [result.evidence.plan.views for result in (chosen, asked)] == [4, 1]
    assert [
        json.loads((result.folder / "store" / "train-01" / "manifest.json").read_text())["identity"]["views"]
        for result in (chosen, asked)
    ] == [4, 1]
    assert any(note.startswith("Of each training sample 4 views are kept") for note in chosen.evidence.plan.notes)


def test_samples_that_have_one_view_are_kept_in_one(tmp_path):
    assert fl.plan(small_task(), engine="torch").views == 1


def test_a_damaged_picture_of_the_test_part_is_named_before_anything_is_trained(tmp_path):
    task, heard = striped_task(tmp_path), []
    name = task.test.names[0]
    (tmp_path / "data" / name).write_bytes(b"junk")

    with pytest.raises(BadSample, match=name):
        fl.fit(task, epochs=2, engine="torch", out=tmp_path / "run", listener=heard.append)

    assert "train" not in {event.phase for event in heard}
    assert trials_in(tmp_path / "run") == 0


def test_decoding_in_the_first_pass_counts_as_reading_and_not_as_cost(tmp_path, monkeypatch):
    task, heard, moved, told = striped_task(tmp_path), [], [], iter([2.0, 7.0])
    monkeypatch.setattr(flow, "decoding_seconds", lambda samples: next(told))
    monkeypatch.setattr(Clock, "move", lambda clock, seconds, source, target: moved.append((seconds, source, target)))

    fl.fit(task, depth=-1, epochs=2, engine="torch", out=tmp_path / "run", listener=heard.append)

    assert moved == [(5.0, "probe", "read")]
    assert "read" not in flow.COUNTED
    assert any(event.phase == "probe" and "waiting for" in event.note for event in heard)


def trials_in(folder: Path) -> int:
    file = folder / "trials.jsonl"
    return len(read_records(file, Trial)) if file.exists() else 0


def test_the_user_s_network_is_left_as_it_was(tmp_path):
    task = small_task()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    task.model[1].eval()

    fl.fit(task, epochs=2, engine="torch", out=tmp_path / "run")

    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    assert [module.training for module in task.model] == [True, False, True, True, True]
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.model.modules())


def test_plan_predicts_every_open_depth_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    plan = fl.plan(small_task(), engine="torch")

    assert [forecast.depth for forecast in plan.forecasts] == [0, 1, 2]
    assert plan.forecasts[0].store_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_texts_shows_their_tokens_and_no_padding(tmp_path):
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 10, (90, 6), generator=draws)
    is_padding = torch.arange(6) >= torch.randint(2, 7, (90, 1), generator=draws)
    labels = ids[:, 0] % 3
    words = [f"word{token}" for token in range(10)] + ["[PAD]"]
    ids = ids.masked_fill(is_padding, 10)
    part = [fl.TensorSamples((ids[k::3], is_padding[k::3]), labels[k::3], words=words) for k in range(3)]

    fl.fit(fl.Task(specimen("padded_tokens").model, *part), epochs=1, engine="torch", out=tmp_path / "run")

    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "<mark>word" in text
    assert "[PAD]" not in text


class Recomputed:
    """Rows that are computed anew by the frozen part at every reading."""

    views = 1

    def __init__(self, frozen, samples) -> None:
        self.frozen, self.samples = frozen, samples

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows, view: int = 0):
        return self.frozen(*self.samples.read(rows, view))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_training_on_stored_rows_is_training_with_the_frozen_part_recomputed(tmp_path, engine):
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    x = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    samples = fl.TensorSamples(x, (x[:, 0].mean(dim=(1, 2)) > 0).long())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 2),
        )  # fmt: skip
    graph = fl.trace(net, x[:4])
    recipe = Recipe(learning_rate=1e-2, batch_size=16)
    spec = TrialSpec(depth=1, recipe=recipe, seed=0, epochs=3)

    def trained(rows_of) -> Trial:
        parts = fl.split(net, graph, 1)
        rows = rows_of(parts.frozen)
        labels = {"train_labels": samples.labels, "valid_labels": samples.labels}
        return fl.tune(parts.live, rows, rows, **labels, spec=spec, save_to=tmp_path / "trial.safetensors")

    stored = trained(lambda frozen: fl.cache(frozen, samples, tmp_path / "store", engine=engine, batch_size=16))
    recomputed = trained(lambda frozen: Recomputed(frozen, samples))

    assert len(stored.curve) == 4
    for curve in ("train_loss", "valid_loss"):
        ours, theirs = ([getattr(point, curve) for point in trial.curve[1:]] for trial in (stored, recomputed))
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **CLOSE)
    torch.testing.assert_close(torch.tensor(stored.losses), torch.tensor(recomputed.losses), **CLOSE)


@pytest.mark.parametrize(
    ("precision", "can", "seconds", "trained_in"),
    [
        ("auto", True, 0.5, "bfloat16"),
        ("auto", True, 0.9, "float32"),
        ("auto", True, None, "float32"),
        ("auto", False, 0.5, "float32"),
        ("float32", True, 0.5, "float32"),
    ],
    ids=["quicker", "hardly quicker", "refused", "no such machine", "not wanted"],
)
def test_training_is_in_fewer_bits_where_that_is_measured_to_pay(
    tmp_path, monkeypatch, precision, can, seconds, trained_in
):
    def timed(site, inputs, labels, recipe, *, repeats=5):
        if recipe.precision == "float32":
            return 1.0, 1.0, 1.0
        if seconds is None:
            raise RuntimeError("expected Float but found BFloat16")
        return (seconds,) * 3

    monkeypatch.setattr(flow, "has_bfloat16", lambda device: can)
    monkeypatch.setattr(flow, "timed", timed)

    plan = fl.plan(small_task(), epochs=2, engine="torch", precision=precision)

    assert plan.recipe.precision == trained_in
    assert plan.rates.step_seconds == (seconds if trained_in == "bfloat16" else 1.0)


def test_bfloat16_is_given_up_after_a_glance_that_is_no_quicker(tmp_path, monkeypatch):
    asked = []

    def timed(site, inputs, labels, recipe, *, repeats=5):
        asked.append((recipe.precision, repeats))
        return 1.0, 1.0, 1.0

    monkeypatch.setattr(flow, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(flow, "timed", timed)

    fl.plan(small_task(), epochs=2, engine="torch")

    assert asked == [("float32", 5), ("bfloat16", 1)]


def test_where_steps_are_brief_it_is_not_tried_whether_bfloat16_is_quicker(tmp_path, monkeypatch):
    asked = []

    def timed(site, inputs, labels, recipe, *, repeats=5):
        asked.append(recipe.precision)
        return (0.1 if recipe.precision == "float32" else 0.01,) * 3

    monkeypatch.setattr(flow, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(flow, "timed", timed)

    result = fl.fit(small_task(), depth=1, epochs=1, engine="torch", out=tmp_path / "run")

    assert asked == ["float32"]
    assert {trial.spec.recipe.precision for trial in result.evidence.trials} == {"float32"}


@pytest.mark.parametrize(("name", "can"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_a_processor_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, name, can):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True, "amx_fp16": False}, raising=False)

    assert flow.has_bfloat16(torch.device("cpu")) is can


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_ten_moments_ends_like_an_unbroken_one(tmp_path):
    data = write_stripes(tmp_path / "stripes")
    (tmp_path / "net.py").write_text(NETWORK)

    unbroken = finished(start(tmp_path, data, "unbroken"))
    lines = [json.loads(line)["phase"] for line in (tmp_path / "unbroken" / "events.jsonl").read_text().splitlines()]
    moments = [number for number, phase in enumerate(lines) if phase in ("store", "train")]
    moments = [moments[round(i * (len(moments) - 1) / 9)] for i in range(10)]

    for number in moments:
        name = f"killed-{number}"
        process = start(tmp_path, data, name)
        assert kill_at(process, tmp_path / name / "events.jsonl", number), f"ended before event {number}"
        again = finished(start(tmp_path, data, name))

        assert {key: again[key] for key in SAME_AFTER_A_KILL} == {key: unbroken[key] for key in SAME_AFTER_A_KILL}


SAME_AFTER_A_KILL = ("depth", "stage_name", "reason", "test", "valid", "disagreement", "trials")


def start(folder: Path, data: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "frostline", "fit", str(data), "--model", f"{folder / 'net.py'}:make"]
    command += ["--image-size", "32", "--epochs", "4", "--engine", "torch", "--out", str(folder / name), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output)


def kill_at(process: subprocess.Popen[str], events: Path, number: int) -> bool:
    """Kill -9 once the run has written that many events; False where it ended before."""
    while process.poll() is None:
        if events.exists() and events.read_bytes().count(b"\n") > number:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.002)
    return False
