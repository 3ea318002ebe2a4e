"""Where a run stands."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import frostline as fl
from frostline import site as site_module
from frostline.cost import Clock
from frostline.engines import compiled
from frostline.errors import BadArgument
from frostline.events import Event
from frostline.files import read_record
from frostline.records import EngineReport, Spent
from frostline.site import diary, fill, live_flops, passed, rows_of, set_out, spent, with_views
from frostline.splitting import depths_of
from frostline.testing import CLOSE


def task():
    part = fl.TensorSamples(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2)
    return fl.Task(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), part, part, part)


def deeper_task():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return fl.Task(net, *[task().train] * 3)


def plan_of(engine, *, computed=()):
    return SimpleNamespace(views=1, rates=SimpleNamespace(engine=EngineReport(engine=engine)), computed=computed)


def test_the_diary_keeps_the_beginning_and_the_end_of_a_phase_and_hands_on_everything(tmp_path):
    heard = []
    with diary(tmp_path, heard.append) as listen:
        for done in range(4):
            listen(Event(phase="store", done=done, total=3))

    kept = [json.loads(line)["done"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]

    assert kept == [0, 3]
    assert [event.done for event in heard] == [0, 1, 2, 3]


def test_what_a_listener_raises_passes_those_who_catch_exceptions(tmp_path):
    def refuse(event):
        raise ValueError("the listener's own")

    def work():
        with diary(tmp_path, refuse) as listen, contextlib.suppress(Exception):
            listen(Event(phase="train"))

    with pytest.raises(ValueError, match="the listener's own"):
        work()


def test_seconds_of_a_run_that_is_gone_on_with_count_on(tmp_path):
    with spent("train", tmp_path, Clock([("train", 5.0)])):
        pass

    assert dict(read_record(tmp_path / "clock.json", Spent).by_phase)["train"] >= 5.0


def test_live_operations_are_those_above_the_cut(tmp_path):
    site = set_out(task(), tmp_path, lambda event: None)

    assert live_flops(site.graph, 0) == site.graph.flops
    assert live_flops(site.graph, 1) == site.graph.stages[1].flops


def test_views_that_samples_cannot_make_are_refused():
    with pytest.raises(BadArgument, match="these samples have 1"):
        with_views(task().train, 2)


def test_what_was_compiled_for_several_depths_fills_their_training_and_validation_stores(tmp_path, monkeypatch):
    made = []

    def compiling(module, example, *, engine, precision, piece):
        made.append(depths_of(module))
        run = compiled(module, example)
        run.engine = engine
        return run

    monkeypatch.setattr(site_module, "compiled", compiling)
    small = deeper_task()
    site = set_out(small, tmp_path, lambda event: None)
    plan = plan_of("compile")

    fill(site, [0, 1, 2], plan)
    rows = [
        rows_of(site, fl.split(site.base, site.graph, depth), small.valid, part="valid", plan=plan) for depth in (1, 2)
    ]

    assert made == [(1, 2)]
    assert [kept.read([0])[0].shape for kept in rows] == [(1, 6), (1, 5)]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        f"{part}-{depth:02d}" for part in ("train", "valid") for depth in (1, 2)
    ]


def test_the_rows_of_a_computed_depth_are_never_written_and_made_ready_once(tmp_path):
    small, plan = deeper_task(), plan_of("torch", computed=(1,))
    site = set_out(small, tmp_path, lambda event: None)
    parts = fl.split(site.base, site.graph, 1)

    fill(site, [0, 1, 2], plan)
    rows, again = (rows_of(site, parts, small.train, part="train", plan=plan) for _ in range(2))
    found = rows.read([3, 1])

    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["train-02", "valid-02"]
    assert again is rows
    assert passed(rows, rows_of(site, parts, small.valid, part="valid", plan=plan), small.train) == 2
    torch.testing.assert_close(found, parts.frozen(*small.train.read([3, 1])), **CLOSE)
