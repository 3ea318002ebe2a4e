"""The evidence is complete, names no person or place, and needs no torch."""

import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

import pytest

from frostline.claims import gather, machine
from frostline.records import Evidence

FILLED = ("frostline", "created", "machine")


def pieces_of(evidence):
    return {name: getattr(evidence, name) for name in Evidence.model_fields if name not in FILLED}


def test_gather_keeps_every_piece_and_fills_in_the_rest(fake_evidence):
    given = fake_evidence()

    evidence = gather(**pieces_of(given))

    assert pieces_of(evidence) == pieces_of(given)
    assert evidence.frostline == metadata.version("frostline")
    assert datetime.fromisoformat(evidence.created).tzinfo is not None
    assert evidence.machine == machine()


def test_gather_counts_live_parameters_where_nobody_did(fake_evidence):
    given = fake_evidence()
    pieces = pieces_of(given) | {"parameters_live": None}

    evidence = gather(**pieces)

    assert evidence.parameters_live == given.parameters_live


def test_evidence_survives_json_with_a_failed_trial_in_it(fake_evidence):
    evidence = fake_evidence(failed=True)

    text = evidence.model_dump_json()

    assert Evidence.model_validate_json(text).model_dump_json() == text


def test_machine_facts_are_text_and_repeat(fake_evidence):
    facts = dict(machine())

    assert {"processor", "cores", "system", "python"} <= facts.keys()
    assert all(isinstance(value, str) and value for value in facts.values())
    assert facts == dict(machine())


def test_machine_facts_name_no_host_and_no_user(monkeypatch):
    import getpass
    import platform

    for module, name in ((platform, "node"), (getpass, "getuser")):
        monkeypatch.setattr(module, name, lambda: "secret-name")

    assert "secret-name" not in str(machine())


@pytest.mark.parametrize(
    ("cpuinfo", "processor"),
    [
        ("model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\n", "AMD EPYC, family 25, model 17"),
        ("model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\n\nmodel\t: 9\n", "AMD EPYC, family 26, model 2"),
        ("model name\t: Neoverse: N1\nCPU part\t: 0xd0c\n", "Neoverse: N1"),
        ("processor\t: 0\n\nprocessor\t: 1\n", platform.machine()),
    ],
)
def test_processors_of_one_name_are_told_apart_by_family_and_model(monkeypatch, cpuinfo, processor):
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **said: cpuinfo if path == Path("/proc/cpuinfo") else read(path, **said)
    )
    monkeypatch.setattr(platform, "processor", lambda: "")

    assert dict(machine())["processor"] == processor


def test_machine_facts_do_not_load_torch():
    code = "import sys; from frostline.claims import machine; machine(); print('torch' in sys.modules)"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "False"


def test_machine_facts_say_which_torch_is_installed():
    assert dict(machine())["torch"] == metadata.version("torch")
