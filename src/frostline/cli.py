"""The command line: each subcommand is one public function, with its name and its arguments.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 a `FrostlineError`,
2 usage, 130 interrupted and resumable.
"""

import csv
import hashlib
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

import frostline as fl
from frostline.tables import claim_table, data_lines, duration, plan_tables, stage_table, writable

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def byte_count(text: str) -> int:
    """Bytes as people write them: 2GB, 500MB, or their number alone."""
    from pydantic import ByteSize, TypeAdapter

    return TypeAdapter(ByteSize).validate_python(text)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"frostline {fl.__version__}")
        raise typer.Exit


class Engine(StrEnum):
    """What runs the frozen part."""

    auto = "auto"
    openvino = "openvino"
    torch = "torch"
    compile = "compile"


class Precision(StrEnum):
    """In how many bits the frozen part may compute."""

    auto = "auto"
    float32 = "float32"


class Goal(StrEnum):
    """What the choice is judged by."""

    accuracy = "accuracy"
    balanced_accuracy = "balanced_accuracy"


class Format(StrEnum):
    """How predictions are written."""

    csv = "csv"
    json = "json"


Data = Annotated[str, typer.Argument(help="Folder with a folder per class, csv or parquet manifest, or Hub name.")]
Model = Annotated[str, typer.Option(help="efficientnet_lite0, timm:NAME, torchvision:NAME or FILE.py:FUNCTION.")]
Depth = Annotated[str, typer.Option(help="How many initial stages to freeze: auto, a number, or a stage's name.")]
Spend = Annotated[float, typer.Option(help="The most that the run may cost, in full fine-tunes.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the pictures, in pixels. Default: the network's own.")]
Views = Annotated[int | None, typer.Option(help="Stored views of each training picture. Default: chosen by the plan.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of a full fine-tune. Default: chosen by the plan.")]
Judged = Annotated[Goal, typer.Option(help="What the choice counts alike: every picture, or every class.")]
Seed = Annotated[int, typer.Option(help="Of the split, the new head and the order of the samples.")]
Valid = Annotated[float, typer.Option(help="Share kept for validation, where the data has no such part.")]
Test = Annotated[float, typer.Option(help="Share kept for the test, where the data has no such part.")]
Runner = Annotated[Engine, typer.Option(help="What runs the frozen part; auto measures.")]
Bits = Annotated[Precision, typer.Option(help="Of rows and training; auto takes bfloat16 where it pays.")]
Weights = Annotated[Path | None, typer.Option(help="Local weights (.safetensors or .pth), not the network's own.")]
Disk = Annotated[int | None, typer.Option(parser=byte_count, metavar="SIZE", help="Most that kept rows take, as 2GB.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without the pictures that cannot be read.")]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME-DIGITS, from the data and the options.")]
Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON, and nothing else, on stdout.")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]


def main() -> None:
    """Run the command that was typed; the entry point of the package."""
    app(prog_name="frostline")


@app.callback()
def frostline(version: Version = False) -> None:
    """Find how many initial layers of a pretrained network to freeze, and train only the rest."""


