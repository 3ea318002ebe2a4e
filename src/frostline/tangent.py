"""Votes before training: what each open depth would learn, by the network's tangent at its pretrained weights."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from frostline.copies import copy_of, full_precision, plain_torch
from frostline.data import Samples
from frostline.events import Listener, silent, watched
from frostline.leaving_out import leave_one_out, worth
from frostline.record import Record
from frostline.recording import Recording
from frostline.records import CutGraph
from frostline.trees import tensors

Normalisation = Literal["none", "trace", "squared weight norm"]

WIDTH = 2048
"""Numbers kept of a stage's gradient for each sample and direction; a stage with fewer weights is kept exactly."""


@final
class TangentVote(Record):
    """What the tangent kernel says of training everything above one cut.

    Args:
        depth: Number of frozen stages.
        accuracy: Leave-one-out accuracy, 0 to 1.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        loss: Leave-one-out negative log-likelihood in nats after the temperature.
        penalty: Chosen by leave-one-out squared error.
    """

    depth: int
    accuracy: float
    low: float
    high: float
    loss: float
    penalty: float


def probe_tangent(
    model: nn.Module,
    graph: CutGraph,
    samples: Samples,
    *,
    head_weight: torch.Tensor | None = None,
    rows: int = 512,
    directions: int = 2,
    normalisation: Normalisation = "trace",
    seed: int = 0,
    listener: Listener = silent,
    batch_size: int = 32,
) -> tuple[TangentVote, ...]:
    """Predict what training above each open cut would reach, from one pass over some rows.

    To first order, training the stages above a cut is a regression on their gradients. Its kernel
    is a sum over stages, so that gradients taken once serve every depth; kernel ridge predicts each
    sample from all others. The target is the label itself, not what the warm head leaves of it: that
    head has seen every row, so its residuals are too small. The kernel holds the head's own inputs
    instead, so the head is fitted anew without the row that is left out.

    Args:
        model: The network; it is left exactly as it was.
        graph: Its stages and cuts.
        samples: N labelled samples.
        head_weight: (K, D) of the warm head, or None to take the network's own. A bias moves no gradient.
        rows: The most that are used, drawn once, each class by its share.
        directions: Random directions among the K outputs whose gradients are taken, at most K - 1;
            all samples share them.
        normalisation: How stages are weighed: not at all, to the same trace, or by the square of their weights' norm.
        seed: Of rows, directions and projections.
        listener: Hears of each batch.
        batch_size: B.

    Returns:
        A vote for each open depth, 0 included.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> votes = probe_tangent(net, fl.trace(net, x[:4]), fl.TensorSamples(x, (x[:, 0] > 0).long()))
        >>> [vote.depth for vote in votes]
        [0, 1]

    Source:
        Jacot et al., Neural tangent kernel, 2018; Mohamadi et al., A fast, well-founded approximation to the empirical
        neural tangent kernel, 2023 (one output); Choe et al., What is your data worth to GPT?, 2024 (both factors).
    """
    chosen = drawn(samples.labels, rows, seed)
    kernels = stage_kernels(
        model,
        graph,
        samples,
        head_weight=head_weight,
        chosen=chosen,
        directions=directions,
        seed=seed,
        listener=listener,
        batch_size=batch_size,
    )
    return votes(kernels, graph, samples.labels[torch.tensor(chosen)], normalisation=normalisation)


