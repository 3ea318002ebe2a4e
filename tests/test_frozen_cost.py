"""A step on a frozen network costs what a step of its live part costs, and the frozen part one forward pass."""

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import frostline as fl
from frostline.freezing import freeze
from frostline.trees import arguments, tensors


def resnet18():
    return torchvision.models.resnet18(num_classes=5), torch.randn(4, 3, 64, 64)


def vit_tiny():
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5), torch.randn(4, 3, 64, 64)


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(0, 60, (4, 12))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def loss_of(output):
    return tensors(output)[0].float().square().mean()


def saved_bytes(step):
    """Bytes of the storages that a step keeps for its backward pass."""
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step()
    loss.backward()
    return sum(kept.values())


def operations(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.fixture(
    params=[(make, at) for make in (resnet18, vit_tiny, bert) for at in (0.3, 0.6, 1.0)],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def at_a_depth(request):
    """A frozen network and its arguments; its parts, split before, and their wires."""
    make, share = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = make()
    graph = fl.trace(model, example)
    depth = min(graph.open_depths, key=lambda at: abs(at - share * graph.max_depth))
    parts = fl.split(model, graph, depth)
    wires = parts.frozen(example)
    freeze(model, depth, graph)
    args, kwargs = arguments(example)
    return lambda: loss_of(model.train()(*args, **kwargs)), lambda: loss_of(parts.live.train()(*wires)), parts, example


def test_a_step_keeps_as_many_bytes_as_the_live_part_alone(at_a_depth):
    frozen, live, _, _ = at_a_depth

    assert saved_bytes(frozen) == saved_bytes(live) > 0


def test_a_step_takes_the_operations_of_the_live_part_and_one_frozen_forward(at_a_depth):
    frozen, live, parts, example = at_a_depth

    counted = operations(lambda: frozen().backward())

    assert counted - operations(lambda: parts.frozen(example)) == operations(lambda: live().backward()) > 0
