"""What runs the frozen part: plain torch, OpenVINO or torch.compile, picked by measuring.

Everything here is inference: eval mode, no gradients, no network. An engine is used only where its outputs
are those of plain torch in float32, within a stated bound. What is on a GPU is run by torch.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from frostline.carrying import carried, device_of
from frostline.compiling import as_tuple, fused, owned, reduced
from frostline.converting import Conversion, Run, converted, is_installed
from frostline.copies import in_eval, plain_torch
from frostline.errors import BadArgument, MissingExtra
from frostline.records import EngineReport

EngineName = Literal["torch", "openvino", "compile"]
Precision = Literal["float32", "bfloat16"]

ENGINES = ("auto", "torch", "openvino", "compile")
PRECISIONS = ("auto", "float32")
"""What a user may ask for: fewer bits are never forced upon a network whose outputs they change."""

LARGEST_ERROR: Mapping[str, float] = MappingProxyType({"float32": 1e-3, "bfloat16": 1e-2})
"""By precision: an engine that is further from torch than that, relative to the largest value, is not used."""

LEAD = 1.2
"""torch is kept where it is that many times as fast as OpenVINO, and full precision where fewer bits are not."""

LEAST_SAVED = 1.0
"""Seconds: bits are given up, and half a second spent on finding out, only where the pass saves more than that."""

COMPILE_SECONDS = 60.0
"""What torch.compile may take; it is tried by itself only where the pass would take longer than that."""

PIECES = (2, 8)
"""Rows for one thread at a time: few of large pictures fit its cache, more of small ones keep it busy. By 2 rows Lite0
at 224 pixels is 1.24 times as fast as in batches of 32, by 8 rows 1.10 times at 96 pixels."""

_MADE: tuple[EngineName, ...] = ("openvino", "compile")

_SPOKEN = {"torch": "torch", "openvino": "OpenVINO", "compile": "torch.compile"}

_PROCESSOR = torch.device("cpu")

_log = logging.getLogger("frostline.engines")


class Compiler(Protocol):
    """Makes a function that runs a module fast at one batch shape; `compiled` is the plain one."""

    def __call__(self, module: nn.Module, example: tuple[Tensor, ...], *, engine: str, precision: str) -> "Compiled":
        """Make it for inputs of the shape of the example."""


def pick(
    module: nn.Module, example: tuple[Tensor, ...], *, engine: str = "auto", precision: str = "auto", rows: int = 0
) -> EngineReport:
    """Choose what runs this module, by measuring two batches of each candidate.

    Args:
        module: Returns a tensor or a tuple of tensors; runs in eval mode.
        example: Inputs of one full batch, batch axis first; real ones, for the error is measured on them.
        engine: "auto" takes OpenVINO unless it is not installed, cannot convert the module, is wrong, or torch is
            1.2 times as fast; torch.compile only where so many rows pay for its making. A name is taken at its word.
            Both are for processors: a module on a GPU is run by torch there.
        precision: "auto" takes bfloat16 where it is 1.2 times as fast, saves a second over the rows, and its outputs
            differ by at most a hundredth of the largest value; "float32" never does.
        rows: How many will be computed. What takes long to make or gives up bits has to pay for itself with them.

    Returns:
        The engine, its precision, why, its speed, and its largest error against torch in float32.

    Raises:
        BadArgument: No such engine or precision.
        MissingExtra: "openvino" was asked for and is not installed.

    Example:
        >>> report = pick(nn.Linear(4, 2).eval(), (torch.rand(8, 4),), engine="torch")
        >>> report.engine, report.precision, report.error
        ('torch', 'float32', 0.0)
    """
    return quickest(module, example, engine=engine, precision=precision, rows=rows).report


class Picked(NamedTuple):
    """What was chosen, the same ready to run, and what it is in float32."""

    report: EngineReport
    run: "Compiled"
    in_full: "Compiled"


def quickest(
    module: nn.Module, example: tuple[Tensor, ...], *, engine: str = "auto", precision: str = "auto", rows: int = 0
) -> Picked:
    """Choose as `pick` does, and keep what was made for it.

    Args:
        module: As in `pick`.
        example: As in `pick`.
        engine: As in `pick`.
        precision: As in `pick`; "bfloat16" is taken wherever its outputs are within the bound.
        rows: As in `pick`.

    Returns:
        The report, the function, and the one that was chosen before bits were given up.

    Example:
        >>> quickest(nn.Linear(4, 2).eval(), (torch.rand(8, 4),), engine="torch").run((torch.rand(3, 4),))[0].shape
        torch.Size([3, 2])
    """
    _check(engine, precision, (*PRECISIONS, "bfloat16"))
    contest = _Contest(module, example, engine=engine, rows=rows)
    best = in_full = contest.in_full()
    if precision == "bfloat16" or (precision == "auto" and contest.seconds(best) > LEAST_SAVED):
        best = contest.in_fewer_bits(best, is_asked=precision == "bfloat16")
    report = EngineReport(
        engine=best.run.engine,
        precision=best.run.precision,
        piece=best.run.piece,
        why="; ".join(contest.said),
        rows_per_second=best.rate,
        error=best.error,
    )
    return Picked(report, best.run, in_full.run)


class _Candidate(NamedTuple):
    """One engine as measured: rows in a second, error, and the seconds to make it."""

    run: "Compiled"
    rate: float
    error: float
    making: float


class _Contest:
    """Candidates for one module, each measured on two batches and compared with plain torch in float32."""

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...], *, engine: str, rows: int) -> None:
        self.module = module
        self.example = carried(example, device_of(module))
        self.engine = engine
        self.rows = rows
        self.said: list[str] = [] if engine == "auto" else [f"{_SPOKEN[engine]} was asked for"]
        self.plain = _plain(module, example)
        self.reference = self.plain(example)
        self.conversion: Conversion | str | None = None

    def seconds(self, one: _Candidate) -> float:
        """What all the rows will take."""
        return self.rows / one.rate

    def in_full(self) -> _Candidate:
        """The quickest in float32."""
        if self.engine != "torch" and (reason := _elsewhere(self.plain.device)):
            self.plain.why = reason
            self.said.append(reason)
            return self._timed(self.plain, error=0.0, making=0.0)
        for name in _MADE:
            # What was asked for is not raced against torch, which takes seconds for a large network.
            if name == self.engine and (asked := self._entry(name, "float32")):
                return asked
            if name == self.engine:
                self.plain.why = self.said[-1]
        best = self._timed(self.plain, error=0.0, making=0.0)
        if self.engine != "auto":
            return best
        other = self._entry("openvino", "float32")
        if other is not None and best.rate < LEAD * other.rate:
            best = other
        if self.seconds(best) > COMPILE_SECONDS:
            other = self._entry("compile", "float32")
            if other is not None and other.making + self.seconds(other) < self.seconds(best):
                best = other
        return best

    def in_fewer_bits(self, best: _Candidate, *, is_asked: bool) -> _Candidate:
        """The same engine in bfloat16 where that is right and worth it, else what it was."""
        other = self._entry(best.run.engine, "bfloat16", piece=best.run.piece)
        if other is None or is_asked:
            return other or best
        making = other.making if other.run.engine == "compile" else 0.0
        is_worth_it = self.seconds(best) - self.seconds(other) - making > LEAST_SAVED
        return other if is_worth_it and other.rate >= LEAD * best.rate else best

    def _entry(self, engine: EngineName, precision: Precision, piece: int | None = None) -> _Candidate | None:
        """Make and measure one engine; None, and a word on why, where it cannot be used."""
        if engine == "torch":
            return self._made(lambda: _plain(self.module, self.example, precision=precision))
        if engine == "compile":
            return self._made(lambda: _fused(self.module, self.example, precision))
        if not is_installed():
            self.said.append("OpenVINO is not installed (pip install 'frostline[cpu]')")
            return None
        if self.conversion is None:
            self.conversion = converted(self.module, self.example)
        pieces = (piece,) if piece is not None else _pieces(self.conversion)
        found = [self._made(partial(_readied, self.conversion, precision, each)) for each in pieces]
        return max((one for one in found if one is not None), key=lambda one: one.rate, default=None)

    def _made(self, make: Callable[[], "Compiled | str"]) -> _Candidate | None:
        start = time.perf_counter()
        run = make()
        if isinstance(run, str):
            _log.info(run)
            self.said.append(run)
            return None
        # torch.compile and OpenVINO do the last of their making at the first call.
        outputs = run(self.example)
        making = time.perf_counter() - start
        error = relative_error(outputs, self.reference)
        if not error <= LARGEST_ERROR[run.precision]:
            self.said.append(f"{run.spoken} is {error:.1e} away from torch's outputs")
            return None
        return self._timed(run, error=error, making=making)

    def _timed(self, run: "Compiled", *, error: float, making: float) -> _Candidate:
        rate = len(self.example[0]) / _batch_seconds(run, self.example)
        self.said.append(f"{run.spoken} {rate:,.0f} rows a second" + (f" (error {error:.0e})" if error else ""))
        return _Candidate(run, rate, error, making)


def _pieces(conversion: Conversion | str) -> tuple[int, ...]:
    """How many rows a thread may take at a time, two ways at most; 0 is all threads at one batch."""
    if isinstance(conversion, str):
        return (0,)
    # A thread that gets no piece of a batch waits while the others compute theirs.
    busy = [piece for piece in PIECES if piece * torch.get_num_threads() <= conversion.batch]
    fitting = tuple(piece for piece in busy if conversion.has_pieces_of(piece))
    return fitting if fitting == PIECES else (*fitting, 0)


def _batch_seconds(run: "Compiled", example: tuple[Tensor, ...]) -> float:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run(example)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# --- making -----------------------------------------------------------------------------------


@final
class Compiled:
    """A function from inputs to outputs that own their memory, at one batch shape.

    A smaller batch is filled up by repeating its rows and cut back, so every row is computed at
    the same batch shape. Outputs whose first axis is no multiple of the batch come as they are. They are on the
    processor, wherever they were computed and wherever the inputs were.

    Args:
        run: Maps inputs of exactly `batch` rows to outputs.
        batch: B.
        engine: What runs it.
        precision: Of its arithmetic.
        piece: Rows that each thread takes at a time; 0 where all threads share the batch.
        why: Why it is not the engine that was asked for, or "".
        device: Where it computes.

    Example:
        >>> double = Compiled(lambda inputs: (inputs[0] * 2,), batch=4)
        >>> double((torch.ones(2, 1),))[0].tolist()
        [[2.0], [2.0]]
    """

    def __init__(
        self,
        run: Run,
        *,
        batch: int,
        engine: EngineName = "torch",
        precision: Precision = "float32",
        piece: int = 0,
        why: str = "",
        device: torch.device = _PROCESSOR,
    ) -> None:
        self._run = run
        self.batch = batch
        self.engine = engine
        self.precision = precision
        self.piece = piece
        self.why = why
        self.device = device

    @property
    def spoken(self) -> str:
        """What a person calls it."""
        bits = "" if self.precision == "float32" else f" in {self.precision}"
        return f"{_SPOKEN[self.engine]}{bits}" + (f" by {self.piece} rows" if self.piece else "")

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run up to `batch` rows."""
        rows = inputs[0].shape[0]
        if not 0 < rows <= self.batch:
            raise BadArgument(f"BadArgument: {rows} rows; this engine takes 1 to {self.batch} at a time.", rows=rows)
        inputs = tuple(filled(x, self.batch) for x in carried(inputs, self.device))
        # Whoever reads the clock after this has waited for a GPU, too.
        outputs = carried(self._run(inputs), _PROCESSOR)
        return outputs if rows == self.batch else tuple(_cut_back(output, rows, self.batch) for output in outputs)


