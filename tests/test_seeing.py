"""Samples to look at."""

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


# --- spectrograms that are pictures, and other pictures that are no squares ---------------------


@pytest.mark.parametrize(("height", "width"), [(20, 50), (50, 20)])
def test_pictures_that_are_no_squares_are_cut_where_the_channel_answered(height, width):
    draw = np.random.default_rng(0)
    x = 0.1 * noise(12, 1, height, width)
    places = draw.integers(2, (height - 2, width - 2), (12, 2))
    for picture, (row, column) in zip(x, places, strict=True):
        picture[0, row, column] = 5 + row / height
    net = nn.Sequential(nn.Conv2d(1, 2, 5, padding=2), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.LazyLinear(3))
    nn.init.ones_(net[0].weight)
    net(x)

    first = album_of(net, TensorSamples(x, torch.arange(12) % 3)).sights[0]

    assert (first.side, first.whole) == (5, (height, width))
    for channel in first.channels:
        for crop in channel.crops:
            assert pixels_of(crop.image).shape == (5, 5)
            assert pixels_of(crop.image).max() > 150


def test_a_stage_that_sees_all_of_a_wide_picture_shows_all_of_it():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    nn.init.ones_(net[0].weight)

    (sight,) = album_of(net, tensors_of(12, 1, 20, 50)).sights

    assert (sight.side, sight.whole) == (50, (20, 50))
    assert {opened(crop.image).size for channel in sight.channels for crop in channel.crops} == {(50, 20)}


# --- texts ------------------------------------------------------------------------------------

WORDS = ("the", "a", "my", "is", "lost", "where", "how", "card", "late", "stolen", "[PAD]")
CARD, PAD = WORDS.index("card"), WORDS.index("[PAD]")


