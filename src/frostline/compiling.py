"""What torch.compile makes of a module: one graph of plain operations, its weights folded in."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from frostline.converting import Run
from frostline.copies import in_eval, lower_precision, plain_torch

_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError, AssertionError)


def fused(module: nn.Module, example: tuple[Tensor, ...], *, precision: str = "float32") -> Run | str:
    """Compile a module for one batch shape, or say why it cannot be. It takes up to a minute.

    torch.compile keeps what it has made in its own folder below the system's temporary one.

    Args:
        module: Returns a tensor or a tuple of tensors. It is left as it was, and is compiled in eval mode.
        example: Inputs of one full batch, batch axis first.
        precision: "float32" or "bfloat16".

    Returns:
        A function of one full batch, or the reason in words.

    Example:
        >>> fused  # takes seconds
        <function fused at ...>
    """
    with _quiet(), torch.no_grad(), plain_torch(), in_eval(module), reduced(precision):
        try:
            # Watched operation by operation first: hooks, and the exception with which a frozen part stops at its
            # cut, would break torch.compile's own graph apart.
            from torch.fx.experimental.proxy_tensor import make_fx

            graph = make_fx(lambda *inputs: as_tuple(module(*inputs)))(*example)
            made = torch.compile(graph, dynamic=False, options={"freezing": True, "compile_threads": 1})
            made(*example)
        except _REFUSALS as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            # An output may be a view of a weight, of an input, or of another output.
            return tuple(owned(output, precision) for output in made(*inputs))

    return run


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One tensor as a tuple of one.

    Example:
        >>> len(as_tuple(torch.ones(2)))
        1
    """
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def owned(output: Tensor, precision: str) -> Tensor:
    """A copy of an output, in float32 again where it was computed in fewer bits.

    Example:
        >>> owned(torch.ones(2, dtype=torch.bfloat16), "bfloat16").dtype
        torch.float32
    """
    output = output.detach()
    return output.float() if precision != "float32" and output.dtype == torch.bfloat16 else output.clone()


@contextlib.contextmanager
def reduced(precision: str, kind: str = "cpu") -> Iterator[None]:
    """Compute in this precision inside, on this kind of device.

    Example:
        >>> with reduced("float32"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with lower_precision(torch.bfloat16, kind) if precision == "bfloat16" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch.compile warns of what it would rather be given, and of its own parts that will go.
        warnings.simplefilter("ignore")
        yield
