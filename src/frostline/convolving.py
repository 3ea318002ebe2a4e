"""Convolutions of a live part that train in fewer seconds on a processor, with the same gradients up to rounding."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from frostline.errors import PathChanged
from frostline.trees import tensors


def quick_convolutions(live: nn.Module, inputs: tuple[torch.Tensor, ...]) -> contextlib.AbstractContextManager[object]:
    """Make a context for the forward passes of training in which convolutions take fewer seconds.

    Two things are done otherwise than torch 2.14 does them, both for float32 on a processor:

    - oneDNN has a quick weight gradient of depthwise convolutions for kernels up to three wide on maps
      as high as the kernel. Wider ones are summed up in columns of three, low maps are padded first.
    - A norm that keeps its statistics, and alone reads a depthwise or 1x1 convolution, is a part of that
      convolution's weight, which spares its own passes over the maps.

    A step on 32 pictures on one thread then takes .8 of the processor's time with EfficientNet-Lite0 at 64
    pixels and .75 at 128, .9 and .77 with MobileNetV2. Other convolutions gain nothing and stay as they are.

    To see who reads what, the live part is run once on a copy of the inputs, in the modes that it has now;
    its buffers and the random state are as before when the call returns.

    Args:
        live: The part above the cut, in the modes that it is trained in.
        inputs: Wires of one batch (B, ...).

    Returns:
        A context to enter anew for the forward pass of each step. Inside, a convolution whose norm is no longer
        its only reader raises PathChanged; the step can be taken again without this context.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 4, 5, groups=4), nn.BatchNorm2d(4)).eval()
        >>> x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> with quick_convolutions(net, (x,)):
        ...     loss = net(x).square().sum()
        >>> bool(torch.isclose(loss, net(x).square().sum()))
        True
    """
    on_processor = all(weight.device.type == "cpu" for weight in live.parameters())
    # Watching every call of a forward pass takes longer than a step of a head does.
    has_kernels = any(weight.ndim == 4 for weight in live.parameters())
    if not on_processor or not has_kernels or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return contextlib.nullcontext()
    keeps_statistics = any(
        getattr(module, "running_mean", None) is not None and not module.training for module in live.modules()
    )
    return _Quick(_foldable(live, inputs) if keeps_statistics else ())


class _Geometry(NamedTuple):
    """Where a convolution's kernel lies, by height and width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class _Call:
    """One call of a convolution of a kind that can be done otherwise."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    geometry: _Geometry
    versions: tuple[int, ...]

    @property
    def is_thin(self) -> bool:
        """Whether a norm's passes over the maps weigh anything beside the convolution's own work."""
        is_pointwise = self.geometry.groups == 1 and self.weight.shape[2:] == (1, 1)
        return is_pointwise or _is_depthwise(self.x, self.weight, self.geometry)

    @property
    def is_as_it_was(self) -> bool:
        return self.versions == _versions(self.x, self.weight, self.bias)

    def shape(self) -> tuple[int, ...]:
        """Axes (B, C, H, W) of the output."""
        sides = zip(self.x.shape[2:], self.weight.shape[2:], *self.geometry[:2], strict=True)
        return self.x.shape[0], self.weight.shape[0], *((x + 2 * pad - k) // by + 1 for x, k, by, pad in sides)


def _call(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> _Call | None:
    """The arguments of `F.conv2d` as a call; None where the convolution must be left alone."""
    if isinstance(padding, str) or _pair(dilation) != (1, 1) or not _are_plain(input, weight, bias):
        return None
    if input.ndim != 4 or not input.numel() or _is_transformed():
        return None
    geometry = _Geometry(_pair(stride), _pair(padding), groups)
    return _Call(input, weight, bias, geometry, _versions(input, weight, bias))


def _pair(number: int | tuple[int, ...]) -> tuple[int, int]:
    first, second = (number, number) if isinstance(number, int) else (number * 2 if len(number) == 1 else number)
    return first, second


def _are_plain(*values: torch.Tensor | None) -> bool:
    return all(
        type(value) in (torch.Tensor, nn.Parameter)
        and (value.dtype, value.device.type, value.layout) == (torch.float32, "cpu", torch.strided)
        for value in values
        if value is not None
    )


def _is_transformed() -> bool:
    """Whether something else than plain autograd looks at what is computed."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        # Checkpointed layers are computed once more in the backward pass, where torch switches this off.
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    )


