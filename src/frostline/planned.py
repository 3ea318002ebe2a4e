"""What is known and meant before anything is trained: votes, recipe, rates, budget, plan.

Costs are in seconds, bytes and, for the budget, in full fine-tunes.
"""

import math
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from frostline.record import Record

# --- votes before training --------------------------------------------------------------------


class Vote(Record):
    """What leave-one-out ridge says of the features at one depth.

    Args:
        depth: Number of frozen stages whose output was probed.
        accuracy: Leave-one-out accuracy on the training part, 0 to 1.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        loss: Leave-one-out negative log-likelihood in nats after the temperature.
        penalty: Ridge penalty chosen by leave-one-out squared error.
        features: D.
        knn: Leave-one-out accuracy of the nearest neighbours in the same features, or None in older files.
    """

    depth: int
    accuracy: float
    low: float
    high: float
    loss: float
    penalty: float
    features: int
    knn: float | None = None


class Doubt(Record):
    """A training sample that looks like another class once it is left out, so that its label may be wrong.

    Args:
        sample: Its number in the training part.
        label: Number of its class.
        prediction: Number of the class that it looks like.
        confidence: Probability of that class, 0 to 1.
    """

    sample: int
    label: int
    prediction: int
    confidence: float


class Prior(Record):
    """What one pass without training says of every open depth.

    Args:
        votes: One for each open depth above 0.
        samples: N.
        head: File name of the warm head (safetensors: "weight" (K, D), "bias" (K,)), or None
            where the network has no Linear that yields its outputs.
        temperature: Factor on the ridge's outputs in that head.
        doubts: Samples whose label may be wrong, the surest first.
    """

    votes: tuple[Vote, ...]
    samples: int
    head: str | None = None
    temperature: float = 1.0
    doubts: tuple[Doubt, ...] = ()


# --- the plan ---------------------------------------------------------------------------------


class Recipe(Record):
    """How a live part is trained: AdamW, a linear warm-up, then a constant rate or a cosine.

    Args:
        learning_rate: Peak rate of everything but the head.
        head_learning_rate: Peak rate of the head.
        head_scale: Factor on the warm head at the start; 1 leaves it as calibrated.
        weight_decay: On weights of two or more dimensions; none on norms and biases.
        batch_size: B.
        schedule: "constant" for a race that is continued, "cosine" down to zero for a finish.
        warmup: Share of an epoch over which the rate rises, where there is no parent.
        norm_mode: "eval" keeps batch norm's pretrained statistics, "train" learns new ones.
        clip_norm: Largest norm of the gradient.
        averaging: What a running average of the weights keeps of itself at each step. It is scored and kept
            in the place of the weights, while training goes on from the weights; 0 averages nothing.
        precision: Of the passes forward and backward. "bfloat16" computes them under autocast; weights, optimizer and
            scoring keep float32 all the same. Files name it only where it is not "float32".
    """

    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    head_scale: float = 1.0
    weight_decay: float = 0.01
    batch_size: int = 32
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 1.0
    norm_mode: Literal["eval", "train"] = "eval"
    clip_norm: float = 1.0
    averaging: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Trials are named after what is written here: those of before there was a precision keep their names.
        written: dict[str, Any] = write(self)
        if self.precision == "float32":
            written.pop("precision", None)
        return written


class EngineReport(Record):
    """Which engine runs the frozen part, why, and how far it is from plain torch.

    Args:
        engine: What runs the frozen part; "compile" is torch.compile.
        precision: Of its arithmetic.
        piece: Rows that each thread takes at a time; 0 where all threads share a whole batch.
        why: In words, with the measured figures.
        rows_per_second: Measured on two batches of the deepest frozen part.
        error: Largest difference to torch on real rows, relative to the largest value.
    """

    engine: Literal["torch", "openvino", "compile"]
    precision: Literal["float32", "bfloat16"] = "float32"
    piece: int = 0
    why: str = ""
    rows_per_second: float = 0.0
    error: float = 0.0


class Rates(Record):
    """What this machine does in a second, measured once.

    Args:
        step_seconds: Median of five training steps with nothing frozen.
        step_low: Fastest of the five.
        step_high: Slowest of the five.
        stage_seconds: Share of a forward pass's seconds by stage; sums to 1.
        score_seconds: Seconds to score one sample with the whole network.
        spent_seconds: What the run has spent before the plan, on tracing, the votes and these timings.
        proof_seconds: Predicted seconds to prove one cut.
        engine: What runs the frozen part, and how fast.
        threads: Threads that torch used.
        torch: Version of torch.
    """

    step_seconds: float
    step_low: float
    step_high: float
    stage_seconds: tuple[float, ...]
    score_seconds: float
    engine: EngineReport
    threads: int
    torch: str
    spent_seconds: float = 0.0
    proof_seconds: float = 0.0

    def live_seconds_share(self, depth: int) -> float:
        """Share of a full step's seconds that lies above the cut, 0 to 1."""
        return max(0.0, 1.0 - sum(self.stage_seconds[:depth]))

    def scoring_seconds(self, depth: int, samples: int) -> float:
        """Seconds to score so many samples with what lies above the cut."""
        return self.live_seconds_share(depth) * self.score_seconds * samples


