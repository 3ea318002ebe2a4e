"""Where trials run: an executor takes a worker and specs, and yields a trial for each."""

from collections.abc import Callable, Iterator

from frostline.records import Trial, TrialSpec

Worker = Callable[[TrialSpec], Trial]
Executor = Callable[[Worker, tuple[TrialSpec, ...]], Iterator[Trial]]


def in_turn(worker: Worker, specs: tuple[TrialSpec, ...]) -> Iterator[Trial]:
    """Run one trial after the other in this process.

    Args:
        worker: Turns a spec into a trial; it records a failure instead of raising one.
        specs: What to run, in this order.

    Returns:
        One trial for each spec, each as soon as it is finished.

    Example:
        >>> from frostline.records import Recipe, Trial, TrialSpec
        >>> spec = TrialSpec(depth=1, recipe=Recipe(), seed=0, epochs=1)
        >>> [trial.spec.depth for trial in in_turn(lambda spec: Trial(spec=spec), (spec,))]
        [1]
    """
    for spec in specs:
        yield worker(spec)
