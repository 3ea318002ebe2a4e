"""Samples are shown as far as there is room, and only what is a picture or a text."""

import base64

import pytest
from exhibited import album_of, picture, sounds_of, texts_of
from hypothesis import given
from hypothesis import strategies as st

from frostline.exhibits import Album, Channel, Crop
from frostline.reporting.album import album_told, data_uri

SVG = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode()


def letters(told):
    crops = [crop["source"] for sight in told["sights"] for channel in sight["channels"] for crop in channel["crops"]]
    differing = [row["source"] for row in (*told["mistakes"], *told["doubts"])]
    return sum(map(len, [*told["filters"], *crops, *differing]))


@given(st.text() | st.binary().map(lambda content: base64.b64encode(content).decode()))
def test_only_a_picture_becomes_an_address(text):
    assert data_uri(text) == "" or base64.b64decode(text, validate=True)[:3] in (b"\xff\xd8\xff", b"\x89PN")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_an_address_of_its_kind(kind):
    image = picture(1, kind=kind)

    assert data_uri(image) == f"data:image/{kind.lower()};base64,{image}"


@pytest.mark.parametrize(
    "image",
    ["", SVG, "javascript:alert(1)", '"><img src=x onerror=alert(1)>', picture(1) + '"', picture(1)[:-1], "猫"],
)
def test_what_is_no_picture_is_not_shown(image):
    told = album_told(album_of(image=image or "-"), picture_side=96)

    assert data_uri(image) == ""
    assert told == {"filters": (), "sights": (), "mistakes": (), "doubts": ()}


def test_the_first_stage_the_last_and_one_that_sees_a_third_stand_open():
    album = album_of(stages=6)
    sides = (3, 10, 16, 34, 90, 96)
    sights = tuple(sight.model_copy(update={"side": side}) for sight, side in zip(album.sights, sides, strict=True))

    told = album_told(album.model_copy(update={"sights": sights}), picture_side=96)["sights"]

    assert [place for place, sight in enumerate(told) if sight["is_open"]] == [0, 3, 5]


@pytest.mark.parametrize(("side", "says"), [(96, "the whole picture"), (None, "96 × 96 pixels")])
def test_a_field_as_large_as_the_picture_is_the_whole_picture(side, says):
    sights = album_told(album_of(), picture_side=side)["sights"]

    assert [sights[0]["field"], sights[-1]["field"]] == ["3 × 3 pixels", says]


def test_a_crop_says_which_picture_and_class_it_is_of():
    crop = album_told(album_of("cat\n"), picture_side=96)["sights"][0]["channels"][0]["crops"][1]

    assert crop["said"] == "picture 1, class cat\\n"
    assert crop["strength"] == ".500 of the channel's strongest answer"


def test_a_mistake_says_class_answer_and_confidence():
    row = album_told(album_of("cat"), picture_side=96)["mistakes"][3]

    assert [row[name] for name in ("label", "prediction", "confidence", "file")] == [
        "cat",
        "not cat",
        ".969",
        "cat/3.png",
    ]


@pytest.mark.parametrize("kilobytes", [1, 30, 400])
def test_pictures_never_take_more_than_their_room(kilobytes):
    image = base64.b64encode(b"\xff\xd8\xff" + bytes(kilobytes * 1000)).decode()

    assert letters(album_told(album_of(image=image, stages=6), picture_side=96)) <= 2_700_000


def test_where_room_is_short_the_strongest_crops_of_every_channel_stay():
    image = base64.b64encode(b"\xff\xd8\xff" + bytes(7000)).decode()

    sights = album_told(album_of(image=image), picture_side=96)["sights"]

    assert {len(channel["crops"]) for sight in sights for channel in sight["channels"]} == {2}


def test_an_empty_album_shows_nothing():
    assert album_told(Album(), picture_side=96) == {"filters": (), "sights": (), "mistakes": (), "doubts": ()}


