"""What OpenVINO makes of a module: converted once, then made ready in a precision and for so many rows at a time.

Nothing here reaches the network or the home folder.
"""

import contextlib
import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from frostline.copies import in_eval, plain_torch

Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Maps the inputs of one full batch to outputs that own their memory."""

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""By precision: what OpenVINO calls it."""

_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError, AssertionError)


def is_installed() -> bool:
    """Whether OpenVINO can be imported.

    Example:
        >>> is_installed() in (True, False)
        True
    """
    try:
        return importlib.util.find_spec("openvino") is not None
    except ValueError:  # a half-removed module stands in sys.modules
        return False


def converted(module: nn.Module, example: tuple[Tensor, ...]) -> "Conversion | str":
    """Convert a module, or say why OpenVINO cannot.

    Args:
        module: Returns a tensor or a tuple of tensors. It is left as it was, and is converted in eval mode.
        example: Inputs of one full batch, batch axis first.

    Returns:
        What can be made ready to run, or the reason in words.

    Example:
        >>> made = converted(nn.Linear(4, 2).eval(), (torch.rand(8, 4),)) if is_installed() else "not installed"
        >>> isinstance(made, Conversion | str)
        True
    """
    with _silenced() as openvino, torch.no_grad(), plain_torch(), in_eval(module):
        try:
            model = openvino.convert_model(_watched(module, example), example_input=tuple(example))
        except _refusals(openvino) as error:
            return _in_short(error)
    if len(model.inputs) != len(example):
        return f"it keeps {len(model.inputs)} of the {len(example)} inputs"
    return Conversion(model, example)


@final
class Conversion:
    """A converted module, from which runs are made.

    Args:
        model: OpenVINO's own.
        example: What it was converted with.
    """

    def __init__(self, model: Any, example: tuple[Tensor, ...]) -> None:
        self._model = model
        self._shapes = [list(x.shape) for x in example]
        self._last = tuple(_is_channels_last(x) for x in example)
        self.batch = example[0].shape[0]

    def ready(self, *, precision: str = "float32", piece: int = 0) -> Run | str:
        """Compile it for this processor.

        Args:
            precision: "float32" or "bfloat16".
            piece: Rows that each thread takes at a time. 0 lets all threads share a whole batch, layer by layer:
                then they wait for each other after each, and what a layer hands on seldom fits the processor's cache.

        Returns:
            A function of one full batch, or in words why there is none.
        """
        hint: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        with _silenced() as openvino:
            try:
                whole = self._shaped(openvino, self.batch)
                if not piece or piece == self.batch:
                    return self._whole(_apart(lambda: openvino.Core().compile_model(whole, "CPU", hint)))
                small = self._shaped(openvino, piece)
                axes = _batch_axes(whole, small, self.batch, piece)
                if isinstance(axes, str):
                    return axes
                hint["NUM_STREAMS"] = torch.get_num_threads()
                compiled = _apart(lambda: openvino.Core().compile_model(small, "CPU", hint))
                requests = [compiled.create_infer_request() for _ in range(0, self.batch, piece)]
                dtypes = [tensor.data.dtype for tensor in requests[0].output_tensors]
            except _refusals(openvino) as error:
                return _in_short(error)
        kinds = [(tuple(output.shape), dtype) for output, dtype in zip(whole.outputs, dtypes, strict=True)]
        return self._in_pieces(requests, kinds, axes, piece)

    def has_pieces_of(self, piece: int) -> bool:
        """Whether a batch is several such pieces, and its outputs can be put together from theirs."""
        if self.batch <= piece:
            return False
        with _silenced() as openvino:
            try:
                whole, small = (self._shaped(openvino, rows) for rows in (self.batch, piece))
            except _refusals(openvino):
                return False
        return not isinstance(_batch_axes(whole, small, self.batch, piece), str)

    def _shaped(self, openvino: Any, rows: int) -> Any:
        model = self._model.clone()
        pairs = zip(model.inputs, self._shapes, strict=True)
        model.reshape({port: [rows, *shape[1:]] for port, shape in pairs})
        return _taking_channels_last(openvino, model, self._last)

    def _plain(self, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
        # OpenVINO wants plain memory and would copy any other on one thread.
        turned = [x.permute(0, 2, 3, 1) if is_last else x for x, is_last in zip(inputs, self._last, strict=True)]
        return [x.detach().contiguous().numpy() for x in turned]

    def _whole(self, request: Any) -> Run:
        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # With `share_outputs` left off the arrays are copies; else the next call overwrites them.
            result = request(self._plain(inputs), share_inputs=True)
            return tuple(torch.from_numpy(result[i]) for i in range(len(request.outputs)))

        return run

    def _in_pieces(
        self, requests: Sequence[Any], kinds: Sequence[tuple[tuple[int, ...], Any]], axes: Sequence[int], piece: int
    ) -> Run:
        firsts = range(0, self.batch, piece)

        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            plain = self._plain(inputs)
            outputs = [np.empty(shape, dtype=dtype) for shape, dtype in kinds]
            for first, request in zip(firsts, requests, strict=True):
                request.start_async([x[first : first + piece] for x in plain], share_inputs=True)
            for first, request in zip(firsts, requests, strict=True):
                # No callback at its end: a thread of the engine would stand still until it gets Python's lock for it.
                request.wait()
                for tensor, whole, axis in zip(request.output_tensors, outputs, axes, strict=True):
                    step = whole.shape[axis] * piece // self.batch
                    start = step * (first // piece)
                    whole[(slice(None),) * axis + (slice(start, start + step),)] = tensor.data
            return tuple(map(torch.from_numpy, outputs))

        return run


def _apart(work: Callable[[], Any]) -> Any:
    """Do it in a thread of its own, which ends.

    OpenVINO's plugin for processors gives the thread that loads it a signal stack, and puts the one from before back
    when it is let go. Two that do not go in the reverse order of their coming leave a stack that is freed already, and
    the next signal ends the process: a worker's end under a DataLoader, or Ctrl-C.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _batch_axes(whole: Any, small: Any, batch: int, piece: int) -> list[int] | str:
    """Along which axis the rows of each output lie, found from its shape at two batch sizes."""
    if batch % piece:
        return f"{batch} rows are no whole number of pieces of {piece}"
    axes = []
    for large, part in zip(whole.outputs, small.outputs, strict=True):
        differ = [axis for axis, (a, b) in enumerate(zip(large.shape, part.shape, strict=True)) if a != b]
        if len(differ) != 1 or large.shape[differ[0]] * piece != part.shape[differ[0]] * batch:
            return f"an output of shape {list(large.shape)} does not grow with the batch along one axis"
        axes += differ
    return axes


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


def _refusals(openvino: Any) -> tuple[type[Exception], ...]:
    return (openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure, *_REFUSALS)


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
