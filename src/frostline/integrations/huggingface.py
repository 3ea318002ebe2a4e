"""`Freeze` for the Trainer of transformers: freezes when the Trainer is made, thaws by a schedule, verifies."""

from typing import Any, Literal, cast

from torch import nn

from frostline.errors import BadArgument, MissingExtra
from frostline.integrations import Depth, FrozenTraining, Schedule

try:
    from accelerate.utils import send_to_device
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtra(
        "MissingExtra: transformers or accelerate is not installed. Run pip install 'frostline[transformers]'."
    ) from error

# Under the name of the class, the Trainer would give it to a new callback that it makes without arguments.
PLACE = "frostline.Freeze"


class Freeze(TrainerCallback):
    """Freezes a model's first stages for `Trainer.train`, and verifies at its end that they held.

    Give it to the Trainer as one of its `callbacks`: it freezes in `on_init_end`, before the
    optimizer is made and the model is wrapped; `on_train_begin` comes after both. So a callback
    that is added later, and a model that `model_init` makes anew, are frozen with an optimizer
    that holds everything: what is frozen has no gradient and stays as it is. With a schedule,
    everything that it will ever thaw is trainable until the training begins, so that the
    optimizer holds it. A checkpoint keeps the place in the schedule: a resumed run goes on exactly.

    Args:
        depth: What to freeze: a number of stages, a negative number or a stage's name.
        example: What the model's forward takes, as for `fl.trace`: a batch of the tokenizer.
        schedule: Depths to thaw to: `{epoch: depth}`, or with `patience` a sequence of depths.
        patience: Thaw one depth further when `monitor` has not improved for so many evaluations.
        monitor: Name of the loss among the evaluation's metrics.
        verify: Whether a frozen tensor that moved raises `FrozenMoved` or warns.

    Example:
        >>> import torch
        >>> from frostline.integrations.huggingface import Freeze
        >>> freeze = Freeze("bert.encoder.layer.5", {"input_ids": torch.ones(2, 16, dtype=torch.long)})
    """

    def __init__(
        self,
        depth: Depth,
        example: Any,
        *,
        schedule: Schedule | None = None,
        patience: int | None = None,
        monitor: str = "eval_loss",
        verify: Literal["raise", "warn"] = "raise",
    ) -> None:
        self._depth = depth
        self._example = example
        self._schedule = schedule
        self._patience = patience
        self._monitor = monitor
        self._verify = verify
        self._training: FrozenTraining | None = None
        self._heard: set[str] = set()
        self._is_training = False

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze, before the optimizer is made."""
        model: nn.Module = kwargs["model"]
        if self._patience is not None and args.eval_strategy == "no":
            raise BadArgument(
                f"BadArgument: patience waits for `{self._monitor}`, but `eval_strategy` is 'no'. "
                "Set it to 'epoch', or give a schedule by epochs.",
                monitor=self._monitor,
            )
        self._training = FrozenTraining(
            model,
            self._depth,
            send_to_device(self._example, next(model.parameters()).device),
            schedule=self._schedule,
            patience=self._patience,
            verify=self._verify,
            processes=args.world_size,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze at the first depth, now that the optimizer holds what will be thawed."""
        if self._training is None or self._training.network is not kwargs["model"]:
            self.on_init_end(args, state, control, **kwargs)
        assert self._training is not None
        self._training.start(kwargs["optimizer"].param_groups, _places(state).get(PLACE))
        self._heard = set()
        self._is_training = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Verify, and thaw if it is time to."""
        self._refuse_to_wait_in_vain()
        if self._patience is None:
            self._step(state, None)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Verify, and thaw if the loss has stalled: evaluations come after `on_epoch_end`."""
        metrics: dict[str, float] = kwargs["metrics"]
        if self._patience is None or not self._is_training:
            return
        self._heard |= set(metrics)
        # Each of several evaluation sets comes on its own, with its own names.
        if self._monitor in metrics:
            self._step(state, metrics[self._monitor])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Verify what is frozen at the end."""
        self._is_training = False
        self._refuse_to_wait_in_vain()
        assert self._training is not None
        self._training.check()

    def _step(self, state: TrainerState, loss: float | None) -> None:
        assert self._training is not None
        self._training.step(loss)
        if place := self._training.state_dict():
            _places(state)[PLACE] = place

    def _refuse_to_wait_in_vain(self) -> None:
        if self._heard and self._monitor not in self._heard:
            raise BadArgument(
                f"BadArgument: patience waits for `{self._monitor}`, but the evaluation gave {sorted(self._heard)}. "
                "Name one of these as `monitor`.",
                monitor=self._monitor,
            )


def _places(state: TrainerState) -> dict[str, Any]:
    """What callbacks leave in the Trainer's checkpoints; declared as the list that it is made from."""
    return cast("dict[str, Any]", state.stateful_callbacks)
