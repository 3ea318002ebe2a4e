"""A delta on its base is the tuned network, bit for bit; on any other base it is refused."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from frostline.delta import apply_delta, save_delta
from frostline.errors import DeltaMismatch, NewerSchema

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Tied(nn.Module):
    """An embedding that is also the head, as in many language models."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.middle(self.embedding(ids)).mean(1))


class Biased(nn.Module):
    """Keeps a bias computed in eval mode, with its graph, as LeViT of timm does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.kept = {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x):
        if "bias" not in self.kept:
            self.kept["bias"] = self.linear.bias * 2
        return x @ self.linear.weight.T + self.kept["bias"]


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def drift(model, keys, seed):
    """A copy whose tensors of these keys hold other values; counters move by one."""
    tuned = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    for key, tensor in tuned.state_dict().items():
        if key in keys:
            noise = torch.rand(tensor.shape, generator=draw) if tensor.is_floating_point() else 1
            tensor.add_(noise)
    return tuned


def bits(model):
    def raw(tensor):
        return tensor.dtype, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()

    return {key: raw(tensor) for key, tensor in model.state_dict().items()}


KEYS = tuple(make_net().state_dict())


# --- laws -------------------------------------------------------------------------------------


@QUICK
@given(
    changed=st.sets(st.sampled_from(KEYS)),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
)
def test_a_delta_on_its_base_is_the_tuned_network(tmp_path, changed, seed, dtype, channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    base = seeded(make_net, seed).to(dtype).to(memory_format=order)
    tuned = drift(base, changed, seed)

    delta = save_delta(base, tuned, tmp_path / "delta.safetensors", depth=3)

    assert bits(apply_delta(base, delta.file)) == bits(tuned)
    assert set(delta.keys) == changed


@QUICK
@given(frozen=st.sets(st.sampled_from(KEYS), min_size=1), data=st.data())
def test_one_wrong_bit_in_a_frozen_tensor_is_refused_and_named(tmp_path, frozen, data):
    base = seeded(make_net, 0)
    tuned = drift(base, set(KEYS) - frozen, 1)
    delta = save_delta(base, tuned, tmp_path / "delta.safetensors", keys=set(KEYS) - frozen, depth=1)
    key = data.draw(st.sampled_from(sorted(frozen)))
    tensor = base.state_dict()[key]
    plain = tensor.reshape(-1).view(torch.uint8)
    plain[data.draw(st.integers(0, len(plain) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(DeltaMismatch, match=key) as caught:
        apply_delta(base, delta.file)

    assert caught.value.keys == (key,)


@QUICK
@given(seed=st.integers(0, 99))
def test_the_record_names_the_frozen_tensors_whatever_the_live_ones_hold(tmp_path, seed):
    live = {"7.weight", "7.bias"}
    base = seeded(make_net, 0)
    other_head = drift(base, live, seed)

    one = save_delta(base, drift(base, live, 1), tmp_path / "one.safetensors", keys=live)
    two = save_delta(other_head, drift(base, live, 2), tmp_path / "two.safetensors", keys=live)

    assert one.base == two.base


# --- what is written --------------------------------------------------------------------------


def test_delta_holds_only_the_keys_it_was_given(tmp_path):
    base = seeded(make_net, 0)
    tuned = drift(base, {"7.bias"}, 1)

    delta = save_delta(base, tuned, tmp_path / "delta.safetensors", keys=["7.weight", "7.bias"], depth=5)

    assert set(load_file(delta.file)) == {"7.weight", "7.bias"} == set(delta.keys)
    assert delta.bytes == (tmp_path / "delta.safetensors").stat().st_size
    assert delta.depth == 5


def test_counters_of_batch_norm_travel_as_whole_numbers(tmp_path):
    base = seeded(make_net, 0)
    tuned = copy.deepcopy(base)
    tuned.train()(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))

    delta = save_delta(base, tuned, tmp_path / "delta.safetensors")

    merged = apply_delta(base, delta.file)
    assert merged[1].num_batches_tracked.dtype == torch.int64
    assert int(merged[1].num_batches_tracked) == 1
    assert bits(merged) == bits(tuned)


def test_equal_networks_give_equal_bytes(tmp_path):
    base = seeded(make_net, 0)
    tuned = drift(base, set(KEYS), 1)

    files = [save_delta(base, tuned, tmp_path / f"{k}.safetensors").file for k in range(4)]

    assert len({Path(file).read_bytes() for file in files}) == 1


def test_nothing_changed_is_a_delta_too(tmp_path):
    base = seeded(make_net, 0)

    delta = save_delta(base, copy.deepcopy(base), tmp_path / "delta.safetensors")

    assert delta.keys == ()
    assert bits(apply_delta(base, delta.file)) == bits(base)


@pytest.mark.parametrize(("before", "after"), [(0.0, -0.0), (1.0, math.nan), (math.nan, math.nan)])
def test_bits_decide_what_differs_and_not_values(tmp_path, before, after):
    base = seeded(lambda: nn.Linear(1, 1), 0)
    tuned = copy.deepcopy(base)
    base.bias.data.fill_(before)
    tuned.bias.data.fill_(after)

    delta = save_delta(base, tuned, tmp_path / "delta.safetensors")

    assert delta.keys == (() if math.isnan(before) else ("bias",))
    assert bits(apply_delta(base, delta.file)) == bits(tuned)


def test_tied_tensors_are_written_once_and_stay_tied(tmp_path):
    base = seeded(Tied, 0)
    tuned = drift(base, {"embedding.weight"}, 1)

    delta = save_delta(base, tuned, tmp_path / "delta.safetensors", keys=["head.weight"])

    merged = apply_delta(base, delta.file)
    assert len(load_file(delta.file)) == 1
    assert set(delta.keys) == {"embedding.weight", "head.weight"}
    assert merged.head.weight is merged.embedding.weight
    assert bits(merged) == bits(tuned)


def test_views_of_one_storage_are_written_apart(tmp_path):
    base = nn.Module()
    whole = torch.arange(8.0)
    base.register_buffer("left", whole[:5])
    base.register_buffer("right", whole[3:])
    tuned = nn.Module()
    other = torch.arange(8.0) * 2
    tuned.register_buffer("left", other[:5])
    tuned.register_buffer("right", other[3:])

    delta = save_delta(base, tuned, tmp_path / "delta.safetensors")

    assert bits(apply_delta(base, delta.file)) == bits(tuned)


# --- what is refused --------------------------------------------------------------------------


def test_a_frozen_tensor_that_moved_is_not_left_out_in_silence(tmp_path):
    base = seeded(make_net, 0)
    tuned = drift(base, {"0.weight", "7.bias"}, 1)

    with pytest.raises(DeltaMismatch, match=r"'0\.weight'.*rebuilt"):
        save_delta(base, tuned, tmp_path / "delta.safetensors", keys=["7.bias"])

    assert not (tmp_path / "delta.safetensors").exists()


def test_a_key_that_does_not_exist_is_refused(tmp_path):
    base = seeded(make_net, 0)

    with pytest.raises(DeltaMismatch, match=r"'8\.weight'"):
        save_delta(base, base, tmp_path / "delta.safetensors", keys=["8.weight"])


def test_another_number_of_classes_is_refused_with_both_shapes(tmp_path):
    base = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), 0)
    delta = save_delta(base, drift(base, {"1.weight"}, 1), tmp_path / "delta.safetensors", keys=["1.weight", "1.bias"])
    other = nn.Sequential(base[0], nn.Linear(4, 5))

    with pytest.raises(DeltaMismatch, match=r"\(3, 4\).*\(5, 4\)|\(3,\).*\(5,\)"):
        apply_delta(other, delta.file)


def test_a_network_of_another_class_is_refused_with_its_names(tmp_path):
    base = seeded(make_net, 0)
    delta = save_delta(base, drift(base, {"7.bias"}, 1), tmp_path / "delta.safetensors")

    with pytest.raises(DeltaMismatch, match=r"in the delta's network and not in this one"):
        apply_delta(base[:7], delta.file)
    with pytest.raises(DeltaMismatch, match=r"in this network and not in the delta's"):
        apply_delta(nn.Sequential(*base, nn.Linear(3, 3)), delta.file)


def test_another_type_of_numbers_is_refused(tmp_path):
    base = seeded(make_net, 0)
    delta = save_delta(base, drift(base, set(KEYS), 1), tmp_path / "delta.safetensors")

    with pytest.raises(DeltaMismatch, match="float16"):
        apply_delta(copy.deepcopy(base).half(), delta.file)


def test_tied_tensors_that_came_apart_are_refused(tmp_path):
    base = seeded(Tied, 0)
    tuned = copy.deepcopy(base)
    tuned.head.weight = nn.Parameter(torch.zeros(6, 4))

    with pytest.raises(DeltaMismatch, match="one tensor in the base"):
        save_delta(base, tuned, tmp_path / "delta.safetensors")


def test_a_newer_schema_is_refused(tmp_path):
    base = seeded(make_net, 0)
    delta = save_delta(base, drift(base, {"7.bias"}, 1), tmp_path / "delta.safetensors")
    with safe_open(delta.file, framework="pt") as content:
        header = json.loads(content.metadata()["frostline.delta"])
    save_file(load_file(delta.file), delta.file, metadata={"frostline.delta": json.dumps(header | {"schema": 99})})

    with pytest.raises(NewerSchema, match="schema 99") as caught:
        apply_delta(base, delta.file)

    assert caught.value.schema == 99


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all", "plain"])
def test_a_file_that_is_no_delta_is_refused(tmp_path, content):
    file = tmp_path / "delta.safetensors"
    if content == "plain":
        save_file({"7.bias": torch.zeros(3)}, file)
    elif content is not None:
        file.write_bytes(content)

    with pytest.raises(DeltaMismatch, match="not a delta"):
        apply_delta(seeded(make_net, 0), file)


# --- the user's module ------------------------------------------------------------------------


def test_the_base_is_left_as_it_was(tmp_path):
    base = seeded(make_net, 0).eval()
    base[3].train()
    base[0].requires_grad_(False)
    before, modes = bits(base), [module.training for module in base.modules()]
    delta = save_delta(base, drift(base, {"7.bias"}, 1), tmp_path / "delta.safetensors")

    merged = apply_delta(base, delta.file)

    assert bits(base) == before
    assert [module.training for module in base.modules()] == modes
    assert [module.training for module in merged.modules()] == modes
    assert [p.requires_grad for p in merged.parameters()] == [p.requires_grad for p in base.parameters()]
    assert not {p.data_ptr() for p in merged.parameters()} & {p.data_ptr() for p in base.parameters()}


def test_what_a_module_computed_from_its_old_weights_is_forgotten(tmp_path):
    base = Biased().eval()
    base(torch.ones(1, 4))
    tuned = Biased().eval()
    delta = save_delta(base, tuned, tmp_path / "delta.safetensors")

    merged = apply_delta(base, delta.file)

    assert torch.equal(merged(torch.ones(2, 4)), tuned(torch.ones(2, 4)))


def test_merged_network_loads_in_plain_torch_and_gives_the_same_outputs(tmp_path):
    base = seeded(make_net, 0).eval()
    delta = save_delta(base, drift(base, set(KEYS), 1), tmp_path / "delta.safetensors")
    merged = apply_delta(base, delta.file)
    inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(merged.state_dict(), tmp_path / "tuned.pt")
    torch.save((inputs, merged(inputs).detach()), tmp_path / "io.pt")
    script = tmp_path / "plain.py"
    layers = "nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8,8,3), nn.BatchNorm2d(8)"
    script.write_text(
        "import sys, torch\n"
        "from torch import nn\n"
        f"net = nn.Sequential({layers}, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()\n"
        "net.load_state_dict(torch.load('tuned.pt', weights_only=True))\n"
        "inputs, outputs = torch.load('io.pt', weights_only=True)\n"
        "print(torch.equal(net(inputs), outputs), 'frostline' in sys.modules)\n"
    )

    found = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert found.stdout.split() == ["True", "False"]
