"""What the evidence shows."""

import json
from pathlib import Path
from typing import get_args

import pytest
from exhibited import sounds_of, texts_of
from pydantic import ValidationError

from frostline.exhibits import CLAIMS, Album, Channel, Claim, ClaimName, Crop, Mistake, Sight
from frostline.files import read_record, write_record

FORMATS = sorted((Path(__file__).parent / "data" / "formats").glob("album-*.json"))


def test_every_claim_can_be_named():
    assert get_args(ClaimName) == CLAIMS


def test_a_verdict_outside_the_four_is_refused():
    with pytest.raises(ValidationError, match="verdict"):
        Claim(name="reuse", verdict="perhaps", sentence="")


def test_album_survives_the_disk():
    crop = Crop(sample=3, label="cat", image="AAAA")
    sight = Sight(stage=1, name="layer1", side=11, channels=(Channel(index=4, crops=(crop,)),))
    mistake = Mistake(sample=2, file="", label="cat", prediction="dog", confidence=0.9, image="AAAA")
    album = Album(filters=("AAAA",), sights=(sight,), mistakes=(mistake,))

    assert Album.model_validate_json(album.model_dump_json()) == album


@pytest.mark.parametrize("album", [texts_of(), sounds_of()], ids=["texts", "sounds"])
def test_texts_and_sounds_survive_the_disk(album, tmp_path):
    write_record(tmp_path / "album.json", album)

    assert read_record(tmp_path / "album.json", Album) == album


def test_there_is_a_sample_of_every_schema_of_the_album():
    schemas = [json.loads(file.read_text("utf-8"))["schema"] for file in FORMATS]

    assert schemas == list(range(1, Album.version + 1))


def test_an_old_album_equals_the_same_album_of_today():
    old, today = (read_record(file, Album) for file in FORMATS)

    assert old == today
    assert {sight.kind for sight in old.sights} == {"picture"}
