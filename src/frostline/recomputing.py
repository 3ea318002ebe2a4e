"""What the frozen part computes, not kept but computed anew whenever it is read."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from frostline.carrying import device_of
from frostline.data import Samples, feed_of
from frostline.engines import Compiler, filled
from frostline.filling import refuse_not_finite, refuse_other_sizes, refuse_unrepeatable
from frostline.judging import Frozen, judge
from frostline.rowfiles import Layout


@final
class Recomputed:
    """Rows of one cut that are read like those of a store, and computed at each reading.

    They are the rows that a store filled by the same engine would hold: each is computed at the same batch shape, for a
    smaller batch is filled up, and the engine is judged on the same samples. What is read is on the processor.

    Args:
        frozen: Part below the cut.
        samples: N samples; reading one twice must give equal tensors.
        engine: What is asked to run the frozen part; torch does where the outputs of the engine are not torch's.
        precision: Of its arithmetic, likewise.
        views: Views of each sample, at most those that the samples have.
        batch_size: B, rows that are computed at a time.
        compiler: Makes what runs the frozen part.

    Raises:
        NotRepeatable: Two readings of one sample differ.

    Example:
        >>> import frostline as fl
        >>> from frostline.engines import compiled
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> samples = fl.TensorSamples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> parts = fl.split(net, fl.trace(net, torch.rand(2, 4)), 1)
        >>> rows = Recomputed(parts.frozen, samples, engine="torch", precision="float32", compiler=compiled)
        >>> rows.read([0, 2])[0].shape, rows.passed
        (torch.Size([2, 3]), 2)
    """

    def __init__(
        self,
        frozen: Frozen,
        samples: Samples,
        *,
        engine: str,
        precision: str,
        compiler: Compiler,
        views: int = 1,
        batch_size: int = 32,
    ) -> None:
        refuse_unrepeatable(samples, views)
        self.views = views
        self.passed = 0
        """Rows computed so far."""
        self._samples = samples
        self._batch = batch_size
        self._feed = feed_of(samples, views, device=device_of(frozen.module))
        self._layouts = [Layout(wire) for wire in frozen.wires]
        # The batches by which a store's engine is judged: its first and its last.
        last = (len(samples) - 1) // batch_size * batch_size
        judged = {
            0: self._inputs(range(min(batch_size, len(samples))), 0),
            1: self._inputs(range(last, len(samples)), views - 1),
        }
        [runner], _ = judge([frozen], self._feed, judged, engine=engine, precision=precision, compiler=compiler)
        self._run = runner.run

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, rows: Sequence[int], view: int = 0) -> tuple[Tensor, ...]:
        """Compute some rows.

        Args:
            rows: Sample numbers, 0 to N - 1, in any order.
            view: Of the samples, 0 to `views` - 1.

        Returns:
            One new tensor for each wire, (B, ...) along its batch axis.

        Raises:
            BadSample: A row is not finite, or of another size than the example's.
        """
        kept = [torch.empty(len(rows), *layout.row_shape, dtype=layout.dtype) for layout in self._layouts]
        for first in range(0, len(rows), self._batch):
            some = rows[first : first + self._batch]
            # A compiled module would be compiled again where its caller is in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                wires = self._run(self._inputs(some, view))
            refuse_other_sizes(wires, self._layouts, some, self._samples)
            for whole, layout, wire in zip(kept, self._layouts, wires, strict=True):
                whole[first : first + len(some)] = layout.to_rows(wire)[: len(some)]
            self.passed += len(some)
        refuse_not_finite(kept, rows, self._samples)
        return tuple(layout.from_rows(whole) for layout, whole in zip(self._layouts, kept, strict=True))

    def _inputs(self, rows: Sequence[int], view: int) -> tuple[Tensor, ...]:
        return tuple(filled(tensor, self._batch) for tensor in self._feed.read(rows, view))
