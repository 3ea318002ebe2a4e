"""The door: a network and its labelled samples, checked once."""

import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any, final

import torch
from torch import nn

from frostline import fingerprint
from frostline.carrying import carried, device_of
from frostline.copies import copy_of
from frostline.data import Samples
from frostline.errors import (
    BadArgument,
    BadInputSize,
    BadOutput,
    EmptyData,
    MetaParameters,
    NoParameters,
    OneClass,
    UnknownClass,
)
from frostline.leaving_out import balancing
from frostline.records import DataSummary, ModelSource, Preprocessing

GOALS = ("accuracy", "balanced_accuracy")
"""What a choice can be judged by: every sample counts the same, or every class."""

UNEVEN = 5.0
"""Times as many samples in the largest class as in the smallest from which on the plan says so."""


@final
class Task:
    """A network, three labelled parts and a goal, with all checked that can be before work.

    The network is not changed, here or later: frostline works on copies.

    Args:
        model: Maps inputs (B, ...) to outputs (B, K). Where it is, a processor or a GPU, is where the work is done;
            the samples may be elsewhere.
        train: What is trained on.
        valid: What picks the depth and the epoch.
        test: What is scored once, at the end.
        goal: What the choice is judged by: "accuracy" counts every sample alike, "balanced_accuracy" every class.
        classes: K names; None names them "0", "1" and so on.
        source: How to build the network again, where it came from a name.
        preprocessing: How a picture becomes an input, where the samples are pictures.
        summary: What was read, where the samples came from files.

    Raises:
        EmptyData: A part has no samples.
        OneClass: The training part has one class only.
        UnknownClass: A part holds a class that the training part lacks.
        NoParameters: The network has nothing to train.
        MetaParameters: Some weights have no values.
        BadInputSize: The network refuses these inputs.
        BadOutput: Its output is not (B, K), one number for each class.

    Example:
        >>> import frostline as fl, torch
        >>> part = fl.TensorSamples(torch.randn(8, 4), torch.arange(8) % 2)
        >>> task = fl.Task(torch.nn.Sequential(torch.nn.Linear(4, 2)), part, part, part)
        >>> task.classes
        ('0', '1')
    """

    def __init__(
        self,
        model: nn.Module,
        train: Samples,
        valid: Samples,
        test: Samples,
        *,
        goal: str = "accuracy",
        classes: tuple[str, ...] | None = None,
        source: ModelSource | None = None,
        preprocessing: Preprocessing | None = None,
        summary: DataSummary | None = None,
    ) -> None:
        if goal not in GOALS:
            raise BadArgument(f"BadArgument: goal is {goal!r}; it must be {' or '.join(GOALS)}.", goal=goal)
        _check_parts(train, valid, test)
        _check_parameters(model)
        self.model = model
        self.train = train
        self.valid = valid
        self.test = test
        self.goal = goal
        self.source = source
        self.preprocessing = preprocessing
        self.summary = summary
        outputs = _count_outputs(model, self.example())
        self.classes = classes if classes is not None else tuple(str(label) for label in range(outputs))
        _check_classes(self.classes, outputs, train)

    @property
    def is_balanced(self) -> bool:
        """Whether the choice counts every class alike."""
        return self.goal == "balanced_accuracy"

    @property
    def valid_weights(self) -> torch.Tensor | None:
        """(N,) what each validation sample counts in the choice; None where all count alike."""
        return balancing(self.valid.labels) if self.is_balanced else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the labels, in words."""
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        largest, smallest = int(counts.argmax()), int(counts.argmin())
        times = float(counts[largest] / counts[smallest].clamp_min(1))
        if self.is_balanced or times < UNEVEN:
            return ()
        return (
            f"The classes are uneven: {int(counts[largest]):,} training samples of {self.classes[largest]}, "
            f"{int(counts[smallest]):,} of {self.classes[smallest]}. Every sample counts alike in the choice; with the "
            "goal balanced_accuracy every class does.",
        )

    def example(self, batch: int = 4) -> tuple[torch.Tensor, ...]:
        """The first inputs of the training part, (B, ...) each.

        Where the part has fewer than `batch` samples they are repeated.

        Example:
            >>> import frostline as fl, torch
            >>> part = fl.TensorSamples(torch.randn(8, 4), torch.arange(8) % 2)
            >>> fl.Task(torch.nn.Linear(4, 2), part, part, part).example()[0].shape
            torch.Size([4, 4])
        """
        return self.train.read([row % len(self.train) for row in range(batch)])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the data, its division, its preparation, the network's build and every weight."""
        texts = [self.goal, *self.classes]
        for name, part in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            texts += [name, part.preparation, *part.digests, *map(str, part.labels.tolist())]
        # Addresses of functions and objects in a repr differ from run to run.
        build = re.sub(r"0x[0-9a-fA-F]+", "", repr(self.model))
        return fingerprint.of_text(*texts, build, fingerprint.of_tensors(_tensors(self.model)))


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _check_parts(train: Samples, valid: Samples, test: Samples) -> None:
    parts = {"training": train, "validation": valid, "test": test}
    for name, part in parts.items():
        if not len(part):
            raise EmptyData(f"EmptyData: the {name} part has no samples; at least one is needed.", part=name)
    known = set(train.labels.tolist())
    if len(known) == 1:
        raise OneClass(
            f"OneClass: all {len(train)} training samples carry the label {known.pop()}; two classes or more are "
            "needed to tell anything apart.",
        )
    for name, part in parts.items():
        strange = sorted(set(part.labels.tolist()) - known)
        if strange:
            raise UnknownClass(
                f"UnknownClass: the {name} part holds the label {', '.join(map(str, strange[:5]))}, which no training "
                "sample carries. Add training samples of it or take it out.",
                labels=tuple(strange),
            )