def drawn(labels: torch.Tensor, rows: int, seed: int) -> list[int]:
    """Draw rows so that each class keeps its share, in order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        own = order[labels[order] == label]
        place[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    return sorted(place.argsort(stable=True)[:rows].tolist())


@dataclass(frozen=True)
class Kernels:
    """Kernel of each stage on the drawn rows.

    Args:
        stages: (stages, N, N), centred; the head's inputs are in the last.
        weight_norms: (stages,) sums of squared weights.
    """

    stages: torch.Tensor
    weight_norms: torch.Tensor

    def above(self, depth: int, normalisation: Normalisation = "none") -> torch.Tensor:
        """The kernel (N, N) with the stages above a cut live."""
        traces = self.stages.diagonal(dim1=1, dim2=2).mean(dim=1)
        match normalisation:
            case "none":
                factors = torch.ones_like(traces)
            case "trace":
                factors = torch.where(traces > 0, 1.0 / traces, 0.0)
            case "squared weight norm":
                factors = self.weight_norms
        return (self.stages[depth:] * factors[depth:, None, None]).sum(dim=0)


def votes(
    kernels: Kernels, graph: CutGraph, labels: torch.Tensor, *, normalisation: Normalisation = "trace"
) -> tuple[TangentVote, ...]:
    """Let the kernel of each open depth vote."""
    targets = F.one_hot(labels, max(graph.outputs or 0, int(labels.max()) + 1)).double()
    found = []
    for depth in graph.open_depths:
        left_out, penalty = kernel_ridge(kernels.above(depth, normalisation), targets)
        found.append(TangentVote(depth=depth, **worth(left_out, labels)._asdict(), penalty=penalty))
    return tuple(found)


def kernel_ridge(kernel: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Predict each row from all others, with an unpenalised bias and the penalty of least squared error.

    Args:
        kernel: (N, N), centred.
        targets: (N, K).

    Returns:
        Leave-one-out predictions (N, K) and the penalty.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(20, 1)
        >>> left_out, _ = kernel_ridge(x @ x.T, 3 * x + 1)
        >>> bool((left_out - (3 * x + 1)).abs().max() < 0.01)
        True
    """
    mean = targets.mean(dim=0)
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp_min(0.0)
    residual, penalty = leave_one_out(values, vectors * values.sqrt(), targets - mean)
    return targets - residual, penalty


def stage_kernels(
    model: nn.Module,
    graph: CutGraph,
    samples: Samples,
    *,
    chosen: Sequence[int],
    head_weight: torch.Tensor | None = None,
    directions: int = 2,
    seed: int = 0,
    listener: Listener = silent,
    batch_size: int = 32,
) -> Kernels:
    """Take the gradient of each of the chosen rows at each stage, and multiply them by pairs."""
    copy = copy_of(model).eval()
    if head_weight is not None and graph.head is not None:
        with torch.no_grad():
            copy.get_submodule(graph.head).get_parameter("weight").copy_(head_weight)
    taker = _Taker(copy, graph, directions, seed)
    starts = range(0, len(chosen), batch_size)
    batches = [
        taker.features(samples.read(chosen[first : first + batch_size]))
        for first in watched(starts, listener, "probe", total=len(starts), note="tangent pass", unit="batches")
    ]
    *stages, head = [_product(torch.cat(parts)) for parts in zip(*batches, strict=True)]
    stages[-1] = stages[-1] + head
    return Kernels(stages=torch.stack(stages), weight_norms=taker.weight_norms)


def _product(features: torch.Tensor) -> torch.Tensor:
    """The kernel (N, N) of centred features; what all rows share would drown the rest in rounding."""
    centred = features - features.mean(dim=0)
    if centred.norm() <= 1e-6 * features.norm():
        return torch.zeros(len(features), len(features), dtype=torch.float64)
    kernel = (centred @ centred.T).double()
    return kernel - kernel.mean(dim=0) - kernel.mean(dim=1, keepdim=True) + kernel.mean()