def texts(count=24, length=6):
    """Texts of three tokens or more, padded; every other one holds CARD, neither as its first nor its last token."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(0, CARD, (count, length), generator=draws)
    lengths = torch.randint(3, length + 1, (count, 1), generator=draws)
    places = 1 + (torch.rand(count, generator=draws) * (lengths[:, 0] - 2)).long()
    is_padding = torch.arange(length) >= lengths
    ids[::2].scatter_(1, places[::2, None], CARD)
    return torch.where(is_padding, PAD, ids), is_padding


def planted_words(model):
    """Channel 0 of its embedding answers to CARD alone, but for PAD, to which it answers more."""
    with torch.no_grad():
        model.words.weight[:, 0] = 0.0
        model.words.weight[CARD, 0] = 5.0
        model.words.weight[PAD, 0] = 9.0
    return model


class Attending(nn.Module):
    """The network of padded tokens, told what is no padding, as transformers are, and given a type for each token."""

    def __init__(self):
        super().__init__()
        self.body = specimen("padded_tokens").model
        self.types = nn.Embedding(2, 3)

    @property
    def words(self):
        return self.body.words

    def forward(self, attention_mask, ids, token_types):
        return self.body(ids, attention_mask == 0) + self.types(token_types).mean(dim=1)


class Convolving(nn.Module):
    """A convolution over three tokens and the greatest answer of each channel; there are as many channels as tokens."""

    def __init__(self, padding, padding_idx=None):
        super().__init__()
        self.words = nn.Embedding(len(WORDS), 8, padding_idx=padding_idx)
        self.layer = nn.Conv1d(8, 8, 3, padding=padding)
        self.head = nn.Linear(8, 3)
        nn.init.constant_(self.layer.weight, 0.1)
        with torch.no_grad():
            self.layer.weight[0] = 0.0
            self.layer.weight[0, 0, 1] = 1.0
            self.layer.bias.zero_()

    def forward(self, ids):
        return self.head(self.layer(self.words(ids).transpose(1, 2)).amax(dim=2))


def marked(sight, index):
    (channel,) = (channel for channel in sight.channels if channel.index == index)
    return [crop.words[crop.marked] for crop in channel.crops]


def all_words(album):
    return {
        word for sight in album.sights for channel in sight.channels for crop in channel.crops for word in crop.words
    }


def text_album(net, *inputs):
    return album_of(net, TensorSamples(inputs, torch.arange(len(inputs[0])) % 3, words=WORDS))


def told_masks():
    ids, is_padding = texts()
    types = (torch.arange(6) % 2).expand_as(ids).contiguous()
    return {
        "of padding": (planted_words(specimen("padded_tokens").model), (ids, is_padding)),
        "of tokens": (planted_words(Attending()), ((~is_padding).long(), ids, types)),
        "declared": (planted_words(Convolving(1, padding_idx=PAD)), (ids,)),
        "seen in the texts": (planted_words(Convolving(1)), (ids,)),
    }


@pytest.mark.parametrize("mask", ["of padding", "of tokens", "declared", "seen in the texts"])
def test_a_channel_that_answers_to_one_token_shows_that_token_and_never_padding(mask):
    net, inputs = told_masks()[mask]

    album = text_album(net, *inputs)

    assert {sight.kind for sight in album.sights} == {"text"}
    assert marked(album.sights[0], 0) == ["card"] * 4
    assert "[PAD]" not in all_words(album)


def test_each_token_is_shown_among_its_neighbours_in_a_text_of_its_own():
    ids, is_padding = texts()
    net = planted_words(specimen("padded_tokens").model)

    sight = text_album(net, ids, is_padding).sights[0]

    crops = next(channel.crops for channel in sight.channels if channel.index == 0)
    assert len({crop.sample for crop in crops}) == 4
    for crop in crops:
        text = [WORDS[token] for token in ids[crop.sample].tolist() if token != PAD]
        place = text.index("card")
        assert crop.words == tuple(text[max(0, place - 3) : place + 4])
        assert (crop.start, crop.marked) == (max(0, place - 3), min(3, place))
        assert crop.label == ("cat", "dog", "cow")[crop.sample % 3]


@pytest.mark.parametrize("padding", [0, 1])
def test_the_token_of_a_convolution_is_the_middle_one_of_the_three_that_it_sees(padding):
    ids, _ = texts(length=8)
    ids = nn.functional.pad(ids, (0, 4), value=PAD)
    net = planted_words(Convolving(padding))

    first, second = text_album(net, ids).sights[:2]

    assert (first.side, second.side) == (1, 3)
    assert marked(second, 0) == ["card"] * 4


def test_attention_sees_more_than_its_own_token():
    ids, is_padding = texts()
    net = specimen("padded_tokens").model

    sights = text_album(net, ids, is_padding).sights

    assert sights[0].side == 1
    assert sights[-1].side > 1
    assert {sight.whole for sight in sights} == {(6,)}


def test_tokens_without_words_are_shown_as_their_numbers():
    ids, is_padding = texts()
    net = planted_words(specimen("padded_tokens").model)

    album = album_of(net, TensorSamples((ids, is_padding), torch.arange(24) % 3))

    assert marked(album.sights[0], 0) == [str(CARD)] * 4


def test_samples_that_offer_no_words_are_shown_as_numbers():
    class Plain:
        """What `Samples` asks for and nothing more."""

        def __init__(self, samples):
            self.read, self.labels, self.digests = samples.read, samples.labels, samples.digests

        def __len__(self):
            return len(self.labels)

    ids, is_padding = texts()
    net = planted_words(specimen("padded_tokens").model)
    samples = TensorSamples((ids, is_padding), torch.arange(24) % 3, words=WORDS)
    found = score(outputs_of(net, samples), samples.labels)

    album = see(
        net, trace(net, (ids[:4], is_padding[:4])), Plain(samples), test=samples, score=found, classes=("a", "b", "c")
    )

    assert marked(album.sights[0], 0) == [str(CARD)] * 4


def test_a_word_of_any_length_leaves_room_for_others():
    ids, is_padding = texts()
    net = planted_words(specimen("padded_tokens").model)
    samples = TensorSamples((ids, is_padding), torch.arange(24) % 3, words=lambda token: "ha" * 1000)

    words = all_words(album_of(net, samples))

    assert words == {"ha" * 19 + "h…"}


def test_looking_at_texts_leaves_the_network_as_it_was():
    ids, is_padding = texts()
    net = specimen("padded_tokens").model.train()
    before = snapshot(net)

    text_album(net, ids, is_padding)

    assert snapshot(net) == before
    assert all(parameter.grad is None for parameter in net.parameters())


# --- sounds -----------------------------------------------------------------------------------

PITCHES = (0.06, 0.17, 0.31)
"""Cycles in one value."""


def sounds(count=24, length=1000, burst=150):
    """Quiet noise with a burst of the class's tone somewhere, and where it begins."""
    draws = torch.Generator().manual_seed(0)
    x = 0.05 * torch.randn(count, length, generator=draws)
    starts = torch.randint(0, length - burst, (count,), generator=draws)
    for row, start in enumerate(starts.tolist()):
        x[row, start : start + burst] += torch.sin(2 * torch.pi * PITCHES[row % 3] * torch.arange(burst))
    return x, starts


