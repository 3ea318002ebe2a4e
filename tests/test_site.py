"""Where a run stands."""

import contextlib
import json

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.cost import Clock
from frostline.errors import BadArgument
from frostline.events import Event
from frostline.files import read_record
from frostline.records import Spent
from frostline.site import diary, live_flops, set_out, spent, with_views


def task():
    part = fl.TensorSamples(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2)
    return fl.Task(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), part, part, part)


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
