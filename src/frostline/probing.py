"""Votes before training: leave-one-out ridge on pooled features at every open cut, and the warm head."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from frostline.calibration import best_temperature
from frostline.copies import copy_of
from frostline.data import Reading, Samples
from frostline.events import Event, Listener, silent, watched
from frostline.files import write_whole
from frostline.fingerprint import of_tensors
from frostline.leaving_out import balancing, doubtful, leave_one_out, worth
from frostline.recording import Recording
from frostline.records import CutGraph, Doubt, Prior, Vote, Wire
from frostline.trees import leaves

Runner = Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]

Reader = Callable[[Sequence[int], int], tuple[torch.Tensor, ...]]

NEIGHBOURS = (1, 5, 20)
"""Numbers of nearest samples that may decide, the best of which counts."""

MOST_ROWS = 4096
"""Rows that vote at most: an eigendecomposition grows with the cube, the interval shrinks with the root."""


WITNESSES = 5
"""Depths, the best of those that cannot be told apart, which together call a label into question."""


def probe(
    graph: CutGraph,
    samples: Samples,
    run: Runner,
    *,
    folder: Path,
    read: Reader | None = None,
    balanced: bool = False,
    listener: Listener = silent,
    batch_size: int = 32,
) -> Prior:
    """Let the features at every open depth vote, and write the warm head.

    One pass over the samples; nothing is trained by gradient. At each depth a ridge regression on
    the class indicators predicts each sample from all others. The head's own inputs give the warm
    head, from which every trial starts.

    Args:
        graph: The network's stages and cuts.
        samples: N labelled samples; at most 4,096 of them, drawn once, are used.
        run: A compiled `Pooled` of the same graph: inputs to pooled features (B, D) by depth.
        folder: Where the warm head is written, under its own fingerprint.
        read: Gives what `run` takes, for some rows of a view; None is `samples.read`.
        balanced: Whether every class counts the same in accuracy and loss, however many samples it has.
        listener: Hears of each batch and each vote.
        batch_size: B.

    Returns:
        A vote for each open depth above 0, and the name of the warm head's file.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> graph = fl.trace(net, x[:4])
        >>> pooled = Pooled(net, graph)
        >>> prior = fl.probe(graph, fl.TensorSamples(x, (x[:, 0] > 0).long()), lambda xs: pooled(*xs), folder=tmp)
        >>> [vote.depth for vote in prior.votes], prior.samples
        ([1], 60)
    """
    rows = _drawn(len(samples))
    labels = samples.labels[torch.tensor(rows)]
    classes = graph.outputs or int(samples.labels.max()) + 1
    starts = range(0, len(rows), batch_size)
    with Reading(samples, [(0, rows[first : first + batch_size]) for first in starts], read) as reading:
        features = _gathered(reading, run, total=len(starts), listener=listener)
    targets = F.one_hot(labels, classes).double()
    weights = balancing(labels) if balanced else None
    depths = [depth for depth in graph.open_depths if depth]
    votes: list[Vote] = []
    best: list[tuple[Vote, torch.Tensor]] = []
    last: tuple[torch.Tensor, RidgeFit] | None = None
    for depth, pooled in watched(
        zip(depths, features, strict=False), listener, "probe", total=len(depths), note="votes", unit="depths"
    ):
        fit = ridge(pooled, targets)
        last = pooled, fit
        votes.append(_vote(depth, fit, labels, weights, knn=nearest(pooled, labels, weights)))
        best = sorted([*best, (votes[-1], fit.left_out)], key=lambda pair: -pair[0].accuracy)[:WITNESSES]
    head, temperature = None, 1.0
    if graph.head is not None:
        # The deepest wire is the head's own input in most networks.
        fit = last[1] if last and torch.equal(last[0], features[-1]) else ridge(features[-1], targets)
        temperature = best_temperature(fit.left_out, labels)
        tensors = {"weight": (fit.weight * temperature).float(), "bias": (fit.bias * temperature).float()}
        head = f"{of_tensors(tensors.items())}.safetensors"
        write_whole(folder / head, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return Prior(
        votes=tuple(votes), samples=len(rows), head=head, temperature=temperature, doubts=_doubts(best, labels, rows)
    )


def _doubts(best: list[tuple[Vote, torch.Tensor]], labels: torch.Tensor, rows: list[int]) -> tuple[Doubt, ...]:
    """What the best depth, and those that cannot be told from it, call into question."""
    close = [left_out for vote, left_out in best if vote.high >= best[0][0].low]
    found = doubtful(close, labels) if close else {}
    return tuple(
        Doubt(sample=rows[place], label=int(labels[place]), prediction=other, confidence=confidence)
        for place, (other, confidence) in found.items()
    )


def _drawn(total: int) -> list[int]:
    if total <= MOST_ROWS:
        return list(range(total))
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return sorted(order[:MOST_ROWS].tolist())


def _gathered(reading: Reading, run: Runner, *, total: int, listener: Listener) -> list[torch.Tensor]:
    listener(Event(phase="probe", note="one pass", done=0, total=total, unit="batches"))
    batches = []
    for done, inputs in enumerate(reading, start=1):
        # An engine may hand out its own output buffer again and again.
        batches.append([tensor.detach().float().clone() for tensor in run(inputs)])
        note = f"one pass, {reading.note}"
        listener(Event(phase="probe", note=note, done=done, total=total, unit="batches"))
    return [torch.cat(column) for column in zip(*batches, strict=True)]


def _vote(depth: int, fit: "RidgeFit", labels: torch.Tensor, weights: torch.Tensor | None, *, knn: float) -> Vote:
    return Vote(
        depth=depth,
        **worth(fit.left_out, labels, weights)._asdict(),
        penalty=fit.penalty,
        features=fit.weight.shape[1],
        knn=knn,
    )


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression and what it says of each sample when that sample is left out.

    Args:
        left_out: (N, K) predictions of each row by the fit without it, in float64.
        penalty: The one of least leave-one-out squared error.
        weight: (K, D) of the fit on all rows.
        bias: (K,).
    """

    left_out: torch.Tensor
    penalty: float
    weight: torch.Tensor
    bias: torch.Tensor


