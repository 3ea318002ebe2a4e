import copy
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import frostline as fl
from frostline.errors import BadArgument
from frostline.records import CutGraph
from frostline.testing import PIECES, TracerContract, network, snapshot, specimen

pieces = st.lists(st.sampled_from(sorted(PIECES)), max_size=7)
few = settings(max_examples=15, deadline=None)


def traced(name, **kwargs):
    one = specimen(name)
    return one, fl.trace(one.model, one.example, **kwargs)


def names(graph):
    return [stage.name for stage in graph.stages]


def wires(graph, depth):
    return [wire.name for wire in graph.cuts[depth].wires]


class TestTrace(TracerContract):
    def tracer(self, model, example):
        return fl.trace(model, example)


# --- laws -------------------------------------------------------------------------------------


@few
@given(pieces)
def test_every_weight_belongs_to_one_stage_and_every_key_too(chosen):
    one = network(chosen)

    graph = fl.trace(one.model, one.example)

    used = {key for stage in graph.stages for key in stage.keys}
    assert used == set(one.model.state_dict())
    assert graph.parameters == sum(weight.numel() for weight in one.model.parameters())


@few
@given(pieces)
def test_tracing_leaves_the_network_as_it_was(chosen):
    one = network(chosen)
    before = snapshot(one.model)

    fl.trace(one.model, one.example)

    assert snapshot(one.model) == before


@few
@given(pieces, st.sampled_from([1, 2, 3, 5, 8]))
def test_graph_is_the_same_at_any_batch_but_for_the_rows(chosen, batch):
    one = network(chosen)
    graph = fl.trace(one.model, one.example)

    again = fl.trace(one.model, torch.randn(batch, 3, 7, 7))

    assert again.stages == graph.stages
    assert [cut.bytes_per_sample for cut in again.cuts] == [cut.bytes_per_sample for cut in graph.cuts]
    assert [[wire.order for wire in cut.wires] for cut in again.cuts] == [
        [wire.order for wire in cut.wires] for cut in graph.cuts
    ]


# --- stages that people recognise -------------------------------------------------------------

RECOGNISED = {
    "torchvision:alexnet": 8,
    "torchvision:vgg11": 11,
    "torchvision:mobilenet_v2": 20,
    "timm:resnet18": 10,
    "timm:regnety_002": 15,
    "timm:convnext_atto": 17,
    "timm:vit_tiny_patch16_224": 14,
    "timm:efficientnet_b0": 19,
    "timm:tf_efficientnet_lite0": 19,
    "timm:swin_tiny_patch4_window7_224": 17,
}
SLOW = {"torchvision:vgg11", "timm:efficientnet_b0", "timm:swin_tiny_patch4_window7_224"}


def of_field(name):
    """A network of the field with random weights, for small pictures where it allows them."""
    import timm
    import torchvision

    home, _, name = name.partition(":")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if home == "torchvision":
            return getattr(torchvision.models, name)(num_classes=10).eval()
        size = {"img_size": 64} if name.startswith(("vit", "swin")) else {}
        return timm.create_model(name, num_classes=10, **size).eval()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RECOGNISED],
)
def test_stages_are_those_that_people_number(name):
    model = of_field(name)

    graph = fl.trace(model, torch.randn(2, 3, 64, 64))

    assert len(graph.stages) == RECOGNISED[name]
    assert graph.open_depths == tuple(range(RECOGNISED[name]))
    assert graph.outputs == 10
    assert isinstance(model.get_submodule(graph.head), nn.Linear)


def test_norm_activation_and_dropout_belong_to_the_stage_before():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))

    graph = fl.trace(net, torch.randn(4, 5))

    assert names(graph) == ["3", "4"]
    assert graph.stages[0].keys[-1] == "1.num_batches_tracked"


