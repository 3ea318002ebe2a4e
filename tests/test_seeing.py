"""Pictures to look at."""

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from frostline.data import TensorSamples
from frostline.pictures import Pictures
from frostline.records import Doubt, Preprocessing
from frostline.scoring import outputs_of, score
from frostline.seeing import see
from frostline.testing import menagerie, snapshot, specimen
from frostline.tracing import trace

COLOURS = ("red", "green", "blue")
SHAPE = Preprocessing(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture(autouse=True)
def same_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image)))


def pixels_of(image):
    return np.asarray(opened(image), dtype=float)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def album_of(net, samples, *, classes=("cat", "dog", "cow"), preprocessing=None):
    found = score(outputs_of(net, samples), samples.labels)
    graph = trace(net, samples.read(range(min(4, len(samples)))))
    return see(net, graph, samples, test=samples, score=found, classes=classes, preprocessing=preprocessing)


def tensors_of(*shape, classes=3, seed=0):
    return TensorSamples(noise(*shape, seed=seed), torch.arange(shape[0]) % classes)


def planted(count=24):
    """Grey pictures, each with a patch of 5 x 5 in its class's colour somewhere."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(45, 55, (count, 32, 32, 1), dtype=np.uint8).repeat(3, axis=3)
    labels = np.arange(count) % 3
    for picture, label, top, left in zip(pixels, labels, *draw.integers(1, 26, (2, count)), strict=True):
        picture[top : top + 5, left : left + 5] = 0
        picture[top : top + 5, left : left + 5, label] = 250
    names = tuple(f"{COLOURS[label]}/{row}.png" for row, label in enumerate(labels))
    return Pictures(pixels, range(count), torch.tensor(labels), names=names, digests=names, preprocessing=SHAPE)


def detector():
    """Channel k of each stage answers to colour k less the others."""
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, stride=2, padding=1)
    head = nn.Linear(3, 3)
    with torch.no_grad():
        first.weight[:] = -0.5
        first.bias.zero_()
        second.weight.zero_()
        for colour in range(3):
            first.weight[colour, colour] = 1
            second.weight[colour, colour] = 1
    return nn.Sequential(
        nn.Sequential(first, nn.ReLU()), nn.Sequential(second, nn.ReLU()), nn.AdaptiveMaxPool2d(1), nn.Flatten(), head
    )


class Spared(nn.Module):
    """Keeps the map of the second stage a stage's output, and pools in the head's own stage."""

    def __init__(self):
        super().__init__()
        self.first, self.second, *_, self.head = detector()

    def forward(self, x):
        return self.head(self.second(self.first(x)).amax(dim=(2, 3)))


# --- what each stage sees ---------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
def test_crops_show_the_colour_that_a_channel_answers_to(place):
    album = album_of(Spared(), planted(), classes=COLOURS, preprocessing=SHAPE)

    found = {
        channel.index: [(crop.label, int(pixels_of(crop.image).max(axis=(0, 1)).argmax())) for crop in channel.crops]
        for channel in album.sights[place].channels
    }

    assert found == {colour: [(COLOURS[colour], colour)] * 4 for colour in range(3)}


@pytest.mark.parametrize("place", [0, 1])
def test_the_middle_of_a_crop_is_where_the_channel_answered(place):
    album = album_of(Spared(), planted(), classes=COLOURS, preprocessing=SHAPE)
    side = album.sights[place].side

    for channel in album.sights[place].channels:
        for crop in channel.crops:
            middle = pixels_of(crop.image)[side // 2, side // 2]
            assert middle.argmax() == channel.index
            assert middle.max() > 200


def test_the_first_crop_is_the_strongest_answer():
    album = album_of(Spared(), planted(), classes=COLOURS, preprocessing=SHAPE)

    for sight in album.sights:
        for channel in sight.channels:
            strengths = [crop.strength for crop in channel.crops]
            assert strengths[0] == 1.0
            assert strengths == sorted(strengths, reverse=True)


def test_pictures_of_the_same_bytes_are_shown_once():
    x = noise(6, 3, 8, 8)[[0, 0, 0, 1, 1, 2]]
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 3)).eval()

    album = album_of(net, TensorSamples(x, torch.arange(6) % 3))

    counts = [len(channel.crops) for sight in album.sights for channel in sight.channels]
    assert counts
    assert max(counts) <= 3


def test_channels_that_say_nothing_are_not_shown():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for channel, (weight, bias) in enumerate([(0.0, 0.0), (0.0, 7.0), (-1.0, 0.0), (1.0, 0.0)]):
            net[0].weight[channel], net[0].bias[channel] = weight, bias

    album = album_of(net, tensors_of(12, 3, 8, 8))

    assert [channel.index for channel in album.sights[0].channels] == [3]


def test_a_pooled_stage_sees_the_whole_picture():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    nn.init.ones_(net[0].weight)
    x = noise(12, 3, 16, 16)
    x[:, :, 7:9, 7:9] = 9

    album = album_of(net, TensorSamples(x, torch.arange(12) % 3))

    (sight,) = album.sights
    assert sight.side == 16
    assert {opened(crop.image).size for channel in sight.channels for crop in channel.crops} == {(16, 16)}


def test_maps_with_the_channels_last_are_read_as_maps():
    class Turned(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 7, 3), Turned()), nn.Linear(7, 7), nn.Flatten(), nn.Linear(448, 3))

    album = album_of(net, tensors_of(12, 3, 10, 10))

    assert album.sights[0].side == 3
    assert max(channel.index for sight in album.sights[:1] for channel in sight.channels) < 7


class Tokens(nn.Module):
    """Patches of 4 x 4 with a class token before them, then a layer that mixes no tokens."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(self.layer(tokens).mean(dim=1))