def compiled(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *,
    engine: str = "torch",
    precision: str = "float32",
    piece: int = 0,
) -> Compiled:
    """Make a function that runs a module fast at one batch shape.

    Args:
        module: Returns a tensor or a tuple of tensors. It is left as it was, and runs in eval mode.
        example: Inputs of one full batch, batch axis first.
        engine: "torch", "openvino" or "compile". A module that an engine cannot convert, or that is not on a
            processor, is run by torch; `engine` and `why` of the result say so.
        precision: "float32" or "bfloat16".
        piece: Rows that each thread takes at a time, for OpenVINO; 0 lets all threads share a whole batch.

    Returns:
        A function from inputs to a tuple of outputs.

    Raises:
        BadArgument: No such engine or precision.
        MissingExtra: OpenVINO is not installed.

    Example:
        >>> net = nn.Linear(4, 2).eval()
        >>> run = compiled(net, (torch.rand(8, 4),))
        >>> run((torch.rand(3, 4),))[0].shape
        torch.Size([3, 2])
    """
    _check(engine, precision, ("float32", "bfloat16"), engines=ENGINES[1:])
    bits: Precision = "bfloat16" if precision == "bfloat16" else "float32"
    if engine == "torch":
        return _plain(module, example, precision=bits)
    example = carried(example, device_of(module))
    made: Compiled | str
    if reason := _elsewhere(device_of(module)):
        made = reason
    elif engine == "compile":
        made = _fused(module, example, bits)
    else:
        conversion = converted(module, example)
        made = _readied(conversion, bits, piece)
        if isinstance(made, str) and piece:
            made = _readied(conversion, bits, 0)
    if isinstance(made, Compiled):
        return made
    _log.warning("%s; torch runs it", made)
    return _plain(module, example, why=made)