@app.command()
def fit(
    data: Data,
    model: Model = "efficientnet_lite0",
    out: Out = None,
    depth: Depth = "auto",
    budget: Spend = 0.85,
    image_size: ImageSize = None,
    views: Views = None,
    epochs: Epochs = None,
    goal: Judged = Goal.accuracy,
    seed: Seed = 0,
    valid: Valid = 0.2,
    test: Test = 0.2,
    engine: Runner = Engine.auto,
    precision: Bits = Precision.auto,
    disk: Disk = None,
    weights: Weights = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Find the freeze depth, fine-tune the rest, and write the evidence."""
    reading = {"model": model, "image_size": image_size, "weights": weights, "valid": valid, "test": test}
    reading["goal"] = goal.value
    training = {"depth": _depth(depth), "budget": budget, "epochs": epochs, "views": views}
    training |= {"engine": engine.value, "precision": precision.value}
    folder = out or default_out(data, seed=seed, skip_bad=skip_bad, **reading, **training)
    with _screen() as screen:
        task = fl.load_task(
            data, **reading, seed=seed, skip_bad=skip_bad, folder=folder / "pictures", listener=screen.hear
        )
        for line in data_lines(task.summary):
            screen.note(line)
        listener = screen.hear_plan_of(folder, to=sys.stderr if as_json else sys.stdout)
        result = fl.fit(task, **training, disk=disk, seed=seed, out=folder, listener=listener)
    _print_result(result, as_json=as_json)


@app.command()
def look(
    model: Annotated[str, typer.Argument(help="As for --model of fit.")],
    image_size: ImageSize = None,
    weights: Weights = None,
    outputs: Annotated[int, typer.Option(help="Number of classes of the head.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Show the stages of a network and what it costs to cut it after each."""
    with _screen():
        graph = fl.look(model, image_size=image_size, weights=weights, outputs=outputs)
    if as_json:
        print(graph.model_dump_json(indent=2))
    else:
        _print_tables([stage_table(graph)], sys.stdout)


@app.command()
def plan(
    data: Data,
    model: Model = "efficientnet_lite0",
    depth: Depth = "auto",
    budget: Spend = 0.85,
    image_size: ImageSize = None,
    views: Views = None,
    epochs: Epochs = None,
    goal: Judged = Goal.accuracy,
    seed: Seed = 0,
    valid: Valid = 0.2,
    test: Test = 0.2,
    engine: Runner = Engine.auto,
    precision: Bits = Precision.auto,
    disk: Disk = None,
    weights: Weights = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Predict what each depth would cost, without training anything."""
    reading = {"model": model, "image_size": image_size, "weights": weights, "valid": valid, "test": test}
    reading["goal"] = goal.value
    training = {"depth": _depth(depth), "budget": budget, "epochs": epochs, "views": views}
    training |= {"engine": engine.value, "precision": precision.value}
    with _screen() as screen:
        task = fl.load_task(data, **reading, seed=seed, skip_bad=skip_bad, listener=screen.hear)
        for line in data_lines(task.summary):
            screen.note(line)
        planned = fl.plan(task, **training, disk=disk, seed=seed, listener=screen.hear)
    if as_json:
        print(planned.model_dump_json(indent=2))
    else:
        _print_tables(plan_tables(planned.model_dump()), sys.stdout)


@app.command()
def predict(
    run: Run,
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    batch_size: Annotated[int, typer.Option(help="Pictures read at once.")] = 32,
    format: Annotated[Format, typer.Option(help="How to write the predictions.")] = Format.csv,
    as_json: AsJson = False,
) -> None:
    """Name the class of each picture, with its probability."""
    with _screen() as screen:
        predictions = fl.predict(run, paths, batch_size=batch_size, listener=screen.hear)
    if as_json or format is Format.json:
        print(json.dumps([prediction.model_dump(mode="json") for prediction in predictions], indent=2))
        return
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["path", "label", "probability"])
    for prediction in predictions:
        rows.writerow([writable(prediction.path), writable(prediction.label), f"{prediction.probability:.6f}"])


@app.command()
def report(
    run: Run,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the summary for a pull request.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write report and summary of a finished run again, from its evidence."""
    with _screen():
        file = fl.report(run)
    summary = file.with_name("summary.md")
    if as_json:
        print(json.dumps({"report": str(file), "summary": str(summary)}, indent=2))
    else:
        print(writable(summary.read_text("utf-8").rstrip("\n") if markdown else str(file)))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two finished runs or more.")],
    out: Annotated[Path | None, typer.Option(help="HTML file. Default: comparison.html beside the first run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show several finished runs side by side on one page."""
    with _screen():
        compared = fl.compare(*runs, out=out)
    print(compared.model_dump_json(indent=2) if as_json else writable(compared.file))


@app.command()
def evidence(
    run: Run,
    claims: Annotated[
        str | None,
        typer.Option(
            help="Of reuse, data, convergence, stability, regularisation, resources, with commas. Default: all."
        ),
    ] = None,
    budget: Annotated[float, typer.Option(help="The most that the claims may cost, in full fine-tunes.")] = 20.0,
    seeds: Annotated[int, typer.Option(help="How often each training is repeated, with another seed each time.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Put what freezing is said to bring to the test, on a finished run's own data."""
    names = None if claims is None else [name.strip() for name in claims.split(",")]
    with _screen() as screen:
        listener = screen.hear_price(to=sys.stderr if as_json else sys.stdout)
        told = fl.evidence(run, claims=names, budget=budget, seeds=seeds, listener=listener)
    if as_json:
        print(json.dumps([claim.model_dump(mode="json") for claim in told.claims], indent=2))
    else:
        _print_tables([claim_table(told.claims), f"Report {writable(str(run / 'report.html'))}"], sys.stdout)


@app.command()
def demo(out: Out = None, as_json: AsJson = False) -> None:
    """Fit scikit-learn's handwritten digits and say where the report is."""
    folder = out or Path("runs") / "demo"
    with _screen() as screen:
        listener = screen.hear_plan_of(folder / "run", to=sys.stderr if as_json else sys.stdout)
        result = fl.demo(folder, listener=listener)
    _print_result(result, as_json=as_json)


def default_out(data: str, **arguments: object) -> Path:
    """Name the run folder after the data and the arguments.

    The same command finds its own folder again and resumes; another one gets another folder.

    Args:
        data: As the user named it.
        arguments: Everything that changes the run.

    Returns:
        `runs/NAME-DIGITS`, relative to the working folder.

    Example:
        >>> from frostline.cli import default_out
        >>> default_out("photos", seed=0) == default_out("photos/", seed=0) != default_out("photos", seed=1)
        True
    """
    place = Path(data)
    named = str(place.resolve() if place.exists() else place)
    text = json.dumps([named, sorted((name, str(value)) for name, value in arguments.items())])
    stem = Path(named).stem if place.is_file() else Path(named).name
    name = re.sub(r"[^\w.-]+", "_", stem) or "data"
    return Path("runs") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _depth(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


# --- what is printed --------------------------------------------------------------------------


def _print_tables(parts: Sequence[RenderableType], stream: TextIO) -> None:
    # A pipe has no width: 80 columns would fold names that a later `grep` looks for.
    console = Console(file=stream, width=None if stream.isatty() else 1000, markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def _print_result(result: Any, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.summary(), indent=2))
        return
    choice, test, cost = result.choice, result.test, result.cost
    print(f"Depth {choice.depth} of {choice.max_depth}, frozen up to {writable(choice.stage_name)}.")
    print(writable(choice.reason))
    print(
        f"Test accuracy {test.accuracy:.3f} (95 % interval {test.low:.3f} to {test.high:.3f}, {test.samples:,} samples)"
    )
    choosing = "" if cost.share_search is None else f", of which {cost.share_search:.2f} went into choosing"
    print(
        f"Cost {cost.share_seconds:.2f} full fine-tunes by seconds ({duration(cost.seconds)}), "
        f"{cost.share_flops:.2f} by counted operations{choosing}"
    )
    print(f"Report {writable(str(result.report))}")


# --- what is drawn while it runs --------------------------------------------------------------


@contextmanager
def _screen() -> Iterator["Screen"]:
    screen = Screen()
    try:
        with screen.drawn():
            yield screen
    except fl.FrostlineError as error:
        screen.note(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        screen.note("Interrupted. Start the same command again to go on from what is finished.")
        raise typer.Exit(130) from error


class Screen:
    """Draws events on stderr: a bar with the remaining time, or a few lines where that is no terminal.

    Args:
        seconds_between_lines: Least time between two plain lines of one phase.
        clock: Tells the time in seconds.

    Example:
        >>> from frostline.cli import Screen
        >>> screen = Screen()
        >>> with screen.drawn():
        ...     screen.hear(fl.Event(phase="store", done=1, total=4, unit="rows"))
    """

    def __init__(self, *, seconds_between_lines: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        # Rich would send what goes to stdout to stderr while a bar is drawn, and a pipe would miss it.
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar: TaskID | None = None
        self._phase = ""
        self._seconds_between_lines = seconds_between_lines
        self._clock = clock
        self._last_line = 0.0

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draw from here on, with frostline's own warnings and log lines among the progress."""
        lines = _LogLines(self)
        logger = logging.getLogger("frostline")
        level = logger.level
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("default", module=r"frostline(\.|$)")
                warnings.showwarning = self._warned
                if self._console.is_terminal:
                    self._bars.start()
                    self._start_bar("start", "loading the libraries")
                yield
        finally:
            if self._console.is_terminal:
                self._bars.stop()
            logger.setLevel(level)
            logger.removeHandler(lines)

    def hear(self, event: Any) -> None:
        """Draw one event."""
        title = f"{event.phase}: {event.note}" if event.note else str(event.phase)
        count = f"{event.done:,} of {event.total:,} {event.unit}".rstrip() if event.total else ""
        if event.value is not None:
            count = f"{count}  {event.value:.4g}".lstrip()
        if not self._console.is_terminal:
            self._hear_as_lines(event.phase, ", ".join(filter(None, (title, count))))
            return
        if event.phase != self._phase or event.done == 0:
            self._start_bar(event.phase, title)
        if self._bar is not None:
            self._bars.update(
                self._bar, description=writable(title), completed=event.done, total=event.total or None, count=count
            )

    def hear_plan_of(self, run: Path, *, to: TextIO) -> Callable[[Any], None]:
        """A listener that draws every event, and prints the run's plan as soon as there is one."""

        def hear(event: Any) -> None:
            self.hear(event)
            if (event.phase, event.note) == ("measure", "plan written"):
                self.show(plan_tables(json.loads((run / "plan.json").read_text("utf-8"))), to=to)

        return hear

    def hear_price(self, *, to: TextIO) -> Callable[[Any], None]:
        """A listener that prints what the evidence is predicted to cost, and draws every other event."""

        def hear(event: Any) -> None:
            if event.note.startswith("predicted: "):
                self.show([writable(event.note.capitalize())], to=to)
            else:
                self.hear(event)

        return hear

    def note(self, text: str) -> None:
        """Write a line above the bars."""
        self._console.print(writable(text), soft_wrap=True)

    def show(self, parts: Sequence[RenderableType], *, to: TextIO) -> None:
        """Print tables while a bar is drawn, without the two running into each other."""
        if not self._console.is_terminal:
            _print_tables(parts, to)
            return
        self._bars.stop()
        _print_tables(parts, to)
        to.flush()
        self._bars.start()

    def _start_bar(self, phase: str, title: str) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        self._phase = phase
        self._bar = self._bars.add_task(writable(title), total=None, count="")

    def _hear_as_lines(self, phase: str, line: str) -> None:
        now = self._clock()
        if phase == self._phase and now - self._last_line < self._seconds_between_lines:
            return
        self._phase, self._last_line = phase, now
        self.note(line)

    def _warned(self, message: Warning | str, *_: object, **__: object) -> None:
        self.note(f"Warning: {message}")


class _LogLines(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.note(record.getMessage())