def test_tokens_are_read_as_the_patches_that_they_came_from():
    net = Tokens()
    with torch.no_grad():
        net.layer.weight.copy_(torch.eye(6))
        net.layer.bias.zero_()

    patches, layer = album_of(net, tensors_of(12, 3, 16, 16)).sights

    assert (patches.side, layer.side) == (4, 4)
    assert [channel.crops for channel in patches.channels] == [channel.crops for channel in layer.channels]


def test_at_most_twelve_stages_are_shown_from_the_first_to_the_last():
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(15)), nn.Flatten(), nn.Linear(192, 3))

    album = album_of(net, tensors_of(6, 3, 8, 8))

    stages = [sight.stage for sight in album.sights]
    assert len(stages) == 12
    assert (stages[0], stages[-1]) == (0, 14)


def test_each_class_is_looked_at_though_one_is_rare():
    x, labels = noise(400, 1, 4, 4), torch.zeros(400, dtype=torch.int64)
    labels[399], x[399] = 1, 3 * x[399]
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight.fill_(1)

    album = album_of(net, TensorSamples(x, labels))

    assert album.sights[0].channels[0].crops[0].sample == 399


def test_the_same_album_comes_out_twice():
    samples, net = tensors_of(300, 3, 12, 12), detector()

    assert album_of(net, samples) == album_of(net, samples)


def test_looking_leaves_the_network_as_it_was():
    samples = tensors_of(12, 3, 12, 12)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net.train()
    before = snapshot(net)

    album_of(net, samples)

    assert snapshot(net) == before
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_is_written_over_later_is_seen_as_it_was():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            found = self.layer(x)
            answer = found.mean(dim=(2, 3))
            found.zero_()
            return self.head(answer)

    album = album_of(Overwriting(), tensors_of(12, 3, 8, 8))

    assert album.sights[0].channels


PICTURED = [one for one in menagerie() if len(one.inputs) == 1 and one.inputs[0].dim() == 4]


@pytest.mark.parametrize("one", PICTURED, ids=lambda one: one.name)
def test_every_network_of_pictures_can_be_looked_at(one):
    samples = TensorSamples(one.inputs[0], torch.arange(len(one.inputs[0])) % 3)
    found = score(torch.zeros(len(samples), 3), samples.labels)

    album = see(
        one.model, trace(one.model, one.example), samples, test=samples, score=found, classes=("cat", "dog", "cow")
    )

    assert album.mistakes
    assert album.sights


def test_a_label_in_doubt_is_shown_with_its_training_picture_and_the_class_it_looks_like():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    train, test = (TensorSamples(noise(20, 3, 8, 8, seed=seed), torch.arange(20) % 3) for seed in (1, 2))
    doubts = [Doubt(sample=row, label=row % 3, prediction=(row + 1) % 3, confidence=0.96) for row in range(4, 19)]

    album = see(
        net,
        trace(net, train.read(range(4))),
        train,
        test=test,
        score=score(outputs_of(net, test), test.labels),
        classes=COLOURS,
        doubts=doubts,
    )

    assert len(album.doubts) == 12
    first = album.doubts[0]
    assert (first.sample, first.label, first.prediction, first.confidence) == (4, "green", "blue", 0.96)
    shown = pixels_of(first.image).reshape(-1)
    correlation = [
        np.corrcoef(shown, (part.read([4])[0][0].permute(1, 2, 0)).reshape(-1))[0, 1] for part in (train, test)
    ]
    assert correlation[0] > 0.8 > 0.5 > correlation[1]


# --- the receptive field ----------------------------------------------------------------------


def sides_of(net, size):
    return [sight.side for sight in album_of(net, tensors_of(6, 3, size, size), classes=("a", "b", "c")).sights]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2])), min_size=1, max_size=3))
