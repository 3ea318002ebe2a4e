"""Rules of the house that no linter knows: names, floors, lengths, what an import costs."""

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import frostline as fl
from frostline import errors
from frostline.records import Record

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "frostline"
FILES = sorted(SOURCE.rglob("*.py"))
DOORS = ("cli", "sources", "integrations")
OWN_MODULES = {"cli": {"frostline.tables"}, "integrations": {"frostline.errors", "frostline.integrations"}}
"""What else a door may import than what every user does."""
ROOMS = [
    "task",
    "tracing",
    "splitting",
    "freezing",
    "features",
    "probing",
    "tangent",
    "tuning",
    "scoring",
    "seeing",
    "search",
    "choosing",
    "delta",
    "claims",
    "reporting",
    "weighing",
    "executors",
    "site",
    "run",
    "trying",
    "footprint",
]

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
each_name = pytest.mark.parametrize("name", sorted(set(fl.__all__) - {"__version__"}))


# --- the public face --------------------------------------------------------------------------


def test_all_is_what_is_visible():
    assert fl.__all__ == dir(fl) == sorted(set(fl.__all__))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'melt'"):
        _ = fl.melt


@each_name
def test_public_name_says_what_it_does(name):
    text = inspect.getdoc(getattr(fl, name)) or ""

    first, *_ = text.splitlines() or [""]

    assert first.endswith("."), f"the first line is no sentence: {first!r}"
    assert len(first) < 90


@each_name
def test_public_name_has_an_example_that_runs(name):
    text = inspect.getdoc(getattr(fl, name)) or ""

    assert "Example:\n    >>> " in text


@each_name
def test_public_function_has_at_most_three_positional_arguments_and_no_kwargs(name):
    thing = getattr(fl, name)
    if inspect.isclass(thing) and issubclass(thing, Record | Exception):
        pytest.skip("pydantic and Exception make the signature")

    kinds = [parameter.kind for parameter in inspect.signature(thing).parameters.values()]

    limit = 4 if inspect.isclass(thing) else 3
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= limit
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_no_module_has_the_name_of_a_public_function():
    modules = {file.stem for file in SOURCE.glob("*.py")} | {folder.name for folder in SOURCE.iterdir()}

    assert not modules & set(fl.__all__)


# --- what an import costs ---------------------------------------------------------------------

HEAVY = ["torch", "torchvision", "timm", "transformers", "sklearn", "openvino", "datasets", "pandas", "plotly", "ray"]


def loaded_by(code):
    lines = f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["frostline", "frostline.cli", "frostline.errors", "frostline.records"])
def test_import_loads_nothing_heavy(module):
    assert loaded_by(f"import {module}") == "[]"


def test_report_is_written_without_torch():
    assert loaded_by("import frostline as fl; fl.report, fl.render") == "[]"


def test_help_answers_in_half_a_second():
    def seconds():
        # Of the processor, for the machine may be busy with something else.
        before = os.times()
        subprocess.run([sys.executable, "-m", "frostline", "--help"], check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(4)) < 0.5


# --- the shape of the code --------------------------------------------------------------------


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring and the functions inside it."""
    first = function.body[0]
    docstring = ast.get_docstring(function) is not None
    inner = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function]
    outermost = [node for node in inner if not any(node in ast.walk(other) for other in inner if other is not node)]
    without = sum(node.end_lineno - node.lineno + 1 for node in outermost)
    return function.end_lineno - function.lineno + 1 - docstring * (first.end_lineno - first.lineno + 1) - without


@each_file
def test_module_has_at_most_600_lines(file):
    assert len(file.read_text("utf-8").splitlines()) <= 600


@each_file
def test_function_has_at_most_60_lines(file):
    long = {function.name: code_lines(function) for function in functions(file) if code_lines(function) > 60}

    assert not long


@each_file
def test_module_says_what_it_is_for(file):
    assert ast.get_docstring(ast.parse(file.read_text("utf-8")))


def imports(file: Path) -> Iterator[str]:
    """Dotted names of frostline that a module imports, wherever in its code."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "frostline")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "frostline":
            whole = node.module == "frostline"
            yield from (f"frostline.{alias.name}" if whole else node.module for alias in node.names)


@each_file
def test_only_doors_use_the_package_like_a_user(file):
    door = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    imported = set(imports(file))

    if door in DOORS:
        assert not [name for name in imported if name.split(".")[1:2] and name.split(".")[1] in ROOMS]
        shared = OWN_MODULES.get(door, set())
        assert door == "sources" or imported - shared <= {"frostline"}
    else:
        assert "frostline" not in imported or door == "testing", "import the module that owns the name"


@each_file
def test_public_exceptions_live_in_errors(file):
    classes = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
    raised = set(vars(errors)) | {"Exception", "BaseException", "ValueError", "RuntimeError", "OSError"}

    found = [node.name for node in classes if raised & {base.id for base in node.bases if isinstance(base, ast.Name)}]

    assert file.name == "errors.py" or all(name.startswith("_") for name in found)


@each_file
def test_nothing_is_called_after_what_it_is_not(file):
    assert file.stem not in ("utils", "helpers", "common", "misc", "base")


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if not file.name.startswith("__")],
    ids=lambda file: str(file.relative_to(SOURCE)),
)
def test_module_has_its_mirror(file):
    place = file.relative_to(SOURCE)
    mirrors = [
        ROOT / "tests" / place.parent / f"test_{file.name}",
        ROOT / "tests" / f"test_{place.parts[0]}.py",
        ROOT / "tests" / f"test_{file.stem}.py",
    ]

    assert any(mirror.exists() for mirror in mirrors), f"none of {[str(mirror) for mirror in mirrors]}"


# --- files around the code --------------------------------------------------------------------


def test_changelog_has_a_place_for_what_comes_next():
    assert re.search(r"^## \[?Unreleased\]?$", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
