"""What runs the frozen part: plain torch, or OpenVINO where it is installed and faster.

Everything here is inference in float32: eval mode, no gradients, no network, no file.
"""

import contextlib
import importlib.util
import inspect
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, Protocol, cast, final

import torch
from torch import Tensor, nn

from frostline.copies import plain_torch
from frostline.errors import BadArgument, MissingExtra
from frostline.records import EngineReport

EngineName = Literal["torch", "openvino"]

_Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]

TORCH_LEAD = 1.2
"""torch is kept where it is that many times faster than OpenVINO."""

LARGEST_ERROR = 1e-3
"""A float32 engine that is further from torch than that, relative to the largest value, is not used."""

_log = logging.getLogger("frostline.engines")


class Compiler(Protocol):
    """Makes a function that runs a module fast at one batch shape; `compiled` is the plain one."""

    def __call__(self, module: nn.Module, example: tuple[Tensor, ...], *, engine: str) -> "Compiled":
        """Make it for inputs of the shape of the example."""


def pick(module: nn.Module, example: tuple[Tensor, ...], *, engine: str = "auto") -> EngineReport:
    """Choose what runs this module, by measuring two batches of each engine that is installed.

    Args:
        module: Returns a tensor or a tuple of tensors; runs in eval mode.
        example: Inputs of one full batch, batch axis first.
        engine: "auto" takes OpenVINO unless it is not installed, cannot convert the module, is
            wrong, or torch is 1.2 times as fast; "torch" and "openvino" are taken at their word.

    Returns:
        The engine, why, its speed, and its largest error against torch.

    Raises:
        BadArgument: No such engine.
        MissingExtra: "openvino" was asked for and is not installed.

    Example:
        >>> report = pick(nn.Linear(4, 2).eval(), (torch.rand(8, 4),), engine="torch")
        >>> report.engine, report.error
        ('torch', 0.0)
    """
    _check(engine)
    batch = example[0].shape[0]
    plain = compiled(module, example, engine="torch")
    reference = plain(example)
    plain_rate = batch / _batch_seconds(plain, example)
    if engine == "torch":
        return _report("torch", f"asked for; {plain_rate:,.0f} rows a second", plain_rate)
    if not _is_installed():
        return _report(
            "torch",
            f"OpenVINO is not installed (pip install 'frostline[cpu]'); {plain_rate:,.0f} rows a second",
            plain_rate,
        )
    other = _converted(module, example)
    if isinstance(other, str):
        _log.info("OpenVINO cannot run this network, torch does: %s", other)
        return _report("torch", f"OpenVINO cannot run this network: {other}", plain_rate)
    difference = relative_error(other(example), reference)
    other_rate = batch / _batch_seconds(other, example)
    rates = f"OpenVINO {other_rate:,.0f} rows a second, torch {plain_rate:,.0f}"
    if not difference <= LARGEST_ERROR:
        return _report("torch", f"OpenVINO is {difference:.1e} away from torch's outputs; {rates}", plain_rate)
    if engine == "auto" and plain_rate >= TORCH_LEAD * other_rate:
        return _report("torch", rates, plain_rate)
    return _report("openvino", rates, other_rate, difference)


@final
class Compiled:
    """A function from inputs to outputs that own their memory, at one batch shape.

    A smaller batch is filled up by repeating its rows and cut back, so every row is computed at
    the same batch shape. Outputs whose first axis is no multiple of the batch come as they are.

    Args:
        run: Maps inputs of exactly `batch` rows to outputs.
        batch: B.
        engine: What runs it.
        why: Why it is not the engine that was asked for, or "".

    Example:
        >>> double = Compiled(lambda inputs: (inputs[0] * 2,), batch=4)
        >>> double((torch.ones(2, 1),))[0].tolist()
        [[2.0], [2.0]]
    """

    def __init__(self, run: _Run, *, batch: int, engine: EngineName = "torch", why: str = "") -> None:
        self._run = run
        self.batch = batch
        self.engine = engine
        self.why = why

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run up to `batch` rows."""
        rows = inputs[0].shape[0]
        if rows == self.batch:
            return self._run(inputs)
        if not 0 < rows < self.batch:
            raise BadArgument(f"BadArgument: {rows} rows; this engine takes 1 to {self.batch} at a time.", rows=rows)
        outputs = self._run(tuple(filled(x, self.batch) for x in inputs))
        return tuple(_cut_back(output, rows, self.batch) for output in outputs)


def compiled(
    module: nn.Module, example: tuple[Tensor, ...], *, engine: str = "torch", precision: str = "float32"
) -> Compiled:
    """Make a function that runs a module fast at one batch shape.

    Args:
        module: Returns a tensor or a tuple of tensors. It is left as it was, and runs in eval mode.
        example: Inputs of one full batch, batch axis first.
        engine: "torch" or "openvino". A module that OpenVINO cannot convert is run by torch;
            `engine` and `why` of the result say so.
        precision: "float32".

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
    _check(engine, allowed=("torch", "openvino"))
    if precision != "float32":
        raise BadArgument(f'BadArgument: precision is {precision!r}; it must be "float32".', precision=precision)
    if engine == "torch":
        return _plain(module, example)
    other = _converted(module, example)
    if isinstance(other, str):
        _log.warning("OpenVINO cannot run this network, torch does: %s", other)
        return _plain(module, example, why=f"OpenVINO cannot run this network: {other}")
    return other


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


# --- torch ------------------------------------------------------------------------------------


