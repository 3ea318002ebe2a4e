"""The README, the pages and the examples do what they say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import frostline as fl
from frostline import cli, errors

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TRAINERS = ("lightning", "transformers", "accelerate", "fastai")
SLOW_WORDS = ("fl.fit(", "fl.demo(", "fl.predict(", "fl.load_tuned(", *TRAINERS)

# Of torch in the trainers' own code, and Lightning's word on what is frozen.
trainers_may_warn = pytest.mark.filterwarnings(
    r"ignore:.torch\.jit\.script. is deprecated:FutureWarning",
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
    r"ignore:Found \d+ module\(s\) in eval mode",
)


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def stories():
    """The Python of each page: its quick blocks together, and all of them where one takes a training."""
    for page in PAGES:
        quick = [block for block in blocks(page) if not any(word in block for word in SLOW_WORDS)]
        if quick:
            yield pytest.param(quick, id=page.stem)
        if len(quick) < len(blocks(page)):
            yield pytest.param(blocks(page), id=f"{page.stem}-with-training", marks=pytest.mark.slow)


@trainers_may_warn
@pytest.mark.parametrize("story", list(stories()))
def test_python_of_the_page_runs(story, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    names = {"__name__": "__page__"}

    for block in story:
        exec(compile(block, "page", "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_runs_and_prints_something(example):
    outcome = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=240, check=False)

    assert outcome.returncode == 0, outcome.stderr
    assert len(outcome.stdout.splitlines()) >= 3


@trainers_may_warn
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_is_short(example):
    assert len(example.read_text("utf-8").splitlines()) < 80
    assert "main" in runpy.run_path(str(example), run_name="__example__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_that_a_page_uses_exists(page):
    used = set(re.findall(r"\bfl\.(\w+)", page.read_text("utf-8")))

    assert used <= set(fl.__all__)


def test_readme_shows_real_output():
    assert "OUTPUT-TO-BE-FILLED" not in (ROOT / "README.md").read_text("utf-8")


def test_reference_lists_every_public_name():
    listed = re.findall(r"^::: frostline\.(?:\w+\.)*(\w+)$", (ROOT / "docs/reference.md").read_text("utf-8"), re.M)

    assert sorted(listed) == sorted(set(fl.__all__) - {"__version__"})


def test_page_on_errors_explains_each():
    explained = re.findall(r"^#### (\w+)$", (ROOT / "docs/errors.md").read_text("utf-8"), re.M)
    leaves = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.FrostlineError) and not kind.__subclasses__()
    }

    assert sorted(explained) == sorted(leaves)


@pytest.mark.parametrize(
    "command", list(typer.main.get_command(cli.app).commands.values()), ids=lambda command: command.name
)
def test_page_on_commands_names_every_option(command):
    page = (ROOT / "docs/commands.md").read_text("utf-8")
    section = re.search(rf"^## frostline {command.name}\b.*?(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)[0]
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    if "options of `fit`" in section:
        section += re.search(r"^## frostline fit\b.*?(?=^## )", page, flags=re.DOTALL | re.MULTILINE)[0]

    assert [option for option in options if f"`{option}`" not in section] == []
