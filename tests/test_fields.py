"""How far a position sees along a sequence; what it sees of a picture is measured in `test_seeing`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.answering import Watch, rows_of
from frostline.fields import Field, sound_lines
from frostline.tracing import trace


def lines_of(net, length):
    x = torch.rand(4, 1, length, generator=torch.Generator().manual_seed(0))
    return sound_lines(Watch(net.eval(), trace(net, x), rows_of), x)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 19), st.integers(1, 20), st.sampled_from([400, 512]))
def test_a_convolution_hears_its_kernel_at_every_place(kernel, stride, length):
    first = nn.Conv1d(1, 2, kernel, stride=stride)
    nn.init.ones_(first.weight)
    places = first(torch.zeros(1, 1, length)).shape[2]
    net = nn.Sequential(first, nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(2 * places, 3))

    axis, field = lines_of(net, length)[0]

    assert (axis, field.side, field.grid) == (1, kernel, (1, places))
    boxes = [field.box(place, (1, length)) for place in range(places)]
    assert boxes == [(place * stride, 0, place * stride + kernel, 1) for place in range(places)]


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


@pytest.mark.parametrize("channels", [50, 400])
def test_time_is_found_on_either_axis_whatever_the_number_of_channels(channels):
    first = nn.Sequential(nn.Conv1d(1, channels, 8, stride=8), Turned())
    linears = nn.Linear(channels, 400), nn.Linear(400, 2)
    net = nn.Sequential(first, *linears, nn.Flatten(), nn.Linear(100, 3))

    lines = lines_of(net, 400)[:2]

    assert [(line.axis, line.field.grid) for line in lines] == [(0, (1, 50))] * 2
    assert all(line.field.side <= 10 for line in lines)


def test_where_every_place_sees_everything_time_is_the_axis_that_is_as_long_as_before():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 20)

        def forward(self, x):
            x = self.layer(x.transpose(1, 2))
            return 0 * x + x.mean(dim=1, keepdim=True)

    layers = nn.Conv1d(1, 16, 8, stride=8), Mixing(), nn.Linear(20, 20)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1000, 3))

    first, second, _ = lines_of(net, 400)

    assert (first.axis, second.axis) == (1, 0)
    assert second.field.side > 300


def test_a_vector_hears_everything():
    net = nn.Sequential(nn.Conv1d(1, 2, 8), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(2, 4), nn.Linear(4, 3))

    axis, field = lines_of(net, 400)[-1]

    assert (axis, field.side, field.box(0, (1, 400))) == (None, 400, (0, 0, 400, 1))


@given(
    st.integers(1, 90),
    st.integers(1, 30),
    st.floats(0, 80),
    st.none() | st.floats(-50, 50),
)
def test_what_a_place_sees_lies_within_the_sequence(side, places, middle, step):
    field = Field(side, (1, places), (0.5, middle), step)

    for place in range(places):
        left, top, right, bottom = field.box(place, (1, 80))
        assert 0 <= left < right <= 80
        assert right - left == min(side, 80)
        assert (top, bottom) == (0, 1)
