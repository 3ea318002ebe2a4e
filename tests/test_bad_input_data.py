"""Every line under "data" and "model" of what a user may get wrong: a clear error before any training."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

import frostline as fl
from frostline import errors

NETS = """
import torch
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def sequence(num_classes):
    return nn.Conv2d(3, num_classes, 3)

def pair(num_classes):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(num_classes)
        def forward(self, x):
            return self.net(x), x
    return Pair()

def bare(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

def meta(num_classes):
    with torch.device("meta"):
        return net(num_classes)

def partly(num_classes):
    made = net(num_classes)
    made[0].requires_grad_(False)
    return made

def fixed(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))

def outputs(num_classes):
    return net(1000)
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.fixture
def load(photos, nets):
    """Load the thirty cats and thirty dogs, with changes."""

    def call(data=photos, net="net", **more):
        return fl.load_task(data, model=f"{nets}:{net}", **{"image_size": 24, **more})

    return call


def shade(folder, names, first=0):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), first + number).save(folder / name)
    return folder


# --- data -------------------------------------------------------------------------------------


def test_unreadable_picture_is_named(load, photos):
    (photos / "cat" / "broken.jpg").write_bytes(b"junk")

    with pytest.raises(errors.BadSample, match=r"cat/broken\.jpg.*--skip-bad"):
        load()


def test_truncated_picture_is_named(load, photos):
    whole = (photos / "dog" / "3.png").read_bytes()
    (photos / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(errors.BadSample, match=r"dog/3\.png"):
        load()


def test_skip_bad_goes_on_and_lists_them(load, photos):
    (photos / "cat" / "broken.jpg").write_bytes(b"junk")

    task = load(skip_bad=True)

    assert task.summary.skipped == (("cat/broken.jpg", "not a picture, or damaged at its start"),)


def test_decompression_bomb_is_named(load, photos):
    Image.new("1", (30_000, 10_000)).save(photos / "cat" / "bomb.png")

    with pytest.raises(errors.BadSample, match=r"cat/bomb\.png.*decompression bomb of more than 178,956,970 pixels"):
        load()


def test_empty_folder_is_told(load, tmp_path):
    (tmp_path / "nothing").mkdir()

    with pytest.raises(errors.EmptyData, match="one folder per class"):
        load(tmp_path / "nothing")


def test_one_class_only_is_named(load, tmp_path):
    shade(tmp_path / "one", [f"cat/{number}.png" for number in range(9)])

    with pytest.raises(errors.OneClass, match=r"all 9 pictures .* class 'cat'"):
        load(tmp_path / "one")


def test_class_with_too_few_pictures_is_named_with_its_count(load, photos):
    shade(photos, ["rare bird/1.png", "rare bird/2.png"])

    with pytest.raises(errors.ClassTooSmall, match=r"'rare bird' has 2; 3 different pictures are needed"):
        load()


def test_class_whose_good_pictures_are_too_few_is_named(load, photos):
    shade(photos, ["rare bird/1.png", "rare bird/2.png"])
    (photos / "rare bird" / "3.png").write_bytes(b"junk")

    with pytest.raises(errors.ClassTooSmall, match="'rare bird' has 2"):
        load(skip_bad=True)


def test_class_of_test_that_train_lacks_is_named(load, tmp_path):
    shade(tmp_path / "parts", ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/bird/1.png"])

    with pytest.raises(errors.UnknownClass, match="'bird', which train/ lacks"):
        load(tmp_path / "parts")


def test_folder_that_does_not_exist_is_named(load):
    with pytest.raises(errors.NoSuchData, match="no folder or file 'no such folder'"):
        load("no such folder")


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.6, 0.6), (1.0, 0.2), (-0.1, 0.2), (0.2, 0.0)])
def test_shares_that_leave_nothing_are_refused(load, valid, test):
    with pytest.raises(errors.BadSplit, match=r"--(valid|test)"):
        load(valid=valid, test=test)


def test_bad_data_is_refused_before_the_model_is_made(load, monkeypatch, tmp_path):
    monkeypatch.setattr("frostline.sources.load_model", lambda *_, **__: pytest.fail("the model was made"))

    with pytest.raises(errors.OneClass):
        load(shade(tmp_path / "one", [f"cat/{number}.png" for number in range(9)]))


# --- model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "found"), [("sequence", r"\(4, 2, 22, 22\)"), ("pair", "tuple"), ("outputs", "1000 outputs")]
)
def test_output_that_is_not_one_number_for_each_class_is_refused(load, net, found):
    with pytest.raises(errors.BadOutput, match=found):
        load(net=net)


def test_network_without_parameters_is_refused(load):
    with pytest.raises(errors.NoParameters, match="no parameters"):
        load(net="bare")


def test_parameters_on_meta_are_refused(load):
    with pytest.raises(errors.MetaParameters, match="meta device"):
        load(net="meta")


def test_partly_frozen_network_is_told_what_that_does(load):
    with pytest.warns(UserWarning, match="2 of 4 parameters .* keep their values at every depth"):
        load(net="partly")


def test_fixed_size_that_image_size_contradicts_names_both(load):
    with pytest.raises(errors.BadInputSize, match=r"24 x 24 .* 32 x 32"):
        load(net="fixed")


@pytest.mark.parametrize("net", ["fixed", "sequence", "pair", "outputs", "bare", "meta"])
def test_bad_network_is_refused_before_a_picture_is_read(load, monkeypatch, net):
    monkeypatch.setattr("frostline.data.hashed", lambda *_, **__: pytest.fail("pictures were read"))

    with pytest.raises(errors.ModelError):
        load(net=net)


def test_weights_that_do_not_fit_are_named(load, tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "w.pth")

    with pytest.raises(errors.WeightsDoNotFit, match=r"w\.pth does not fit Sequential: .* 0\.weight"):
        load(weights=tmp_path / "w.pth")


def test_unknown_network_is_named(photos):
    with pytest.raises(errors.UnknownModel, match=r"'resnet19'.*resnet18"):
        fl.load_task(photos, model="torchvision:resnet19")


# --- on the command line ----------------------------------------------------------------------


def test_command_ends_with_one_and_the_message_alone(tmp_path):
    outcome = subprocess.run(
        [sys.executable, "-m", "frostline", "fit", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )

    assert outcome.returncode == 1
    assert "NoSuchData" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert json.dumps(outcome.stdout) == '""'
