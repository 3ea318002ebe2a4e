"""Pictures of every kind that real folders hold, brought to one size and read in batches."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frostline import fingerprint
from frostline.pictures import UNREADABLE, Finish, Pictures, decode, looks_whole, normalised, quiet_pillow
from frostline.records import Preprocessing

quick = settings(max_examples=20, deadline=None)
SMALL = Preprocessing(image_size=8, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(content, preprocessing=SMALL):
    with quiet_pillow():
        return decode(content, preprocessing)


def pixel(content):
    """The one colour of a picture of one colour."""
    colours = {tuple(colour) for colour in decoded(content).reshape(-1, 3).tolist()}
    assert len(colours) == 1, colours
    return colours.pop()


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- laws of one picture ----------------------------------------------------------------------


@quick
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV"]),
)
def test_any_size_and_mode_becomes_one_square(width, height, mode):
    picture = Image.new(mode, (width, height))
    content = (
        saved(picture, "TIFF" if mode not in ("P", "HSV") else "PNG")
        if mode != "HSV"
        else saved(picture.convert("RGB"))
    )

    square = decoded(content)

    assert (square.shape, square.dtype) == ((8, 8, 3), np.uint8)


@quick
@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(1, 30), st.integers(1, 30))
def test_one_colour_stays_that_colour(colour, width, height):
    assert pixel(saved(Image.new("RGB", (width, height), colour))) == colour


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(20, 20), (31, 20), (20, 31), (13, 8), (8, 13)])
def test_exif_orientation_is_undone(orientation, size):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    upright = noise(*size)
    turned = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert (decoded(saved(turned, exif=exif)) == decoded(saved(upright))).all()


# --- what real folders hold -------------------------------------------------------------------


def test_grey_and_one_bit():
    assert pixel(saved(Image.new("L", (20, 10), 77))) == (77, 77, 77)
    assert pixel(saved(Image.new("1", (20, 10), 1))) == (255, 255, 255)


def test_one_bit_is_smoothed_and_not_picked():
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")

    assert abs(int(decoded(saved(checks)).mean()) - 127) < 4


def test_transparency_is_white():
    assert pixel(saved(Image.new("RGBA", (9, 9), (255, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(saved(Image.new("LA", (9, 9), (0, 128)))) == (127, 127, 127)


def test_palette_with_transparency_is_white():
    picture = Image.new("P", (9, 9), 1)
    picture.putpalette([0, 0, 0, 200, 10, 10])

    assert pixel(saved(picture)) == (200, 10, 10)
    assert pixel(saved(picture, transparency=1)) == (255, 255, 255)
    assert pixel(saved(picture, transparency=bytes([255, 0]))) == (255, 255, 255)


def test_cmyk_jpeg():
    red, green, blue = pixel(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))

    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind):
    content = saved(Image.fromarray(np.full((9, 9), 0x8000, dtype=np.uint16)), kind)

    assert pixel(content) == (128, 128, 128)


@pytest.mark.parametrize(
    ("dtype", "value", "shade"),
    [
        ("int32", 200, 200),
        ("int32", 65535, 255),
        ("float32", 0.5, 128),
        ("float32", 200.0, 200),
        ("float32", np.nan, 0),
    ],
)
def test_numbers_of_32_bits_are_scaled_by_what_holds_them(dtype, value, shade):
    assert pixel(saved(Image.fromarray(np.full((9, 9), value, dtype=dtype)), "TIFF")) == (shade, shade, shade)


def test_negative_numbers_are_spread_over_the_range():
    ramp = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), (64, 1))

    square = decoded(saved(Image.fromarray(ramp), "TIFF"))

    assert square.min() < 20
    assert square.max() > 235


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (12, 12), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]

    red, green, blue = pixel(saved(frames[0], kind, save_all=True, append_images=frames[1:]))

    assert red > 240
    assert max(green, blue) < 15


def test_middle_square_keeps_the_whole_short_side():
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 255

    # The filter reaches a little over the edge of the square.
    assert decoded(saved(Image.fromarray(wide)))[:, 1:-1].min() == 255
    assert decoded(saved(Image.fromarray(wide[:, :50]))).min() == 0


def test_huge_jpeg_is_decoded_at_a_fraction(monkeypatch):
    content, resize, sizes = saved(Image.new("RGB", (9000, 6000), (200, 100, 50)), "JPEG"), Image.Image.resize, []

    def watched(picture, *args, **more):
        sizes.append(picture.size)
        return resize(picture, *args, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    colour = pixel(content)

    assert sizes == [(1125, 750)]
    assert max(abs(a - b) for a, b in zip(colour, (200, 100, 50), strict=True)) < 4


def test_small_decode_of_a_jpeg_is_near_to_the_whole():
    picture = noise(40, 40).resize((800, 600), Image.Resampling.BICUBIC)
    preprocessing = SMALL.model_copy(update={"image_size": 96})

    rough = decoded(saved(picture, "JPEG", quality=95), preprocessing).astype(int)
    exact = decoded(saved(picture), preprocessing).astype(int)

    assert abs(rough - exact).mean() < 3


def test_broken_exif_is_no_reason_to_refuse():
    assert pixel(saved(Image.new("RGB", (9, 9), (1, 2, 3)), exif=b"Exif\0\0garbage")) == (1, 2, 3)


@pytest.mark.parametrize("size", [(12, 8), (8, 14), (8, 8), (13, 8), (8, 11)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_square_that_needs_no_resize_is_cut_out_on_whole_pixels(size, interpolation):
    preprocessing = SMALL.model_copy(update={"interpolation": interpolation})
    picture = noise(*size)
    left, top = (size[0] - 8) // 2, (size[1] - 8) // 2

    cut = decoded(saved(picture), preprocessing)

    assert (cut == np.asarray(picture)[top : top + 8, left : left + 8]).all()


# --- what cannot be read ----------------------------------------------------------------------


def halves():
    whole = {kind: saved(noise(64, 64), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}
    return [pytest.param(content[: len(content) // 2], id=kind) for kind, content in whole.items()]


@pytest.mark.parametrize("content", [*halves(), b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_damaged_picture_is_refused(content):
    with pytest.raises(UNREADABLE):
        decoded(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_whole_pictures_look_whole_and_cut_ones_do_not(kind):
    content = saved(noise(64, 64), kind)

    assert looks_whole(content)
    assert not any(looks_whole(content[:length]) for length in range(0, len(content), 97))


def test_jpeg_that_was_filled_up_looks_whole():
    assert looks_whole(saved(noise(9, 9), "JPEG") + bytes(40))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_what_cannot_be_told_without_decoding_does_not_look_whole(kind):
    assert not looks_whole(saved(noise(64, 64), kind))


def test_a_png_of_too_many_pixels_does_not_look_whole():
    assert not looks_whole(saved(Image.new("1", (30_000, 10_000))))


def test_truncated_jpeg_is_refused_in_reduced_decoding_too():
    content = saved(noise(600, 600), "JPEG")

    with pytest.raises(OSError, match="truncated"):
        decoded(content[: int(len(content) * 0.9)])


def test_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    content = saved(Image.new("1", (30_000, 10_000)))

    with pytest.raises(Image.DecompressionBombError, match="300000000 pixels"):
        decoded(content)


# --- batches ----------------------------------------------------------------------------------


def contents(number=6):
    return [saved(noise(12, 9, seed)) for seed in range(number)]


def part_of(number=6):
    files = contents(number)
    return Pictures(
        np.stack([decoded(file) for file in files]),
        range(number),
        torch.arange(number),
        names=tuple(f"{row}.png" for row in range(number)),
        digests=tuple(fingerprint.of_bytes(file) for file in files),
        preprocessing=SMALL,
    )


def test_inputs_are_normalised_and_channels_last():
    part = part_of()

    (inputs,) = part.read([4, 1])

    expected = (
        torch.tensor(decoded(contents()[4])).permute(2, 0, 1) / 255 - torch.tensor(SMALL.mean).view(3, 1, 1)
    ) / (torch.tensor(SMALL.std).view(3, 1, 1))
    assert torch.allclose(inputs[0], expected, atol=1e-5)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 3))
def test_row_does_not_depend_on_its_batch(rows, view):
    part = part_of()

    (together,) = part.read(rows, view)

    assert all(torch.equal(together[place], part.read([row], view)[0][0]) for place, row in enumerate(rows))


def test_what_is_read_is_a_copy():
    part = part_of()
    part.read([0])[0].zero_()

    assert part.read([0])[0].abs().sum() > 0


def test_views_differ_and_are_repeatable():
    part = part_of().with_views(3)

    views = [part.read(range(6), view)[0] for view in range(3)]

    assert part.views == 3
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    assert torch.equal(views[2], part.read(range(6), 2)[0])


def test_views_keep_left_and_right():
    half = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    half[:, :, 32:] = 255
    part = Pictures(
        half,
        [0],
        torch.tensor([0]),
        names=("a",),
        digests=("d",),
        preprocessing=SMALL.model_copy(update={"image_size": 64}),
    )

    for view in range(1, 20):
        (inputs,) = part.read([0], view)
        assert inputs[..., 40:].mean() > inputs[..., :24].mean()


def test_subset_keeps_rows_together():
    part = part_of()

    few = part.subset([5, 2])

    assert (few.names, few.labels.tolist()) == (("5.png", "2.png"), [5, 2])
    assert few.digests == (part.digests[5], part.digests[2])
    assert torch.equal(few.read([0, 1])[0], part.read([5, 2])[0])


def test_preparation_names_every_setting():
    texts = {
        Pictures(
            np.zeros((1, 8, 8, 3), np.uint8),
            [0],
            torch.tensor([0]),
            names=("a",),
            digests=("d",),
            preprocessing=preprocessing,
        ).preparation
        for preprocessing in (
            SMALL,
            *(
                SMALL.model_copy(update=change)
                for change in (
                    {"image_size": 9},
                    {"mean": (0, 0, 0)},
                    {"std": (1, 1, 1)},
                    {"interpolation": "bilinear"},
                )
            ),
        )
    }

    assert len(texts) == 5


def test_normalised_agrees_with_read():
    part = part_of()
    pixels = np.stack([decoded(file) for file in contents()])

    assert torch.equal(normalised(pixels, SMALL), part.read(range(6))[0])


def test_bytes_that_are_finished_are_the_inputs_bit_for_bit():
    part = part_of()

    finished = Finish(SMALL)(*part.read_bytes([4, 1, 4]))
    (inputs,) = part.read([4, 1, 4])

    assert part.read_bytes([4])[0].dtype == torch.uint8
    assert torch.equal(finished, inputs)
    assert finished.stride() == inputs.stride()


def test_bytes_are_a_copy():
    part = part_of()
    part.read_bytes([0])[0].zero_()

    assert part.read_bytes([0])[0].sum() > 0
