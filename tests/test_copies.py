import pytest
import torch
from torch import nn

from frostline.copies import copy_of, full_precision, in_eval, lower_precision, plain_torch, repeatable_torch
from frostline.testing import menagerie, snapshot


@pytest.mark.parametrize("one", menagerie(), ids=lambda one: one.name)
def test_copy_shares_what_it_is_told_and_nothing_else(one):
    before = snapshot(one.model)
    shared = list(one.model.parameters())[:1]

    twin = copy_of(one.model, shared)

    pairs = list(zip(one.model.parameters(), twin.parameters(), strict=True))
    assert [mine is other for mine, other in pairs] == [True] + [False] * (len(pairs) - 1)
    assert all(torch.equal(mine, other) for mine, other in pairs)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(one.model.buffers(), twin.buffers(), strict=True))
    assert snapshot(one.model) == before


def test_result_of_a_forward_with_gradients_is_copied_detached():
    net = nn.Sequential(nn.Linear(2, 2))
    net.cached = {"bias": [net[0](torch.ones(1, 2))]}

    twin = copy_of(net)

    assert net.cached["bias"][0].grad_fn is not None
    assert twin.cached["bias"][0].grad_fn is None
    assert torch.equal(twin.cached["bias"][0], net.cached["bias"][0])


@pytest.mark.parametrize("switch", [plain_torch, repeatable_torch])
def test_switches_of_torch_are_put_back_after_an_error_too(switch):
    before = torch.backends.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled()

    with pytest.raises(KeyError), switch():
        raise KeyError

    assert (torch.backends.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled()) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_weight_of_a_scripted_module_is_copied_as_a_leaf():
    model = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2)))
    model[0].bias.requires_grad_(False)

    copied = copy_of(model)

    assert all(weight.is_leaf for weight in copied.parameters())
    assert [weight.requires_grad for weight in copied.parameters()] == [True, False, True, True]


def product():
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_full_precision_yields_to_what_was_asked_for_on_purpose_and_to_nothing_else():
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision():
            by_chance = product()
        with lower_precision(torch.bfloat16), full_precision():
            on_purpose = product()
    with full_precision():
        afterwards = product()

    assert (by_chance, on_purpose, afterwards) == (torch.float32, torch.bfloat16, torch.float32)


def test_parts_are_put_back_into_their_own_mode_after_an_error_too():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval()))
    modes = [part.training for part in net.modules()]

    inside = []

    def look():
        with in_eval(net):
            inside.extend(part.training for part in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        look()

    assert inside == [False] * 4
    assert [part.training for part in net.modules()] == modes
