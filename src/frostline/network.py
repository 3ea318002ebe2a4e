"""What is known of a network: its stages, the cuts between them, where it came from."""

import difflib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from frostline.errors import CutBlocked, UnknownStage
from frostline.record import Record


class Wire(Record):
    """One tensor that crosses a cut.

    Args:
        name: Dotted name of the module call it comes from, or the input's name.
        shape: Shape at the traced batch size.
        dtype: For instance "float32".
        batch_axis: Which axis grows with the batch.
        factor: Rows along that axis for each sample (1 nearly always).
        order: Axes from the slowest in memory to the fastest; (0, 2, 3, 1) is channels-last.
        bytes_per_sample: Bytes that one sample adds.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    batch_axis: int = 0
    factor: int = 1
    order: tuple[int, ...]
    bytes_per_sample: int


class Stage(Record):
    """One step of the traced network, in order of execution.

    Args:
        index: Place in `CutGraph.stages`; freezing it takes a depth of at least index + 1.
        name: Dotted name of the module that ends it.
        keys: State-dict keys that belong to it.
        parameters: Number of parameter elements.
        flops: Forward floating-point operations for one sample (convolutions and products).
        aliases: Dotted names of other modules that end in it with no weight matrix read after them,
            such as the last block of a container or the convolution before a norm.
    """

    index: int
    name: str
    keys: tuple[str, ...]
    parameters: int
    flops: int
    aliases: tuple[str, ...] = ()


class Cut(Record):
    """The place after `depth` stages.

    Args:
        depth: Number of stages below it.
        name: Name of the last frozen stage; "" at depth 0.
        wires: What has to be kept of each sample.
        bytes_per_sample: Sum over the wires.
        blocked: Why it cannot be used, or None.
    """

    depth: int
    name: str
    wires: tuple[Wire, ...]
    bytes_per_sample: int
    blocked: str | None = None


class CutGraph(Record):
    """What one watched forward pass says of a network: its stages and the cuts between them.

    `cuts[d]` is the cut at depth d, from 0 (nothing frozen) to `max_depth` (all but the head).

    Args:
        model: Class name of the network.
        batch: Batch size of the watched pass.
        stages: In order of execution; the head is the last.
        cuts: One for each depth.
        head: Name of the last Linear that yields the K outputs, or None.
        outputs: K, or None where the output is not one (B, K) tensor.
        recording: The pass itself, which `split` needs; not part of the record on disk.
    """

    model: str
    batch: int
    stages: tuple[Stage, ...]
    cuts: tuple[Cut, ...]
    head: str | None = None
    outputs: int | None = None
    recording: Any = Field(default=None, exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CutGraph) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((self.model, self.batch, self.stages, self.cuts, self.head, self.outputs))

    @property
    def max_depth(self) -> int:
        """The largest depth: all stages but the head frozen."""
        return len(self.stages) - 1

    @property
    def open_depths(self) -> tuple[int, ...]:
        """Depths whose cut may be used."""
        return tuple(cut.depth for cut in self.cuts if cut.blocked is None)

    @property
    def flops(self) -> int:
        """Forward operations for one sample."""
        return sum(stage.flops for stage in self.stages)

    @property
    def parameters(self) -> int:
        """Parameter elements of all stages."""
        return sum(stage.parameters for stage in self.stages)

    def frozen_share(self, depth: int) -> float:
        """Share of the forward operations that lie below the cut, 0 to 1."""
        return sum(stage.flops for stage in self.stages[:depth]) / max(1, self.flops)

    def stage_name(self, depth: int) -> str:
        """Name of the last frozen stage, or "nothing" at depth 0."""
        return self.stages[depth - 1].name if depth else "nothing"

    def resolve(self, depth: int | str) -> int:
        """Turn a depth as people write it into the number of initial stages frozen.

        Args:
            depth: A number from 0 to `max_depth`; a negative number, -1 being `max_depth`; or
                the name of a stage, or one of its aliases, which freezes up to and including it.

        Returns:
            The depth, 0 to `max_depth`.

        Raises:
            UnknownStage: No such number or name.
            CutBlocked: The network cannot be cut there.
        """
        if isinstance(depth, str) and depth.lstrip("-").isdecimal():
            depth = int(depth)
        if isinstance(depth, str):
            found = self._depth_named(depth)
        else:
            if isinstance(depth, bool) or not isinstance(depth, int):
                raise UnknownStage(
                    f"UnknownStage: depth is {depth!r}; it must be a whole number from 0 to {self.max_depth}, "
                    "a negative number or a stage's name.",
                    depth=depth,
                )
            found = depth if depth >= 0 else self.max_depth + 1 + depth
            if not 0 <= found <= self.max_depth:
                raise UnknownStage(
                    f"UnknownStage: depth {depth} is outside 0 to {self.max_depth}: the network has "
                    f"{len(self.stages)} stages and the head, the last one, is always live.",
                    depth=depth,
                )
        if reason := self.cuts[found].blocked:
            raise CutBlocked(
                f"CutBlocked: depth {found} ({self.stage_name(found)}) cannot be frozen: {reason}. "
                f"Open depths: {', '.join(map(str, self.open_depths))}.",
                depth=found,
                reason=reason,
            )
        return found

    def _depth_named(self, name: str) -> int:
        depths = {stage.name: stage.index + 1 for stage in self.stages[:-1]}
        known = {alias: stage.index + 1 for stage in self.stages[:-1] for alias in stage.aliases} | depths
        if name in known:
            return known[name]
        inside = [stage.name for stage in self.stages if any(key.startswith(f"{name}.") for key in stage.keys)]
        if name == self.stages[-1].name:
            said = f"{name!r} is the head, which is always live; -1 freezes all that lies below it"
        elif inside:
            said = f"{name!r} is no stage; its tensors belong to {_listed(inside)}"
        else:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(depths)[:3]
            said = f"no stage that can be frozen is named {name!r}. Near names: {', '.join(near)}"
        raise UnknownStage(f"UnknownStage: {said}. `frostline look` lists all {len(depths)}.", depth=name)


def _listed(names: Sequence[str]) -> str:
    return f"the stage {names[0]!r}" if len(names) == 1 else f"the stages {names[0]!r} to {names[-1]!r}"


class Preprocessing(Record):
    """How a picture becomes an input: (3, image_size, image_size), (value / 255 - mean) / std.

    The picture's short side is resized to `image_size`, then its middle is cut out.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class ModelSource(Record):
    """How to build the network again.

    Args:
        name: As given: "efficientnet_lite0", "timm:NAME", "torchvision:NAME", "FILE.py:FUNCTION".
        outputs: K.
        weights: A local weights file, or None for the model's own.
        fingerprint: Digest of all weights below the head, as built.
    """

    name: str
    outputs: int
    weights: str | None = None
    fingerprint: str = ""