def test_a_stack_sees_no_further_than_its_kernels_reach(layers):
    size, reach, step, theory, net = 40, 1, 1, [], []
    for kernel, stride in layers:
        net.append(nn.Conv2d(3, 3, kernel, stride=stride))
        nn.init.ones_(net[-1].weight)
        size = (size - kernel) // stride + 1
        reach, step = reach + (kernel - 1) * step, step * stride
        theory.append(reach)
    net += [nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3 * size * size, 3)]

    found = sides_of(nn.Sequential(*net), 40)

    assert all(side <= most for side, most in zip(found, theory, strict=False))
    assert found[0] == layers[0][0]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_one_convolution_sees_its_kernel(kernel, stride, is_padded):
    first = nn.Conv2d(3, 4, kernel, stride=stride, padding=kernel // 2 if is_padded else 0)
    nn.init.ones_(first.weight)
    width = first(torch.zeros(1, 3, 32, 32)).shape[2]
    net = nn.Sequential(first, nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(3 * width * width, 3))

    assert sides_of(net, 32)[0] == kernel


def test_a_stage_without_a_gradient_is_said_to_see_everything():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    net = nn.Sequential(Cut(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 3))

    assert sides_of(net, 8)[0] == 8


def test_a_network_that_writes_into_its_input_is_measured():
    class Shifting(nn.Module):
        def forward(self, x):
            return x.sub_(0.5)

    net = nn.Sequential(Shifting(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(108, 3))
    nn.init.ones_(net[1].weight)

    assert sides_of(net, 8)[1] == 3


# --- filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_filters_of_pictures_are_shown_from_black_to_white(channels, mode):
    net = nn.Sequential(nn.Conv2d(channels, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))

    album = album_of(net, tensors_of(6, channels, 8, 8))

    pictures = [opened(image) for image in album.filters]
    assert len(pictures) == 5
    assert {(picture.size, picture.mode) for picture in pictures} == {((24, 24), mode)}
    assert {np.asarray(picture).min() for picture in pictures} == {0}
    assert {np.asarray(picture).max() for picture in pictures} == {255}


def test_at_most_64_filters_are_shown():
    net = nn.Sequential(nn.Conv2d(3, 70, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(70, 3))

    assert len(album_of(net, tensors_of(6, 3, 8, 8)).filters) == 64


def test_filters_of_one_pixel_are_not_shown():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))

    assert album_of(net, tensors_of(6, 3, 8, 8)).filters == ()


# --- mistakes ---------------------------------------------------------------------------------


def test_mistakes_are_the_wrong_answers_the_most_confident_first():
    samples = planted(30)
    outputs = torch.zeros(30, 3)
    outputs[torch.arange(30), samples.labels] = 9.0
    for row, sureness in ((4, 1.0), (11, 3.0), (20, 2.0)):
        outputs[row] = 0.0
        outputs[row, (samples.labels[row] + 1) % 3] = sureness
    net = Spared()

    album = see(
        net,
        trace(net, samples.read(range(4))),
        samples,
        test=samples,
        score=score(outputs, samples.labels),
        classes=COLOURS,
        preprocessing=SHAPE,
    )

    assert [(one.sample, one.file, one.label, one.prediction) for one in album.mistakes] == [
        (11, "blue/11.png", "blue", "red"),
        (20, "blue/20.png", "blue", "red"),
        (4, "green/4.png", "green", "blue"),
    ]


def test_a_mistake_is_shown_as_the_picture_was():
    samples = planted()
    album = album_of(Spared(), samples, classes=COLOURS, preprocessing=SHAPE)
    mistake = album.mistakes[0]

    (values,) = samples.read([mistake.sample])

    own = (values[0].permute(1, 2, 0) * torch.tensor(SHAPE.std) + torch.tensor(SHAPE.mean)) * 255
    assert np.abs(pixels_of(mistake.image) - own.numpy()).mean() < 4


def test_at_most_twelve_mistakes_are_shown_and_none_is_large():
    album = album_of(Spared(), tensors_of(60, 3, 120, 100))

    assert len(album.mistakes) == 12
    assert {opened(one.image).size for one in album.mistakes} == {(80, 96)}


def test_samples_from_memory_have_no_file():
    album = album_of(Spared(), tensors_of(12, 3, 16, 16))

    assert {one.file for one in album.mistakes} == {""}


# --- what is no picture -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chain", "residual", "padded_tokens", "several_inputs"])
def test_what_is_no_picture_gives_an_empty_album(name):
    one = specimen(name)
    outputs = torch.zeros(4, 2)
    samples = TensorSamples(tuple(tensor[:4] for tensor in one.inputs), torch.arange(4) % 2)
    graph = trace(one.model, one.example)

    album = see(one.model, graph, samples, test=samples, score=score(outputs, samples.labels), classes=("cat", "dog"))

    assert (album.filters, album.sights, album.mistakes) == ((), (), ())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_picture_without_sensible_values_hides_no_other(value):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    x = noise(6, 3, 8, 8)
    graph = trace(net, x)
    samples = TensorSamples(torch.cat([torch.full((1, 3, 8, 8), value), x[1:]]), torch.arange(6) % 3)
    found = score(torch.eye(3).roll(1, dims=0).repeat(2, 1), samples.labels)

    album = see(net, graph, samples, test=samples, score=found, classes=("cat", "dog", "cow"))

    assert [sight.side for sight in album.sights] == [8, 8]
    assert {len(channel.crops) for channel in album.sights[0].channels} == {4}
    assert len(album.mistakes) == 6