def test_stages_follow_the_run_and_not_the_registration():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.middle, self.stem = nn.Linear(6, 3), nn.Linear(6, 6), nn.Linear(5, 6)

        def forward(self, x):
            return self.head(self.middle(self.stem(x)))

    graph = fl.trace(Reversed(), torch.randn(4, 5))

    assert names(graph) == ["stem", "middle", "head"]


def test_flops_are_counted_for_one_sample():
    net = nn.Sequential(nn.Linear(5, 6), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    net[0] = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (1, 6)))

    graph = fl.trace(net, torch.randn(8, 5))

    assert [stage.flops for stage in graph.stages] == [2 * 5 * 6, 2 * 4 * 4 * 3, 2 * 16 * 3]


def test_attention_is_counted():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 8), block, nn.Linear(8, 3))

    graph = fl.trace(net, torch.randn(2, 6, 5))

    products = 2 * 6 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + 2 * 2 * 6 * 6 * 8
    assert graph.stages[1].flops == products


# --- wires ------------------------------------------------------------------------------------


def test_skip_connection_is_a_wire_of_its_own():
    _, graph = traced("branching")

    assert wires(graph, 3) == ["stem", "left", "right"]
    assert graph.cuts[3].bytes_per_sample == 4 * (6 + 4 + 4)


def test_raw_numbers_travel_after_the_float_wires():
    _, graph = traced("padded_tokens")

    assert wires(graph, 2) == ["blocks.0", "ids", "is_padding"]
    assert [wire.dtype for wire in graph.cuts[2].wires] == ["float32", "int64", "bool"]


def test_input_that_is_read_late_is_a_wire():
    _, graph = traced("several_inputs")

    assert [(wire.name, wire.shape) for wire in graph.cuts[1].wires] == [("left", (4, 6)), ("right", (4, 4))]


def test_wire_is_the_small_view_that_is_read_later():
    _, graph = traced("attention")

    assert graph.cuts[-1].wires[0].shape == (4, 5, 8)
    assert graph.cuts[-1].bytes_per_sample == 4 * 5 * 8

    class Cls(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
            self.pick, self.head = nn.Identity(), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.pick(self.norm(self.stem(x))[:, 0]))

    graph = fl.trace(Cls(), torch.randn(4, 6, 5))

    assert [(wire.name, wire.shape) for wire in graph.cuts[-1].wires] == [("pick", (4, 8))]


def test_memory_order_of_the_example_is_kept():
    one = network(["conv", "norm"])
    model = copy.deepcopy(one.model).to(memory_format=torch.channels_last)

    graph = fl.trace(model, one.example.to(memory_format=torch.channels_last))
    plain = fl.trace(one.model, one.example)

    assert [cut.wires[0].order for cut in graph.cuts] == [(0, 2, 3, 1)] * 3
    assert [cut.wires[0].order for cut in plain.cuts] == [(0, 1, 2, 3)] * 3


def test_batch_axis_and_rows_for_each_sample_are_found():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.split, self.turn = nn.Linear(6, 6), nn.Linear(6, 6)
            self.last, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.split(x.reshape(-1, 6))
            x = self.turn(x).unflatten(0, (-1, 5)).transpose(0, 1)
            return self.head(self.last(x).mean(0))

    graph = fl.trace(Windows(), torch.randn(4, 5, 6))

    assert [(wire.batch_axis, wire.factor) for cut in graph.cuts[1:] for wire in cut.wires] == [(0, 5), (0, 5), (1, 1)]


# --- why a cut is blocked ---------------------------------------------------------------------


def test_tied_weight_blocks_the_cuts_between_its_uses():
    _, graph = traced("tied")

    assert graph.open_depths == (0, 3)
    assert graph.cuts[2].blocked == (
        "it would freeze `embed.weight` in stage 0 (embed) and train it in stage 2 (out), where it is the same tensor"
    )


def test_value_that_python_looked_at_blocks_the_cuts_after_it():
    _, graph = traced("value_check")

    assert graph.open_depths == (0, 1)
    assert "Python has looked at a value" in graph.cuts[2].blocked


