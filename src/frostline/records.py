"""The facts frostline hands on: frozen pydantic records that hash, compare and survive JSON.

Axes: N samples, B batch, C channels, H W sides, D features, K classes. `stages[:depth]` is
frozen, `stages[depth:]` is live. Costs are in seconds, bytes and floating-point operations.
"""

from typing import ClassVar

from frostline.exhibits import Claim
from frostline.network import Cut, CutGraph, ModelSource, Preprocessing, Stage, Wire
from frostline.planned import Budget, Doubt, EngineReport, Forecast, Plan, Prior, Rates, Recipe, Vote
from frostline.record import Record

__all__ = [
    "Arguments",
    "Budget",
    "Choice",
    "Claim",
    "Cost",
    "Cut",
    "CutGraph",
    "DataSummary",
    "Delta",
    "Doubt",
    "EngineReport",
    "EpochPoint",
    "Evidence",
    "Forecast",
    "ModelCard",
    "ModelSource",
    "Plan",
    "Preprocessing",
    "Prior",
    "Rates",
    "Recipe",
    "Record",
    "Rival",
    "Score",
    "Spent",
    "Stage",
    "Trial",
    "TrialSpec",
    "Vote",
    "Wire",
]


# --- the search -------------------------------------------------------------------------------


class TrialSpec(Record):
    """What is asked for: that many more epochs on top of the parent trial.

    Args:
        depth: Number of frozen stages.
        recipe: How to train.
        seed: Of the order of the samples and of dropout.
        epochs: Epochs to add, whole or not; rounded to optimizer steps.
        parent: Key of the spec to continue, or None to start from the pretrained weights.
        first_epoch: Epochs that the chain of parents has trained already.
    """

    depth: int
    recipe: Recipe
    seed: int
    epochs: float
    parent: str | None = None
    first_epoch: float = 0


class EpochPoint(Record):
    """A look at the validation part, mostly at the end of an epoch. Epoch 0 is the warm head before any training.

    The gradient's norm before clipping is given as its mean and standard deviation over the steps since the
    look before.
    """

    epoch: float
    train_loss: float | None
    valid_loss: float
    valid_accuracy: float
    learning_rate: float
    seconds: float
    gradient_norm: float | None = None
    gradient_spread: float | None = None


class Trial(Record):
    """What happened: one rung of training at one depth.

    Args:
        spec: What was asked for.
        curve: One point for each epoch, those of the parents not included.
        best_epoch: Epoch with the lowest validation loss, those of the parents included.
        losses: Negative log-likelihood of each validation sample at the best epoch, in nats, after the one
            temperature that suits them best; so is the validation loss of the curve.
        hits: Whether each validation sample was right at the best epoch.
        last_losses: As `losses`, at the end; empty where that is the best epoch.
        sample_weights: What each validation sample counts, 1 in the mean; empty where all count alike.
        seconds: Training seconds, scoring included.
        flops: Counted operations.
        weights: File that holds the best and the last weights and the optimizer's state.
        failure: Why it ended early, or None.
    """

    spec: TrialSpec
    curve: tuple[EpochPoint, ...] = ()
    best_epoch: float = 0
    losses: tuple[float, ...] = ()
    hits: tuple[bool, ...] = ()
    last_losses: tuple[float, ...] = ()
    sample_weights: tuple[float, ...] = ()
    seconds: float = 0.0
    flops: float = 0.0
    weights: str | None = None
    failure: str | None = None

    @property
    def epochs(self) -> float:
        """Epochs trained, those of the parents included."""
        return self.spec.first_epoch + self.spec.epochs

    @property
    def loss(self) -> float:
        """Mean validation loss at the best epoch; infinite for a failed trial."""
        return self._mean(self.losses) if self.losses and not self.failure else float("inf")

    @property
    def losses_at_the_end(self) -> tuple[float, ...]:
        """Negative log-likelihood of each validation sample where training stopped, which is where it can go on."""
        return self.last_losses or self.losses

    @property
    def loss_at_the_end(self) -> float:
        """Their mean, in which samples count as they do in the loss."""
        return self._mean(self.losses_at_the_end)

    @property
    def accuracy(self) -> float:
        """Validation accuracy at the best epoch; balanced over the classes where the samples are weighted so."""
        return self._mean(self.hits) if self.hits else 0.0

    def _mean(self, figures: tuple[float, ...]) -> float:
        weights = self.sample_weights or (1.0,) * len(figures)
        return sum(figure * weight for figure, weight in zip(figures, weights, strict=True)) / len(figures)


class Score(Record):
    """How well a network does on one part.

    Args:
        samples: N.
        accuracy: Share of right answers, 0 to 1.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        balanced_accuracy: Mean over classes of the share of right answers.
        loss: Mean negative log-likelihood in nats.
        confusion: K x K counts: row the label, column the prediction.
        losses: Negative log-likelihood by sample.
        predictions: Predicted class by sample.
        confidences: Probability of the predicted class by sample.
    """

    samples: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    loss: float
    confusion: tuple[tuple[int, ...], ...]
    losses: tuple[float, ...]
    predictions: tuple[int, ...]
    confidences: tuple[float, ...]


class Rival(Record):
    """A depth that was tried, against the chosen one, on the same validation samples.

    Args:
        depth: Number of frozen stages.
        stage_name: The last of them.
        epochs: Epochs trained, parents included.
        accuracy: Validation accuracy.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        loss: Validation loss.
        loss_difference: Its loss less the chosen one's; positive speaks for the chosen one.
        standard_error: Of that difference, paired by sample.
        verdict: In words.
    """

    depth: int
    stage_name: str
    epochs: float
    accuracy: float
    low: float
    high: float
    loss: float
    loss_difference: float
    standard_error: float
    verdict: str


