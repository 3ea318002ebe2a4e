"""The freeze inside trainers that are not ours: what the callbacks of Lightning and transformers share."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

import frostline as fl
from frostline.errors import BadArgument, FrozenMoved

Depth = int | str
Schedule = Mapping[int, Depth] | Sequence[Depth]


class FrozenTraining:
    """Keeps a network frozen through one training by somebody else's trainer, and verifies it.

    A trainer makes its optimizers once, from what is trainable at that time. So the network is
    frozen at the lowest depth that the schedule will come to, and at the first one by `start`.

    Args:
        network: To be frozen, before its optimizers are made and before it is wrapped.
        depth: What to freeze at first.
        example: What the network's forward takes.
        schedule: Later depths, as `fl.Thaw` takes them; none keeps the first.
        patience: As for `fl.Thaw`.
        verify: Whether a frozen tensor that moved is an error or a warning.
        processes: How many train together.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from frostline.integrations import FrozenTraining
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> training = FrozenTraining(net, -1, torch.ones(2, 4))
        >>> training.start(torch.optim.SGD(net.parameters(), lr=0.1).param_groups)
        >>> training.check()
    """

    def __init__(
        self,
        network: nn.Module,
        depth: Depth,
        example: Any,
        *,
        schedule: Schedule | None = None,
        patience: int | None = None,
        verify: Literal["raise", "warn"] = "raise",
        processes: int = 1,
    ) -> None:
        if schedule is not None and processes > 1:
            raise BadArgument(
                f"BadArgument: a schedule and {processes} processes, but a network that is wrapped for several cannot "
                "be thawed. Train each depth with a trainer of its own, or take one process.",
                processes=processes,
            )
        self.network = network
        first = fl.freeze(network, depth, example).depth
        self._schedule = _from_the_start(first, schedule)
        self._patience = patience
        self._verify = verify
        self._thaw: Any = None
        fl.freeze(network, min([first, *(fl.freeze(network, later).depth for later in _depths(schedule))]))

    def start(self, groups: Iterable[Mapping[str, Any]], state: Mapping[str, Any] | None = None) -> None:
        """Freeze at the first depth, or at the one of a saved state, and remember every frozen tensor.

        Args:
            groups: The optimizers' parameter groups.
            state: From `state_dict` of the training that this one resumes.
        """
        if self._schedule is not None:
            self._refuse_what_no_optimizer_holds(groups)
            self._thaw = fl.Thaw(self.network, self._schedule, patience=self._patience)
            if state:
                self._thaw.load_state_dict(state)
        self._remember()

    def step(self, valid_loss: float | None = None) -> None:
        """End an epoch: verify, then thaw if it is time to."""
        if self._thaw is not None:
            self.check()
            self._thaw.step(valid_loss)
            self._remember()

    def check(self) -> None:
        """Verify that what is frozen has every bit that it had when it was frozen."""
        found = fl.verify(self.network, self._before)
        if not found.moved:
            return
        if self._verify == "raise":
            raise FrozenMoved(f"FrozenMoved: {found}", moved=found.moved)
        warnings.warn(str(found), stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What `start` needs to go on exactly from here; empty without a schedule."""
        return self._thaw.state_dict() if self._thaw else {}

    def _remember(self) -> None:
        live = {name for name, weight in self.network.named_parameters(remove_duplicate=False) if weight.requires_grad}
        state = self.network.state_dict()
        self._before = {name: value.clone() for name, value in state.items() if name not in live}

    def _refuse_what_no_optimizer_holds(self, groups: Iterable[Mapping[str, Any]]) -> None:
        held = {id(parameter) for group in groups for parameter in group["params"]}
        left_out = [
            name
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad and id(parameter) not in held
        ]
        if left_out:
            raise BadArgument(
                f"BadArgument: the schedule thaws {len(left_out)} parameters that no optimizer holds, `{left_out[0]}` "
                "first. They would never be trained. Give the optimizer `fl.param_groups(network, lr)`.",
                left_out=tuple(left_out),
            )


def _depths(schedule: Schedule | None) -> tuple[Depth, ...]:
    if schedule is None:
        return ()
    return tuple(schedule.values() if isinstance(schedule, Mapping) else schedule)


def _from_the_start(depth: int, schedule: Schedule | None) -> Schedule | None:
    if schedule is None:
        return None
    if not isinstance(schedule, Mapping):
        return (depth, *schedule)
    if min(schedule, default=1) < 1:
        raise BadArgument(
            f"BadArgument: the schedule begins at epoch {min(schedule)}, which `depth` is for. Begin it at epoch 1.",
            schedule=schedule,
        )
    return {0: depth, **schedule}
