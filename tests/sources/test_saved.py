"""The tuned network comes back from its folder, and names pictures it has not seen."""

import copy

import pytest
import torch
from PIL import Image
from torch import nn

import frostline as fl
from frostline.errors import BadArgument, BadSample, DeltaMismatch, EmptyData, NewerSchema, NoSuchData, NotARun
from frostline.files import write_record
from frostline.records import ModelCard
from frostline.sources.saved import Prediction, load_tuned, predict

NET = """
from torch import nn
def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )
"""


class Run:
    """A run folder such as `fit` leaves: a head that says "red" for red pictures."""

    def __init__(self, folder):
        folder.mkdir()
        (folder.parent / "net.py").write_text(NET)
        loaded = fl.load_model(f"{folder.parent}/net.py:net", 2, image_size=16, seed=5)
        self.base, self.tuned, self.folder = loaded.model, copy.deepcopy(loaded.model), folder
        with torch.no_grad():
            nn.init.zeros_(self.tuned[0].weight)
            self.tuned[0].weight[0, 0] = 1.0
            self.tuned[4].weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        delta = fl.save_delta(self.base, self.tuned, folder / "delta.safetensors")
        self.card = ModelCard(
            source=loaded.source,
            classes=("other", "red"),
            preprocessing=loaded.preprocessing,
            depth=0,
            stage_name="nothing",
            delta="delta.safetensors",
            base=delta.base,
            frostline="0",
        )
        write_record(folder / "model.json", self.card)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


@pytest.fixture
def colours(tmp_path):
    folder = tmp_path / "colours"
    (folder / "more").mkdir(parents=True)
    for name, colour in (("a red.PNG", (255, 0, 0)), ("blue.png", (0, 0, 255)), ("more/rouge é.png", (250, 10, 0))):
        Image.new("RGB", (20, 30), colour).save(folder / name)
    return folder


def test_tuned_network_has_the_tuned_bits_and_is_in_eval_mode(run):
    found = load_tuned(run.folder)

    assert found.card == run.card
    assert not found.model.training
    assert all(torch.equal(tensor, found.model.state_dict()[key]) for key, tensor in run.tuned.state_dict().items())


def test_pictures_get_labels_and_probabilities(run, colours):
    predictions = predict(run.folder, [colours])

    assert [prediction.label for prediction in predictions] == ["red", "other", "red"]
    assert predictions[0].path == str(colours / "a red.PNG")
    assert predictions[0].probability > 0.5
    assert sum(value for _, value in predictions[0].top) == pytest.approx(1)


def test_predictions_are_those_of_the_network_in_plain_torch(run, colours):
    (one,) = predict(run.folder, [colours / "blue.png"])

    shade = (torch.tensor([0.0, 0, 255]) / 255 - torch.tensor(run.card.preprocessing.mean)) / torch.tensor(
        run.card.preprocessing.std
    )
    with torch.no_grad():
        expected = run.tuned.eval()(shade.view(1, 3, 1, 1).expand(1, 3, 16, 16)).softmax(1)[0]
    assert dict(one.top)["red"] == pytest.approx(float(expected[1]), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batch_size_changes_no_label(run, colours, batch_size):
    labels = [prediction.label for prediction in predict(run.folder, [colours], batch_size=batch_size)]

    assert labels == ["red", "other", "red"]


def test_folder_and_files_may_be_mixed_and_keep_their_order(run, colours):
    predictions = predict(run.folder, [colours / "blue.png", colours / "more"])

    assert [prediction.path for prediction in predictions] == [
        str(colours / "blue.png"),
        str(colours / "more" / "rouge é.png"),
    ]


def test_prediction_is_a_record_that_survives_json():
    one = Prediction(path="a.png", label="<b>", probability=0.5, top=(("<b>", 0.5), ("c", 0.5)))

    assert Prediction.model_validate_json(one.model_dump_json()) == one
    assert hash(one)


def test_folder_without_pictures_is_told(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")

    with pytest.raises(EmptyData, match=r"no picture was found in '.*empty'"):
        predict(run.folder, [tmp_path / "empty"])


def test_nothing_asked_is_told(run):
    with pytest.raises(EmptyData, match="in nothing"):
        predict(run.folder, [])


def test_files_that_are_no_pictures_are_all_named(run, colours):
    (colours / "bad.png").write_bytes(b"junk")
    (colours / "notes.txt").write_text("notes")

    with pytest.raises(BadSample, match="2 of 5 pictures cannot be read") as caught:
        predict(run.folder, [colours, colours / "notes.txt"], batch_size=2)

    assert caught.value.paths == (str(colours / "bad.png"), str(colours / "notes.txt"))
    assert "--skip-bad" not in str(caught.value)


def test_missing_path_is_named(run):
    with pytest.raises(NoSuchData, match=r"'gone\.png'"):
        predict(run.folder, ["gone.png"])


def test_batch_of_nothing_is_refused(run, colours):
    with pytest.raises(BadArgument, match="batch_size is 0"):
        predict(run.folder, [colours], batch_size=0)


def test_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(NotARun, match=r"no model\.json"):
        load_tuned(tmp_path)


def test_run_without_preprocessing_cannot_read_pictures(run, colours):
    write_record(run.folder / "model.json", run.card.model_copy(update={"preprocessing": None}))

    with pytest.raises(NotARun, match="not trained on picture files"):
        predict(run.folder, [colours])


def test_card_of_a_later_version_is_refused(run):
    file = run.folder / "model.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 99').replace('"schema":1', '"schema":99'))

    with pytest.raises(NewerSchema):
        load_tuned(run.folder)


def test_changed_base_network_is_refused(run, tmp_path):
    tuned = copy.deepcopy(run.base)
    nn.init.ones_(tuned[4].bias)
    fl.save_delta(run.base, tuned, run.folder / "delta.safetensors", keys=("4.weight", "4.bias"), depth=1)
    before = load_tuned(run.folder).model
    (tmp_path / "net.py").write_text(NET.replace("return nn", "nn.Linear(1, 1)\n    return nn"))

    # Another draw before the network's own gives it other frozen weights.
    with pytest.raises(DeltaMismatch):
        load_tuned(run.folder)

    assert torch.equal(before[4].bias, tuned[4].bias)
