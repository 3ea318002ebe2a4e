"""What a finished run leaves in the hand of its caller."""

from pathlib import Path
from typing import Any, final

from torch import nn

from frostline.delta import apply_delta
from frostline.records import Choice, Cost, Evidence, Score


@final
class Result:
    """A finished run: what was chosen, how good it is, what it cost, and the tuned network.

    Args:
        folder: The run folder.
        evidence: Everything the report says.
        base: The network before tuning; `model` lays the delta upon a copy of it.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> part = [fl.TensorSamples(x[i::3], (x[i::3, 0] > 0).long()) for i in range(3)]
        >>> result = fl.fit(fl.Task(net, *part), epochs=2, engine="torch", out=tmp / "run")
        >>> 0 <= result.depth <= result.choice.max_depth
        True
    """

    def __init__(self, folder: Path, evidence: Evidence, base: nn.Module) -> None:
        self.folder = folder
        self.evidence = evidence
        self._base = base

    @property
    def choice(self) -> Choice:
        """The depth picked, by which rule, against which rivals."""
        return self.evidence.choice

    @property
    def depth(self) -> int:
        """Number of frozen stages."""
        return self.evidence.choice.depth

    @property
    def test(self) -> Score:
        """Score of the merged network in plain torch on the test part."""
        return self.evidence.test

    @property
    def valid(self) -> Score:
        """Score of the chosen weights on the validation part."""
        return self.evidence.valid

    @property
    def cost(self) -> Cost:
        """What the run cost."""
        return self.evidence.cost

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"

    @property
    def model(self) -> nn.Module:
        """A new copy of the tuned network, of the user's own class, in eval mode, where the user's is: on its GPU."""
        return apply_delta(self._base, self.folder / "delta.safetensors").eval()

    def summary(self) -> dict[str, Any]:
        """The figures that `frostline fit --json` prints."""
        evidence, cost = self.evidence, self.evidence.cost
        return {
            "depth": evidence.choice.depth,
            "max_depth": evidence.choice.max_depth,
            "stage_name": evidence.choice.stage_name,
            "reason": evidence.choice.reason,
            "test": _brief(evidence.test),
            "valid": _brief(evidence.valid),
            "disagreement": evidence.disagreement,
            "cost": {
                "full_finetunes": {
                    "seconds": cost.share_seconds,
                    "flops": cost.share_flops,
                    "search_flops": cost.share_search,
                },
                "seconds": cost.seconds,
                "flops": cost.flops,
                "full_finetune_seconds": cost.full_finetune_seconds,
                "full_finetune_flops": cost.full_finetune_flops,
            },
            "seconds": dict(cost.by_phase),
            "trials": len(evidence.trials),
            "failed_trials": sum(trial.failure is not None for trial in evidence.trials),
            "report": str(self.report),
            "run": str(self.folder),
        }


def _brief(part: Score) -> dict[str, float | int]:
    return part.model_dump(include={"samples", "accuracy", "low", "high", "balanced_accuracy", "loss"})
