"""`Freeze` for Lightning: freezes before the optimizers are made, thaws by a schedule, verifies at the end."""

from collections.abc import Mapping
from typing import Any, Literal

from frostline.errors import BadArgument, MissingExtra
from frostline.integrations import Depth, FrozenTraining, Schedule

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtra("MissingExtra: lightning is not installed. Run pip install 'frostline[lightning]'.") from error


class Freeze(Callback):
    """Freezes a network's first stages for one `Trainer.fit`, and verifies at its end that they held.

    It freezes in `setup`, before `configure_optimizers` is called and before the network is
    wrapped for several processes. With a schedule, everything that it will ever thaw is
    trainable until then, so that an optimizer of all that is trainable holds it. A checkpoint
    keeps the place in the schedule: a resumed run goes on exactly.

    Args:
        depth: What to freeze: a number of stages, a negative number or a stage's name.
        example: What the network's forward takes, as for `fl.trace`.
        attribute: Where the network is in the LightningModule; the module itself by default. It
            must be there before `setup`; one that is built in `configure_model` is frozen there,
            by `fl.freeze`.
        schedule: Depths to thaw to: `{epoch: depth}`, or with `patience` a sequence of depths.
        patience: Thaw one depth further when `monitor` has not improved for so many epochs.
        monitor: Name under which the validation logs its loss.
        verify: Whether a frozen tensor that moved raises `FrozenMoved` or warns.

    Example:
        >>> import torch
        >>> from frostline.integrations.lightning import Freeze
        >>> freeze = Freeze(-1, torch.ones(2, 3, 64, 64), attribute="network", schedule={2: 8, 4: 0})
    """

    def __init__(
        self,
        depth: Depth,
        example: Any,
        *,
        attribute: str | None = None,
        schedule: Schedule | None = None,
        patience: int | None = None,
        monitor: str = "val_loss",
        verify: Literal["raise", "warn"] = "raise",
    ) -> None:
        self._depth = depth
        self._example = example
        self._attribute = attribute or ""
        self._schedule = schedule
        self._patience = patience
        self._monitor = monitor
        self._verify = verify
        self._training: FrozenTraining | None = None
        self._resumed: Mapping[str, Any] = {}
        self._valid_loss: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze, before the optimizers are made."""
        if stage != "fit":
            return
        if self._patience is not None and not trainer.enable_validation:
            raise BadArgument(
                f"BadArgument: patience waits for `{self._monitor}`, but this fit has no validation. "
                "Give it validation data and a `validation_step`, or a schedule by epochs.",
                monitor=self._monitor,
            )
        self._resumed, self._valid_loss = {}, None
        self._training = FrozenTraining(
            pl_module.get_submodule(self._attribute),
            self._depth,
            self._example,
            schedule=self._schedule,
            patience=self._patience,
            verify=self._verify,
            processes=trainer.world_size,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze at the first depth, now that the optimizers hold what will be thawed."""
        assert self._training is not None
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._training.start(groups, self._resumed)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the loss for the end of the epoch: Lightning puts back the modes of before the validation now."""
        if self._patience is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self._monitor not in trainer.callback_metrics:
            raise BadArgument(
                f"BadArgument: patience waits for `{self._monitor}`, but the validation logged "
                f"{sorted(trainer.callback_metrics)}. Name one of these as `monitor`.",
                monitor=self._monitor,
            )
        self._valid_loss = float(trainer.callback_metrics[self._monitor])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Verify, and thaw if it is time to."""
        assert self._training is not None
        if self._patience is None or self._valid_loss is not None:
            self._training.step(self._valid_loss)
        self._valid_loss = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Verify what is frozen at the end."""
        assert self._training is not None
        self._training.check()

    def state_dict(self) -> dict[str, Any]:
        """The place in the schedule."""
        if self._training is None or not (state := self._training.state_dict()):
            return {}
        return {"thaw": state, "valid_loss": self._valid_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when the fit starts: the optimizers are made first."""
        self._resumed, self._valid_loss = state_dict["thaw"], state_dict["valid_loss"]
