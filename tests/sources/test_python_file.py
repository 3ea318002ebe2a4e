"""The user's own network, made by a function in a file."""

import random

import pytest
import torch

import frostline as fl
from frostline.errors import BadInputSize, BadOutput, UnknownModel

TEXT = """
from dataclasses import dataclass

from torch import nn

import parts_of_mine


@dataclass
class Settings:
    width: int = 8


class Mine(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.stem = nn.Conv2d(3, Settings().width, 3, padding=1)
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))


def mine(num_classes):
    return Mine(num_classes)


def fixed(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


def wrong(num_classes):
    return "a network"


def bare(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "parts_of_mine.py").write_text("")
    (tmp_path / "nets.py").write_text(TEXT)
    return tmp_path / "nets.py"


def test_function_is_called_with_the_number_of_classes(file):
    loaded = fl.load_model(f"{file}:mine", 7)

    assert loaded.model.head.out_features == 7
    assert loaded.preprocessing.image_size == 224


def test_same_network_is_made_again_whatever_the_seed(file):
    first, second = (fl.load_model(f"{file}:mine", 7, seed=seed) for seed in (0, 1))

    assert first.source == second.source
    assert torch.equal(first.model.stem.weight, second.model.stem.weight)


def test_callers_random_numbers_are_left_alone(file):
    before = random.getstate(), torch.random.get_rng_state().tolist()

    fl.load_model(f"{file}:mine", 7)

    assert (random.getstate(), torch.random.get_rng_state().tolist()) == before


def test_source_is_found_from_any_folder(file, monkeypatch, tmp_path):
    monkeypatch.chdir(file.parent)
    name = fl.load_model("nets.py:mine", 7).source.name
    monkeypatch.chdir(tmp_path.parent)

    assert fl.load_model(name, 7).source.name == name == f"{file}:mine"


def test_own_weights_may_be_given(file, tmp_path):
    given = fl.load_model(f"{file}:mine", 3).model
    torch.nn.init.ones_(given.stem.weight)
    torch.save(given.state_dict(), tmp_path / "w.pth")

    loaded = fl.load_model(f"{file}:mine", 7, weights=tmp_path / "w.pth")

    assert torch.equal(loaded.model.stem.weight, given.stem.weight)


def test_preprocessing_of_a_network_made_with_timm_is_its_own(tmp_path):
    (tmp_path / "t.py").write_text(
        "import timm\ndef net(num_classes): return timm.create_model('test_resnet', num_classes=num_classes)"
    )

    assert fl.load_model(f"{tmp_path}/t.py:net", 3).preprocessing.image_size == 160


def test_fixed_size_is_refused_with_both_sizes(file):
    with pytest.raises(BadInputSize, match=r"refuses pictures of 96 x 96 .*; it takes 32 x 32") as caught:
        fl.load_model(f"{file}:fixed", 3, image_size=96)

    assert caught.value.needed == 32


def test_unknown_function_gets_those_that_there_are(file):
    with pytest.raises(UnknownModel, match=r"no function 'mein'; it has .*mine"):
        fl.load_model(f"{file}:mein", 3)


def test_missing_file_is_named():
    with pytest.raises(UnknownModel, match=r"there is no file '.*gone\.py'"):
        fl.load_model("gone.py:net", 3)


def test_function_that_returns_something_else_is_refused(file):
    with pytest.raises(BadOutput, match=r"nets\.py:wrong\(3\) returned a str"):
        fl.load_model(f"{file}:wrong", 3)


def test_error_in_the_users_file_is_theirs(tmp_path):
    (tmp_path / "bad.py").write_text("def net(num_classes): return 1 / 0")

    with pytest.raises(ZeroDivisionError):
        fl.load_model(f"{tmp_path}/bad.py:net", 3)


def test_head_is_the_last_linear_that_gives_the_outputs(file):
    graph = fl.look(fl.load_model(f"{file}:mine", 3).model, image_size=16)

    assert graph.head == "head"