def test_value_looked_at_inside_a_finished_module_blocks_nothing():
    _, graph = traced("untraceable")

    assert graph.open_depths == (0, 1, 2, 3)


def test_table_of_weights_that_no_sample_changes_is_no_stage_of_its_own():
    _, graph = traced("padded_tokens")

    assert names(graph) == ["words", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert "positions.weight" in graph.stages[1].keys


def test_batch_norm_used_twice_is_tied_even_without_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6, affine=False)
            self.stem, self.middle = nn.Linear(5, 6), nn.Linear(6, 6)
            self.last, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.norm(self.last(self.middle(self.norm(self.stem(x))))))

    graph = fl.trace(Twice(), torch.randn(4, 5))

    assert names(graph) == ["stem", "middle", "norm", "head"]
    assert graph.open_depths == (0, 1, 3)
    assert "norm.running_mean" in graph.cuts[2].blocked


def test_network_of_one_matrix_has_one_stage():
    graph = fl.trace(nn.Linear(5, 3), torch.randn(4, 5))

    assert len(graph.stages) == 1
    assert graph.open_depths == (0,)


# --- head, records, memory --------------------------------------------------------------------


def test_head_is_the_last_linear_that_yields_the_outputs():
    assert traced("attention")[1].head == "head"
    assert traced("dict_output")[1].head is None
    assert fl.trace(nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)), torch.randn(4, 5)).head is None


def test_recording_stays_out_of_the_json():
    _, graph = traced("chain")

    again = CutGraph.model_validate_json(graph.model_dump_json())

    assert again.recording is None
    assert again == graph


def test_no_value_of_the_pass_outlives_it():
    seen = []

    class Maker(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(StorageWeakRef(y.untyped_storage()))
            return y

    graph = fl.trace(nn.Sequential(Maker(5, 6), nn.ReLU(), Maker(6, 3)), torch.randn(4, 5))
    gc.collect()

    assert graph.recording is not None
    assert len(seen) == 4
    assert all(storage.expired() for storage in seen)


def test_batch_of_one_is_traced_with_two_rows():
    one = specimen("batch_norm")

    graph = fl.trace(one.model, one.example[:1])

    assert graph.batch == 2
    assert graph.cuts[1].wires[0].factor == 1


@pytest.mark.parametrize("example", [torch.ones(0, 5), torch.tensor(1.0), ()])
def test_example_without_a_sample_is_refused(example):
    with pytest.raises(BadArgument, match="no sample"):
        fl.trace(specimen("chain").model, example)


def test_hooks_of_the_user_run_in_the_trace():
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    net[0].register_forward_hook(lambda module, args, output: output[:, :6].relu())

    graph = fl.trace(net, torch.randn(4, 5))

    assert graph.open_depths == (0, 1)


def test_results_cached_by_a_forward_with_gradients_do_not_stop_the_trace():
    one = specimen("chain")
    one.model.kept = one.model[0](one.example)

    graph = fl.trace(one.model, one.example)

    assert graph.open_depths == (0, 1, 2, 3)


# --- networks without values ------------------------------------------------------------------


def test_network_on_the_meta_device_is_refused_with_what_to_do():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))

    with pytest.raises(BadArgument, match=r"`0\.weight` is on the device `meta`.*to_empty.* load its weights"):
        fl.trace(net, torch.randn(4, 5))


def test_buffer_on_the_meta_device_is_refused_too():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    net[1].running_var = torch.ones(6, device="meta")

    with pytest.raises(BadArgument, match=r"`1\.running_var` is on the device `meta`"):
        fl.trace(net, torch.randn(4, 5))


def test_lazy_network_is_refused_until_it_has_run_once():
    net = nn.Sequential(nn.Linear(5, 6), nn.LazyLinear(3))
    example = torch.randn(4, 5)

    with pytest.raises(BadArgument, match=r"`1\.weight` has no shape yet.*Run the network once"):
        fl.trace(net, example)
    net(example)

    assert fl.trace(net, example).open_depths == (0, 1)