def _plain(module: nn.Module, example: tuple[Tensor, ...], why: str = "") -> Compiled:
    # Inputs keep their memory order: turning them to channels-last would be faster for some
    # networks, but gives other bits than the module itself.
    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.no_grad(), plain_torch(), _in_eval(module):
            outputs = module(*inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        # An output may be a view of a weight, of an input, or of another output.
        return tuple(output.clone() for output in outputs)

    return Compiled(run, batch=example[0].shape[0], why=why)


@contextlib.contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


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
    index = torch.arange(batch) % rows
    # Joined and indexed tensors fall back to plain memory in some shapes; in their own order they cannot.
    full = tensor.permute(order).index_select(order.index(0), index)
    return full.permute([order.index(axis) for axis in range(tensor.dim())])


def _cut_back(output: Tensor, rows: int, batch: int) -> Tensor:
    if output.dim() == 0 or output.shape[0] % batch:
        return output
    return output[: rows * (output.shape[0] // batch)].clone()


# --- OpenVINO ---------------------------------------------------------------------------------


def _converted(module: nn.Module, example: tuple[Tensor, ...]) -> Compiled | str:
    """Give what OpenVINO makes of the module, or the reason why it makes nothing of it."""
    last = tuple(_is_channels_last(x) for x in example)
    with _silenced() as openvino, torch.no_grad(), plain_torch(), _in_eval(module):
        refusals = (openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure, *_REFUSALS)
        try:
            model = openvino.convert_model(_watched(module, example), example_input=tuple(example))
            if len(model.inputs) != len(example):
                return f"it keeps {len(model.inputs)} of the {len(example)} inputs"
            model.reshape({port: list(x.shape) for port, x in zip(model.inputs, example, strict=True)})
            model = _taking_channels_last(openvino, model, last)
            request = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except refusals as error:
            return _in_short(error)

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # OpenVINO wants plain memory and would copy any other on one thread.
        turned = [x.permute(0, 2, 3, 1) if is_last else x for x, is_last in zip(inputs, last, strict=True)]
        plain = [x.detach().contiguous().numpy() for x in turned]
        # With `share_outputs` left off the arrays are copies; else the next call overwrites them.
        result = request(plain, share_inputs=True)
        return tuple(torch.from_numpy(result[i]) for i in range(len(request.outputs)))

    return Compiled(run, batch=example[0].shape[0], engine="openvino")


def _watched(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """Trace the module as OpenVINO does by itself, but once: its check of the trace takes half the seconds."""
    decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
    if "trace_kwargs" not in inspect.signature(decoder).parameters:  # OpenVINO before 2025
        return module
    return decoder(module, example_input=tuple(example), trace_kwargs={"check_trace": False})


def _is_channels_last(tensor: Tensor) -> bool:
    is_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return is_last and not tensor.is_contiguous()


def _taking_channels_last(openvino: Any, model: Any, last: tuple[bool, ...]) -> Any:
    """Have the model read pictures as they lie in memory: a quarter faster than turning them first."""
    steps = openvino.preprocess.PrePostProcessor(model)
    for index, is_last in enumerate(last):
        if is_last:
            steps.input(index).tensor().set_layout(openvino.Layout("NHWC"))
            steps.input(index).model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError, AssertionError)


@contextlib.contextmanager
def _silenced() -> Iterator[Any]:
    """Import OpenVINO so that it neither sends anything nor writes into the home folder.

    Without a consent file its telemetry package takes consent for given: importing and converting
    each send an event, and a client number is written to ~/intel. Where that package is missing
    OpenVINO uses a stub of its own, so we have it use that stub while it works for us.
    """
    name = "openvino_telemetry"
    missing = object()
    before: Any = sys.modules.get(name, missing)
    sys.modules[name] = cast(ModuleType, None)  # what Python documents as "this import fails"
    try:
        openvino = importlib.import_module("openvino")
        stub = importlib.import_module("openvino.tools.ovc.telemetry_stub")
    finally:
        if before is missing:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    # Where the user imported OpenVINO before us, its modules hold the real package as `tm`.
    talking = [
        (part, real)
        for key, part in list(sys.modules.items())
        if key.startswith("openvino.tools.") and (real := getattr(part, "tm", stub)) is not stub
    ]
    for part, _ in talking:
        cast(Any, part).tm = stub
    root = logging.getLogger()
    state = root.level, list(root.handlers), list(root.filters)
    try:
        with warnings.catch_warnings():
            # torch.jit.trace, which OpenVINO uses, warns of itself and of every shape it reads.
            warnings.simplefilter("ignore")
            yield openvino
    finally:
        for part, real in talking:
            cast(Any, part).tm = real
        # OpenVINO 2026.4 sets up the root logger, and does not put it back where a conversion fails.
        root.setLevel(state[0])
        root.handlers[:], root.filters[:] = state[1], state[2]


def _in_short(error: Exception) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("No conversion rule")] or lines[2:3] or lines or [repr(error)]
    return telling[0][:200]


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("openvino") is not None
    except ValueError:  # a half-removed module stands in sys.modules
        return False


def _check(engine: str, allowed: tuple[str, ...] = ("auto", "torch", "openvino")) -> None:
    if engine not in allowed:
        raise BadArgument(f"BadArgument: engine is {engine!r}; it must be one of {', '.join(allowed)}.", engine=engine)
    if engine == "openvino" and not _is_installed():
        raise MissingExtra(
            "MissingExtra: engine is 'openvino', which is not installed. "
            "Install it with: pip install 'frostline[cpu]', or use engine='torch'.",
            engine=engine,
        )


def _batch_seconds(run: Compiled, example: tuple[Tensor, ...]) -> float:
    run(example)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run(example)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _report(engine: EngineName, why: str, rate: float, error: float = 0.0) -> EngineReport:
    return EngineReport(engine=engine, why=why, rows_per_second=rate, error=error)