def _elsewhere(device: torch.device) -> str:
    """Why nothing but torch runs what is on this device, or ""."""
    on_processor = device.type == _PROCESSOR.type
    return "" if on_processor else f"OpenVINO and torch.compile are for processors only, and the network is on {device}"


def _readied(conversion: Conversion | str, precision: Precision, piece: int) -> Compiled | str:
    ready = conversion if isinstance(conversion, str) else conversion.ready(precision=precision, piece=piece)
    if isinstance(conversion, str) or isinstance(ready, str):
        return f"OpenVINO cannot run this network: {ready}"
    return Compiled(ready, batch=conversion.batch, engine="openvino", precision=precision, piece=piece)


def _fused(module: nn.Module, example: tuple[Tensor, ...], precision: Precision) -> Compiled | str:
    made = fused(module, example, precision=precision)
    if isinstance(made, str):
        return f"torch.compile cannot run this network: {made}"
    return Compiled(made, batch=len(example[0]), engine="compile", precision=precision)


def _plain(
    module: nn.Module, example: tuple[Tensor, ...], *, precision: Precision = "float32", why: str = ""
) -> Compiled:
    device = device_of(module)

    # Inputs keep their memory order: turning them to channels-last would be faster for some
    # networks, but gives other bits than the module itself.
    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.no_grad(), plain_torch(), in_eval(module), reduced(precision, device.type):
            outputs = as_tuple(module(*inputs))
        # An output may be a view of a weight, of an input, or of another output.
        return tuple(owned(output, precision) for output in outputs)

    return Compiled(run, batch=len(example[0]), precision=precision, why=why, device=device)


