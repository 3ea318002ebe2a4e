"""What the evidence asks to be tried beside the run's own trials, and what came of it."""

from typing import Literal

from frostline.record import Record
from frostline.records import EpochPoint, TrialSpec, Vote

Weights = Literal["pretrained", "random", "matched"]


class Attempt(Record):
    """A training, or a probe, that differs from the run's own in what is said here.

    Args:
        kind: "train" trains the live part; "probe" asks for leave-one-out ridge votes at all depths;
            "memory" takes a few training steps in a fresh process and reads its peak memory.
        trial: Depth, recipe, seed and epochs; it has no parent. A probe reads the seed alone.
        prefix: Weights of the frozen stages: as pretrained, drawn anew as the modules draw them, or drawn
            with the mean and the standard deviation of each pretrained tensor. A probe takes the whole network so.
        rest: Weights of the live stages at the start, the head excepted.
        samples: Of the training part, drawn class by class and nested by size for one seed; None takes all.
        noise: Share of the training labels replaced by another class, 0 to 1.
        is_stored: For "memory": whether the frozen part's rows are read from the store, or computed at each step.
    """

    kind: Literal["train", "probe", "memory"] = "train"
    trial: TrialSpec
    prefix: Weights = "pretrained"
    rest: Literal["pretrained", "random"] = "pretrained"
    samples: int | None = None
    noise: float = 0.0
    is_stored: bool = True


class Outcome(Record):
    """What came of an attempt: a line of `attempts.jsonl`.

    Args:
        attempt: What was asked for.
        curve: One point for each epoch, on the validation part.
        best_epoch: Epoch with the lowest validation loss; the test part is scored with its weights.
        test_hits: Whether each test sample was right.
        test_confidences: Probability given to each answer, without a temperature, 0 to 1.
        train_loss: Mean loss in nats on the samples trained on, with their own right labels, at the best epoch.
        train_accuracy: Share of right answers there.
        similarity: By stage: debiased linear CKA between the pretrained and the trained network's features, on
            the validation part; 1 for frozen stages.
        drift: By stage: norm of the change of its weights, as a share of their own norm.
        votes: Of a probe.
        seconds: Of training, passes over the samples excepted.
        pass_seconds: Of the frozen part's pass over the samples; as first paid, also where it was kept already.
        flops: Counted operations of training and scoring.
        pass_flops: Counted operations of the frozen part's pass.
        peak_bytes: Of "memory": growth of the process's resident memory over what it had before the network was built.
        state_bytes: Gradients and the optimizer's state.
        joules: Drawn in these seconds by the device trained on, the share of other programs included; None where no
            counter of it can be read.
        failure: Why it ended early, or None.
    """

    attempt: Attempt
    curve: tuple[EpochPoint, ...] = ()
    best_epoch: float = 0
    test_hits: tuple[bool, ...] = ()
    test_confidences: tuple[float, ...] = ()
    train_loss: float | None = None
    train_accuracy: float | None = None
    similarity: tuple[float, ...] = ()
    drift: tuple[float, ...] = ()
    votes: tuple[Vote, ...] = ()
    seconds: float = 0.0
    pass_seconds: float = 0.0
    flops: float = 0.0
    pass_flops: float = 0.0
    peak_bytes: int | None = None
    state_bytes: int | None = None
    joules: float | None = None
    failure: str | None = None

    @property
    def accuracy(self) -> float:
        """Share of right answers on the test part."""
        return sum(self.test_hits) / len(self.test_hits) if self.test_hits else 0.0