class Hearing(nn.Module):
    """Channel k of each stage answers to the tone of class k."""

    def __init__(self, is_flat):
        super().__init__()
        self.is_flat = is_flat
        self.first = nn.Conv1d(1, 3, 60, stride=5, bias=False)
        self.second = nn.Conv1d(3, 3, 9, stride=2, bias=False)
        self.pooled, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        phases = 2 * torch.pi * torch.tensor(PITCHES)[:, None] * torch.arange(60)
        with torch.no_grad():
            self.first.weight[:, 0] = torch.cos(phases)
            self.second.weight[:] = torch.eye(3)[:, :, None] / 9

    def forward(self, x):
        x = self.first(x[:, None] if self.is_flat else x).abs()
        return self.head(self.pooled(self.second(x).amax(dim=2)))


def hearings(is_flat):
    x, starts = sounds()
    return album_of(Hearing(is_flat), TensorSamples(x if is_flat else x[:, None], torch.arange(24) % 3)), starts


@pytest.mark.parametrize("is_flat", [True, False])
def test_a_channel_that_answers_to_a_tone_shows_the_stretch_with_that_tone(is_flat):
    album, starts = hearings(is_flat)

    for sight in album.sights[:2]:
        assert (sight.kind, sight.whole) == ("sound", (1000,))
        assert {channel.index for channel in sight.channels} == {0, 1, 2}
        for channel in sight.channels:
            assert len({crop.sample for crop in channel.crops}) == 4
            for crop in channel.crops:
                assert crop.label == ("cat", "dog", "cow")[channel.index]
                middle = crop.start + sight.side / 2 - int(starts[crop.sample])
                assert 20 < middle < 130


def test_a_stretch_is_drawn_with_its_tone_at_its_height():
    album, _ = hearings(is_flat=True)

    for channel in album.sights[1].channels:
        for crop in channel.crops:
            pixels = pixels_of(crop.image)
            row = pixels.sum(axis=1).argmax()
            assert abs(1 - row / 47 - 2 * PITCHES[channel.index]) < 0.1
            assert pixels[row].min() > 100


def test_a_convolution_hears_its_kernel_and_what_is_pooled_all_of_the_sound():
    album, _ = hearings(is_flat=True)

    sides = [sight.side for sight in album.sights]
    assert 45 <= sides[0] <= 61
    assert sides[0] < sides[1] <= 101
    assert sides[2] == 1000
    assert {crop.start for channel in album.sights[2].channels for crop in channel.crops} == {0}


def test_a_network_that_draws_spectrograms_inside_is_followed_in_time():
    class Framing(nn.Module):
        """Frames of 64 values one below the other, and a convolution over each."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 3, (1, 5), bias=False)
            self.head = nn.Linear(3, 3)
            phases = 2 * torch.pi * torch.tensor(PITCHES)[:, None] * torch.arange(5)
            with torch.no_grad():
                self.layer.weight[:, 0, 0] = torch.cos(phases)

        def forward(self, x):
            return self.head(self.layer(x.unfold(1, 64, 32)[:, None]).abs().amax(dim=(2, 3)))

    x, starts = sounds()

    (sight,) = album_of(Framing(), TensorSamples(x, torch.arange(24) % 3)).sights

    assert 50 <= sight.side <= 65
    for channel in sight.channels:
        for crop in channel.crops:
            assert -64 < crop.start - int(starts[crop.sample]) < 150


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_sound_without_sensible_values_hides_no_other(value):
    x, _ = sounds()
    net = Hearing(is_flat=True)
    graph = trace(net, x[:4])
    x[0] = value
    samples = TensorSamples(x, torch.arange(24) % 3)
    found = score(torch.zeros(24, 3), samples.labels)

    album = see(net, graph, samples, test=samples, score=found, classes=("cat", "dog", "cow"))

    assert len(album.sights) == 3
    assert {len(channel.crops) for channel in album.sights[0].channels} == {4}


# --- what is no picture, sound or text ---------------------------------------------------------


@pytest.mark.parametrize("name", ["chain", "residual", "several_inputs"])
def test_what_cannot_be_looked_at_gives_an_empty_album(name):
    one = specimen(name)
    outputs = torch.zeros(4, 2)
    samples = TensorSamples(tuple(tensor[:4] for tensor in one.inputs), torch.arange(4) % 2)
    graph = trace(one.model, one.example)

    album = see(one.model, graph, samples, test=samples, score=score(outputs, samples.labels), classes=("cat", "dog"))

    assert (album.filters, album.sights, album.mistakes) == ((), (), ())


def test_a_table_of_many_columns_is_no_sound():
    net = nn.Sequential(nn.Linear(500, 4), nn.ReLU(), nn.Linear(4, 3))

    assert album_of(net, tensors_of(12, 500)).sights == ()


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