# --- batches and errors -----------------------------------------------------------------------


def filled(tensor: Tensor, batch: int) -> Tensor:
    """Repeat the rows of a tensor until they are a full batch, in the same memory order.

    Args:
        tensor: (B, ...) with B of 1 to `batch`.
        batch: Rows wanted.

    Returns:
        (batch, ...); row i is row i modulo B.

    Example:
        >>> filled(torch.tensor([1, 2]), 5)
        tensor([1, 2, 1, 2, 1])
    """
    rows = tensor.shape[0]
    if rows == batch:
        return tensor
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis))
    index = torch.arange(batch, device=tensor.device) % rows
    # Joined and indexed tensors fall back to plain memory in some shapes; in their own order they cannot.
    full = tensor.permute(order).index_select(order.index(0), index)
    return full.permute([order.index(axis) for axis in range(tensor.dim())])


def _cut_back(output: Tensor, rows: int, batch: int) -> Tensor:
    if output.dim() == 0 or output.shape[0] % batch:
        return output
    return output[: rows * (output.shape[0] // batch)].clone()


def relative_error(outputs: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float:
    """Give the largest difference, relative to the largest value of the same tensor.

    Args:
        outputs: Tensors to judge.
        reference: What they should be.

    Returns:
        0 for equal values; infinite where number or shape differ or a value is not finite in one alone.

    Example:
        >>> relative_error((torch.tensor([1.0, 2.02]),), (torch.tensor([1.0, 2.0]),))  # doctest: +ELLIPSIS
        0.0099...
    """
    if len(outputs) != len(reference):
        return float("inf")
    largest = 0.0
    for output, wanted in zip((x.detach() for x in outputs), (x.detach() for x in reference), strict=True):
        if output.shape != wanted.shape:
            return float("inf")
        if torch.equal(output, wanted):
            continue
        difference = float((output.double() - wanted.double()).abs().max())
        scale = float(wanted.double().abs().max())
        ratio = difference / scale if scale else float("inf")
        largest = max(largest, ratio if ratio == ratio else float("inf"))
    return largest


def _check(engine: str, precision: str, precisions: tuple[str, ...], *, engines: tuple[str, ...] = ENGINES) -> None:
    for name, value, allowed in (("engine", engine, engines), ("precision", precision, precisions)):
        if value not in allowed:
            raise BadArgument(
                f"BadArgument: {name} is {value!r}; it must be one of {', '.join(allowed)}.", **{name: value}
            )
    if engine == "openvino" and not is_installed():
        raise MissingExtra(
            "MissingExtra: engine is 'openvino', which is not installed. "
            "Install it with: pip install 'frostline[cpu]', or use engine='torch'.",
            engine=engine,
        )