class Budget(Record):
    """What may be spent, in units of one full fine-tune, and what things cost in that unit.

    One full fine-tune is `epochs` epochs at depth 0 of the training part. A price is the larger of two:
    as counted in operations, and as predicted in seconds by the plan's rates. What has been planned is
    never priced again by the clock, so that a resumed run decides the same, on a slower machine too.

    Args:
        limit: The most that the run may cost.
        reserve: Set aside for passes, proofs and scoring the test part.
        epochs: E, the epochs of a full fine-tune.
        race_epochs: Epochs of one lap of the race.
        live_shares: By depth: share of a training step that lies above the cut.
        scoring: What scoring the validation part once costs, as a share of an epoch of training.
        pass_shares: By depth: what the frozen part's pass over a batch costs beside the training step that reads its
            rows, as a share of a step with nothing frozen; 0 where rows are kept, and empty where all are.
    """

    limit: float
    reserve: float
    epochs: int
    race_epochs: float
    live_shares: tuple[float, ...]
    scoring: float = 0.0
    pass_shares: tuple[float, ...] = ()

    def share(self, depth: int) -> float:
        """Share of a training step that is paid for at that depth, the frozen part's pass included."""
        return self.live_shares[depth] + self._pass_share(depth)

    def cost(self, depth: int, epochs: float, first: float = 0.0) -> float:
        """Cost of training that many epochs at that depth, on top of the first ones.

        Each end of an epoch is scored, and the end of it all.
        """
        if not epochs:
            return 0.0
        last = round(first + epochs, 6)
        looks = math.floor(last) - math.floor(round(first, 6)) + (last % 1 > 0)
        scored = self.scoring * looks
        # A pass is as long for a row that is scored as for one that is trained on, whose step is three passes or more.
        passed = self._pass_share(depth) * (epochs + 3 * scored)
        return (self.live_shares[depth] * (epochs + scored) + passed) / self.epochs

    def _pass_share(self, depth: int) -> float:
        return self.pass_shares[depth] if self.pass_shares else 0.0


class Forecast(Record):
    """Predicted cost of one depth, before anything is paid.

    Args:
        depth: Number of frozen stages.
        stage_name: The last of them.
        parameters: Live parameter elements.
        store_bytes: Bytes of the kept rows; 0 where they are computed anew.
        store_seconds: Seconds of the pass that computes them, those of shallower depths beside them.
        train_seconds: Seconds to train all epochs, with the passes in which rows are computed anew.
        full_finetunes: Both, as a share of one full fine-tune.
        accuracy: Leave-one-out ridge accuracy of the features there, or None.
        low: Lower end of its 95 % interval.
        high: Upper end.
        is_candidate: Whether the race will try it.
    """

    depth: int
    stage_name: str
    parameters: int
    store_bytes: int
    store_seconds: float
    train_seconds: float
    full_finetunes: float
    accuracy: float | None
    low: float | None = None
    high: float | None = None
    is_candidate: bool


class Plan(Record):
    """What we mean to run and what it will cost; printed before anything is paid.

    Args:
        budget: The limit and the prices.
        rates: What they were computed from.
        recipe: How every arm is trained; the race settles its learning rate.
        candidates: Depths that the race will try.
        learning_rates: Rates that the race may try, at the shallowest candidate.
        forecasts: One for each open depth.
        seconds: Predicted seconds of the whole search and the last training, at most.
        store_bytes: Predicted bytes on disk.
        full_finetune_seconds: Seconds of one full fine-tune.
        seed: Of every draw.
        views: Stored views of each sample.
        notes: What the user should know, in words.
        reason: What can be expected before training, and why these depths are tried, in words.
        computed: Of the candidates, those whose rows are not kept but computed anew in every epoch.
    """

    budget: Budget
    rates: Rates
    recipe: Recipe
    candidates: tuple[int, ...]
    learning_rates: tuple[float, ...]
    forecasts: tuple[Forecast, ...]
    seconds: float
    store_bytes: int
    full_finetune_seconds: float
    seed: int
    views: int = 1
    notes: tuple[str, ...] = ()
    reason: str = ""
    computed: tuple[int, ...] = ()
