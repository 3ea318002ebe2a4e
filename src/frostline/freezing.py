"""Freeze a network's first stages in place, for users who keep their own training loop."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from frostline.errors import BadArgument, NoParameters
from frostline.fingerprint import same_bits
from frostline.frost import Course, course_of, frost_of, lay, named_tensors, plain
from frostline.record import Record


def freeze(model: nn.Module, depth: int | str, example: Any = None) -> "LayerStatus":
    """Freeze a network's first stages in place, so that no training loop moves them.

    Frozen parameters and all buffers below the cut keep every bit, whatever is called: `train()`,
    an optimizer made before, weight decay, a backward pass begun before. Below the cut batch norm
    uses its statistics, dropout and layerdrop are off and no gradient is computed. A stage that
    was frozen and lies above the depth now is given back. Networks that `torch.compile` has compiled
    are compiled anew. Only an LBFGS made before the freeze goes on to move what it remembers; make
    a new one.

    Args:
        model: The network. Freeze it before it is wrapped for several processes.
        depth: Number of frozen stages, as `CutGraph.resolve` takes it; 0 freezes nothing.
        example: As for `trace`, or the graph that it returned. A network that was frozen before
            needs none.

    Returns:
        The table of its stages.

    Raises:
        UnknownStage: No such depth.
        CutBlocked: The network cannot be cut there, for instance because weights are tied across it.
        AlreadyWrapped: DistributedDataParallel holds the network and would not see the change.
        BadArgument: The network was not frozen before and there is no example.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> status = fl.freeze(net, -1, torch.ones(2, 4))
        >>> [stage.state for stage in status.stages], net.train()[1].training
        (['frozen', 'live'], False)
    """
    model = plain(model)
    course = course_of(model, example)
    found = course.graph.resolve(depth)
    lay(model, course, found)
    return _status(model, course, found)


freeze_to = freeze


def unfreeze(model: nn.Module) -> None:
    """Give back what was there before the freeze: each `requires_grad`, each mode.

    Where `train()` or `eval()` has switched the network since, modules that were frozen get the
    mode that it is in now. A network that is not frozen stays as it is.

    Raises:
        AlreadyWrapped: DistributedDataParallel holds the network and would not see the change.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> _ = fl.freeze(net, 1, torch.ones(2, 4))
        >>> fl.unfreeze(net)
        >>> net[0].weight.requires_grad
        True
    """
    model = plain(model)
    if frost := frost_of(model):
        lay(model, frost.course, 0)


# --- the table --------------------------------------------------------------------------------


class StageStatus(Record):
    """How one stage stands.

    Args:
        index: Its place.
        name: Its name.
        state: "frozen" if nothing in it can move, "live" if all of it trains.
        parameters: Parameter elements.
        trainable: Those of them with `requires_grad`.
        buffers: Buffers.
        mode: Of its modules.
    """

    index: int
    name: str
    state: Literal["frozen", "live", "mixed"]
    parameters: int
    trainable: int
    buffers: int
    mode: Literal["eval", "train", "mixed"]


class LayerStatus(Record):
    """Which stages of a network are frozen, and how they stand; as text it is the table.

    Args:
        model: Class name of the network.
        depth: Number of stages that `freeze` holds.
        stages: One row each.
        advice: What the user should know, in words.
    """

    model: str
    depth: int
    stages: tuple[StageStatus, ...]
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ("", "stage", "state", "parameters", "trainable", "buffers", "mode")
        rows = [
            (
                str(row.index),
                row.name,
                row.state,
                f"{row.parameters:,}",
                f"{row.trainable:,}",
                str(row.buffers),
                row.mode,
            )
            for row in self.stages
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if column in (0, 3, 4, 5) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        ]
        return "\n".join([f"{self.model}, {self.depth} of {len(self.stages)} stages frozen", *lines, *self.advice])


def layer_status(model: nn.Module, example: Any = None) -> LayerStatus:
    """List the stages of a network: frozen or live, parameters, buffers, modes.

    Args:
        model: Any network; it stays as it is.
        example: As for `trace`; needed only where the network was never frozen.

    Raises:
        BadArgument: The network was never frozen and there is no example.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> _ = fl.freeze(net, 1, torch.ones(2, 4))
        >>> print(fl.layer_status(net))
        Sequential, 1 of 2 stages frozen
           stage  state   parameters  trainable  buffers  mode
        0  2      frozen          56          0        3  eval
        1  3      live            27         27        0  train
    """
    model = plain(model)
    frost = frost_of(model)
    course = course_of(model, example)
    return _status(model, course, frost.depth if frost else 0)


def _status(model: nn.Module, course: Course, depth: int) -> LayerStatus:
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    modules = dict(model.named_modules())
    rows = []
    for stage in course.graph.stages:
        mine = [weights[key] for key in stage.keys if key in weights]
        trainable = sum(weight.numel() for weight in mine if weight.requires_grad)
        homes = {key.rpartition(".")[0] for key in stage.keys} - {""}
        running = course.stage_modules(stage.index) | (homes & modules.keys() - course.spans.keys())
        mode = _mode_of({modules[name].training for name in running if name in modules} or {model.training})
        parameters = sum(weight.numel() for weight in mine)
        state: Literal["frozen", "live", "mixed"] = "mixed"
        if trainable == 0 and mode == "eval":
            state = "frozen"
        elif trainable == parameters and stage.index >= depth:
            state = "live"
        rows.append(
            StageStatus(
                index=stage.index,
                name=stage.name,
                state=state,
                parameters=parameters,
                trainable=trainable,
                buffers=sum(key in buffers for key in stage.keys),
                mode=mode,
            )
        )
    return LayerStatus(model=course.graph.model, depth=depth, stages=tuple(rows), advice=_advice(model))


def _mode_of(found: set[bool]) -> Literal["eval", "train", "mixed"]:
    return "mixed" if len(found) > 1 else "train" if found == {True} else "eval"


def _advice(model: nn.Module) -> tuple[str, ...]:
    """What on this network looks frozen and is not."""
    found = []
    still = _still_modules(model)
    moving = []
    for name, module in model.named_modules():
        if "requires_grad" in vars(module):
            found.append(
                f"`requires_grad = {vars(module)['requires_grad']}` was set on the module `{name}`, which does nothing "
                "to its parameters. Call its `requires_grad_(False)`, or `fl.freeze`, which holds its buffers too."
            )
        if name in still and module.training and isinstance(module, _NormBase | _DropoutNd):
            moving.append(name)
    if moving:
        found.append(
            f"{len(moving)} modules without a trainable parameter are in train mode, `{moving[0]}` first: their batch "
            "norm goes on to move its buffers, their dropout to drop. `fl.freeze` holds them."
        )
    return tuple(found)


def _still_modules(model: nn.Module) -> set[str]:
    """Modules whose own parameters are all without `requires_grad`, or those around them where they have none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = set()
    for name, module in modules.items():
        weights, place = list(module.parameters(recurse=False)) or list(module.parameters()), name
        while not weights and place:
            place = place.rpartition(".")[0]
            weights = list(modules[place].parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            found.add(name)
    return found


# --- the proof --------------------------------------------------------------------------------


class Verification(Record):
    """Whether what is frozen has held still; as text it says so.

    Args:
        holds: Whether something was compared and nothing of it moved.
        compared: Frozen tensors that were compared.
        moved: Names of those that differ.
        advice: What the user should know, in words.
    """

    holds: bool
    compared: int
    moved: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.compared:
            said = "Nothing was compared: no tensor that was given is frozen."
        elif self.holds:
            said = f"All {self.compared} frozen tensors kept every bit."
        else:
            said = f"{len(self.moved)} of {self.compared} frozen tensors moved: {', '.join(self.moved)}."
        return "\n".join([said, *self.advice])


def verify(model: nn.Module, before: Mapping[str, torch.Tensor]) -> Verification:
    """Compare what is frozen with what it was, bit for bit, and name what moved.

    On a network that somebody else froze, frozen are the parameters without `requires_grad`,
    and the buffers of modules in which no parameter has it.

    Args:
        model: Any network.
        before: Tensors by name, copied after the freeze: `{k: v.clone() for k, v in model.state_dict().items()}`.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> _ = fl.freeze(net, 1, torch.ones(2, 4))
        >>> before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        >>> print(fl.verify(net, before))
        All 2 frozen tensors kept every bit.
    """
    wrapped, model = model, plain(model)
    prefix = next(name for name, module in wrapped.named_modules() if module is model)
    before = {name.removeprefix(f"{prefix}."): tensor for name, tensor in before.items()}
    now: dict[str, torch.Tensor] = dict(named_tensors(model))
    frost = frost_of(model)
    frozen = frost.course.frozen_names(model, frost.depth) if frost and frost.depth else _still_names(model)
    compared = [name for name in before if name in frozen]
    moved = tuple(name for name in compared if name not in now or not same_bits(before[name], now[name]))
    return Verification(holds=bool(compared) and not moved, compared=len(compared), moved=moved, advice=_advice(model))


def _still_names(model: nn.Module) -> set[str]:
    still = _still_modules(model)
    return {
        name
        for name, tensor in named_tensors(model)
        if (not tensor.requires_grad if isinstance(tensor, nn.Parameter) else name.rpartition(".")[0] in still)
    }


# --- what the optimizer gets ------------------------------------------------------------------


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    layer_decay: float = 1.0,
    weight_decay: float = 0.01,
    example: Any = None,
    down_to: int | str | None = None,
) -> list[dict[str, Any]]:
    """Make an optimizer's parameter groups: one for each live stage, the head at the full rate.

    Norms and biases, that is vectors, get no weight decay and so a group of their own.

    Args:
        model: The network, frozen or not.
        lr: Rate of the head.
        layer_decay: Factor from each stage to the one before it; 1 gives all stages one rate.
        weight_decay: Of matrices.
        example: As for `trace`; needed only where the network was never frozen.
        down_to: A depth; parameters that are frozen now and live there get their groups too, so
            that they can be thawed without a change to the optimizer.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name`, the first stage first.

    Raises:
        NoParameters: Nothing on the network is trainable.
        BadArgument: A rate or a decay outside its range, or no example where one is needed.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> _ = fl.freeze(net, 1, torch.ones(2, 4))
        >>> [(group["name"], group["lr"]) for group in fl.param_groups(net, 0.1, layer_decay=0.5)]
        [('3', 0.05), ('3, no decay', 0.05), ('4', 0.1), ('4, no decay', 0.1)]
    """
    _check_range("lr", lr, low=0.0)
    _check_range("weight_decay", weight_decay, low=0.0)
    _check_range("layer_decay", layer_decay, low=0.0, high=1.0)
    model = plain(model)
    course = course_of(model, example)
    stages = course.graph.stages
    last = len(stages) - 1
    # What no watched pass has read (a mask token that only training uses) learns at the slowest rate.
    homes = {key: stage.index for stage in stages for key in stage.keys}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, weight in _trainable(model, course, down_to):
        groups.setdefault((homes.get(name, 0), weight.dim() < 2), []).append(weight)
    if not groups:
        raise NoParameters(
            f"NoParameters: no parameter of this {type(model).__name__} is trainable, so an optimizer would have "
            "nothing to do. Call `requires_grad_(True)` on what shall train, at least the head "
            f"`{stages[-1].name}`.",
            model=type(model).__name__,
        )
    return [
        {
            "params": weights,
            "lr": lr * layer_decay ** (last - index),
            "weight_decay": 0.0 if is_vector else weight_decay,
            "name": f"{stages[index].name}, no decay" if is_vector else stages[index].name,
        }
        for (index, is_vector), weights in sorted(groups.items(), key=lambda item: item[0])
    ]