@final
class _Taker:
    """Takes the gradients of each row of a batch, projected stage by stage."""

    def __init__(self, model: nn.Module, graph: CutGraph, directions: int, seed: int) -> None:
        self._model = model
        self._recording: Recording = graph.recording
        self._directions = directions
        self._device = next(model.parameters()).device
        self._generator = torch.Generator().manual_seed(seed)
        self._head = _own_head(model, graph)
        self._projections = _projections(model, graph, self._head, self._generator)
        own = [[mine for mine in self._projections.values() if mine.stage == at] for at in range(len(graph.stages))]
        widths = [max((mine.place.stop for mine in stage), default=0) for stage in own]
        widths = [width if width <= WIDTH else -(-width // WIDTH) * WIDTH for width in widths]
        self._signs = [_signs(self._generator, width).to(self._device) for width in widths]
        norms = [sum(float(mine.weight.detach().double().square().sum()) for mine in stage) for stage in own]
        if self._head is not None:
            norms[-1] += float(self._head.detach().double().square().sum())
        self.weight_norms = torch.tensor(norms, dtype=torch.float64)
        self._mixing: torch.Tensor | None = None
        self._is_batched: bool | None = None

    def features(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Projected gradients by stage (B, directions * D), then what enters the head (B, D)."""
        inputs = [tensor.to(self._device) for tensor in inputs]
        rows = range(len(inputs[0]))
        with torch.enable_grad(), plain_torch(), full_precision():
            found = None if self._is_batched is False else self._of_batch(inputs)
            if self._is_batched is None:
                # Layers may hold rows that are no samples, or weights that something else reads too.
                self._is_batched = found is not None and all(
                    _are_close(self._of_row(inputs, row), [part[row : row + 1] for part in found])
                    for row in {rows[0], rows[-1]}
                )
            if found is None or not self._is_batched:
                found = [torch.cat(parts) for parts in zip(*(self._of_row(inputs, row) for row in rows), strict=True)]
        return [part.cpu() for part in found]

    def _of_batch(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """All rows at once, from what enters and leaves each layer; None where that does not give every gradient."""
        calls = _Calls(self._projections, self._head, len(inputs[0]))
        with calls:
            scores = self._scores(inputs)
        if self._projections.keys() - calls.covered or (self._head is not None and len(calls.head_inputs) != 1):
            return None
        features = self._blank(scores)
        for direction in range(scores.shape[1] if calls.seen else 0):
            gradients = torch.autograd.grad(
                scores[:, direction].sum(),
                [edge for edge, _ in calls.seen],
                retain_graph=direction + 1 < scores.shape[1],
                allow_unused=True,
            )
            for gradient, (_, parts) in zip(gradients, calls.seen, strict=True):
                if gradient is not None:
                    for projection, of_gradient in parts:
                        features[projection.stage][:, direction, projection.place] += of_gradient(gradient.float())
        return self._flat(features, calls.head_inputs[0] if calls.head_inputs else scores[:, :0])

    def _of_row(self, inputs: Sequence[torch.Tensor], row: int) -> list[torch.Tensor]:
        """One row by itself, which any network allows."""
        scores = self._scores([tensor[row : row + 1] for tensor in inputs])
        features, entering = self._blank(scores), scores[:, :0]
        weights = [*self._projections, *([] if self._head is None else [self._head])]
        for direction in range(scores.shape[1]):
            gradients = torch.autograd.grad(
                scores[0, direction], weights, retain_graph=direction + 1 < scores.shape[1], allow_unused=True
            )
            for gradient, projection in zip(gradients, self._projections.values(), strict=False):
                if gradient is not None:
                    flat = projection.of(gradient[None].float())
                    features[projection.stage][:, direction, projection.place] = flat
            if self._head is not None and self._mixing is not None:
                # The gradient is the direction times what enters, and the direction has length 1.
                entering = self._mixing[:, direction][None] @ gradients[-1].float()
        return self._flat(features, entering)

    def _scores(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The outputs along each direction, (B, directions)."""
        args, kwargs = self._recording.inputs.bind(inputs)
        outputs = tensors(self._model(*args, **kwargs))[0].flatten(1).float()
        if self._mixing is None:
            self._mixing = _mixing(outputs.shape[1], self._directions, self._generator).to(outputs.device)
        return outputs @ self._mixing

    def _blank(self, scores: torch.Tensor) -> list[torch.Tensor]:
        return [torch.zeros(*scores.shape, len(signs), device=self._device) for signs in self._signs]

    def _flat(self, features: list[torch.Tensor], entering: torch.Tensor) -> list[torch.Tensor]:
        scale = features[0].shape[1] ** -0.5
        folded = [_folded(part, signs).flatten(1) * scale for part, signs in zip(features, self._signs, strict=True)]
        return [*folded, entering.detach().float()]


def _folded(features: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Fold the last axis down to WIDTH, with random signs so that inner products keep their expectation."""
    if len(signs) <= WIDTH:
        return features
    return features.mul_(signs).reshape(*features.shape[:-1], -1, WIDTH).sum(dim=-2)


def _own_head(model: nn.Module, graph: CutGraph) -> torch.Tensor | None:
    """The head's weight, where it is no other stage's too."""
    if graph.head is None or f"{graph.head}.weight" not in graph.stages[-1].keys:
        return None
    return model.get_submodule(graph.head).requires_grad_(True).get_parameter("weight")


def _mixing(outputs: int, directions: int, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal directions (K, directions) at right angles to the one that no softmax sees."""
    if outputs == 1:
        return torch.ones(1, 1)
    drawn = torch.randn(outputs, min(directions, outputs - 1), generator=generator, dtype=torch.float64)
    mixing: torch.Tensor = torch.linalg.qr(drawn - drawn.mean(dim=0)).Q.float()
    return mixing


def _are_close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all((mine - theirs).norm() <= 1e-3 * mine.norm() + 1e-12 for mine, theirs in zip(one, other, strict=True))


# --- projections ------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Projection:
    """A random linear map from the gradient of one weight into its stage's numbers.

    A matrix is projected from both sides, for each group of a convolution by itself, so that the gradient of a
    layer need never be written out. Inner products keep their expectation.
    """

    weight: torch.Tensor
    stage: int
    place: slice
    right: torch.Tensor
    left: torch.Tensor | None = None
    groups: int = 1

    def of(self, gradient: torch.Tensor) -> torch.Tensor:
        """Project gradients (B, ...) of the weight's own shape."""
        if self.weight.ndim < 2:
            return gradient.flatten(1)
        grouped = gradient.reshape(len(gradient), self.groups, -1, self.weight[0].numel())
        return self.paired(grouped, self.right)

    def paired(self, leaving: torch.Tensor, entering: torch.Tensor) -> torch.Tensor:
        """Sum over positions what leaves a layer (B, groups, rows, T) times what was projected of what enters it."""
        above = leaving if self.left is None else _times(self.left, leaving)
        return (entering @ above.mT).mT.flatten(1)

    def kernels(self) -> tuple[torch.Tensor, ...]:
        """The right side as weights of convolutions of the same kind, which project what enters them.

        One convolution with several kernels for each channel is slower than several with one.
        """
        if len(self.weight) > self.groups:
            return (self.right.reshape(-1, *self.weight.shape[1:]),)
        return tuple(part.reshape(self.weight.shape) for part in self.right.unbind(dim=1))


def _times(matrices: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Multiply matrices (blocks, k, n) by columns (B, blocks or 1, n, T)."""
    if columns.shape[1] > 1:
        return matrices @ columns
    # Broadcasting would write the columns out for each block.
    return (matrices.flatten(0, 1) @ columns[:, 0]).reshape(len(columns), len(matrices), -1, columns.shape[-1])


def _projections(
    model: nn.Module, graph: CutGraph, head: torch.Tensor | None, generator: torch.Generator
) -> dict[torch.Tensor, _Projection]:
    """One for each weight that would be trained; the head's own are known in closed form."""
    groups = {module.weight: module.groups for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)}
    named = dict(model.named_parameters(remove_duplicate=False))
    bias = named.get(f"{graph.head}.bias") if head is not None else None
    made: dict[torch.Tensor, _Projection] = {}
    for stage in graph.stages:
        start = 0
        for key in stage.keys:
            weight = named.get(key)
            if weight is None or not weight.requires_grad or weight in made or weight is head or weight is bias:
                continue
            made[weight] = _projection(weight, stage.index, start, groups.get(weight, 1), generator)
            start = made[weight].place.stop
    return made


def _projection(weight: torch.Tensor, stage: int, start: int, groups: int, generator: torch.Generator) -> _Projection:
    if weight.ndim < 2:
        return _Projection(weight, stage, slice(start, start + weight.numel()), torch.empty(0))
    rows, columns = weight.shape[0] // groups, weight[0].numel()
    blocks, above, across = _sides(rows, columns, groups)
    left, right = None, torch.eye(columns).expand(blocks, columns, columns)
    if above < rows:
        left = _signs(generator, blocks // groups, above, rows).to(weight.device) / (above * blocks // groups) ** 0.5
    if across < columns:
        right = _signs(generator, blocks, across, columns) / across**0.5
    place = slice(start, start + blocks * above * across)
    return _Projection(weight, stage, place, right.to(weight.device), left, groups)


def _signs(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0


def _sides(rows: int, columns: int, groups: int) -> tuple[int, int, int]:
    """How many blocks of how many rows and columns are kept of the matrices of all groups."""
    # Channels by themselves are many small matrices of one row, whose errors cancel.
    budget = max(1, (WIDTH if rows > 1 else WIDTH // 16) // groups)
    if rows * columns <= budget:
        return groups, rows, columns
    side = math.isqrt(budget)
    if min(rows, columns) <= side:
        return (groups, rows, budget // rows) if rows < columns else (groups, budget // columns, columns)
    # Several small blocks err less than a large one: of size k, their squared error is (4 / k + 4 / k^2) / blocks.
    if groups == 1:
        return budget // 16**2, 16, 16
    return groups, side, side


# --- all rows of a batch at once --------------------------------------------------------------

_Map = Callable[[torch.Tensor], torch.Tensor]
_Part = tuple[_Projection, _Map]


@final
class _Calls(TorchFunctionMode):
    """Notes each layer that a forward pass runs, and how its weights' gradients follow from that of its output.

    Functions are watched, not modules, since modules may do more than the layer they are named after.
    """

    def __init__(self, projections: dict[torch.Tensor, _Projection], head: torch.Tensor | None, rows: int) -> None:
        super().__init__()
        self.seen: list[tuple[GradientEdge, list[_Part]]] = []
        self.covered: set[torch.Tensor] = set()
        self.head_inputs: list[torch.Tensor] = []
        self._projections = projections
        self._head = head
        self._rows = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        rule = _RULES.get(func)
        if rule is not None and output.requires_grad and len(output) == self._rows:
            with torch.no_grad():
                self._note(rule(func, *args, **(kwargs or {})), output)
        return output

    def _note(self, layer: "_Layer", output: torch.Tensor) -> None:
        if layer.weight is not None and layer.weight is self._head:
            self.head_inputs.append(layer.entering)
            return
        parts: list[_Part] = []
        if (projection := self._of(layer.weight)) is not None and projection.groups == layer.groups:
            parts.append((projection, layer.of_weight(projection)))
        if (projection := self._of(layer.bias)) is not None:
            parts.append((projection, _then(layer.summed, projection.of)))
        if parts:
            self.covered.update(projection.weight for projection, _ in parts)
            # The output itself may be overwritten by what follows; its edge stays.
            self.seen.append((get_gradient_edge(output), parts))

    def _of(self, weight: torch.Tensor | None) -> _Projection | None:
        return None if weight is None else self._projections.get(weight)


class _Layer(NamedTuple):
    """One call of a layer: its weights, and how their gradients follow from that of its output.

    `summed` adds the positions of a sample; `of_weight` makes the map from the output's gradient to the
    projected one of the weight.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    entering: torch.Tensor
    of_weight: Callable[[_Projection], _Map]
    summed: _Map
    groups: int = 1


def _linear(func: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> _Layer:
    def of_weight(projection: _Projection) -> _Map:
        entering = _times(projection.right, _positions(input.float()).mT[:, None])
        return lambda gradient: projection.paired(_positions(gradient).mT[:, None], entering)

    return _Layer(weight, bias, input.detach(), of_weight, lambda tensor: _positions(tensor).sum(dim=1))


def _convolution(
    func: Any,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Layer:
    def grouped(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(len(tensor), groups, tensor.shape[1] // groups, -1)

    def projected(projection: _Projection) -> torch.Tensor:
        sides = weight.ndim - 2
        if weight[0, 0].numel() == 1 and stride in (1, (1,) * sides) and padding in (0, (0,) * sides):
            return _times(projection.right, grouped(input.float()))
        found = [
            func(input.float(), kernel, None, stride, padding, dilation, groups) for kernel in projection.kernels()
        ]
        return torch.cat([grouped(part) for part in found], dim=2).reshape(
            len(input), len(projection.right), -1, found[0][0, 0].numel()
        )

    def of_weight(projection: _Projection) -> _Map:
        entering = projected(projection)
        return lambda gradient: projection.paired(grouped(gradient), entering)

    return _Layer(weight, bias, input, of_weight, _by_channel, groups)


def _norm(func: Any, *args: Any, **named: Any) -> _Layer:
    """A norm of any kind: what it yields without its weight, times the weight, plus the bias."""
    given = inspect.signature(func).bind(*args, **named).arguments
    weight, bias = given.pop("weight", None), given.pop("bias", None)
    normed = func(**given).float()
    shape = given.get("normalized_shape")

    def summed(tensor: torch.Tensor) -> torch.Tensor:
        return _by_channel(tensor) if shape is None else tensor.reshape(len(tensor), -1, *shape).sum(dim=1)

    def weighted(gradient: torch.Tensor) -> torch.Tensor:
        return summed(gradient * normed)

    return _Layer(weight, bias, normed, lambda projection: _then(weighted, projection.of), summed)


def _then(first: _Map, second: _Map) -> _Map:
    return lambda tensor: second(first(tensor))


def _positions(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _by_channel(tensor: torch.Tensor) -> torch.Tensor:
    summed: torch.Tensor = tensor.reshape(*tensor.shape[:2], -1).sum(dim=-1)
    return summed


_RULES: dict[Any, Callable[..., _Layer]] = {
    F.linear: _linear,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.rms_norm), _norm),
}
