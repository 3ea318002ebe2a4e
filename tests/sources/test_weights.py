"""Weights files: what fits is loaded, what does not is named, nothing in them runs."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from frostline.errors import WeightsDoNotFit
from frostline.sources.weights import fit_weights, head_keys, load_weights


def net(outputs=3, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, outputs))


def same(one, two, keys=None):
    first, second = one.state_dict(), two.state_dict()
    return all(torch.equal(first[key], second[key]) for key in keys or first)


def save(state, file):
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin"])
def test_file_of_the_same_network_is_loaded_whole(tmp_path, name):
    given, taken = net(), net()

    notes = load_weights(taken, save(given.state_dict(), tmp_path / name), 3)

    assert same(given, taken)
    assert notes == ()


@pytest.mark.parametrize("wrapping", ["state_dict", "model", "model_state_dict", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_usual_wrappings_and_prefixes_are_taken_off(tmp_path, wrapping, prefix):
    given, taken = net(), net()
    state = {f"{prefix}{key}": tensor for key, tensor in given.state_dict().items()}

    load_weights(taken, save({wrapping: state, "epoch": 3}, tmp_path / "w.pth"), 3)

    assert same(given, taken)


def test_head_of_other_classes_is_left_out_with_a_note(tmp_path):
    given, taken = net(1000), net(3)
    head = taken[2].weight.clone()

    notes = load_weights(taken, save(given.state_dict(), tmp_path / "w.pth"), 3)

    assert same(given, taken, ["0.weight", "1.running_var"])
    assert torch.equal(taken[2].weight, head)
    assert notes == ("the head of w.pth (1000 outputs) was left out: 3 are needed",)


def test_file_without_a_head_is_loaded_with_a_note():
    state = {key: tensor for key, tensor in net().state_dict().items() if not key.startswith("2.")}

    assert fit_weights(net(), state, 3, where="w.pth") == ("w.pth holds no head; a new one is used",)


def test_old_files_may_lack_the_batch_counter():
    state = {key: tensor for key, tensor in net().state_dict().items() if "num_batches" not in key}

    assert fit_weights(net(), state, 3, where="w.pth") == ()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda state: state.pop("0.weight"), r"1 tensors missing: 0\.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unknown: extra"),
        (lambda state: state.update({"0.weight": torch.zeros(8, 5)}), r"0\.weight is \(8, 5\), not \(8, 4\)"),
        (lambda state: state.update({"2.weight": torch.zeros(3, 9)}), r"2\.weight is \(3, 9\), not \(3, 8\)"),
    ],
)
def test_any_other_mismatch_is_refused_by_name(change, found):
    state, model = net().state_dict(), net()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    change(state)

    with pytest.raises(WeightsDoNotFit, match=found):
        fit_weights(model, state, 3, where="w.pth")

    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    torch.save({"0.weight": Bomb()}, tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))

    for name in ("w.pth", "plain.pth"):
        with pytest.raises(WeightsDoNotFit, match="could run code"):
            load_weights(net(), tmp_path / name, 3)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"damaged")

    with pytest.raises(WeightsDoNotFit, match="cannot be read as weights"):
        load_weights(net(), tmp_path / name, 3)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, torch.zeros(3)])
def test_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")

    with pytest.raises(WeightsDoNotFit, match="no state dict"):
        load_weights(net(), tmp_path / "w.pth", 3)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsDoNotFit, match=r"there is no file '.*gone\.pth'"):
        load_weights(net(), tmp_path / "gone.pth", 3)


def test_head_is_the_last_layer_with_the_outputs():
    assert head_keys(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), 3) == {"1.weight", "1.bias"}
    assert head_keys(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten()), 5) == {"0.weight", "0.bias"}
    assert head_keys(nn.Linear(4, 2), 5) == frozenset()
    assert head_keys(nn.Linear(4, 2), 2) == {"weight", "bias"}
