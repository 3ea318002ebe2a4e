"""Networks of timm: sizes, heads, local weights, and what is said where the hub is out of reach."""

import time

import pytest
import timm
import torch
from safetensors.torch import save_file

import frostline as fl
from frostline.errors import BadInputSize, UnknownModel, WeightsNotReachable


def saved(name, file, **more):
    """The state of a fresh network in a file, as a stand-in for downloaded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        model = timm.create_model(name, **more)
    if file.suffix == ".safetensors":
        save_file(model.state_dict(), file)
    else:
        torch.save(model.state_dict(), file)
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_loaded_without_any_network(tmp_path, suffix):
    given = saved("test_resnet", tmp_path / f"w{suffix}").state_dict()

    loaded = fl.load_model("timm:test_resnet", 5, weights=tmp_path / f"w{suffix}")

    taken = loaded.model.state_dict()
    assert {key for key in given if not torch.equal(given[key], taken[key])} == {"fc.weight", "fc.bias"}
    assert len(taken["fc.bias"]) == 5
    assert "1000 outputs" in loaded.notes[0]


def test_preprocessing_is_what_timm_states():
    loaded = fl.load_model("timm:test_vit", 5, pretrained=False)

    settings = timm.get_pretrained_cfg("test_vit")
    assert loaded.preprocessing.mean == tuple(settings.mean)
    assert loaded.preprocessing.std == tuple(settings.std)
    assert loaded.preprocessing.image_size == settings.input_size[-1]


def test_transformer_is_built_for_the_size_asked_for():
    loaded = fl.load_model("timm:test_vit", 5, image_size=96, pretrained=False)

    assert loaded.preprocessing.image_size == 96
    assert loaded.model.eval()(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


def test_convolutional_network_takes_any_size():
    assert fl.load_model("timm:test_resnet", 5, image_size=75, pretrained=False).preprocessing.image_size == 75


def test_size_that_no_patch_fits_is_refused_with_both_sizes():
    with pytest.raises(BadInputSize, match=r"refuses pictures of 3 x 3 .* its own size is 160 x 160") as caught:
        fl.load_model("timm:test_vit", 5, image_size=3, pretrained=False)

    assert (caught.value.image_size, caught.value.needed) == (3, 160)


def test_unknown_name_gets_near_names():
    with pytest.raises(UnknownModel, match=r"no network 'resnet81'\. Near names: .*resnet18"):
        fl.load_model("timm:resnet81", 5)


def test_unknown_tag_gets_the_known_tags():
    with pytest.raises(UnknownModel, match=r"it has .*resnet18\.a1_in1k"):
        fl.load_model("timm:resnet18.nonsense", 5)


def test_weights_out_of_reach_are_told_at_once(outside_calls, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()

    with pytest.raises(WeightsNotReachable, match="--weights FILE"):
        fl.load_model("timm:test_resnet.r160_in1k", 5)

    assert time.monotonic() - start < 20
    assert outside_calls


def test_network_without_published_weights_is_told():
    published = (name for name in timm.list_models() if timm.get_pretrained_cfg(name).has_weights)
    name = sorted(set(timm.list_models()) - set(published))[0]

    with pytest.raises(WeightsNotReachable, match="timm has none for this network"):
        fl.load_model(f"timm:{name}", 5)
