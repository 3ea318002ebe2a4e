"""A network that a function in the user's own file makes."""

import difflib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from frostline.errors import BadOutput, UnknownModel
from frostline.fingerprint import of_text
from frostline.records import Preprocessing
from frostline.sources.seeded import seeded
from frostline.sources.weights import Fitted

# ImageNet's, from Krizhevsky 2012 on the convention of the field; most networks are pretrained with them.
_USUAL = Preprocessing(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic")


def make(name: str, outputs: int, *, image_size: int | None, seed: int, pretrained: bool) -> Fitted:
    """Call FUNCTION(num_classes) of FILE.py.

    The function runs with fixed random numbers whatever the seed of the run: a later process has to make the
    same network from its name alone.

    Pictures are prepared with ImageNet's mean and deviation at 224 pixels, or as a `pretrained_cfg` says
    where the network carries one, as those of timm do.

    Example:
        >>> text = "from torch import nn\\ndef net(num_classes): return nn.Linear(4, num_classes)"
        >>> _ = (tmp / "mine.py").write_text(text)
        >>> make(f"{tmp}/mine.py:net", 3, image_size=None, seed=0, pretrained=True).model.out_features
        3
    """
    text, _, wanted = name.rpartition(":")
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise UnknownModel(f"UnknownModel: there is no file {str(path)!r}. Give FILE.py:FUNCTION.", name=name)
    module = _run(path)
    function = getattr(module, wanted, None)
    if not callable(function):
        present = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        near = difflib.get_close_matches(wanted, present, n=5, cutoff=0.3) or present
        raise UnknownModel(
            f"UnknownModel: {path.name} has no function {wanted!r}; it has {', '.join(near) or 'none'}. It is called "
            "with the number of classes and returns the network.",
            name=name,
            near=tuple(near),
        )
    with seeded(0):
        model = function(outputs)
    if not isinstance(model, nn.Module):
        raise BadOutput(
            f"BadOutput: {path.name}:{wanted}({outputs}) returned a {type(model).__name__}; it must return a "
            "torch.nn.Module.",
            found=type(model).__name__,
        )
    return Fitted(model, _preprocessing(model), f"{path}:{wanted}")


def _run(path: Path) -> ModuleType:
    # A name of its own for each file, kept in sys.modules because dataclasses and pickle look there.
    name = f"frostline_model_{of_text(str(path))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _preprocessing(model: nn.Module) -> Preprocessing:
    settings = getattr(model, "pretrained_cfg", None)
    if not isinstance(settings, dict) or not {"input_size", "mean", "std"} <= settings.keys():
        return _USUAL
    return Preprocessing(
        image_size=int(settings["input_size"][-1]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation="bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
    )