def ridge(features: torch.Tensor, targets: torch.Tensor) -> RidgeFit:
    """Fit a ridge regression with an unpenalised bias, its penalty chosen by exact leave-one-out.

    Args:
        features: (N, D).
        targets: (N, K), for instance class indicators.

    Returns:
        Leave-one-out predictions, penalty, weight and bias.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 20).reshape(20, 1)
        >>> fit = ridge(x, 3 * x + 1)
        >>> round(float(fit.weight), 2), round(float(fit.bias), 2)
        (3.0, 1.0)

    Source:
        Allen, The relationship between variable selection and data augmentation and a method for
        prediction, 1974 (PRESS); Golub, Heath and Wahba, Generalized cross-validation as a method
        for choosing a good ridge parameter, 1979.
    """
    x, y = features.double(), targets.double()
    samples, width = x.shape
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    wide = width > samples
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = values.clamp_min(0.0)
    projected = vectors * values.sqrt() if wide else x @ vectors
    residual, penalty = leave_one_out(values, projected, y)
    shrunk = 1.0 / (values + penalty)
    weight = ((x.T @ vectors) * shrunk) @ (vectors.T @ y) if wide else vectors @ (shrunk[:, None] * (projected.T @ y))
    return RidgeFit(left_out=y + y_mean - residual, penalty=penalty, weight=weight.T, bias=y_mean - x_mean @ weight)


