import torch
from torch import nn

from frostline.recording import Layout, Size
from frostline.watching import watch


def seen(model, *inputs):
    return watch(model.eval(), inputs, {}, tuple(f"input{place}" for place in range(len(inputs))))


def test_calls_are_listed_as_they_return_with_the_call_around_them():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1))

    calls = seen(net, torch.ones(3, 2)).calls

    assert [call.name for call in calls] == ["0.0", "0.1", "0", "1", ""]
    assert [call.parent for call in calls] == [2, 2, 4, 4, -1]
    assert all(call.start < call.end for call in calls)


def test_module_that_runs_no_operation_has_a_time_of_its_own():
    calls = seen(nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Dropout()), torch.ones(3, 2)).calls

    assert len({call.end for call in calls}) == len(calls)
    assert calls[0].storages == calls[1].storages == calls[2].storages


def test_view_is_no_reading_of_values():
    class Pick(nn.Module):
        def forward(self, x):
            return x.view(-1)[:2] + 1

    found = seen(Pick(), torch.ones(3, 2))

    (key,) = found.inputs.storages
    assert [read.shape for read in found.storages[key].reads] == [(2,)]


def test_writing_is_seen_through_a_view():
    class Write(nn.Module):
        def forward(self, x):
            y = x * 2
            y[0].zero_()
            return y

    found = seen(Write(), torch.ones(3, 2))

    assert [len(storage.writes) for storage in found.storages.values()] == [0, 1]


def test_value_made_of_shapes_and_numbers_can_be_derived_again():
    class Mixed(nn.Module):
        def forward(self, x, ids):
            return x + (ids > 0) * torch.zeros_like(x), ids + 1

    found = seen(Mixed(), torch.ones(3, 2), torch.ones(3, 1, dtype=torch.long))

    by_key = [found.storages[key].is_data for key in found.output_storages]
    assert by_key == [True, False]


def test_value_that_a_weight_made_cannot():
    net = nn.Embedding(4, 2)

    found = seen(net, torch.ones(3, dtype=torch.long))

    assert found.storages[found.output_storages[0]].is_data


def test_plain_value_that_data_is_written_into_becomes_data():
    class Fill(nn.Module):
        def forward(self, x):
            table = torch.zeros(3, 2)
            table[:, 0] = x[:, 0]
            return table

    found = seen(Fill(), torch.ones(3, 2))

    assert found.storages[found.output_storages[0]].is_data


def test_address_given_to_a_second_storage_is_another_storage():
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(40)))

    found = seen(net, torch.ones(3, 64))

    assert len(found.storages) == 41


def test_buffer_that_data_is_written_into_carries_the_sample():
    class Cache(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.zeros(3, 2))

        def forward(self, x):
            self.kept.copy_(x)
            return self.kept * 2

    found = seen(Cache(), torch.ones(3, 2))

    assert found.storages[found.output_storages[0]].is_data


def test_look_at_a_value_is_noted_with_the_call_it_was_in():
    class Look(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    found = seen(nn.Sequential(nn.Linear(2, 2), Look()), torch.ones(3, 2))

    look = next(call for call in found.calls if call.name == "1")
    assert [frame for _, frame in found.asked] == [look.start]


def test_look_at_a_shape_is_none():
    class Look(nn.Module):
        def forward(self, x):
            return x if torch.ones(2).sum() > x.shape[0] else -x

    assert seen(Look(), torch.ones(3, 2)).asked == []


def test_operation_of_a_constant_carries_the_constants_content():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = torch.tensor([scale])

        def forward(self, x):
            return x * self.scale

    texts = [[step.scalars for step in seen(Scaled(scale), torch.ones(3, 2)).operations] for scale in (1.0, 1.0, 2.0)]

    assert texts[0] == texts[1] != texts[2]


def test_tensor_without_a_place_in_a_storage_still_has_a_shape():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return torch.func.vmap(self.inner)(x)

    found = seen(Mapped(), torch.ones(3, 2))

    inner = next(call for call in found.calls if call.name == "inner")
    assert inner.storages == (None,)
    assert isinstance(inner.leaves[0], Layout)


def test_hooks_are_gone_afterwards():
    net = nn.Sequential(nn.Linear(2, 2))

    seen(net, torch.ones(3, 2))

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_whole_numbers_that_a_module_returns_may_grow_with_the_batch():
    class Count(nn.Module):
        def forward(self, x):
            return x, len(x), True

    call = seen(Count(), torch.ones(3, 2)).calls[0]

    assert call.leaves[1:] == (Size(3), True)
