"""The scripts of speed run from end to end on a few rows, and write what they promise."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def ran(name: str, *words: object) -> dict:
    """What a script wrote."""
    out = Path(words[words.index("--json") + 1])
    command = [sys.executable, name, *map(str, words)]
    ended = subprocess.run(command, cwd=SCRIPTS, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert not ended.returncode, ended.stderr.decode()[-2000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two classes of sixty JPEG files."""
    folder, draw = tmp_path_factory.mktemp("pictures") / "pictures", np.random.default_rng(0)
    for kind in ("left", "right"):
        (folder / kind).mkdir(parents=True)
        for number in range(60):
            noise = draw.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            noise[:, 24 * (kind == "right") :][:, :24] //= 4
            Image.fromarray(noise).save(folder / kind / f"{number:02d}.jpg")
    return folder


def test_limit_compares_the_live_part_with_a_bare_loop_of_the_same_weights(tmp_path):
    sizes = ["--rows", 32, "--image-size", 32, "--epochs", 1, "--repeats", 1, "--share", 0.5, "--network", "ResNet-18"]

    found = ran("limit.py", "--work", tmp_path / "work", "--json", tmp_path / "out.json", *sizes)

    assert set(found["ratios"]) == set(found["of_limit"]) == {"ResNet-18, f = 0.5"}
    assert found["networks"][0]["rows"][0]["difference"] < 1e-4


def test_sharing_trains_every_configuration_in_all_ways(pictures, tmp_path):
    sizes = ["--limit", "40", "--image-size", "32", "--epochs", "1", "--workers", "0", "--untrained"]

    found = ran("sharing.py", pictures, "--work", tmp_path / "work", "--json", tmp_path / "out.json", *sizes)

    trained = [row for row in found["rows"] if "curve" in row]
    assert len(trained) == 3 * 24 + 3
    assert found["difference"]["loss"]["median"] <= found["difference"]["loss"]["largest"] < 0.01
    assert found["by_rounding"]["largest_loss"] < 0.01


def test_a_store_grows_and_is_trained_on_in_processes_of_their_own(tmp_path):
    asked = {"rows": 40, "folder": str(tmp_path / "store"), "depth": 16, "image_size": 32, "limit": 0, "group": ""}
    found = []
    for phase in ("cache", "train", "hold"):
        one = json.dumps({**asked, "engine": "torch", "phase": phase})
        ended = subprocess.run([sys.executable, "scale.py", "--one", one], cwd=SCRIPTS, capture_output=True)
        assert not ended.returncode, ended.stderr.decode()[-2000:]
        found.append(json.loads(ended.stdout.splitlines()[-1]))

    assert found[0]["stored_bytes"] == found[1]["stored_bytes"] == found[2]["held_bytes"] > 0
    assert found[0]["peak_bytes"] > 0
    assert found[1]["seconds"] > 0


def test_the_cold_pass_is_clocked_in_every_way(pictures, tmp_path):
    sizes = ["--pictures", "16", "--repeats", "1", "--image-size", "32", "--networks", "timm:resnet18", "--data"]
    sets = [pictures / kind for kind in ("left", "right")]

    found = ran("cold.py", "speed", *sizes, *sets, "--work", tmp_path / "work", "--json", tmp_path / "out.json")

    assert set(found["speedups"]) == {"timm:resnet18, head only", "timm:resnet18, middle"}
    assert all(each["float32"]["error"] <= 1e-5 for each in found["speedups"].values())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_steps_are_timed_in_float32_in_bfloat16_and_compiled(tmp_path):
    found = ran("steps.py", "--json", tmp_path / "out.json", "--networks", "timm:resnet18:32", "--repeats", 1)

    [row] = found["rows"]
    assert min(row[way]["seconds"] for way in ("float32", "bfloat16", "compiled")) > 0
    assert row["compiled"]["precision"] in ("float32", "bfloat16")
