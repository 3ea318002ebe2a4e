import copy
import gc

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import frostline as fl
from frostline.copies import plain_torch
from frostline.errors import BadArgument, CutBlocked, UnknownStage
from frostline.records import CutGraph
from frostline.testing import (
    CLOSE,
    PIECES,
    SAME,
    Specimen,
    breach,
    false_cuts,
    menagerie,
    network,
    snapshot,
    specimen,
    without_wire,
)

pieces = st.lists(st.sampled_from(sorted(PIECES)), max_size=7)
few = settings(max_examples=12, deadline=None)


def divided(name, depth=1):
    one = specimen(name)
    one.model.eval()
    graph = fl.trace(one.model, one.example)
    return one, graph, fl.split(one.model, graph, depth)


# --- the law ----------------------------------------------------------------------------------


@few
@given(pieces, st.integers(0, 3))
def test_live_of_frozen_is_the_network_at_every_open_cut(chosen, seed):
    one = network(chosen, seed=seed)
    graph = fl.trace(one.model, one.example)

    for depth in graph.open_depths:
        assert breach(one, graph, depth) is None
        assert fl.prove(one.model, graph, depth, example=one.example) is None


@few
@given(pieces, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_frozen_parts_joined_in_any_order_give_the_wires_of_each(chosen, places):
    one = network(chosen)
    graph = fl.trace(one.model, one.example)
    parts = [fl.split(one.model, graph, graph.open_depths[at % len(graph.open_depths)]).frozen for at in places]

    joined = parts[0].joined(*parts[1:])

    alone = [wire for part in parts for wire in part(*one.inputs)]
    assert joined.wires == tuple(wire for part in parts for wire in part.wires)
    assert all(map(torch.equal, joined(*one.inputs), alone))
    assert len(joined.module(*one.inputs)) == len(alone)


def test_frozen_parts_of_different_traces_are_not_joined():
    one = specimen("chain")
    shallow, deep = (fl.split(one.model, fl.trace(one.model, one.example), depth).frozen for depth in (1, 2))

    with pytest.raises(BadArgument, match="different networks"):
        shallow.joined(deep)


@few
@given(pieces, st.sampled_from([1, 2, 7]))
@example(["pool", "pool", "pool", "conv", "keep", "join"], 1)
def test_law_holds_at_other_batch_sizes_than_the_traced_one(chosen, batch):
    one = network(chosen)
    graph = fl.trace(one.model, one.example)
    other = Specimen("other", one.model, torch.randn(batch, 3, 7, 7))

    for depth in graph.open_depths:
        assert breach(other, graph, depth) is None


@few
@given(pieces)
def test_live_state_is_exactly_the_live_stages_keys(chosen):
    one = network(chosen)
    graph = fl.trace(one.model, one.example)

    for depth in graph.open_depths:
        live = fl.split(one.model, graph, depth).live
        keys = {key for stage in graph.stages[depth:] for key in stage.keys}
        assert set(live.state_dict()) == keys
        assert {name for name, _ in live.named_parameters()} == {n for n, _ in one.model.named_parameters()} & keys


@few
@given(pieces)
def test_splitting_and_running_leave_the_network_as_it_was(chosen):
    one = network(chosen)
    before = snapshot(one.model)

    graph = fl.trace(one.model, one.example)
    for depth in graph.open_depths:
        parts = fl.split(one.model, graph, depth)
        parts.live.train()
        parts.live(*parts.frozen(one.example)).sum().backward()
        parts.live.double()
        parts.frozen.module.double()
        parts.merge()
        fl.prove(one.model, graph, depth, example=one.example)

    assert snapshot(one.model) == before


def test_global_state_of_torch_is_as_it_was():
    one = specimen("attention")
    graph = fl.trace(one.model, one.example)
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    fast = torch.backends.mha.get_fastpath_enabled()

    fl.prove(one.model, graph, 2, example=one.example)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.are_deterministic_algorithms_enabled() == before[1]
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("one", menagerie(), ids=lambda one: one.name)
def test_frozen_part_yields_the_wires_that_the_cut_lists(one):
    graph = fl.trace(one.model, one.example)

    for depth in graph.open_depths:
        frozen = fl.split(one.model, graph, depth).frozen
        found = frozen(*one.inputs)
        assert [tuple(wire.shape) for wire in found] == [wire.shape for wire in graph.cuts[depth].wires]
        assert [str(wire.dtype) for wire in found] == [f"torch.{wire.dtype}" for wire in graph.cuts[depth].wires]
        assert all(not wire.requires_grad for wire in found)
        for wire, record in zip(found, frozen.wires, strict=True):
            restored = torch.empty_permuted(wire.shape, record.order)
            assert torch.empty_like(wire).is_contiguous() == restored.is_contiguous()


# --- networks of the field --------------------------------------------------------------------

FIELD = ["resnet18", "mobilenetv2_100", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto", "densenet121"]


def of_field(name, channels_last=False):
    """A timm network with random weights and a batch of small pictures."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"img_size": 64} if name.startswith("vit") else {}
        model = timm.create_model(name, num_classes=10, **size).eval()
        example = torch.randn(3, 3, 64, 64)
    if channels_last:
        model, example = (it.to(memory_format=torch.channels_last) for it in (model, example))
    return Specimen(name, model, example)


@pytest.mark.slow
@pytest.mark.parametrize(("channels_last", "step"), [(False, 1), (True, 4)])
@pytest.mark.parametrize("name", FIELD)
def test_every_open_cut_of_the_field_keeps_the_law_and_is_proven(name, channels_last, step):
    one = of_field(name, channels_last)
    graph = fl.trace(one.model, one.example)

    assert graph.open_depths == tuple(range(len(graph.stages)))
    for depth in graph.open_depths[::step]:
        assert breach(one, graph, depth) is None, depth
        assert fl.prove(one.model, graph, depth, example=one.example) is None, depth


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_one_cut_of_the_field_keeps_the_law_and_is_proven(name):
    one = of_field(name, channels_last=True)
    graph = fl.trace(one.model, one.example)
    depth = graph.max_depth // 2

    assert breach(one, graph, depth) is None
    assert fl.prove(one.model, graph, depth, example=one.example) is None


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("resnet18", "layer2"),
        pytest.param("tf_efficientnet_lite0", "blocks.3.0", marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", "blocks.5", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_openvino_converts_the_frozen_part(name, stage):
    openvino = pytest.importorskip("openvino")
    one = of_field(name)
    frozen = fl.split(one.model, fl.trace(one.model, one.example), stage).frozen

    converted = openvino.convert_model(frozen.module, example_input=one.example)

    run = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(run([one.example.numpy()])[0])
    torch.testing.assert_close(found, frozen(one.example)[0], **CLOSE)


# --- the frozen part --------------------------------------------------------------------------


def test_frozen_part_has_no_train_mode():
    one, _, parts = divided("dropout", 2)
    before = parts.frozen(one.example)

    parts.frozen.module.train()

    torch.testing.assert_close(parts.frozen(one.example), before, **SAME)
    assert not any(module.training for module in parts.frozen.module.modules())


def test_frozen_part_stops_at_the_cut():
    one = specimen("chain")
    ran = []
    one.model[4].register_forward_hook(lambda *_: ran.append("late"))
    parts = fl.split(one.model, fl.trace(one.model, one.example), 2)
    ran.clear()

    parts.frozen(one.example)

    assert ran == []


def test_networks_own_except_clause_does_not_catch_the_stop():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            try:
                y = self.stem(x)
            except Exception as error:
                raise AssertionError from error
            return self.head(y)

    one = Specimen("careful", Careful(), torch.randn(4, 5))

    assert breach(one, fl.trace(one.model, one.example), 1) is None


def test_frozen_part_takes_named_inputs_too():
    one, _, parts = divided("padded_tokens", 3)

    found = parts.frozen({"is_padding": one.example["is_padding"], "ids": one.example["ids"]})

    torch.testing.assert_close(found, parts.frozen(*one.inputs), **SAME)


def test_wrong_number_of_inputs_is_refused():
    one, _, parts = divided("several_inputs")

    with pytest.raises(BadArgument, match=r"given 1 input tensors; it was traced with 2: left, right"):
        parts.frozen(one.inputs[0])


def test_wires_are_copies_of_what_the_network_may_still_write():
    one, _, parts = divided("in_place", 1)

    first = parts.frozen(one.example)
    kept = first[0].clone()
    parts.frozen(torch.randn_like(one.example))

    assert torch.equal(first[0], kept)


def test_moving_the_frozen_part_does_not_move_the_users_network():
    one, _, parts = divided("batch_norm", 2)
    shared = {weight.data_ptr() for weight in parts.frozen.module.parameters()}

    parts.frozen.module.to(torch.float64)

    assert shared == {weight.data_ptr() for weight in one.model.parameters()}
    assert {weight.dtype for weight in one.model.parameters()} == {torch.float32}
    assert {weight.dtype for weight in parts.frozen.module.parameters()} == {torch.float64}


def fingerprint(model, example, depth):
    return fl.split(model, fl.trace(model, example), depth).frozen.fingerprint


def test_fingerprint_is_that_of_what_is_frozen():
    one = specimen("batch_norm")
    first = fingerprint(one.model, one.example, 2)

    other_head = copy.deepcopy(one.model)
    other_head.head = nn.Linear(8, 5)
    nn.init.zeros_(other_head.last.weight)

    assert fingerprint(other_head, one.example, 2) == first
    assert fingerprint(one.model, one.example[:2], 2) == first
    assert fingerprint(one.model, one.example, 1) != first
    assert fingerprint(one.model, torch.randn(4, 3, 9, 9), 2) != first


@pytest.mark.parametrize("change", ["bit", "buffer", "activation", "slope", "hook"])
def test_fingerprint_changes_with_what_decides_the_wires(change):
    net = nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(0.1), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 3)).eval()
    example = torch.randn(4, 5)
    first = fingerprint(net, example, 2)

    match change:
        case "bit":
            net[0].weight.data[0, 0] = torch.nextafter(net[0].weight.data[0, 0], torch.tensor(9.0))
        case "buffer":
            net[2].running_var[0] += 1e-3
        case "activation":
            net[1] = nn.ELU()
        case "slope":
            net[1] = nn.LeakyReLU(0.2)
        case "hook":
            net[0].register_forward_hook(lambda module, args, output: output * 2)

    assert fingerprint(net, example, 2) != first


# --- the live part ----------------------------------------------------------------------------


def test_live_part_is_of_the_users_class():
    one, _, parts = divided("attention", 2)

    assert type(parts.live) is type(one.model)
    assert type(parts.live.blocks[0]) is type(one.model.blocks[0])
    assert len(parts.live.blocks) == 3


def test_live_part_leaves_its_wires_alone_in_train_mode_too():
    net = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5, inplace=True), nn.Linear(64, 3))
    one = Specimen("dropout first", net, torch.randn(4, 5))
    graph = fl.trace(net, one.example)
    net[1].p = 0.5
    parts = fl.split(net, graph, 0)
    given = one.example.clone()

    parts.live.train()(one.example)

    assert torch.equal(one.example, given)


def test_live_part_does_not_write_into_a_wire_that_its_first_operation_changes():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(F.relu(self.stem(x), inplace=True))

    one = Specimen("first", First(), torch.randn(4, 5))
    parts = fl.split(one.model, fl.trace(one.model, one.example), 1)
    wires = parts.frozen(one.example)
    kept = wires[0].clone()

    parts.live(*wires)

    assert (kept < 0).any()
    assert torch.equal(wires[0], kept)


def test_train_mode_moves_nothing_that_is_frozen():
    one, _, parts = divided("batch_norm", 2)
    wires = parts.frozen(one.example)
    merged_before = parts.merge().state_dict()

    parts.live.train()
    for _ in range(3):
        parts.live(*wires)

    merged = parts.merge().state_dict()
    frozen = [key for key in merged if key.startswith(("stem", "middle"))]
    assert all(torch.equal(merged[key], merged_before[key]) for key in frozen)
    assert len(frozen) == 13


def test_live_batch_norm_moves_in_train_mode():
    one, _, parts = divided("batch_norm", 1)

    parts.live.train()(*parts.frozen(one.example))

    assert parts.live.middle[1].num_batches_tracked == 1
    assert one.model.middle[1].num_batches_tracked == 0


def test_gradient_stops_at_the_cut():
    one, _, parts = divided("residual", 2)

    parts.live(*parts.frozen(one.example)).sum().backward()

    assert all(weight.grad is not None for weight in parts.live.parameters())
    assert all(weight.grad is None for weight in one.model.parameters())


def test_training_the_live_part_is_training_the_network_with_a_frozen_prefix():
    one, graph, parts = divided("batch_norm", 2)
    whole = copy.deepcopy(one.model)
    below = {key for stage in graph.stages[:2] for key in stage.keys}
    for name, weight in whole.named_parameters():
        weight.requires_grad_(name not in below)
    wires = parts.frozen(one.example)
    ones = torch.optim.AdamW(parts.live.parameters(), 1e-2)
    others = torch.optim.AdamW([weight for weight in whole.parameters() if weight.requires_grad], 1e-2)

    for _ in range(5):
        for optimizer, output in ((ones, parts.live(*wires)), (others, whole(one.example))):
            optimizer.zero_grad()
            output.square().sum().backward()
            optimizer.step()

    torch.testing.assert_close(dict(parts.merge().state_dict()), dict(whole.state_dict()), **CLOSE)


def test_wires_in_another_memory_order_give_the_same_bits():
    one = of_field("resnet18", channels_last=True)
    parts = fl.split(one.model, fl.trace(one.model, one.example), "layer1")
    wires = parts.frozen(one.example)

    with torch.no_grad():
        found = parts.live(*(wire.contiguous() for wire in wires))

    assert torch.equal(found, one.output())


def test_copy_of_a_live_part_is_on_its_own():
    one, _, parts = divided("residual", 2)
    wires = parts.frozen(one.example)
    twin = copy.deepcopy(parts.live)

    with torch.no_grad():
        twin[3].bias += 1
        apart = twin(*wires) - parts.live(*wires)

    torch.testing.assert_close(apart, torch.ones_like(apart), **CLOSE)


def test_wrong_number_of_wires_is_refused():
    one, _, parts = divided("branching", 2)

    with pytest.raises(BadArgument, match="given 1 tensors; 2 wires cross this cut"):
        parts.live(one.example)


def test_checkpointing_in_the_live_part_gives_the_same_gradients():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            return x

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Checkpointed(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)).eval()
    example = torch.randn(4, 5)
    graph = fl.trace(net, example)

    assert [fl.prove(net, graph, depth, example=example) for depth in graph.open_depths] == [None] * 3


def test_shared_activation_runs_above_the_cut_only():
    one, _, parts = divided("shared_activation", 2)
    ran = []
    parts.live.act.register_forward_hook(lambda module, args, output: ran.append(output.shape))

    with torch.no_grad():
        found = parts.live(*parts.frozen(one.example))

    assert torch.equal(found, one.output())
    assert len(ran) == 3


def test_hooks_of_the_user_on_the_network_see_its_own_arguments():
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).eval()
    net.register_forward_pre_hook(lambda module, args: ((args[0] - 1) / 2,))
    net.register_forward_hook(lambda module, args, output: output * 3)
    one = Specimen("hooked", net, torch.randn(4, 5))
    graph = fl.trace(net, one.example)

    assert [breach(one, graph, depth) for depth in graph.open_depths] == [None, None]


def test_hook_on_a_frozen_module_runs_once():
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).eval()
    net[0].register_forward_hook(lambda module, args, output: output * 3)
    one = Specimen("hooked", net, torch.randn(4, 5))
    graph = fl.trace(net, one.example)

    assert breach(one, graph, 1) is None


def test_recurrent_networks_are_divided_too():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LSTM(5, 6, batch_first=True), nn.GRU(6, 6, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            x, _ = self.first(x)
            return self.head(self.second(x)[0][:, -1])

    one = Specimen("recurrent", Recurrent(), torch.randn(4, 7, 5))
    graph = fl.trace(one.model, one.example)

    assert [breach(one, graph, depth) for depth in graph.open_depths] == [None] * 3
    assert [fl.prove(one.model, graph, depth, example=one.example) for depth in graph.open_depths] == [None] * 3


def test_fast_path_of_the_encoder_is_off():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 3), nn.Linear(8, 3)).eval()
    example = torch.randn(4, 6, 5)
    graph = fl.trace(net, example)

    assert len(graph.stages) == 5
    for depth in graph.open_depths:
        parts = fl.split(net, graph, depth)
        with torch.no_grad(), plain_torch():
            assert torch.equal(parts.live(*parts.frozen(example)), net(example))


def test_compiled_live_part_gives_what_the_live_part_gives():
    one, _, parts = divided("residual", 2)
    wires = parts.frozen(one.example)

    with torch.no_grad():
        found = torch.compile(parts.live, backend="eager")(*wires)

    torch.testing.assert_close(found, one.output(), **CLOSE)


# --- kinds of network -------------------------------------------------------------------------


def assert_laws(one):
    """The law and the proof at every open cut; at least one stage can be frozen."""
    graph = fl.trace(one.model, one.example)

    assert len(graph.open_depths) > 1
    for depth in graph.open_depths:
        assert breach(one, graph, depth) is None, depth
        assert fl.prove(one.model, graph, depth, example=one.example) is None, depth


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["residual", "batch_norm", "attention", "in_place"])
def test_other_precisions_keep_the_law(name, dtype):
    one = specimen(name)

    assert_laws(Specimen(name, one.model.to(dtype), one.example.to(dtype)))


def test_buffers_of_half_precision_beside_float_weights_keep_the_law():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.middle, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("scale", torch.rand(6, dtype=torch.float16))

        def forward(self, x):
            x = self.stem(x) * self.scale
            return self.head(self.middle(x).relu() * self.scale)

    assert_laws(Specimen("scaled", Scaled(), torch.randn(4, 5)))


@pytest.mark.parametrize("name", ["batch_norm", "attention"])
def test_channels_last_keeps_the_law(name):
    one = specimen(name)
    model, example = (it.to(memory_format=torch.channels_last) for it in (one.model, one.example))

    assert_laws(Specimen(name, model, example))


class Between(nn.Module):
    """Something between two layers, and its own layer behind it."""

    def __init__(self, middle):
        super().__init__()
        self.stem, self.middle, self.last, self.head = nn.Linear(5, 6), middle, nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.last(self.middle(self.stem(x))))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_child_keeps_the_law():
    child = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))

    assert_laws(Specimen("scripted", Between(child), torch.randn(4, 5)))


# Torch's compiler asks each tensor for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_child_keeps_the_law():
    child = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), backend="eager")

    assert_laws(Specimen("compiled", Between(child), torch.randn(4, 5)))


def test_vmap_inside_a_forward_keeps_the_law():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return torch.func.vmap(self.inner)(x)

    assert_laws(Specimen("mapped", Between(Mapped()), torch.randn(4, 5)))


def test_hooks_of_the_user_keep_the_law():
    net = Between(nn.Linear(6, 6))
    net.stem.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    net.middle.register_forward_hook(lambda module, args, output: output.tanh())
    net.last.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)

    assert_laws(Specimen("hooked", net, torch.randn(4, 5)))


@pytest.mark.parametrize("masked", [False, True])
def test_transformer_encoder_keeps_the_law(masked):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.stem, self.body = nn.Linear(5, 8), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x, is_padding=None):
            return self.head(self.body(self.stem(x), src_key_padding_mask=is_padding)[:, 0])

    x, is_padding = torch.randn(4, 6, 5), torch.arange(6) >= torch.tensor([[6], [4], [5], [2]])

    assert_laws(Specimen("encoder", Encoder(), (x, is_padding) if masked else x))


# --- merging ----------------------------------------------------------------------------------


@pytest.mark.parametrize("one", menagerie(), ids=lambda one: one.name)
def test_merged_network_is_the_users_own_with_the_live_tensors(one):
    graph = fl.trace(one.model, one.example)
    parts = fl.split(one.model, graph, graph.open_depths[1])
    with torch.no_grad():
        for weight in parts.live.parameters():
            weight += 1

    merged = parts.merge()

    base, found, live = one.model.state_dict(), merged.state_dict(), parts.live.state_dict()
    assert type(merged) is type(one.model)
    assert list(found) == list(base)
    assert all(torch.equal(found[key], live[key] if key in live else base[key]) for key in found)
    assert {weight.data_ptr() for weight in merged.parameters()}.isdisjoint(
        weight.data_ptr() for weight in one.model.parameters()
    )


def test_merged_network_of_a_full_split_gives_what_the_live_part_gives():
    one, _, parts = divided("attention", 0)
    with torch.no_grad():
        parts.live.token += 1
        found = parts.live(*parts.frozen(one.example))

    merged = Specimen("merged", parts.merge(), one.example)

    assert torch.equal(merged.output(), found)


# --- refusals ---------------------------------------------------------------------------------


def test_blocked_and_unknown_depths_are_refused():
    one, graph, _ = divided("tied", 3)

    with pytest.raises(CutBlocked, match=r"depth 1 .* cannot be frozen: it would freeze `embed.weight`"):
        fl.split(one.model, graph, 1)
    with pytest.raises(UnknownStage, match="no stage that can be frozen is named 'nowhere'"):
        fl.split(one.model, graph, "nowhere")


def test_graph_from_a_file_is_refused():
    one, graph, _ = divided("chain")
    read = CutGraph.model_validate_json(graph.model_dump_json())

    with pytest.raises(BadArgument, match="holds no recording"):
        fl.split(one.model, read, 1)


def test_graph_of_another_network_is_refused():
    _, graph, _ = divided("chain")

    with pytest.raises(BadArgument, match="traced from another network than this Sequential"):
        fl.split(specimen("residual").model, graph, 1)


# --- the proof can fail -----------------------------------------------------------------------


@pytest.mark.parametrize("liar", false_cuts(), ids=lambda liar: liar.specimen.name)
def test_false_cut_passes_a_plain_comparison_and_fails_the_proof(liar):
    one = liar.specimen

    reason = fl.prove(one.model, liar.graph, liar.depth, example=one.example)

    assert breach(one, liar.graph, liar.depth) is None
    assert reason is not None
    assert any(part in reason for part in liar.proof.split("|"))


def test_value_that_goes_on_under_its_old_name_is_given_there_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.same = nn.Linear(5, 6), nn.Identity()
            self.last, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.stem(x).sigmoid()
            self.same(x)
            return self.head(self.last(x))

    model, example = Named(), torch.randn(4, 5)
    graph = fl.trace(model, example)

    assert graph.stages[0].name == "same"
    assert fl.prove(model, graph, 1, example=example) is None


def test_layer_below_the_cut_is_never_dropped():
    class Dropping(nn.Module):
        """Leaves layers out in train mode, as wav2vec 2.0 does now and then."""

        def __init__(self):
            super().__init__()
            self.layers, self.head = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 3)

        def forward(self, x):
            for layer in self.layers:
                x = x if self.training else layer(x)
            return self.head(x)

    model, example = Dropping(), torch.randn(4, 6)
    parts = fl.split(model, fl.trace(model, example), 2)
    wires = parts.frozen(example)

    parts.live.train()

    # The third layer lies above the cut and is left out.
    assert torch.equal(parts.live(*wires), model.head(model.layers[1](model.layers[0](example))))
    assert all(module.training for module in parts.live.modules())


def test_planted_false_cut_of_a_real_network_is_caught():
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("resnet18", num_classes=10, zero_init_last=True).eval()
    example = torch.randn(2, 3, 64, 64)

    class Outer(nn.Module):
        """The blocks of layer1 taken apart, so that a cut lies in the middle of a residual branch."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
            self.block, self.rest = model.layer1[0], nn.Sequential(*model.layer1[1:], model.layer2)
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(128, 10)

        def forward(self, x):
            x = self.stem(x)
            y = self.block.act1(self.block.bn1(self.block.conv1(x)))
            y = self.block.act2(self.block.bn2(self.block.conv2(y)) + x)
            return self.fc(self.pool(self.rest(y)).flatten(1))

    one = Specimen("taken apart", Outer().eval(), example)
    graph = fl.trace(one.model, example)
    depth = next(cut.depth for cut in graph.cuts if len(cut.wires) == 2)
    liar = without_wire(graph, depth, graph.cuts[depth].wires[-1].name)

    assert fl.prove(one.model, graph, depth, example=example) is None
    assert breach(one, liar, depth) is None
    assert fl.prove(one.model, liar, depth, example=example) == "the live part reads a value that is not kept"


def test_network_whose_code_fails_on_stand_ins_is_refused_in_words():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            assert not x.isnan().any() or self.stem.weight.isnan().any() is False, "no NaN, please"
            return self.head(self.last(self.stem(x)))

    one = Specimen("picky", Picky(), torch.randn(4, 5))
    graph = fl.trace(one.model, one.example)

    blocked = graph.cuts[1].blocked or fl.prove(one.model, graph, 1, example=one.example)

    assert "Python has looked at a value" in blocked


def test_glue_that_writes_gets_real_memory():
    one, graph, _ = divided("in_place", 3)

    assert graph.recording.dense == {2, 3}
    graph.recording.dense.clear()
    assert fl.prove(one.model, graph, 3, example=one.example) is None
    assert graph.recording.dense == {3}


def test_wire_that_glue_writes_into_twice_is_given_whole():
    one = network(["keep", "join", "act", "join"])
    graph = fl.trace(one.model, one.example)

    assert "pieces.1.1" in [stage.name for stage in graph.stages]
    for depth in graph.open_depths:
        assert breach(one, graph, depth) is None
        assert fl.prove(one.model, graph, depth, example=one.example) is None


def test_network_that_no_one_can_train_is_said_to_be_so():
    net = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.ReLU(inplace=True), nn.Linear(6, 3))
    example = torch.randn(4, 5)

    reason = fl.prove(net, fl.trace(net, example), 0, example=example)

    assert reason.startswith("the network itself cannot be trained in eval mode: one of the variables needed")


def test_proof_frees_its_copies_at_once():
    net, x = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)]), torch.randn(4, 16)
    graph = fl.trace(net, x)

    def held():
        return sum(type(thing) is nn.Parameter and thing.shape == (16, 16) for thing in gc.get_objects())

    gc.collect()
    before = held()
    gc.disable()
    try:
        fl.prove(net, graph, 2, example=x)
        after = held()
    finally:
        gc.enable()

    assert after == before
