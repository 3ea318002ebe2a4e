"""With local data and a local model nothing is sent anywhere: every call of a whole run is recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECORDER = """
import os, sys

def record(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        with open(os.environ["RECORDED"], "a") as file:
            file.write(f"{event} {args[1:]}\\n")

sys.addaudithook(record)
if os.environ.get("PLANTED"):
    import socket
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    except OSError:
        pass
"""


def recorded_fit(folder: Path, *, planted: bool) -> tuple[subprocess.CompletedProcess[str], str]:
    generator = np.random.default_rng(0)
    for name, bright in {"dark": 60, "light": 190}.items():
        (folder / "data" / name).mkdir(parents=True)
        for i in range(16):
            pixels = generator.normal(bright, 25, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{i}.png")
    (folder / "sitecustomize.py").write_text(RECORDER)
    log = folder / "calls.txt"
    log.touch()
    command = [sys.executable, "-m", "frostline", "fit", "data", "--image-size", "32", "--epochs", "2", "--out", "run"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "COVERAGE"))}
    environment |= {"PYTHONPATH": str(folder), "RECORDED": str(log), "HOME": str(folder / "home")}
    if planted:
        environment["PLANTED"] = "1"
    run = subprocess.run(
        [*command, "--json"], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return run, log.read_text()


@pytest.mark.slow
def test_a_whole_run_on_local_data_makes_no_network_call(tmp_path):
    run, calls = recorded_fit(tmp_path, planted=False)

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["depth"] >= 0
    assert calls == ""
    assert not (tmp_path / "home" / "intel").exists()


@pytest.mark.slow
def test_the_recorder_would_have_seen_a_call(tmp_path):
    _, calls = recorded_fit(tmp_path, planted=True)

    assert "socket.connect" in calls