class Choice(Record):
    """The depth we picked, by which rule, against which rivals.

    Args:
        depth: Number of frozen stages.
        stage_name: The last of them, "nothing" at depth 0.
        max_depth: All but the head.
        trial: Key of the spec whose weights are used.
        rule: The rule, in words.
        reason: Why, in a sentence that a person who is no expert follows.
        rivals: Every other depth that was tried.
    """

    depth: int
    stage_name: str
    max_depth: int
    trial: str
    rule: str
    reason: str
    rivals: tuple[Rival, ...] = ()


# --- what is left behind ----------------------------------------------------------------------


class Delta(Record):
    """A file of the tensors that differ from the base network.

    Args:
        file: Its path.
        depth: Number of frozen stages.
        base: Digest of the frozen tensors that it must be laid upon.
        keys: State-dict keys that it holds.
        bytes: Its length.
    """

    file: str
    depth: int
    base: str
    keys: tuple[str, ...]
    bytes: int


class ModelCard(Record):
    """How to rebuild the tuned network: `model.json`."""

    source: ModelSource
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    depth: int
    stage_name: str
    delta: str
    base: str
    frostline: str


class Arguments(Record):
    """What a run was asked for: `arguments.json`; a folder is gone on with only for the same.

    Args:
        task: Digest of data, labels, split, preprocessing and the network's weights.
        depth: "auto", or the resolved depth.
        budget: In full fine-tunes.
        epochs: Of a full fine-tune, or None for the default.
        views: Stored views of each sample, or None for the plan's choice.
        seed: Of every draw.
        engine: What was asked to run the frozen part.
        precision: What was asked of its arithmetic.
    """

    task: str
    depth: str
    budget: float
    epochs: int | None
    views: int | None
    seed: int
    engine: str
    precision: str = "auto"


class Spent(Record):
    """Seconds by phase so far, so that a run that is gone on with counts on: `clock.json`."""

    by_phase: tuple[tuple[str, float], ...] = ()


class Cost(Record):
    """What the run cost, in seconds and as a share of one full fine-tune.

    Args:
        seconds: Everything after start-up: trace, proof, passes, race, training, scoring.
        flops: Counted operations of the same.
        full_finetune_seconds: Median of five timed steps at depth 0, times the planned steps.
        full_finetune_flops: Three forward passes for each sample and epoch.
        by_phase: Seconds by phase, ("read", 1.2) and so on; reading and compiling included here only.
        search_flops: Of the operations, those that went into choosing: all but the chosen trial, its parents,
            its kept rows and the scoring of the test part. None where an older version did not count them.
    """

    seconds: float
    flops: float
    full_finetune_seconds: float
    full_finetune_flops: float
    by_phase: tuple[tuple[str, float], ...]
    search_flops: float | None = None

    @property
    def share_seconds(self) -> float:
        """Cost in full fine-tunes, by seconds."""
        return self.seconds / self.full_finetune_seconds if self.full_finetune_seconds else 0.0

    @property
    def share_flops(self) -> float:
        """Cost in full fine-tunes, by counted operations."""
        return self.flops / self.full_finetune_flops if self.full_finetune_flops else 0.0

    @property
    def share_search(self) -> float | None:
        """What choosing cost, in full fine-tunes, by counted operations."""
        if self.search_flops is None or not self.full_finetune_flops:
            return None
        return self.search_flops / self.full_finetune_flops


class DataSummary(Record):
    """What was read.

    Args:
        name: The data as the user named it.
        classes: K names.
        counts: (train, valid, test) samples by class, in the order of `classes`.
        duplicates: Groups of files with the same bytes.
        conflicts: Those of them that carry different labels.
        skipped: Files that could not be read, with the reason, where the user said to go on.
        asked: How the reading was asked for, as (name, value): shares of the parts and so on.
    """

    name: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, int, int], ...]
    duplicates: tuple[tuple[str, ...], ...] = ()
    conflicts: tuple[tuple[str, ...], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    asked: tuple[tuple[str, str], ...] = ()


class Evidence(Record):
    """Everything the report says: `evidence.json`.

    Args:
        frostline: Version that wrote it.
        created: Date and time, ISO 8601.
        machine: Processor, threads, versions, as (name, value).
        arguments: What the run was asked for, as (name, value).
        data: What was read.
        source: The network.
        preprocessing: How a picture becomes an input, or None.
        graph: Its stages and cuts.
        prior: Votes before training.
        plan: What was meant.
        trials: What happened.
        choice: The depth picked.
        valid: Score of the chosen weights on the validation part.
        test: Score of the merged network in plain torch on the test part.
        disagreement: Share of test predictions that differ when made from the store.
        delta: The file that was left.
        cost: What it cost.
        parameters_live: Trained parameter elements.
        claims: Verdicts on what freezing is said to bring; empty until `evidence` has paid for them.
    """

    version: ClassVar[int] = 3

    frostline: str
    created: str
    machine: tuple[tuple[str, str], ...]
    arguments: tuple[tuple[str, str], ...]
    data: DataSummary
    source: ModelSource
    preprocessing: Preprocessing | None
    graph: CutGraph
    prior: Prior
    plan: Plan
    trials: tuple[Trial, ...]
    choice: Choice
    valid: Score
    test: Score
    disagreement: float
    delta: Delta
    cost: Cost
    parameters_live: int
    claims: tuple[Claim, ...] = ()

    @property
    def chosen_trial(self) -> Trial | None:
        """The trial that was chosen; None where it is not among the trials."""
        return next((trial for trial in self.trials if trial.spec.key == self.choice.trial), None)
