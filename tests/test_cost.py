"""Seconds, shares and intervals."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline import cost
from frostline.cost import Clock, stage_seconds, step_seconds, wilson
from frostline.errors import BadArgument


class Hand:
    """A clock whose hand we move."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def hand(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(cost.time, "perf_counter", hand.perf_counter)
    return hand


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10), st.sampled_from("abc"), st.floats(0, 10)), max_size=6)
)
@settings(max_examples=25, deadline=None)
def test_every_second_inside_a_phase_is_counted_once(script):
    hand = Hand()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost.time, "perf_counter", hand.perf_counter)
        clock = Clock()
        for outer, before, inner, within in script:
            with clock.phase(outer):
                hand.now += before
                with clock.phase(inner):
                    hand.now += within
            hand.now += 100.0  # between phases

        total = clock.seconds()

    assert math.isclose(total, sum(row[1] + row[3] for row in script), abs_tol=1e-6)


def test_inner_phase_takes_its_seconds_from_the_outer_one(hand):
    clock = Clock()

    with clock.phase("train"):
        hand.now += 3
        with clock.phase("score"):
            hand.now += 2
        hand.now += 1

    assert clock.by_phase == (("train", 4.0), ("score", 2.0))


def test_clock_counts_on_from_an_interrupted_run(hand):
    clock = Clock((("read", 1.5), ("train", 10.0)))

    with clock.phase("train"):
        hand.now += 5

    assert clock.by_phase == (("read", 1.5), ("train", 15.0))


def test_a_failure_inside_a_phase_is_paid_for_too(hand):
    clock = Clock()

    with contextlib.suppress(ValueError), clock.phase("train"):
        hand.now += 2
        raise ValueError

    assert clock.seconds("train") == 2


def test_a_phase_still_open_counts_so_far(hand):
    clock = Clock()

    with clock.phase("train"):
        hand.now += 2
        so_far = clock.seconds("train")

    assert so_far == 2


def test_step_is_timed_without_its_first_call(hand):
    lengths = iter([100.0, 1.0, 5.0, 2.0])

    def step():
        hand.now += next(lengths)

    assert step_seconds(step, repeats=3) == (2.0, 1.0, 5.0)


def test_a_step_ends_when_the_device_has_done_it(hand, monkeypatch):
    gpu, asked = torch.device("cuda", 0), []

    def catch_up(device):
        hand.now += 10.0 * len(asked) if device == gpu else 0.0
        asked.clear()

    monkeypatch.setattr(cost, "caught_up", catch_up)

    assert step_seconds(lambda: asked.append(1), repeats=3, device=gpu) == (10.0, 10.0, 10.0)


def test_a_stage_ends_when_the_device_has_done_it(hand, monkeypatch):
    asked = []

    class Asking(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, x):
            asked.append(self.seconds)
            return x

    def catch_up(device):
        hand.now += sum(asked)
        asked.clear()

    monkeypatch.setattr(cost, "caught_up", catch_up)

    assert stage_seconds(nn.Sequential(Asking(1), Asking(3)), (torch.zeros(1),), ("0", "1")) == (0.25, 0.75)


def test_no_repeats_are_refused():
    with pytest.raises(BadArgument, match="repeats is 0"):
        step_seconds(lambda: None, repeats=0)


def slow(hand, seconds):
    class Slow(nn.Module):
        def forward(self, x):
            hand.now += seconds
            return x

    return Slow()


def test_stages_take_the_share_between_their_returns(hand):
    net = nn.Sequential(slow(hand, 1), nn.Sequential(slow(hand, 2), slow(hand, 1)), slow(hand, 4))

    shares = stage_seconds(net, (torch.zeros(1),), ("0", "1", "2"))

    assert shares == (0.125, 0.375, 0.5)


def test_a_module_that_returns_twice_ends_its_stage_at_the_last(hand):
    twice = slow(hand, 1)
    net = nn.Sequential(twice, slow(hand, 1), twice, slow(hand, 1))

    shares = stage_seconds(net, (torch.zeros(1),), ("0", "3"))

    assert shares == (0.75, 0.25)


def test_a_stage_that_an_earlier_one_outlasts_takes_nothing(hand):
    again = slow(hand, 1)
    net = nn.Sequential(again, slow(hand, 1), again, slow(hand, 1))

    # The first stage's module returns once more, after the second stage's.
    assert stage_seconds(net, (torch.zeros(1),), ("0", "1", "3")) == (0.75, 0.0, 0.25)


def test_glue_after_the_head_belongs_to_the_last_stage(hand):
    net = nn.Sequential(slow(hand, 1), slow(hand, 1), slow(hand, 2))

    assert stage_seconds(net, (torch.zeros(1),), ("0", "1")) == (0.25, 0.75)


def test_no_hook_stays_on_the_measured_copy():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    stage_seconds(net, (torch.zeros(1, 2),), ("0", "1"))

    assert not any(part._forward_hooks for part in net.modules())


@given(st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_interval_holds_the_share_and_stays_in_0_to_1(a, b):
    hits, n = min(a, b), max(a, b)

    low, high = wilson(hits, n)

    assert 0 <= low <= (hits / n if n else 0.5) <= high <= 1


def test_interval_agrees_with_published_figures():
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }

    for (hits, n), ends in published.items():
        assert tuple(round(end, 4) for end in wilson(hits, n)) == ends


def test_more_hits_than_tries_are_refused():
    with pytest.raises(BadArgument, match="3 hits of 2"):
        wilson(3, 2)


def test_seconds_that_belong_to_another_phase_are_moved_and_none_is_lost_or_made_up():
    clock = Clock([("probe", 5.0), ("read", 1.0)])

    clock.move(2.0, source="probe", target="read")
    clock.move(9.0, source="probe", target="compile")
    clock.move(1.0, source="nothing", target="read")

    assert dict(clock.by_phase) == {"probe": 0.0, "read": 3.0, "compile": 3.0}
