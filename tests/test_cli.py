"""The command line, with fakes in place of the rooms; whole runs are in the slow lane below."""

import functools
import inspect
import io
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_plan import GRAPH, PLAN
from typer.testing import CliRunner

import frostline as fl
from frostline import cli
from frostline.errors import ClassTooSmall, NotARun, RunBusy
from frostline.events import Event
from frostline.exhibits import Claim
from frostline.records import (
    Choice,
    Cost,
    CutGraph,
    DataSummary,
    Plan,
    Record,
    Score,
)
from frostline.reporting.comparison import Comparison
from frostline.tables import plan_tables


class FakeResult:
    choice = Choice(
        depth=9, stage_name="blocks.3.2", max_depth=18, trial="t", rule="r", reason="Depth 9 scored best by far."
    )
    test = Score(
        samples=200,
        accuracy=0.97,
        low=0.94,
        high=0.99,
        balanced_accuracy=0.97,
        loss=0.1,
        confusion=((1,),),
        losses=(),
        predictions=(),
        confidences=(),
    )
    cost = Cost(
        seconds=62.0,
        flops=5.0,
        full_finetune_seconds=100.0,
        full_finetune_flops=10.0,
        by_phase=(("train", 50.0),),
    )
    report = Path("runs/x/report.html")

    def summary(self):
        return {"depth": 9, "max_depth": 18, "report": str(self.report)}


SUMMARY = DataSummary(
    name="photos",
    classes=("cat", "<script>"),
    counts=((6, 2, 2), (6, 2, 2)),
    duplicates=(("a.png", "b.png"),),
    conflicts=(("a.png", "b.png"),),
    skipped=(("broken.png", "truncated"),),
)


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return CliRunner()


@pytest.fixture
def replace(monkeypatch):
    """Put a fake in the place of a public function, without loading the module that owns it."""
    return lambda name, fake: monkeypatch.setitem(fl.__dict__, name, fake)


@pytest.fixture
def rooms(replace):
    """Fakes of the functions behind `fit` and `plan`; returns what they were called with."""
    calls = {}

    def load_task(data, **arguments):
        calls["load_task"] = {"data": data, **arguments}
        arguments["listener"](Event(phase="read", done=1, total=2, unit="pictures"))
        return SimpleNamespace(summary=SUMMARY)

    def fit(task, **arguments):
        calls["fit"] = arguments
        folder = arguments["out"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps({"schema": 1, **PLAN.model_dump()}))
        arguments["listener"](Event(phase="measure", note="plan written"))
        arguments["listener"](Event(phase="train", note="depth 9", done=1, total=4, unit="epochs", value=0.25))
        return FakeResult()

    def plan(task, **arguments):
        calls["plan"] = arguments
        return PLAN

    replace("load_task", load_task)
    replace("fit", fit)
    replace("plan", plan)
    return calls


# --- every command is a public function with its arguments ------------------------------------

NOT_ON_THE_COMMAND_LINE = {"task", "listener", "folder"}