def nearest(features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    """Accuracy when each sample takes the class of those most like it, itself left out.

    Likeness is the cosine of the standardised features. Of 1, 5 and 20 neighbours the best number
    counts: no single one suits both few samples and noisy labels, and every depth has the same choice.

    Args:
        features: (N, D).
        labels: (N,) class numbers.
        weights: (N,) what each sample counts, 1 in the mean; None counts all alike.

    Returns:
        The accuracy, 0 to 1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> nearest(x, torch.tensor([0, 0, 1, 1]))
        1.0

    Source:
        Wu et al., Unsupervised feature learning via non-parametric instance discrimination, 2018,
        section 3.4 (weights exp(cosine / 0.07)).
    """
    centred = features.float() - features.float().mean(dim=0)
    spread = centred.square().mean(dim=0).sqrt()
    # A feature that never varies tells nothing; divided by its rounding it would tell that.
    scaled = F.normalize(torch.where(spread > 1e-6 * features.abs().mean(dim=0), centred / spread, 0.0), dim=1)
    likeness, others = (scaled @ scaled.T).fill_diagonal_(-math.inf).topk(min(NEIGHBOURS[-1], len(labels) - 1))
    closeness, classes = (likeness / 0.07).exp(), labels[others]
    counts = torch.ones(len(labels)) if weights is None else weights
    found = []
    for count in NEIGHBOURS:
        shares = torch.zeros(len(labels), int(labels.max()) + 1)
        shares.scatter_add_(1, classes[:, :count], closeness[:, :count])
        found.append(min(1.0, float(((shares.argmax(dim=1) == labels) * counts).mean())))
    return max(found)


@final
class Pooled(nn.Module):
    """The network as a map from inputs to pooled features at every open depth.

    Each wire gives the mean and the standard deviation of its features over all positions. The
    feature axis is the last one, except: (B, C, H, W) where H and W stand in the picture's own
    proportion, (B, C, T) behind a one-dimensional convolution, and anything of five or more axes,
    where it is the second. So Swin's (B, H, W, C) is pooled over H and W; where both readings fit
    a four-axis wire, convolutions have precedence.

    Args:
        model: The network; it is not changed. Weights are shared with it, not copied.
        graph: Its stages and cuts.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> x = torch.randn(2, 3, 8, 8)
        >>> [tuple(features.shape) for features in Pooled(net, fl.trace(net, x))(x)]
        [(2, 144), (2, 144)]
    """

    def __init__(self, model: nn.Module, graph: CutGraph) -> None:
        super().__init__()
        recording: Recording = graph.recording
        self.model = copy_of(model, [*model.parameters(), *model.buffers()]).eval()
        self._inputs = recording.inputs
        self._head = graph.head
        self._seen: Counter[str] = Counter()
        self._caught: dict[tuple[str, int], list[Any]] = {}
        self._head_input: torch.Tensor | None = None
        self._plan = [_sources(graph, depth, self.model) for depth in graph.open_depths if depth]
        for name in sorted({source.call[0] for sources in self._plan for source in sources}):
            self.model.get_submodule(name).register_forward_hook(self._keep(name))
        if self._head is not None:
            self.model.get_submodule(self._head).register_forward_pre_hook(self._keep_input)

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._caught[name, self._seen[name]] = leaves(output)
            self._seen[name] += 1

        return hook

    def _keep_input(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._head_input = inputs[0]

    def train(self, mode: bool = True) -> "Pooled":
        """Do nothing: what votes is inference, in eval mode."""
        return self

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pool the features of a batch: (B, D) for each open depth, then the head's own input."""
        args, kwargs = self._inputs.bind(inputs)
        try:
            self.model(*args, **kwargs)
            pooled = [
                torch.cat([_pool(self._caught[source.call][source.leaf], source) for source in sources], dim=1)
                for sources in self._plan
            ]
            return (*pooled, self._head_input) if self._head_input is not None else tuple(pooled)
        finally:
            self._seen.clear()
            self._caught.clear()
            self._head_input = None


class _Source(NamedTuple):
    """Where a wire's features come from, and how they lie."""

    call: tuple[str, int]
    leaf: int
    wire: Wire
    axis: int


def _sources(graph: CutGraph, depth: int, model: nn.Module) -> list[_Source]:
    recording: Recording = graph.recording
    picture = next((wire.shape for wire in graph.cuts[0].wires if len(wire.shape) == 4), None)
    sources = []
    for stored, wire in zip(recording.points[depth].stored, graph.cuts[depth].wires, strict=True):
        # Raw inputs that travel with a row are no features.
        if stored.call >= 0 and stored.layout.dtype.is_floating_point:
            call = recording.calls[stored.call]
            axis = _feature_axis(wire, model.get_submodule(call.name), picture)
            sources.append(_Source((call.name, call.nth), stored.leaf, wire, axis))
    return sources


def _feature_axis(wire: Wire, module: nn.Module, picture: tuple[int, ...] | None) -> int:
    """Which axis holds features, once the batch stands first."""
    shape = [size for axis, size in enumerate(wire.shape) if axis != wire.batch_axis]
    match len(shape):
        case 3 if picture is not None and _skew(shape[:2], picture) < _skew(shape[1:], picture):
            return 3
        case 3:
            return 1
        case 2 if _is_one_dimensional(module):
            return 1
        case count if count >= 4:
            return 1
    return len(shape)


def _skew(sides: list[int], picture: tuple[int, ...]) -> float:
    """How far a map's proportion is from the picture's."""
    height, width = picture[-2:]
    return abs(math.log((sides[0] / sides[1]) / (height / width)))


def _is_one_dimensional(module: nn.Module) -> bool:
    kinds = [type(part).__name__ for part in module.modules()]
    return any(kind.endswith("1d") for kind in kinds) and "LayerNorm" not in kinds


def _pool(tensor: torch.Tensor, source: _Source) -> torch.Tensor:
    """Mean and standard deviation over positions, (B, 2 D); a vector (B, D) stays as it is."""
    wire = source.wire
    tensor = tensor.movedim(wire.batch_axis, 0).movedim(source.axis, -1)
    if tensor.ndim == 2 and wire.factor == 1:
        return tensor
    positions = tensor.reshape(tensor.shape[0] // wire.factor, -1, tensor.shape[-1])
    mean = positions.mean(dim=1)
    # Written out, because engines differ in what they call the standard deviation of one position.
    spread = (positions - mean[:, None]).square().mean(dim=1).sqrt()
    return torch.cat([mean, spread], dim=1)
