"""Networks of the timm zoo."""

from typing import Any

import timm

from frostline.errors import BadInputSize, UnknownModel
from frostline.records import Preprocessing
from frostline.sources.hub import is_reachable, not_reachable, offline
from frostline.sources.seeded import seeded
from frostline.sources.weights import Fitted


def make(name: str, outputs: int, *, image_size: int | None, seed: int, pretrained: bool) -> Fitted:
    """Make a network by its name in timm, with a new head.

    Example:
        >>> make("timm:test_resnet", 3, image_size=None, seed=0, pretrained=False).preprocessing.image_size
        160
    """
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        near = timm.list_models(f"*{plain}*")[:5] or _near(plain)
        raise UnknownModel(
            f"UnknownModel: timm {timm.__version__} has no network {plain!r}. Near names: {', '.join(near) or 'none'}; "
            "timm.list_models() lists all.",
            name=name,
            near=tuple(near),
        )
    try:
        model = _create(plain, outputs, image_size, seed, pretrained)
    except RuntimeError as error:
        if "pretrained tag" not in str(error).lower():
            raise
        known = timm.list_pretrained(f"{plain.partition('.')[0]}.*")
        raise UnknownModel(
            f"UnknownModel: timm has no weights {plain!r}; it has {', '.join(known) or 'none of this network'}.",
            name=name,
            near=tuple(known),
        ) from error
    return Fitted(model, _preprocessing(plain), name)


def _near(plain: str) -> list[str]:
    import difflib

    return difflib.get_close_matches(plain, timm.list_models(), n=5, cutoff=0.4)


def _create(plain: str, outputs: int, image_size: int | None, seed: int, pretrained: bool) -> Any:
    if not pretrained:
        return _built(plain, outputs, image_size, seed, pretrained=False)
    weights = timm.get_pretrained_cfg(plain)
    if weights is None or not weights.has_weights:
        raise not_reachable(f"timm:{plain}", "timm", "timm has none for this network")
    try:
        with offline():
            return _built(plain, outputs, image_size, seed, pretrained=True)
    except OSError as error:
        hub = "https://huggingface.co" if weights.hf_hub_id else str(weights.url)
        if not is_reachable(hub):
            raise not_reachable(f"timm:{plain}", hub, "no network") from error
    try:
        return _built(plain, outputs, image_size, seed, pretrained=True)
    except OSError as error:
        raise not_reachable(f"timm:{plain}", hub, error) from error


def _built(plain: str, outputs: int, image_size: int | None, seed: int, *, pretrained: bool) -> Any:
    with seeded(seed):
        if image_size is None or not timm.get_pretrained_cfg_value(plain, "fixed_input_size"):
            return timm.create_model(plain, pretrained=pretrained, num_classes=outputs)
        try:
            return timm.create_model(plain, pretrained=pretrained, num_classes=outputs, img_size=image_size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        except (AssertionError, ValueError, RuntimeError) as error:
            if "pretrained" in str(error).lower():
                raise
            own = _own_size(plain)
            raise BadInputSize(
                f"BadInputSize: timm:{plain} cannot be built for pictures of {image_size} x {image_size} ({error}); "
                f"its own size is {own} x {own}. Use --image-size {own}, or a multiple of its patch size.",
                image_size=image_size,
                needed=own,
            ) from error
    with seeded(seed):
        return timm.create_model(plain, pretrained=pretrained, num_classes=outputs)


def _preprocessing(plain: str) -> Preprocessing:
    settings: Any = timm.get_pretrained_cfg(plain) or timm.models.PretrainedCfg()
    return Preprocessing(
        image_size=_own_size(plain),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        interpolation="bilinear" if settings.interpolation == "bilinear" else "bicubic",
    )


def _own_size(plain: str) -> int:
    settings: Any = timm.get_pretrained_cfg(plain) or timm.models.PretrainedCfg()
    return int(settings.input_size[-1])
