"""Networks of torchvision: sizes, heads, local weights, and what is said without a network."""

import pytest
import torch
import torchvision

import frostline as fl
from frostline.errors import BadInputSize, UnknownModel, WeightsDoNotFit, WeightsNotReachable
from frostline.sources.torchvision import _suited


def fresh(name, **more):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return torchvision.models.get_model(name, weights=None, **more)


def test_local_weights_are_loaded_without_any_network(tmp_path):
    given = fresh("squeezenet1_1").state_dict()
    torch.save(given, tmp_path / "w.pth")

    loaded = fl.load_model("torchvision:squeezenet1_1", 5, weights=tmp_path / "w.pth", image_size=64)

    taken = loaded.model.state_dict()
    different = {
        key for key in given if given[key].shape != taken[key].shape or not torch.equal(given[key], taken[key])
    }
    assert different == {"classifier.1.weight", "classifier.1.bias"}
    assert loaded.source.weights == str(tmp_path / "w.pth")


def test_preprocessing_is_what_the_weights_state():
    loaded = fl.load_model("torchvision:mobilenet_v2", 5, pretrained=False)

    assert loaded.preprocessing.image_size == 224
    assert loaded.preprocessing.interpolation == "bilinear"
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)


def test_auxiliary_heads_are_off():
    model = fl.load_model("torchvision:googlenet", 5, image_size=64, pretrained=False).model.train()

    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(fresh("squeezenet1_0").state_dict(), tmp_path / "w.pth")

    with pytest.raises(WeightsDoNotFit, match="does not fit SqueezeNet"):
        fl.load_model("torchvision:squeezenet1_1", 5, weights=tmp_path / "w.pth")


def test_positions_of_a_transformer_are_stretched():
    class Small(torch.nn.Module):
        image_size, patch_size = 64, 16

    state = {"encoder.pos_embedding": torch.randn(1, 1 + 4, 8), "heads.head.weight": torch.zeros(3, 8)}

    suited = _suited(Small(), state)

    assert suited["encoder.pos_embedding"].shape == (1, 1 + 16, 8)
    assert torch.equal(suited["encoder.pos_embedding"][:, 0], state["encoder.pos_embedding"][:, 0])
    assert "heads.head.weight" in suited


def test_size_that_no_patch_fits_is_refused_with_both_sizes():
    with pytest.raises(BadInputSize, match=r"100 x 100 .* own size is 224 x 224"):
        fl.load_model("torchvision:vit_b_32", 5, image_size=100, pretrained=False)


def test_unknown_name_gets_near_names():
    with pytest.raises(UnknownModel, match=r"no classifier 'mobilnet_v2'\. Near names: mobilenet_v2"):
        fl.load_model("torchvision:mobilnet_v2", 5)


def test_detection_networks_are_no_classifiers():
    with pytest.raises(UnknownModel, match="no classifier 'fasterrcnn_resnet50_fpn'"):
        fl.load_model("torchvision:fasterrcnn_resnet50_fpn", 5)


def test_weights_out_of_reach_are_told(outside_calls, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    with pytest.raises(WeightsNotReachable, match=r"download\.pytorch\.org .* --weights FILE"):
        fl.load_model("torchvision:squeezenet1_1", 5)
