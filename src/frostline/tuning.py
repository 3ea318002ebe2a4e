"""The one training loop: a live part, its rows, a recipe."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F

from frostline.calibration import best_temperature
from frostline.carrying import Carrier, Read, device_of
from frostline.convolving import quick_convolutions
from frostline.data import Rows
from frostline.errors import PathChanged, WeightsDoNotFit
from frostline.events import Event, Listener, silent
from frostline.files import write_whole
from frostline.heap import kept_heap
from frostline.records import EpochPoint, Recipe, Trial, TrialSpec
from frostline.schedules import batches_of, mixed, rate_factor, span_of

CHECKED_EVERY = 16
"""Steps between two looks at the loss; on an accelerator each look waits for all work before it."""


def tune(
    live: nn.Module,
    train: Rows,
    valid: Rows,
    *,
    train_labels: torch.Tensor,
    valid_labels: torch.Tensor,
    spec: TrialSpec,
    save_to: Path,
    head: str | None = None,
    warm: Path | None = None,
    start: Path | None = None,
    valid_weights: torch.Tensor | None = None,
    flops_per_sample: float = 0.0,
    listener: Listener = silent,
) -> Trial:
    """Train a live part for one rung, and keep its best and its last state.

    The live part is trained in place and holds the best weights when the call returns. Everything
    random follows from the seed and the number of the step, counted over all parents: two rungs
    of two and three epochs at a constant rate give the same bits as one rung of five, and every
    depth sees the same mini-batches. A rung is scored at each end of an epoch and at its own end, which
    may lie within one. A training is scored before its first step, too; the arms of a race, whose weights are
    averaged, only where that can be their best. The best is the one with the lowest validation loss; the
    state before the first step is none of them where the recipe softens the head for training.

    Where the live part is on a GPU, rows are read and copied there one batch ahead of the step that learns from them.

    Args:
        live: The part above the cut, on the device on which it is trained; maps wires to outputs (B, K).
        train: N rows to learn from. Epoch e reads view e - 1, modulo the number of views.
        valid: Rows that pick the best epoch.
        train_labels: (N,) class numbers.
        valid_labels: Class numbers of the validation rows.
        spec: What is asked for.
        save_to: File for the best weights, the last weights and the optimizer's state.
        head: Dotted name of the head, which has its own learning rate; None trains all at one.
        warm: File with the head's "weight" and "bias" to start from where there is no parent.
        start: File that the parent trial saved; needed where `spec.parent` is set.
        valid_weights: What each validation row counts, 1 in the mean; None counts all alike.
        flops_per_sample: Forward operations of the live part for one sample.
        listener: Hears of the steps and of each epoch's loss.

    Returns:
        What happened. A loss that is not finite ends the trial early and is its `failure`.

    Raises:
        WeightsDoNotFit: The warm head or the parent's state has other names or shapes.

    Example:
        >>> import torch
        >>> from frostline.records import Recipe, TrialSpec
        >>> x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        >>> part = fl.TensorSamples(x, (x[:, 0] > 0).long())
        >>> spec = TrialSpec(depth=0, recipe=Recipe(learning_rate=0.05), seed=0, epochs=3)
        >>> net = torch.nn.Linear(4, 2)
        >>> labels = {"train_labels": part.labels, "valid_labels": part.labels}
        >>> trial = fl.tune(net, part, part, **labels, spec=spec, save_to=tmp / "trial.safetensors")
        >>> [point.epoch for point in trial.curve], trial.failure
        ([0.0, 1.0, 2.0, 3.0], None)

    Source:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019; the warm head is Kumar
        et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, 2022.
    """
    begun = time.perf_counter()
    trainee = _Trainee(live, spec, len(train), head, listener)
    best: _Best | None = None
    if start is not None:
        best = _take_over(trainee, start)
    elif warm is not None and head is not None:
        _lay_head(live, head, warm, scale=spec.recipe.head_scale)
    trainee.begin_average()
    curve: list[EpochPoint] = []
    samples, failure = 0, None
    losses = torch.empty(0)
    try:
        with kept_heap():
            for first, last in trainee.laps():
                since, learnt = time.perf_counter(), _Learnt()
                if last > first:
                    learnt = trainee.learn(train, train_labels, first, last)
                samples += _BACKWARD_TOO * learnt.samples + len(valid)
                losses, hits = trainee.check(valid, valid_labels, last)
                seconds = time.perf_counter() - since
                means = _mean(losses, valid_weights), _mean(hits, valid_weights)
                point = _point(last / trainee.steps, means, learnt=learnt, seconds=seconds)
                curve.append(point)
                if best is None or best.is_only_a_start or point.valid_loss < _mean(best.losses, valid_weights):
                    best = _Best(point.epoch, losses, hits, trainee.kept(), recipe=spec.recipe)
        assert best is not None
        _save(trainee, best, save_to)
        _fill(live, best.weights, save_to)
    except _Diverged as diverged:
        failure = str(diverged)
    live.eval()
    return Trial(
        spec=spec,
        curve=tuple(curve),
        best_epoch=best.epoch if best else 0,
        losses=tuple(best.losses.tolist()) if best else (),
        hits=tuple(best.hits.tolist()) if best else (),
        last_losses=() if best is None or best.losses is losses else tuple(losses.tolist()),
        sample_weights=() if best is None or valid_weights is None else tuple(valid_weights.tolist()),
        seconds=time.perf_counter() - begun,
        flops=samples * flops_per_sample,
        weights=None if failure else save_to.name,
        failure=failure,
    )


@dataclass(frozen=True)
class _Learnt:
    """What was seen of the steps between two looks; by default there were none."""

    samples: int = 0
    loss: float | None = None
    rate: float = 0.0
    gradient_norm: float | None = None
    gradient_spread: float | None = None


def _point(epoch: float, means: tuple[float, float], *, learnt: _Learnt, seconds: float) -> EpochPoint:
    loss, accuracy = means
    return EpochPoint(
        epoch=epoch,
        train_loss=learnt.loss,
        valid_loss=loss,
        valid_accuracy=accuracy,
        learning_rate=learnt.rate,
        seconds=seconds,
        gradient_norm=learnt.gradient_norm,
        gradient_spread=learnt.gradient_spread,
    )


_BACKWARD_TOO = 3
"""A training step counts as three forward passes: one forward, two backward."""


class _Diverged(Exception):
    """The loss is not finite; the message becomes the trial's failure."""