# --- texts and sounds -------------------------------------------------------------------------


def first_crop(album):
    return album_told(album, picture_side=None)["sights"][0]["channels"][0]["crops"][1]


def test_a_token_is_marked_among_its_neighbours():
    crop = first_crop(texts_of("card"))

    assert [word["text"] for word in crop["words"] if word["is_marked"]] == ["card"]
    assert [word["text"] for word in crop["words"]][:4] == ["how", "do", "I", "card"]
    assert (crop["marked"], crop["said"]) == ("card", "text 1, class lost card")


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("##ing", "##ing"),
        ("Ġthe", "Ġthe"),
        ("▁of", "▁of"),
        ("[CLS]", "[CLS]"),
        (" the", "␣the"),
        ("  ", "␣␣"),
        ("", "∅"),
        ("\n", "\\n"),
        ("\t", "\\t"),
        ("\u202e", "\\u202e"),
        ("\x00", "\\x00"),
        ("\ud800", "\\ud800"),
        ("猫", "猫"),
    ],
)
def test_a_token_is_shown_as_given_and_what_would_not_be_seen_as_a_sign(word, shown):
    assert first_crop(texts_of(word))["marked"] == shown


@pytest.mark.parametrize("place", [-1, 7, 1000])
def test_a_mark_outside_the_words_marks_nothing(place):
    album = texts_of()
    crop = album.sights[0].channels[0].crops[0].model_copy(update={"marked": place})
    channel = album.sights[0].channels[0].model_copy(update={"crops": (crop, crop)})
    sight = album.sights[0].model_copy(update={"channels": (channel,)})

    told = first_crop(Album(sights=(sight,)))

    assert told["marked"] == ""
    assert not any(word["is_marked"] for word in told["words"])


def test_a_stage_says_how_many_tokens_it_sees():
    sights = album_told(texts_of(), picture_side=None)["sights"]

    assert [sight["field"] for sight in sights] == ["one token", "3 of 12 tokens", "the whole text"]


def test_a_stage_says_how_many_samples_of_a_sound_it_sees():
    sights = album_told(sounds_of(), picture_side=None)["sights"]

    assert [sight["field"] for sight in sights] == ["80 of 8,000 samples", "2,500 of 8,000 samples", "the whole sound"]


def test_a_stretch_says_where_in_which_sound_it_is():
    crop = first_crop(sounds_of())

    assert crop["said"] == "spectrogram of sound 1, samples 1,000 to 1,079, class seven"
    assert crop["source"].startswith("data:image/jpeg")


def test_a_sight_without_picture_and_words_is_not_shown():
    crops = tuple(Crop(sample=row, label="cat") for row in range(4))
    sight = texts_of().sights[0].model_copy(update={"channels": (Channel(index=0, crops=crops),)})

    assert album_told(Album(sights=(sight,)), picture_side=None)["sights"] == ()


@pytest.mark.parametrize(
    ("side", "whole", "says"),
    [(5, (20, 50), "5 × 5 pixels"), (30, (20, 50), "30 × 20 pixels"), (50, (20, 50), "the whole picture")],
)
def test_a_field_is_no_higher_and_wider_than_the_picture(side, whole, says):
    sight = album_of().sights[0].model_copy(update={"side": side, "whole": whole})

    assert album_told(Album(sights=(sight,)), picture_side=None)["sights"][0]["field"] == says


@pytest.mark.parametrize("letters_of_a_word", [1, 1000, 1_000_000])
def test_words_never_take_more_than_their_room(letters_of_a_word):
    told = album_told(texts_of("猫" * letters_of_a_word), picture_side=None)

    shown = [crop for sight in told["sights"] for channel in sight["channels"] for crop in channel["crops"]]
    assert sum(len(word["text"]) for crop in shown for word in crop["words"]) <= 1_200_000
    assert bool(shown) == (letters_of_a_word < 1_000_000)