def _check_parameters(model: nn.Module) -> None:
    named = list(model.named_parameters())
    if not named:
        raise NoParameters(
            f"NoParameters: {type(model).__name__} has no parameters; there is nothing to freeze or train. Give the "
            "network itself, not a function or a wrapper around it.",
        )
    on_meta = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if on_meta:
        raise MetaParameters(
            f"MetaParameters: {len(on_meta)} tensors of {type(model).__name__} are on the meta device and hold no "
            f"values, the first is {on_meta[0]!r}. Load the weights first, for instance with "
            "`model.to_empty(device='cpu')` and `model.load_state_dict(...)`.",
            names=tuple(on_meta),
        )
    frozen = [name for name, tensor in named if not tensor.requires_grad]
    if len(frozen) == len(named):
        raise NoParameters(
            f"NoParameters: all {len(named)} parameters of {type(model).__name__} have requires_grad=False, so nothing "
            "would be trained. Call `model.requires_grad_(True)` first; frostline decides what to freeze.",
        )
    if frozen:
        warnings.warn(
            f"{len(frozen)} of {len(named)} parameters of {type(model).__name__} have requires_grad=False, the first "
            f"is {frozen[0]!r}. They keep their values at every depth, so no depth tried is a full fine-tune. Call "
            "`model.requires_grad_(True)` first if frostline shall decide.",
            stacklevel=3,
        )


def _count_outputs(model: nn.Module, example: tuple[torch.Tensor, ...]) -> int:
    """Run a copy once and give K, the outputs for each sample."""
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
    # A forward may keep values on its module or move a buffer; the user's own must not see that.
    probe = copy_of(model, model.parameters()).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output: Any = probe(*carried(example, device_of(probe)))
    # What a user's forward raises for inputs it cannot take; the cause is kept.
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise BadInputSize(
            f"BadInputSize: {type(model).__name__} refuses inputs of shape {shapes}: {error} Give samples of the shape "
            "that it takes.",
            shapes=tuple(tuple(tensor.shape) for tensor in example),
        ) from error
    batch = len(example[0])
    if not isinstance(output, torch.Tensor):
        raise BadOutput(
            f"BadOutput: {type(model).__name__} gives a {type(output).__name__}; one tensor (B, K) is needed, a number "
            "for each class. Wrap it in a module that returns just that tensor.",
            found=type(output).__name__,
        )
    if output.dim() != 2 or len(output) != batch or not output.is_floating_point():
        raise BadOutput(
            f"BadOutput: {type(model).__name__} gives {output.dtype} of shape {tuple(output.shape)} for a batch of "
            f"{batch}; floats of shape ({batch}, K) are needed, a number for each class. End it in pooling, flatten "
            "and a Linear with one output for each class.",
            found=tuple(output.shape),
        )
    return output.shape[1]


def _check_classes(classes: tuple[str, ...], outputs: int, train: Samples) -> None:
    needed = max(len(classes), int(train.labels.max()) + 1)
    if outputs != len(classes) or outputs < needed or outputs < 2:
        raise BadOutput(
            f"BadOutput: the network has {outputs} outputs and the samples have {max(2, needed)} classes; it needs one "
            "output for each class.",
            found=outputs,
            needed=max(2, needed),
        )