def parameters(*functions):
    return {
        name: parameter.default
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in NOT_ON_THE_COMMAND_LINE
    }


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (cli.fit, ["load_task", "fit"]),
        (cli.plan, ["load_task", "plan"]),
        (cli.look, ["look"]),
        (cli.predict, ["predict"]),
        (cli.report, ["report"]),
        (cli.compare, ["compare"]),
        (cli.evidence, ["evidence"]),
        (cli.demo, ["demo"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_command_has_the_arguments_and_defaults_of_its_public_functions(command, names):
    offered = parameters(command)

    for way_of_writing in ("as_json", "format", "markdown"):
        offered.pop(way_of_writing, None)

    assert offered == parameters(*(getattr(fl, name) for name in names))


# --- fit --------------------------------------------------------------------------------------


def test_fit_hands_every_option_on(runner, rooms):
    options = (
        "fit photos --model timm:x --out r --depth 3 --budget .5 --image-size 96 --views 2 --epochs 4 --seed 7 "
        "--valid .1 --test .3 --engine torch --precision float32 --weights w.pth --skip-bad --goal balanced_accuracy "
        "--disk 1.5GB"
    )

    outcome = runner.invoke(cli.app, options.split())

    assert outcome.exit_code == 0, outcome.output
    load, fit = rooms["load_task"], rooms["fit"]
    assert load.pop("listener")
    assert fit.pop("listener")
    assert load == {
        "data": "photos",
        "model": "timm:x",
        "image_size": 96,
        "weights": Path("w.pth"),
        "goal": "balanced_accuracy",
        "valid": 0.1,
        "test": 0.3,
        "seed": 7,
        "skip_bad": True,
        "folder": Path("r/pictures"),
    }
    assert fit == {
        "depth": 3,
        "budget": 0.5,
        "epochs": 4,
        "views": 2,
        "seed": 7,
        "engine": "torch",
        "precision": "float32",
        "disk": 1_500_000_000,
        "out": Path("r"),
    }


def test_fit_prints_the_plan_before_the_choice(runner, rooms):
    outcome = runner.invoke(cli.app, ["fit", "photos"])

    assert outcome.stdout.index("The plan") < outcome.stdout.index("Depth 9 of 18")
    assert "About 3 min 20 s and 5.0 MB of disk; budget 1.00 full fine-tunes, of 10 epochs" in outcome.stdout
    assert "few samples" in outcome.stdout


def test_fit_ends_with_choice_interval_cost_and_report(runner, rooms):
    outcome = runner.invoke(cli.app, ["fit", "photos"])

    assert outcome.stdout.splitlines()[-5:] == [
        "Depth 9 of 18, frozen up to blocks.3.2.",
        "Depth 9 scored best by far.",
        "Test accuracy 0.970 (95 % interval 0.940 to 0.990, 200 samples)",
        "Cost 0.62 full fine-tunes by seconds (62 s), 0.50 by counted operations",
        "Report runs/x/report.html",
    ]


def test_fit_as_json_prints_the_record_only(runner, rooms):
    outcome = runner.invoke(cli.app, ["fit", "photos", "--json"])

    assert json.loads(outcome.stdout) == FakeResult().summary()
    assert "The plan" in outcome.stderr


def test_fit_tells_of_duplicates_conflicts_and_skipped_files(runner, rooms):
    outcome = runner.invoke(cli.app, ["fit", "photos"])

    assert "photos: 20 samples of 2 classes (12 train, 4 validation, 4 test)" in outcome.stderr
    assert "same bytes; each stays in one part: a.png = b.png" in outcome.stderr
    assert "1 of them carry more than one label" in outcome.stderr
    assert "broken.png: truncated" in outcome.stderr


@pytest.mark.parametrize(("size", "told"), [("500MB", 500_000_000), ("2 kB", 2000), ("0", 0)])
def test_the_disk_is_no_part_of_what_names_the_run_folder(runner, rooms, size, told):
    runner.invoke(cli.app, ["fit", "photos"])
    usual = rooms["fit"]

    runner.invoke(cli.app, ["fit", "photos", "--disk", size])

    assert usual["disk"] is None
    assert rooms["fit"]["disk"] == told
    assert rooms["fit"]["out"] == usual["out"]


def test_a_size_that_is_none_is_wrong_usage(runner, rooms):
    outcome = runner.invoke(cli.app, ["plan", "photos", "--disk", "much"])

    assert outcome.exit_code == 2
    assert "--disk" in outcome.stderr
    assert "plan" not in rooms


def test_the_plan_names_the_depths_whose_rows_are_computed_anew(runner, replace, rooms):
    replace("plan", lambda task, **arguments: PLAN.model_copy(update={"computed": (1,)}))

    outcome = runner.invoke(cli.app, ["plan", "photos"])

    [line] = [line for line in outcome.stdout.splitlines() if "layer[red]" in line]
    assert "computed anew" in line
    assert "MB" not in line


def test_stage_names_are_shown_as_text(runner, rooms):
    outcome = runner.invoke(cli.app, ["plan", "photos"])

    assert "layer[red]" in outcome.stdout


def test_same_command_finds_its_folder_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()

    folder = cli.default_out("photos", seed=0, weights=None)

    assert folder == cli.default_out("./photos/", weights=None, seed=0)
    assert folder == cli.default_out(str(tmp_path / "photos"), seed=0, weights=None)
    assert folder.parts[0] == "runs"
    assert folder.name.startswith("photos-")


def test_other_arguments_get_another_folder():
    folders = {cli.default_out("photos", seed=seed, model=model) for seed in (0, 1) for model in ("a", "b")}

    assert len(folders) == 4


def test_run_folder_of_a_strange_name_stays_inside_runs():
    folder = cli.default_out("owner/../na me", seed=0)

    assert folder.parent == Path("runs")
    assert " " not in folder.name


# --- the other commands -----------------------------------------------------------------------


def test_look_lists_every_stage_with_what_its_cut_costs(runner, replace):
    replace("look", lambda model, *, image_size, weights, outputs: GRAPH)

    lines = runner.invoke(cli.app, ["look", "tiny"]).stdout.splitlines()

    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "2", "3"]
    assert lines[3].split() == ["1", "stem", "100", "75.0", "%", "2.0", "kB", "open"]
    assert lines[4].rstrip().endswith("tied: `stem.weight`")
    assert lines[5].rstrip().endswith("the head, always live")


def test_look_as_json_prints_the_graph(runner, replace):
    replace("look", lambda model, *, image_size, weights, outputs: GRAPH)

    outcome = runner.invoke(cli.app, ["look", "tiny", "--json"])

    assert CutGraph.model_validate_json(outcome.stdout) == GRAPH


def test_plan_as_json_prints_the_plan(runner, rooms):
    outcome = runner.invoke(cli.app, ["plan", "photos", "--json", "--depth", "-1"])

    assert Plan.model_validate_json(outcome.stdout) == PLAN
    assert rooms["plan"]["depth"] == -1


class Guess(Record):
    path: str
    label: str
    probability: float


def test_predict_writes_csv_that_keeps_commas_and_escapes_what_cannot_be_encoded(runner, replace):
    guesses = (Guess(path="a, b.png", label="cat", probability=0.5), Guess(path="\udcff.png", label="x", probability=1))
    replace("predict", lambda run, paths, *, batch_size, listener: guesses)

    outcome = runner.invoke(cli.app, ["predict", "run", "a, b.png"])

    assert outcome.stdout == 'path,label,probability\n"a, b.png",cat,0.500000\n\\udcff.png,x,1.000000\n'


@pytest.mark.parametrize("option", [["--json"], ["--format", "json"]])
def test_predict_writes_json(runner, replace, option):
    replace("predict", lambda run, paths, *, batch_size, listener: (Guess(path="é.png", label="cat", probability=0.5),))

    outcome = runner.invoke(cli.app, ["predict", "run", "é.png", *option])

    assert json.loads(outcome.stdout) == [{"path": "é.png", "label": "cat", "probability": 0.5}]


def test_report_prints_where_it_is(runner, replace):
    replace("report", lambda run: run / "report.html")

    assert runner.invoke(cli.app, ["report", "run"]).stdout == "run/report.html\n"
    assert json.loads(runner.invoke(cli.app, ["report", "run", "--json"]).stdout) == {
        "report": "run/report.html",
        "summary": "run/summary.md",
    }


def test_report_prints_the_summary_for_a_pull_request(runner, replace, tmp_path):
    (tmp_path / "summary.md").write_text("### Freeze 7\n\n░ é\n", "utf-8")
    replace("report", lambda run: run / "report.html")

    outcome = runner.invoke(cli.app, ["report", str(tmp_path), "--markdown"])

    assert outcome.stdout == "### Freeze 7\n\n░ é\n"


def test_compare_hands_the_runs_on_and_prints_where_the_page_is(runner, replace):
    calls = []
    page = Comparison(file="runs/comparison.html", runs=(), differences=())
    replace("compare", lambda *runs, out: calls.append((runs, out)) or page)

    written = runner.invoke(cli.app, ["compare", "a", "b", "--out", "c.html"]).stdout
    record = runner.invoke(cli.app, ["compare", "a", "b", "--json"]).stdout

    assert calls == [((Path("a"), Path("b")), Path("c.html")), ((Path("a"), Path("b")), None)]
    assert written == "runs/comparison.html\n"
    assert json.loads(record) == {"file": "runs/comparison.html", "runs": [], "differences": []}


@pytest.mark.parametrize("runs", [["a"], ["a", "b"]])
def test_compare_of_no_two_finished_runs_is_one_message(runner, runs):
    outcome = runner.invoke(cli.app, ["compare", *runs])

    assert outcome.exit_code == 1
    assert outcome.stderr.startswith(("BadArgument: 1 run given", "NotARun: a does not exist"))
    assert outcome.stdout == ""


CLAIMS = (
    Claim(
        name="data",
        verdict="holds",
        sentence="Full fine-tuning needs twice the \x1b[data].",
        value=2.0,
        low=1.5,
        high=3.1,
        unit="times",
    ),
    Claim(name="reuse", verdict="not measured", sentence="This was not asked for."),
)


@pytest.fixture
def weighed(replace):
    """A fake of `evidence`; returns what it was called with."""
    calls = {}

    def evidence(run, *, listener, **arguments):
        calls.update(run=run, **arguments)
        listener(Event(phase="measure", note="predicted: 3 attempts for 1.25 full fine-tunes, about 9 seconds"))
        listener(Event(phase="train", note="depth 9", done=1, total=4, unit="epochs"))
        return SimpleNamespace(claims=CLAIMS)

    replace("evidence", evidence)
    return calls


def test_evidence_hands_every_option_on(runner, weighed):
    outcome = runner.invoke(cli.app, ["evidence", "run", "--claims", "reuse, data", "--budget", "3", "--seeds", "2"])

    assert outcome.exit_code == 0, outcome.output
    assert weighed == {"run": Path("run"), "claims": ["reuse", "data"], "budget": 3.0, "seeds": 2}


def test_evidence_tells_its_price_before_the_claims(runner, weighed):
    lines = runner.invoke(cli.app, ["evidence", "run"]).stdout.splitlines()

    assert weighed["claims"] is None
    assert lines[0] == "Predicted: 3 attempts for 1.25 full fine-tunes, about 9 seconds"
    assert lines[3].split()[:6] == ["data", "holds", "2.00", "times", "(1.50", "to"]
    assert lines[3].rstrip().endswith("Full fine-tuning needs twice the \\x1b[data].")
    assert lines[4].split()[:3] == ["reuse", "not", "measured"]
    assert lines[5] == "Report run/report.html"


def test_evidence_as_json_prints_the_claims_only(runner, weighed):
    outcome = runner.invoke(cli.app, ["evidence", "run", "--json"])

    assert [claim["verdict"] for claim in json.loads(outcome.stdout)] == ["holds", "not measured"]
    assert "Predicted: 3 attempts" in outcome.stderr


def test_demo_prints_where_the_report_is(runner, replace):
    replace("demo", lambda out, *, listener: FakeResult())

    assert "Report runs/x/report.html" in runner.invoke(cli.app, ["demo"]).stdout


# --- how it ends when it goes wrong -----------------------------------------------------------


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        ClassTooSmall("ClassTooSmall: class '[bold]' has 1 picture; three are needed.", name="[bold]"),
        RunBusy("RunBusy: process 7 works in runs/x."),
        NotARun("NotARun: runs/x holds no finished run."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_error_ends_with_1_and_its_message_only(runner, replace, error, options):
    replace("load_task", raising(error))

    outcome = runner.invoke(cli.app, ["fit", "photos", *options])

    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert outcome.stderr == f"{error}\n"


def test_bug_keeps_its_traceback(runner, replace):
    replace("load_task", raising(ZeroDivisionError("a bug")))

    outcome = runner.invoke(cli.app, ["fit", "photos"])

    assert isinstance(outcome.exception, ZeroDivisionError)


def test_interrupt_ends_with_130_and_says_how_to_go_on(runner, replace):
    replace("load_task", raising(KeyboardInterrupt()))

    outcome = runner.invoke(cli.app, ["fit", "photos"])

    assert outcome.exit_code == 130
    assert "Start the same command again" in outcome.stderr


@pytest.mark.parametrize("words", ["fit", "fit photos --engine warp", "fit photos --seed x", "unfit", "predict run"])
def test_wrong_usage_ends_with_2(runner, words):
    assert runner.invoke(cli.app, words.split()).exit_code == 2


def test_version_is_printed(runner):
    assert runner.invoke(cli.app, ["--version"]).stdout == f"frostline {fl.__version__}\n"


def test_control_characters_of_a_name_do_not_reach_the_terminal(runner, replace):
    replace("load_task", raising(ClassTooSmall("ClassTooSmall: class '\x1b[31mred'")))

    assert "\x1b" not in runner.invoke(cli.app, ["fit", "photos"]).stderr


# --- progress ---------------------------------------------------------------------------------


def test_lines_do_not_flood_where_stderr_is_no_terminal(capsys):
    now = iter(range(1000))
    screen = cli.Screen(seconds_between_lines=10, clock=lambda: next(now))

    with screen.drawn():
        for done in range(1, 31):
            screen.hear(Event(phase="store", note="depth 9", done=done, total=30, unit="rows"))
        screen.hear(Event(phase="train", value=0.12345))

    assert capsys.readouterr().err.splitlines() == [
        "store: depth 9, 1 of 30 rows",
        "store: depth 9, 11 of 30 rows",
        "store: depth 9, 21 of 30 rows",
        "train, 0.1235",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_gets_bars_that_vanish(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = io.StringIO()
    screen = cli.Screen()

    with screen.drawn():
        screen.hear(Event(phase="store", note="[red]", done=3, total=30, unit="rows"))
        screen.show(["the table"], to=out)
        screen.note("a note")
        screen.hear(Event(phase="store", note="[red]", done=30, total=30, unit="rows"))

    drawn = terminal.getvalue()
    assert "loading the libraries" in drawn
    assert "store: [red]" in drawn
    assert "30 of 30 rows" in drawn
    assert drawn.endswith("\x1b[2K")
    assert out.getvalue() == "the table\n"


def test_own_warnings_and_log_lines_are_shown_and_others_are_not(capsys):
    screen = cli.Screen()
    logger = logging.getLogger("frostline.engines")
    before = list(logging.getLogger("frostline").handlers)

    with screen.drawn():
        warnings.warn_explicit("accuracy is rough", UserWarning, "claims.py", 1, module="frostline.claims")
        warnings.warn_explicit("third party", UserWarning, "timm.py", 1, module="timm")
        logger.info("openvino is not installed; torch runs the frozen part")

    assert capsys.readouterr().err.splitlines() == [
        "Warning: accuracy is rough",
        "openvino is not installed; torch runs the frozen part",
    ]
    assert logging.getLogger("frostline").handlers == before


def test_table_in_a_pipe_keeps_long_names_whole():
    name = "blocks." + "x" * 60
    forecast = PLAN.forecasts[0].model_copy(update={"stage_name": name})
    stream = io.StringIO()

    cli._print_tables(plan_tables(PLAN.model_copy(update={"forecasts": (forecast,)}).model_dump()), stream)

    assert name in stream.getvalue()


# --- as a process -----------------------------------------------------------------------------


def command(*words, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "frostline", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_module_answers_like_the_command(tmp_path):
    outcome = command("--version", cwd=tmp_path)

    assert (outcome.returncode, outcome.stdout) == (0, f"frostline {fl.__version__}\n")


# Several full fine-tunes, since one of so few small pictures does not pay for a race.
FIT = ("fit", "photos", "--image-size", "32", "--epochs", "2", "--budget", "9", "--json")


def record_of(*words, cwd):
    outcome = command(*words, cwd=cwd)
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout)


@pytest.mark.slow
def test_fit_predict_and_report_from_folder_to_labels(photos):
    fitted = record_of(*FIT, "--out", "run", cwd=photos.parent)
    predicted = record_of("predict", "run", "photos/cat", "--json", cwd=photos.parent)
    (photos.parent / "run/report.html").unlink()
    reported = record_of("report", "run", "--json", cwd=photos.parent)

    assert {"depth", "max_depth", "stage_name", "test", "valid", "cost", "seconds", "report"} <= set(fitted)
    assert {"accuracy", "low", "high"} <= set(fitted["test"])
    assert {"seconds", "flops"} <= set(fitted["cost"]["full_finetunes"])
    assert len(predicted) == 30
    assert sum(guess["label"] == "cat" for guess in predicted) > 15
    assert (photos.parent / reported["report"]).exists()


@pytest.mark.slow
def test_interrupted_fit_goes_on_and_ends_with_the_choice_of_an_unbroken_one(photos):
    words = [sys.executable, "-m", "frostline", *FIT, "--out", "broken"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # What runs in the background of a shell has learnt to ignore the interrupt, and so have its children.
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    broken = subprocess.Popen(words, cwd=photos.parent, preexec_fn=listening, **pipes)
    first = next(line for line in broken.stderr if line.startswith("train"))
    broken.send_signal(signal.SIGINT)
    _, said = broken.communicate(timeout=60)

    resumed = record_of(*FIT, "--out", "broken", cwd=photos.parent)
    unbroken = record_of(*FIT, "--out", "whole", cwd=photos.parent)

    assert broken.returncode == 130, first
    assert "Start the same command again" in said
    assert "Traceback" not in said
    assert (resumed["depth"], resumed["test"]) == (unbroken["depth"], unbroken["test"])
