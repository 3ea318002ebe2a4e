"""What the evidence shows."""

from typing import get_args

import pytest
from pydantic import ValidationError

from frostline.exhibits import CLAIMS, Album, Channel, Claim, ClaimName, Crop, Mistake, Sight


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
