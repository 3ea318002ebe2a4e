"""Networks of torchvision."""

import difflib
from typing import Any

import torch
import torchvision

from frostline.errors import BadInputSize, UnknownModel
from frostline.records import Preprocessing
from frostline.sources.hub import not_reachable
from frostline.sources.seeded import seeded
from frostline.sources.weights import Fitted, fit_weights

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(name: str, outputs: int, *, image_size: int | None, seed: int, pretrained: bool) -> Fitted:
    """Make a network by its name in torchvision, with a new head.

    Example:
        >>> make("torchvision:resnet18", 3, image_size=None, seed=0, pretrained=False).preprocessing.image_size
        224
    """
    plain = name.removeprefix("torchvision:")
    known = torchvision.models.list_models(module=torchvision.models)
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=5, cutoff=0.4)
        raise UnknownModel(
            f"UnknownModel: torchvision {torchvision.__version__} has no classifier {plain!r}. Near names: "
            f"{', '.join(near) or 'none'}; torchvision.models.list_models() lists all.",
            name=name,
            near=tuple(near),
        )
    weights = _best(plain)
    preprocessing = _preprocessing(weights)
    model = _built(plain, outputs, image_size, seed, own=preprocessing.image_size)
    notes: tuple[str, ...] = ()
    if pretrained:
        if weights is None:
            raise not_reachable(name, "torchvision", "torchvision has none for this network")
        try:
            state = dict(weights.get_state_dict(progress=False, check_hash=True))
        except OSError as error:
            raise not_reachable(name, "https://download.pytorch.org", error) from error
        notes = fit_weights(model, _suited(model, state), outputs, where=str(weights))
    return Fitted(model, preprocessing, name, notes)


def _best(plain: str) -> Any:
    return getattr(torchvision.models.get_model_weights(plain), "DEFAULT", None)


def _preprocessing(weights: Any) -> Preprocessing:
    if weights is None:
        return Preprocessing(image_size=224, mean=_MEAN, std=_STD, interpolation="bilinear")
    settings = weights.transforms()
    return Preprocessing(
        image_size=int(settings.crop_size[0]),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        interpolation="bicubic" if settings.interpolation.value == "bicubic" else "bilinear",
    )


def _built(plain: str, outputs: int, image_size: int | None, seed: int, *, own: int) -> Any:
    settings: dict[str, Any] = {}
    if plain in {"googlenet", "inception_v3"}:
        # The auxiliary heads read in train mode what no store keeps.
        settings = {"aux_logits": False, "init_weights": False, "transform_input": True}
    if plain.startswith("vit_") and image_size is not None:
        settings["image_size"] = image_size
    elif plain == "maxvit_t" and image_size is not None:
        settings["input_size"] = (image_size, image_size)
    try:
        with seeded(seed):
            return torchvision.models.get_model(plain, weights=None, num_classes=outputs, **settings)
    # `torch._assert` in the constructors of networks with a fixed size.
    except (AssertionError, ValueError) as error:
        raise BadInputSize(
            f"BadInputSize: torchvision:{plain} cannot be built for pictures of {image_size} x {image_size} ({error}); "
            f"its own size is {own} x {own}. Use --image-size {own}, or a multiple of its patch size.",
            image_size=image_size,
            needed=own,
        ) from error


def _suited(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave auxiliary heads out, and stretch a vision transformer's positions to the size it was built for."""
    state = {key: tensor for key, tensor in state.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}
    key = "encoder.pos_embedding"
    if key in state and hasattr(model, "image_size") and hasattr(model, "patch_size"):
        from torchvision.models.vision_transformer import interpolate_embeddings

        heads = {name: state[name] for name in state if name.startswith("heads.")}
        rest = {name: state[name] for name in state if name not in heads}
        return {**interpolate_embeddings(model.image_size, model.patch_size, rest), **heads}
    return state