def _versions(*values: torch.Tensor | None) -> tuple[int, ...]:
    """Numbers that change when something is written into a tensor."""
    return tuple(value._version for value in values if value is not None)


def _is_depthwise(x: torch.Tensor, weight: torch.Tensor, geometry: _Geometry) -> bool:
    return 1 < geometry.groups == x.shape[1] == weight.shape[0]


def _has_slow_gradient(x: torch.Tensor, weight: torch.Tensor, geometry: _Geometry) -> bool:
    """Whether it is depthwise, and oneDNN 3 takes its general kernel for the weight gradient.

    Source:
        oneDNN, `jit_uni_dw_conv_bwd_weights_kernel::init_conf`, and times measured over maps of 1 to 8 pixels.
    """
    (step, _), (pad, _), _ = geometry
    height, width = weight.shape[2:]
    return _is_depthwise(x, weight, geometry) and (width > 3 or x.shape[2] < height + -pad % step)


class _Norm(NamedTuple):
    """A batch norm with fixed statistics."""

    mean: torch.Tensor
    variance: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float


def _norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Norm | None:
    """The arguments of `F.batch_norm` as a norm; None where it cannot become part of a convolution."""
    if training or running_mean is None or running_var is None:
        return None
    norm = _Norm(running_mean, running_var, weight, bias, eps)
    return norm if _are_plain(*norm[:4]) and not _is_transformed() else None


