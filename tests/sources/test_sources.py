"""From names and folders to tasks, and what a network looks like without data."""

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import BadArgument, UnknownModel

NET = """
from torch import nn
def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )
"""


@pytest.fixture
def name(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path}/net.py:net"


def test_folder_and_name_become_a_task(photos, name):
    task = fl.load_task(photos, model=name, image_size=24)

    assert task.classes == ("cat", "dog")
    assert task.example(2)[0].shape == (2, 3, 24, 24)
    assert (len(task.train), len(task.valid), len(task.test)) == (36, 12, 12)
    assert task.source.outputs == 2
    assert task.summary.counts == ((18, 6, 6), (18, 6, 6))
    assert dict(task.summary.asked)["split_seed"] == "0"


def test_same_arguments_give_the_same_task(photos, name, tmp_path):
    first, second = (fl.load_task(photos, model=name, image_size=24, folder=tmp_path / "kept") for _ in range(2))

    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("change", [{"image_size": 25}, {"seed": 1}, {"valid": 0.3}])
def test_other_arguments_give_another_task(photos, name, change):
    first = fl.load_task(photos, model=name, image_size=24)

    assert fl.load_task(photos, model=name, **{"image_size": 24, **change}).fingerprint != first.fingerprint


def test_what_is_left_out_is_heard(photos, name):
    (photos / "cat" / "notes.txt").write_text("cats")
    heard = []

    fl.load_task(photos, model=name, image_size=24, listener=heard.append)

    assert "1 files that are no pictures were left out" in [event.note for event in heard]
    assert {event.phase for event in heard} == {"read"}


@pytest.mark.parametrize("name", ["resnet18", "timm:", "keras:resnet", "net.py", "", "torchvision"])
def test_text_that_is_no_model_name_is_refused(name):
    with pytest.raises(UnknownModel, match="timm:NAME"):
        fl.load_model(name, 3)


def test_size_of_nothing_is_refused():
    with pytest.raises(BadArgument, match="image_size is 0"):
        fl.load_model("efficientnet_lite0", 3, image_size=0)


def test_look_takes_a_module_and_leaves_it_alone():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}

    graph = fl.look(net, image_size=16)

    assert graph.max_depth == 1
    assert net.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_look_asks_no_hub(name):
    assert fl.look("timm:test_resnet", outputs=7).outputs == 7