@dataclass(frozen=True)
class _Best:
    """The moment with the lowest validation loss so far."""

    epoch: float
    losses: torch.Tensor
    hits: torch.Tensor
    weights: dict[str, torch.Tensor]
    recipe: Recipe

    @property
    def is_only_a_start(self) -> bool:
        """Whether this is where training sets out from, with a head that was softened for it.

        Such a head is fitted to the frozen features, and likely where it is not right: on 200 pictures of TrashNet
        its loss of 68 validation samples was the lowest of 31 in 25 of 42 trainings, which ended in an accuracy of
        .64 to .70 on the test part; it has .62.
        """
        return not self.epoch and self.recipe.head_scale != 1


class _Trainee:
    """A live part with its optimizer, for one rung."""

    def __init__(self, live: nn.Module, spec: TrialSpec, samples: int, head: str | None, listener: Listener) -> None:
        self.live = live
        self.spec = spec
        self.steps = len(batches_of(samples, spec, 1))
        self.first, self.last = span_of(spec, self.steps)
        self.listener = listener
        self.device = device_of(live)
        self.carrier = Carrier(self.device)
        self.optimizer = optimizer_for(live, spec.recipe, head=head)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.average: dict[str, torch.Tensor] = {}
        self.quick: AbstractContextManager[object] | None = None

    def laps(self) -> Iterator[tuple[int, int]]:
        """Steps after which the rung is scored, as (from, to): the start of a chain, each end of an epoch, the end."""
        is_arm = self.spec.recipe.averaging and self.spec.recipe.head_scale != 1 and self.last > self.first
        if self.spec.parent is None and not is_arm:
            yield self.first, self.first
        begin = self.first
        while begin < self.last:
            lap = min((begin // self.steps + 1) * self.steps, self.last)
            yield begin, lap
            begin = lap

    def learn(self, rows: Rows, labels: torch.Tensor, first: int, last: int) -> _Learnt:
        """Train from one step of the chain to another of the same epoch."""
        epoch, total, seen = first // self.steps + 1, torch.zeros((), device=self.device), 0
        batches = batches_of(len(rows), self.spec, epoch)
        view = (epoch - 1) % rows.views
        note = f"depth {self.spec.depth}, epoch {epoch} of {math.ceil(self.last / self.steps)}"
        _train_mode(self.live, self.spec.recipe)
        factor, norms = 0.0, list[torch.Tensor]()
        steps = range(first + 1, last + 1)
        taken = [batches[(step - 1) % self.steps] for step in steps]
        reads = [partial(_read, rows, labels, batch, view) for batch in taken]
        with _no_denormals(), _own_randomness(self.device), self.carrier.ahead(reads) as given:
            for step, batch, read in zip(steps, taken, given, strict=True):
                factor = rate_factor(self.spec, self.steps, step)
                for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                    group["lr"] = peak * factor
                loss, norm = self._learn_from(read, step)
                norms.append(norm)
                self._follow(step)
                total += loss * len(batch)
                seen += len(batch)
                done = (step - 1) % self.steps + 1
                if done % CHECKED_EVERY == 0 or step == last:
                    so_far = _finite(float(total), f"training loss in epoch {epoch}, by step {done} of {self.steps}")
                    event = Event(phase="train", note=note, done=done, total=self.steps, unit="steps")
                    self.listener(event.model_copy(update={"value": so_far / seen}))
        spread, mean = torch.std_mean(torch.stack(norms).double(), correction=0)
        rate = self.spec.recipe.learning_rate * factor
        return _Learnt(seen, float(total) / seen, rate, gradient_norm=float(mean), gradient_spread=float(spread))

    def _learn_from(self, read: Read, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        while True:
            # Live parts may write into what they are given, so a step that is taken again reads again.
            *given, labels = read()
            inputs = tuple(given)
            self.quick = self.quick or quick_convolutions(self.live, inputs)
            _seed(mixed(self.spec.seed, step), self.device)
            try:
                return _step(self.live, self.optimizer, (inputs, labels), recipe=self.spec.recipe, quick=self.quick)
            except PathChanged:
                self.quick = nullcontext()

    def begin_average(self) -> None:
        """Start the running average from the weights as they are, unless a parent has handed one on."""
        if self.spec.recipe.averaging and not self.average:
            self.average = {name: weight.detach().clone() for name, weight in self.live.named_parameters()}

    def _follow(self, step: int) -> None:
        if self.average:
            # In the first steps an average of long memory would still be the pretrained weights.
            kept = min(self.spec.recipe.averaging, (1 + step) / (10 + step))
            weights = [weight.detach() for weight in self.live.parameters()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - kept)

    def kept(self) -> dict[str, torch.Tensor]:
        """What is scored: the live part's tensors, the averaged ones in their places."""
        with self._averaged():
            return {name: tensor.detach().clone() for name, tensor in self.live.state_dict().items()}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the live part has the averaged weights, if there are any."""
        if not self.average:
            yield
            return
        weights = [weight.detach() for weight in self.live.parameters()]
        own = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, list(self.average.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)

    def check(self, rows: Rows, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss in nats, after the temperature that suits the rows best, and hit of each row, in eval mode.

        Without the temperature a network that goes on learning looks worse from the epoch on at which
        it is surer than it is right: on TrashNet the first epoch won at .822 where the sixth had .848.
        """
        size = self.spec.recipe.batch_size
        starts = range(0, len(rows), size)
        reads = [partial(rows.read, range(first, min(first + size, len(rows)))) for first in starts]
        self.live.eval()
        with torch.no_grad(), self._averaged(), self.carrier.ahead(reads) as given:
            outputs = torch.cat([self.live(*read()).float() for read in given]).cpu()
        _finite(float(F.cross_entropy(outputs, labels)), f"validation loss after epoch {step / self.steps:.3g}")
        losses = F.cross_entropy(outputs * best_temperature(outputs, labels), labels, reduction="none")
        return losses, outputs.argmax(dim=1) == labels


def optimizer_for(live: nn.Module, recipe: Recipe, *, head: str | None) -> torch.optim.AdamW:
    """Make AdamW over the live parameters: the head at its own rate, decay on weights only.

    Args:
        live: The part above the cut.
        recipe: Rates and decay.
        head: Dotted name of the head, or None.

    Returns:
        An optimizer of up to four groups.

    Example:
        >>> import torch
        >>> from frostline.records import Recipe
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
        >>> len(optimizer_for(net, Recipe(), head="1").param_groups)
        4
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in live.named_parameters():
        if parameter.requires_grad:
            in_head = head is not None and name.startswith(f"{head}.")
            groups.setdefault((in_head, parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": recipe.head_learning_rate if in_head else recipe.learning_rate,
                "weight_decay": recipe.weight_decay if is_weight else 0.0,
            }
            for (in_head, is_weight), parameters in groups.items()
        ],
        fused=device_of(live).type in ("cpu", "cuda"),
    )


def train_step(
    live: nn.Module, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor, *, recipe: Recipe, head: str | None
) -> Callable[[], None]:
    """Make a call that does one step of training on one batch, to be timed.

    Args:
        live: The part above the cut; each call trains it.
        inputs: Wires of one batch (B, ...).
        labels: (B,) class numbers.
        recipe: How to train.
        head: Dotted name of the head, or None.

    Returns:
        A function without arguments.

    Example:
        >>> import torch
        >>> from frostline.records import Recipe
        >>> net = torch.nn.Linear(3, 2)
        >>> train_step(net, (torch.ones(4, 3),), torch.zeros(4, dtype=torch.int64), recipe=Recipe(), head=None)()
    """
    optimizer = optimizer_for(live, recipe, head=head)
    _train_mode(live, recipe)
    device = device_of(live)
    quick = quick_convolutions(live, inputs)

    def step() -> None:
        # Live parts may write into what they are given; a training reads its rows anew for each step, too.
        given = tuple(tensor.clone() for tensor in inputs)
        with _no_denormals(), _own_randomness(device):
            _step(live, optimizer, (given, labels), recipe=recipe, quick=quick)

    return step


def load_best(live: nn.Module, file: Path) -> None:
    """Put the best weights of a trial into its live part.

    Args:
        live: A live part of the same cut.
        file: The file that the trial saved.

    Raises:
        WeightsDoNotFit: The file belongs to another network or cut.

    Example:
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> net = torch.nn.Linear(1, 1)
        >>> save_file({"best/weight": torch.ones(1, 1), "best/bias": torch.ones(1)}, tmp / "state.safetensors")
        >>> load_best(net, tmp / "state.safetensors")
        >>> net.bias.tolist()
        [1.0]
    """
    _fill(live, _under("best", load_file(file)), file)


def _step(
    live: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[tuple[torch.Tensor, ...], torch.Tensor],
    *,
    recipe: Recipe,
    quick: AbstractContextManager[object],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Learn from one batch, which may be written into; gives the loss, and the norm of the gradient unclipped."""
    inputs, labels = batch
    with quick:
        if recipe.precision == "float32":
            outputs = live(*inputs)
        else:
            # Weights, their gradients and the loss keep all their bits; the range of bfloat16 needs no scaled loss.
            with torch.autocast(labels.device.type, torch.bfloat16):
                outputs = live(*inputs).float()
        loss = F.cross_entropy(outputs, labels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = nn.utils.clip_grad_norm_(
        [parameter for group in optimizer.param_groups for parameter in group["params"]], recipe.clip_norm
    )
    optimizer.step()
    return loss.detach(), norm


def _read(rows: Rows, labels: torch.Tensor, batch: torch.Tensor, view: int) -> tuple[torch.Tensor, ...]:
    """The rows of a batch, and last their labels."""
    return *rows.read(batch.tolist(), view), labels[batch]


def _train_mode(live: nn.Module, recipe: Recipe) -> None:
    """Train mode, but norms with running statistics keep them where the recipe says so.

    Only the norms: an attention bias that LeViT keeps in eval mode would go stale.
    """
    live.train()
    if recipe.norm_mode == "eval":
        for module in live.modules():
            if getattr(module, "running_mean", None) is not None:
                module.training = False


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """What is drawn and seeded inside leaves the caller's random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed(seed: int, device: torch.device) -> None:
    """Let dropout draw from this seed."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Numbers below float32's normal range count as zero inside, and the caller's setting is put back.

    A network that is sure of its training samples has such gradients, and processors take up to
    eight times as long over them.
    """
    was_set = not float(torch.full((), 1e-39) * 1.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_set)


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise _Diverged(f"the {what} is {value}")
    return value


def _mean(values: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    return float((values.double() if weights is None else values.double() * weights).mean())


def _lay_head(live: nn.Module, head: str, warm: Path, *, scale: float) -> None:
    """Write the warm head, scaled, into the head; a head without a bias takes the weight alone."""
    own = dict[str, torch.Tensor](live.get_submodule(head).named_parameters(recurse=False))
    given = load_file(warm)
    _fit(own, {name: scale * tensor for name, tensor in given.items() if name in own}, warm)


def _save(trainee: _Trainee, best: _Best, file: Path) -> None:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in trainee.live.named_parameters()}
    tensors = {
        "valid/epoch": torch.tensor(best.epoch, dtype=torch.float64),
        "valid/losses": best.losses,
        "valid/hits": best.hits,
    }
    tensors |= {f"best/{name}": tensor for name, tensor in best.weights.items()}
    tensors |= {f"last/{name}": tensor for name, tensor in trainee.live.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in trainee.average.items()}
    for parameter, state in trainee.optimizer.state.items():
        tensors |= {f"optimizer/{kind}/{names[parameter]}": tensor for kind, tensor in state.items()}
    # Tied weights are one storage under two names, which safetensors refuses; a clone each is right on reading, too.
    write_whole(file, save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}))


def _take_over(trainee: _Trainee, start: Path) -> _Best:
    """Load a parent's last weights and optimizer, and its best epoch as the one to beat."""
    tensors = load_file(start)
    _fill(trainee.live, _under("last", tensors), start)
    if trainee.spec.recipe.averaging:
        trainee.average = {
            name: torch.empty_like(weight).copy_(tensors[f"average/{name}"])
            for name, weight in trainee.live.named_parameters()
        }
    for name, parameter in trainee.live.named_parameters():
        state = {
            kind: tensors[key]
            for kind in ("step", "exp_avg", "exp_avg_sq")
            if (key := f"optimizer/{kind}/{name}") in tensors
        }
        if state:
            # Fused AdamW walks the memory of weight, gradient and moments side by side, so their order must agree.
            trainee.optimizer.state[parameter] = {
                kind: tensor.to(parameter.device) if kind == "step" else torch.empty_like(parameter).copy_(tensor)
                for kind, tensor in state.items()
            }
    return _Best(
        epoch=float(tensors["valid/epoch"]),
        losses=tensors["valid/losses"],
        hits=tensors["valid/hits"],
        weights=_under("best", tensors),
        recipe=trainee.spec.recipe,
    )


def _under(part: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}


def _fill(live: nn.Module, tensors: dict[str, torch.Tensor], file: Path) -> None:
    _fit(live.state_dict(), tensors, file)


def _fit(own: Mapping[str, torch.Tensor], tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Copy tensors of the same names and shapes, keeping the memory order of those that are there."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (own, tensors)]
    if shapes[0] != shapes[1]:
        other = sorted(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name))
        raise WeightsDoNotFit(
            f"WeightsDoNotFit: {file} and the live part differ in {', '.join(other[:5])}"
            f"{f' and {len(other) - 5} more' if len(other) > 5 else ''}. "
            "Use a file that a trial at this depth saved.",
            file=file,
            names=tuple(other),
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
