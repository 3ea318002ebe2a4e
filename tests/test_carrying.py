"""Batches on their way to where a network is."""

import contextlib
import threading

import pytest
import torch
from torch import nn

from frostline.carrying import Carrier, carried, device_of, one_ahead

PROCESSOR = torch.device("cpu")


def test_batches_come_in_order_and_the_next_one_is_read_meanwhile():
    begun = [threading.Event() for _ in range(3)]

    def reading(number):
        def read():
            begun[number].set()
            return number, threading.current_thread()

        return read

    with one_ahead(map(reading, range(3))) as batches:
        seen = []
        for number, thread in batches:
            assert begun[min(number + 1, 2)].wait(10)
            seen.append((number, thread is threading.current_thread()))

    assert seen == [(0, False), (1, False), (2, False)]


def test_no_more_than_one_batch_is_read_ahead():
    asked = []

    def calls():
        for number in range(4):
            asked.append(number)
            yield lambda: None

    with one_ahead(calls()) as batches:
        counts = [len(asked) for _ in batches]

    assert counts == [2, 3, 4, 4]


def test_nothing_to_read_is_no_batch():
    with one_ahead([]) as batches:
        assert list(batches) == []


def test_the_thread_is_gone_once_the_work_has_raised():
    before, during = set(threading.enumerate()), set()

    def work():
        with one_ahead([lambda: None] * 3) as batches:
            next(batches)
            during.update(threading.enumerate())
            1 / 0

    with pytest.raises(ZeroDivisionError):
        work()

    assert during - before
    assert not set(threading.enumerate()) - before


def test_what_a_read_raises_arrives_where_its_batch_is_asked_for():
    def fail():
        raise OSError("the disk is gone")

    seen = []

    def work():
        with one_ahead([lambda: 0, lambda: 1, fail]) as batches:
            seen.extend(batches)

    with pytest.raises(OSError, match="the disk is gone"):
        work()

    assert seen == [0, 1]


def test_for_a_processor_the_asking_thread_reads_when_it_asks_and_may_ask_again():
    given, threads = [torch.ones(2), torch.zeros(2)], []

    def reading(tensor):
        def read():
            threads.append(threading.current_thread())
            return (tensor,)

        return read

    with Carrier(PROCESSOR).ahead(map(reading, given)) as reads:
        first = next(reads)
        assert not threads
        tensors = [first()[0], first()[0], next(reads)()[0]]

    assert [id(tensor) for tensor in tensors] == [id(given[0]), id(given[0]), id(given[1])]
    assert set(threads) == {threading.current_thread()}


class Event:
    """An event of a GPU that is not there; what is done with it is noted."""

    def __init__(self, blocking=False):
        self.after = None

    def synchronize(self):
        NOTED.append(("reader waits until done", self.after))


class Stream:
    """A stream of a GPU that is not there."""

    def __init__(self, name):
        self.name = name

    def wait_stream(self, other):
        pass

    def record_event(self, event=None):
        event = event or Event()
        event.after = len([entry for entry in NOTED if entry == (self.name, "arrival")])
        return event

    def wait_event(self, event):
        NOTED.append((self.name, "arrival"))


NOTED = []


@pytest.fixture
def no_gpu_but_its_calls(monkeypatch):
    """Note what is asked of a GPU, and let tensors stay where they are."""
    NOTED.clear()
    work, pinned = Stream("work"), []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: NOTED.append(("held for", stream.name)))

    def to(tensor, device, non_blocking=False):
        is_pinned = any(tensor is one for one in pinned)
        NOTED.append(("sent", is_pinned, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)


def test_for_a_gpu_batches_are_sent_pinned_without_blocking_and_held_until_used(no_gpu_but_its_calls):
    reads = [lambda number=number: (torch.tensor(number), torch.ones(1)) for number in range(5)]

    with Carrier(torch.device("cuda", 0)).ahead(reads) as given:
        numbers = [int(read()[0]) for read in given]

    assert numbers == [0, 1, 2, 3, 4]
    assert [entry for entry in NOTED if entry[0] == "sent"] == [("sent", True, True)] * 10
    assert NOTED.count(("work", "arrival")) == 5
    assert NOTED.count(("held for", "work")) == 10


def test_a_gpu_is_sent_no_batch_before_it_is_done_with_the_one_three_before(no_gpu_but_its_calls):
    reads = [lambda: (torch.ones(1),)] * 6

    with Carrier(torch.device("cuda", 0)).ahead(reads) as given:
        for read in given:
            read()

    # Batch k + 2 is sent once what was asked of the GPU before batch k is done: all up to batch k - 1.
    assert [entry[1] for entry in NOTED if entry[0] == "reader waits until done"] == [0, 1, 2, 3]


def test_a_batch_goes_where_it_is_wanted_in_its_memory_order():
    x = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)

    with Carrier(torch.device("meta")).ahead([lambda: (x, torch.zeros(2))]) as reads:
        [(wire, labels)] = [read() for read in reads]

    assert (wire.device.type, labels.device.type) == ("meta", "meta")
    assert (wire.shape, wire.stride()) == (x.shape, x.stride())


def test_a_module_is_where_its_tensors_are():
    buffered = nn.Module()
    buffered.register_buffer("table", torch.ones(2, device="meta"))

    assert device_of(nn.Sequential(buffered, nn.Linear(1, 1))) == PROCESSOR
    assert device_of(buffered).type == "meta"
    assert device_of(nn.Flatten()) == PROCESSOR


def test_what_is_there_already_is_not_copied():
    x = torch.ones(2)

    assert carried([x], PROCESSOR)[0] is x