class _Quick(TorchFunctionMode):
    """Inside, the convolutions of these weights await their norms, and slow gradients are summed up in columns."""

    def __init__(self, folded: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.folded = frozenset(folded)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and (call := _call(*args, **kwargs)):
            if call.weight in self.folded:
                return _Awaited.of(call)
            if _has_slow_gradient(call.x, call.weight, call.geometry):
                return _Convolve.apply(call.x, call.weight, None, call.bias, call.geometry)
        return func(*args, **kwargs)


_ASKING = frozenset(
    {
        torch.Tensor.dim,
        torch.Tensor.size,
        *(getattr(torch.Tensor, name).__get__ for name in ("device", "dtype", "ndim", "shape")),
    }
)
"""What may be asked of an output that is not there yet."""


class _Awaited(torch.Tensor):
    """Output of a convolution that its norm will compute: a shape, and numbers that nobody may read."""

    call: _Call

    @classmethod
    def of(cls, call: _Call) -> "_Awaited":
        # Should code that torch does not report to us read it all the same, the loss is no number, and the trial fails.
        awaited = call.x.new_full((), float("nan")).expand(call.shape()).as_subclass(cls)
        awaited.call = call
        return awaited

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ASKING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        found = next(tensor for tensor in tensors((args, kwargs)) if isinstance(tensor, cls))
        if func is F.batch_norm and (norm := _norm(*args, **kwargs)) and found.call.is_as_it_was:
            return _folded(found.call, norm)
        raise PathChanged(
            f"PathChanged: a convolution with weights {tuple(found.call.weight.shape)} was read by "
            f"`{getattr(func, '__name__', func)}`, or written into before it was read; with the first batch nothing "
            "but a batch norm read it. Take the step again without this context."
        )


def _folded(call: _Call, norm: _Norm) -> torch.Tensor:
    scale = torch.rsqrt(norm.variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (-norm.mean if call.bias is None else call.bias - norm.mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    output: torch.Tensor = _Convolve.apply(call.x, call.weight, scale, shift, call.geometry)
    return output


class _Convolve(torch.autograd.Function):
    """A convolution with each output channel scaled and shifted, whose gradients avoid what oneDNN does slowly."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        shift: torch.Tensor | None,
        geometry: _Geometry,
    ) -> torch.Tensor:
        scaled = weight if scale is None else weight * _by_channel(scale)
        ctx.save_for_backward(x, weight, scaled, scale)
        ctx.geometry = geometry
        stride, padding, groups = geometry
        return F.conv2d(x, scaled, shift, stride, padding, 1, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scaled, scale = ctx.saved_tensors
        wants_x, wants_weight, wants_scale, wants_shift, _ = ctx.needs_input_grad
        to_x, to_weight = _gradients(gradient, x, scaled, ctx.geometry, (wants_x, wants_weight or wants_scale))
        to_scale = None
        if scale is not None and to_weight is not None:
            to_scale = (to_weight * weight).sum((1, 2, 3))
            to_weight = to_weight.mul_(_by_channel(scale))
        # Asked for it, oneDNN takes longer than a plain sum.
        to_shift = gradient.sum((0, 2, 3)) if wants_shift else None
        return to_x, to_weight, to_scale, to_shift, None


def _by_channel(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, None, None, None]


def _gradients(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: _Geometry, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of a convolution by its input and its weight, where they are wanted."""
    wants_x, wants_weight = wanted
    is_slow = wants_weight and _has_slow_gradient(x, weight, geometry)
    to_x, to_weight, _ = _convolution_backward(gradient, x, weight, geometry, (wants_x, wants_weight and not is_slow))
    return to_x, _summed_in_columns(gradient, x, weight, geometry) if is_slow else to_weight


def _convolution_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: _Geometry, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, ...]:
    stride, padding, groups = geometry
    found: tuple[torch.Tensor | None, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, (*wanted, False)
    )
    return found


def _summed_in_columns(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: _Geometry
) -> torch.Tensor:
    """Weight gradient of a depthwise convolution, three columns of the kernel at a time, without padding."""
    stride, (top, left), groups = geometry
    below, right = (
        (out - 1) * by + side - x_side - pad
        for out, by, side, x_side, pad in zip(
            gradient.shape[2:], stride, (weight.shape[2], 0), x.shape[2:], (top, left), strict=True
        )
    )
    columns = []
    for begin in range(0, weight.shape[3], 3):
        piece = weight[..., begin : begin + 3]
        # A negative margin cuts off.
        margins = (left - begin, right + begin + piece.shape[3], top, below)
        if _are_within(margins, x):
            bare = _Geometry(stride, (0, 0), groups)
            found = _convolution_backward(gradient, F.pad(x, margins), piece, bare, (False, True))[1]
            assert found is not None
            columns.append(found)
        else:
            columns.append(torch.zeros_like(piece))
    return torch.cat(columns, dim=3)


def _are_within(margins: tuple[int, int, int, int], x: torch.Tensor) -> bool:
    """Whether anything of the maps is left; a column of a wide kernel may meet nothing but padding."""
    left, right, top, below = (min(0, margin) for margin in margins)
    return x.shape[2] + top + below > 0 and x.shape[3] + left + right > 0


def _foldable(live: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Weights of the thin convolutions whose every output is read once, by a norm that keeps its statistics."""
    watch = _Watch()
    buffers = [(buffer, buffer.clone()) for buffer in live.buffers()]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        with watch, warnings.catch_warnings(action="ignore"):
            # The first step will warn of the same, and not of gradients that are missing here.
            live(*(tensor.clone() for tensor in inputs))
        for buffer, before in buffers:
            buffer.copy_(before)
    found: dict[torch.Tensor, bool] = {}
    for seen in watch.seen:
        # A hook or an attribute that still holds an output may read it later.
        alone = seen.reads == [True] and seen.output() is None
        found[seen.weight] = found.get(seen.weight, True) and alone
    return [weight for weight, every in found.items() if every]


@dataclass(frozen=True)
class _Seen:
    """What became of one output: for each of its readers, whether it is a norm that can be folded."""

    weight: torch.Tensor
    output: "weakref.ref[_Watched]"
    reads: list[bool]


class _Watch(TorchFunctionMode):
    """Inside, what reads the outputs of thin convolutions is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[_Seen] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        call = _call(*args, **(kwargs or {})) if func is F.conv2d else None
        if call is None or not call.is_thin or not isinstance(call.weight, nn.Parameter):
            return output
        watched = output.as_subclass(_Watched)
        watched.call, watched.reads = call, []
        self.seen.append(_Seen(call.weight, weakref.ref(watched), watched.reads))
        return watched


class _Watched(torch.Tensor):
    """Output of a convolution that notes its readers."""

    call: _Call
    reads: list[bool]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _ASKING:
            for tensor in tensors((args, kwargs)):
                if isinstance(tensor, cls):
                    fits = func is F.batch_norm and _norm(*args, **kwargs) is not None and tensor.call.is_as_it_was
                    tensor.reads.append(fits)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
