"""Samples in the report: what each stage sees, the first layer's filters, confident mistakes, labels in doubt."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from frostline.amounts import share, visible
from frostline.exhibits import Album, Channel, Crop, Mistake, Sight

Row = dict[str, Any]

_KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
"""How the files of the kinds that are shown begin."""

_ROOM_OF_SIGHTS, _ROOM_OF_FILTERS, _ROOM_OF_MISTAKES = 1_200_000, 200_000, 600_000
"""Letters, of base64 or of words, that each part may take, so that the page stays under 8 MB."""


def album_told(album: Album, *, picture_side: int | None) -> Row:
    """Lay out what there is to look at as far as there is room; a picture that is no JPEG or PNG is not shown.

    Args:
        album: The pictures, sounds or texts.
        picture_side: Side of the network's input in pixels, where it is known.

    Returns:
        Texts, and rows of texts, by the names that the template uses.

    Example:
        >>> album_told(Album(), picture_side=224)["mistakes"]
        ()
    """
    mistakes, doubts = (
        [row for mistake in found if (row := _mistake(mistake))["source"]] for found in (album.mistakes, album.doubts)
    )
    filters = [source for image in album.filters if (source := data_uri(image))]
    ranks = _ranks_that_fit(album.sights)
    sights = [row for sight in album.sights if (row := _sight(sight, ranks, picture_side))["channels"]]
    for place in _telling(sights):
        sights[place]["is_open"] = True
    return {
        "filters": _fitting(filters, filters, _ROOM_OF_FILTERS),
        "sights": tuple(sights),
        "mistakes": _fitting(mistakes, [row["source"] for row in mistakes], _ROOM_OF_MISTAKES),
        "doubts": _fitting(doubts, [row["source"] for row in doubts], _ROOM_OF_MISTAKES),
    }


def data_uri(image: str) -> str:
    """Write a picture as an address that holds it, or nothing if it is no JPEG or PNG in base64.

    Args:
        image: A file in base64.

    Returns:
        A `data:` address, or "".

    Example:
        >>> data_uri(base64.b64encode(b"<svg onload='alert(1)'/>").decode())
        ''
    """
    try:
        content = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        return ""
    kind = next((kind for beginning, kind in _KINDS.items() if content.startswith(beginning)), None)
    return f"data:{kind};base64,{image}" if kind else ""


def _telling(sights: Sequence[Row]) -> set[int]:
    """The first stage, the last, and one that sees about a third of what the last does: edges, shapes, wholes."""
    if not sights:
        return set()
    third = sights[-1]["side"] / 3
    return {0, min(range(len(sights)), key=lambda place: abs(sights[place]["side"] - third)), len(sights) - 1}


def _fitting(rows: Sequence[Any], sources: Sequence[str], room: int) -> tuple[Any, ...]:
    kept = []
    for row, source in zip(rows, sources, strict=True):
        room -= len(source)
        if room < 0:
            break
        kept.append(row)
    return tuple(kept)


def _ranks_that_fit(sights: Sequence[Sight]) -> int:
    """How many crops of each channel there is room for, the strongest first."""
    channels = [channel.crops for sight in sights for channel in sight.channels]
    room, ranks = _ROOM_OF_SIGHTS, 0
    while any(len(crops) > ranks for crops in channels):
        shown = [crops[ranks] for crops in channels if len(crops) > ranks]
        room -= sum(len(crop.image) + len("".join(crop.words)) for crop in shown)
        if room < 0:
            break
        ranks += 1
    return ranks


def _sight(sight: Sight, ranks: int, picture_side: int | None) -> Row:
    channels = [_channel(channel, ranks, sight) for channel in sight.channels]
    return {
        "number": sight.stage + 1,
        "name": visible(sight.name),
        "kind": sight.kind,
        "field": _field(sight, picture_side),
        "channels": tuple(channel for channel in channels if channel["crops"]),
        "side": sight.side,
        "is_open": False,
    }


def _field(sight: Sight, picture_side: int | None) -> str:
    """How much of a sample the stage sees at one place, in words."""
    sides = sight.whole or ((picture_side, picture_side) if picture_side else ())
    if sides and sight.side >= max(sides):
        return f"the whole {sight.kind}"
    match sight.kind:
        case "picture":
            height, width = (min(sight.side, side) for side in sides or (sight.side, sight.side))
            return f"{width} × {height} pixels"
        case "sound":
            return f"{sight.side:,} of {max(sides, default=0):,} samples"
        case "text":
            return "one token" if sight.side == 1 else f"{sight.side:,} of {max(sides, default=0):,} tokens"


def _channel(channel: Channel, ranks: int, sight: Sight) -> Row:
    crops = [_crop(crop, sight) for crop in channel.crops[:ranks]]
    return {"index": channel.index, "crops": tuple(crop for crop in crops if crop["source"] or crop["words"])}


def _crop(crop: Crop, sight: Sight) -> Row:
    words = [_word(word) for word in crop.words]
    return {
        "source": data_uri(crop.image),
        "words": tuple({"text": word, "is_marked": place == crop.marked} for place, word in enumerate(words)),
        "marked": words[crop.marked] if 0 <= crop.marked < len(words) else "",
        "said": f"{_said(crop, sight)}, class {visible(crop.label)}",
        "strength": f"{share(crop.strength)} of the channel's strongest answer",
    }


def _said(crop: Crop, sight: Sight) -> str:
    if sight.kind == "sound":
        return f"spectrogram of sound {crop.sample}, samples {crop.start:,} to {crop.start + sight.side - 1:,}"
    return f"{sight.kind} {crop.sample}"


def _word(text: str) -> str:
    """A token in one line, its spaces as signs, since a space stands between two tokens."""
    return visible(text).replace(" ", "␣") or "∅"


def _mistake(mistake: Mistake) -> Row:
    return {
        "source": data_uri(mistake.image),
        "said": f"picture {mistake.sample}, class {visible(mistake.label)}",
        "file": visible(mistake.file),
        "sample": mistake.sample,
        "label": visible(mistake.label),
        "prediction": visible(mistake.prediction),
        "confidence": share(mistake.confidence),
    }
