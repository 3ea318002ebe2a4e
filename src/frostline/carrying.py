"""Inputs and rows brought to where a network is; on a GPU one batch ahead of the work."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar, final

import torch
from torch import nn

Read = Callable[[], tuple[torch.Tensor, ...]]
"""Gives the tensors of one batch, anew at each call."""

_T = TypeVar("_T")


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its first parameter is, or its first buffer; else the processor.

    Example:
        >>> device_of(nn.Linear(2, 2)), device_of(nn.ReLU()), device_of(nn.Linear(2, 2, device="meta"))
        (device(type='cpu'), device(type='cpu'), device(type='meta'))
    """
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def carried(tensors: Iterable[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The same tensors on a device; those that are there already are not copied.

    Example:
        >>> given = torch.ones(2)
        >>> carried((given,), torch.device("cpu"))[0] is given
        True
    """
    return tuple(tensor.to(device) for tensor in tensors)


class _Sent(NamedTuple):
    """Tensors on their way to a GPU, and the event of their arrival."""

    tensors: tuple[torch.Tensor, ...]
    arrived: torch.cuda.Event


@final
class Carrier:
    """Brings batches to a device in the order in which they are worked on.

    For a processor each is read when it is asked for, by the thread that asks: a second one would take its time from
    the work. For a GPU, which works by itself, a thread reads the next batch meanwhile, and sends it from pinned memory
    on a stream of its own, so that the GPU waits neither for the reading nor for the copy. Three batches at most are
    there at once.

    Args:
        device: Where the batches are wanted.

    Example:
        >>> with Carrier(torch.device("cpu")).ahead([lambda: (torch.ones(2),), lambda: (torch.zeros(2),)]) as reads:
        ...     [read()[0].tolist() for read in reads]
        [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._used: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
            # Samples may lie on the GPU themselves, and be made there still.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def ahead(self, reads: Iterable[Read]) -> Iterator[Iterator[Read]]:
        """Inside, give for each of the reads, in order, a call that has its tensors on the device.

        On a processor that call may be repeated and reads anew. What a read raises is raised where its batch is asked
        for; when the block ends, however it does, so has the thread.
        """
        stream = self._stream
        if stream is None:
            yield (partial(self._fetched, read) for read in reads)
            return
        # A read is taken from these when it is the next one, so each is told of the batch that was used last by then.
        with one_ahead(partial(self._sent, read, stream, self._used) for read in reads) as sent:
            yield (partial(self._received, each) for each in sent)

    def _fetched(self, read: Read) -> tuple[torch.Tensor, ...]:
        return carried(read(), self.device)

    def _sent(self, read: Read, stream: torch.cuda.Stream, used: torch.cuda.Event | None) -> _Sent:
        if used is not None:
            # Steps are only queued on a GPU: without this the memory would fill with batches that wait for theirs.
            used.synchronize()
        with torch.cuda.stream(stream):
            pinned = [tensor.pin_memory() if tensor.device.type == "cpu" else tensor for tensor in read()]
            there = tuple(tensor.to(self.device, non_blocking=True) for tensor in pinned)
            return _Sent(there, stream.record_event())

    def _received(self, sent: _Sent) -> tuple[torch.Tensor, ...]:
        here = torch.cuda.current_stream(self.device)
        self._used = here.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]  # untyped in torch
        here.wait_event(sent.arrived)
        for tensor in sent.tensors:
            # Their memory belongs to the other stream, which must not use it again before this one is done with it.
            tensor.record_stream(here)
        return sent.tensors


@contextmanager
def one_ahead(reads: Iterable[Callable[[], _T]]) -> Iterator[Iterator[_T]]:
    """Inside, give what each call gives, in order; a thread makes the next one while this one is worked on.

    Example:
        >>> with one_ahead([lambda: 1, lambda: 2]) as numbers:
        ...     list(numbers)
        [1, 2]
    """
    with ThreadPoolExecutor(1) as thread:
        yield _in_order(reads, thread)


def _in_order(reads: Iterable[Callable[[], _T]], thread: ThreadPoolExecutor) -> Iterator[_T]:
    under_way: deque[Future[_T]] = deque()
    for read in reads:
        under_way.append(thread.submit(read))
        if len(under_way) > 1:
            yield under_way.popleft().result()
    if under_way:
        yield under_way.popleft().result()
