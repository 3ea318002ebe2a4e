"""How well a network does: its outputs on a part, and what they are worth against the labels."""

import torch
from torch import nn
from torch.nn import functional as F

from frostline.carrying import carried, device_of
from frostline.cost import wilson
from frostline.data import Rows
from frostline.errors import BadOutput
from frostline.records import Score


def score(outputs: torch.Tensor, labels: torch.Tensor) -> Score:
    """Compare outputs with labels, sample by sample.

    Args:
        outputs: (N, K) scores before softmax.
        labels: (N,) class numbers.

    Returns:
        Accuracy with its 95 % Wilson interval, loss in nats, confusion, and each sample's own figures.

    Raises:
        BadOutput: The outputs are not (N, K) for the N labels.

    Example:
        >>> import torch
        >>> outputs = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
        >>> found = fl.score(outputs, torch.tensor([0, 1, 1, 1]))
        >>> found.accuracy, found.confusion
        (0.75, ((1, 0), (1, 2)))
    """
    if outputs.ndim != 2 or len(outputs) != len(labels):
        raise BadOutput(
            f"BadOutput: the outputs have shape {tuple(outputs.shape)}; (N, K) with N = {len(labels)}, one row a "
            "label, is needed. A network for several labels a sample cannot be scored yet.",
            shape=tuple(outputs.shape),
        )
    # Sums over thousands of samples in float32 would depend on their order in the third digit shown.
    logs = F.log_softmax(outputs.double(), dim=1)
    predictions = outputs.argmax(dim=1)
    classes = outputs.shape[1]
    confusion = torch.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
    losses = F.nll_loss(logs, labels, reduction="none")
    hits = int((predictions == labels).sum())
    low, high = wilson(hits, len(labels))
    present = confusion.sum(dim=1) > 0
    recalls = confusion.diagonal()[present] / confusion.sum(dim=1)[present]
    return Score(
        samples=len(labels),
        accuracy=hits / max(1, len(labels)),
        low=low,
        high=high,
        balanced_accuracy=float(recalls.double().mean()) if len(recalls) else 0.0,
        loss=float(losses.mean()) if len(losses) else 0.0,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        losses=tuple(losses.tolist()),
        predictions=tuple(predictions.tolist()),
        confidences=tuple(logs.max(dim=1).values.exp().tolist()),
    )


def outputs_of(model: nn.Module, rows: Rows, *, batch_size: int = 32) -> torch.Tensor:
    """Run a network in eval mode over every row and collect what it says.

    The network is left in the mode it was in.

    Args:
        model: A whole network, or a live part where the rows are those of a store.
        rows: N rows; view 0 is read.
        batch_size: B.

    Returns:
        (N, K) outputs on the CPU.

    Example:
        >>> import torch
        >>> samples = fl.TensorSamples(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))
        >>> outputs_of(torch.nn.Linear(3, 2), samples).shape
        torch.Size([5, 2])
    """
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    model.eval()
    try:
        with torch.inference_mode():
            outputs = [
                model(*carried(rows.read(range(first, min(first + batch_size, len(rows)))), device))
                for first in range(0, len(rows), batch_size)
            ]
            # A clone made outside inference mode is an ordinary tensor that callers may do anything with.
            joined = torch.cat([output.cpu() for output in outputs]) if outputs else torch.empty(0, 0)
        return joined.clone()
    finally:
        for module, mode in modes:
            module.training = mode