def _trainable(model: nn.Module, course: Course, down_to: int | str | None) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters that train now, or at a lower depth."""
    frost = frost_of(model)
    depth = frost.depth if frost else 0
    if down_to is not None:
        depth = min(depth, course.graph.resolve(down_to))
    frozen = course.frozen_names(model, depth)
    flags = frost.flags if frost else {}
    for name, weight in model.named_parameters():
        if name not in frozen and flags.get(name, weight.requires_grad):
            yield name, weight


def _check_range(name: str, value: float, *, low: float, high: float = math.inf) -> None:
    if not low <= value <= high or math.isinf(value):
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise BadArgument(
            f"BadArgument: {name} is {value!r}; it must be at least {low:g}{upper}. Give another {name}.",
            name=name,
            value=value,
        )


# --- little by little -------------------------------------------------------------------------


class Thaw:
    """Gradual unfreezing: thaws a network by the epoch, or whenever the validation loss stalls.

    Make the optimizer from `param_groups`: it holds all that will ever be live, so that every
    scheduler works and what stays live keeps its optimizer state.

    Args:
        model: The network; it is frozen at the first depth at once.
        schedule: `{epoch: depth}`, with an entry for epoch 0; or with `patience` a sequence of depths.
        example: As for `freeze`.
        patience: Take the next depth when the validation loss has not improved for so many epochs.

    Example:
        >>> import frostline as fl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> thaw = fl.Thaw(net, {0: -1, 2: 0}, torch.ones(2, 4))
        >>> optimizer = torch.optim.AdamW(thaw.param_groups(1e-3))
        >>> [thaw.step() for epoch in range(3)]
        [2, 0, 0]
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Mapping[int, int | str] | Sequence[int | str],
        example: Any = None,
        *,
        patience: int | None = None,
    ) -> None:
        self._model = plain(model)
        course = course_of(self._model, example)
        self._patience = patience
        self._places = _checked(schedule, patience)
        self._depths = [course.graph.resolve(depth) for _, depth in self._places]
        self._epoch = 0
        self._place = 0
        self._best = math.inf
        self._bad = 0
        lay(self._model, course, self._depths[0])

    @property
    def depth(self) -> int:
        """Number of stages frozen now."""
        return self._depths[self._place]

    def param_groups(self, lr: float, *, layer_decay: float = 1.0, weight_decay: float = 0.01) -> list[dict[str, Any]]:
        """Make the groups of all that will ever be live, as the function of that name does."""
        return param_groups(
            self._model, lr, layer_decay=layer_decay, weight_decay=weight_decay, down_to=min(self._depths)
        )

    def step(self, valid_loss: float | None = None) -> int:
        """End an epoch and thaw if it is time to.

        Args:
            valid_loss: Of this epoch; needed with `patience`.

        Returns:
            Number of stages frozen in the next epoch.

        Raises:
            AlreadyWrapped: It is time to thaw, and DistributedDataParallel holds the network.
        """
        epoch, place, best, bad = self._epoch + 1, self._place, self._best, self._bad
        if self._patience is None:
            place = max(number for number, (first, _) in enumerate(self._places) if first <= epoch)
        else:
            if valid_loss is None:
                raise BadArgument(
                    "BadArgument: a thaw with patience needs the validation loss of each epoch. "
                    "Call `thaw.step(valid_loss)`, or give it a schedule by epochs.",
                    patience=self._patience,
                )
            best, bad = (valid_loss, 0) if valid_loss < best else (best, bad + 1)
            if bad >= self._patience and place + 1 < len(self._depths):
                place, bad = place + 1, 0
        self._go_to(place)
        self._epoch, self._best, self._bad = epoch, best, bad
        return self.depth

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly from here."""
        return {
            "epoch": self._epoch,
            "place": self._place,
            "best": self._best,
            "bad": self._bad,
            "depths": list(self._depths),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: the network is frozen at the depth of that time.

        Raises:
            BadArgument: The state is that of another schedule.
            AlreadyWrapped: DistributedDataParallel holds the network at another depth.
        """
        if list(state["depths"]) != self._depths:
            raise BadArgument(
                f"BadArgument: the saved state thaws through the depths {list(state['depths'])}, this one through "
                f"{self._depths}. Make it with the schedule that was saved.",
                saved=tuple(state["depths"]),
                depths=tuple(self._depths),
            )
        self._go_to(state["place"])
        self._epoch, self._best, self._bad = state["epoch"], state["best"], state["bad"]

    def _go_to(self, place: int) -> None:
        lay(self._model, course_of(self._model, None), self._depths[place])
        self._place = place


def _checked(
    schedule: Mapping[int, int | str] | Sequence[int | str], patience: int | None
) -> list[tuple[int, int | str]]:
    """The depths in order, each with the epoch from which it holds."""
    if patience is not None:
        if isinstance(schedule, Mapping | str) or not schedule or patience < 1:
            raise BadArgument(
                f"BadArgument: with patience {patience} the schedule is {schedule!r}; it must be a sequence of depths "
                "and the patience at least 1 epoch. For instance `Thaw(model, (-1, 8, 0), example, patience=2)`.",
                schedule=schedule,
                patience=patience,
            )
        return [(0, depth) for depth in schedule]
    if not isinstance(schedule, Mapping) or 0 not in schedule or min(schedule) < 0:
        raise BadArgument(
            f"BadArgument: the schedule is {schedule!r}; it must say from which epoch each depth holds, and begin with "
            "epoch 0. For instance `{0: -1, 2: 8, 4: 0}`; a sequence of depths needs `patience`.",
            schedule=schedule,
        )
    return sorted(schedule.items())
