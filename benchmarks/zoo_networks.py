"""The networks of the zoo: families of torchvision and timm, small configurations of transformers, and their inputs."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

KINDS = ("torchvision", "timm", "transformers")
SEED = 0
SIZES = (64, 96, 128, 160, 192, 224, 256)
LARGER = (
    *("resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet169", "efficientnet_b3", "efficientnet_v2_s"),
    *("vit_b_16", "swin_s", "swin_v2_t", "convnext_small", "regnet_y_3_2gf", "maxvit_t", "googlenet", "inception_v3"),
    *("mobilenet_v3_large", "mnasnet1_3", "shufflenet_v2_x2_0", "vgg16_bn", "squeezenet1_0"),
)


@dataclass(frozen=True)
class Subject:
    """A row to be made: a member of a family, or its smallest one where `member` is None."""

    kind: str
    family: str
    member: str | None = None
    proofs: int | None = None

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.member or self.family}"


@dataclass(frozen=True)
class Network:
    """A network with random weights, and what makes its inputs for a batch size."""

    name: str
    model: nn.Module
    example: Callable[[int], Any]


def subjects(kinds: Sequence[str]) -> list[Subject]:
    found = []
    if "torchvision" in kinds:
        members = torchvision.models.list_models(module=torchvision.models)
        families: dict[str, list[str]] = {}
        for name in members:
            builder = torchvision.models.get_model_builder(name)
            families.setdefault(builder.__module__.rpartition(".")[2], []).append(name)
        for family, names in families.items():
            smallest = min(names, key=torchvision_parameters)
            found.append(Subject("torchvision", family, smallest))
            found += [Subject("torchvision", family, name, 3) for name in LARGER if name in names and name != smallest]
    if "timm" in kinds:
        found += [Subject("timm", family) for family in timm.list_modules() if timm_members(family)]
    if "transformers" in kinds:
        found += [Subject("transformers", name) for name in ARCHITECTURES]
    return found


def torchvision_parameters(name: str) -> int:
    return torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]


def built(subject: Subject, smallest: Mapping[str, str]) -> Network:
    torch.manual_seed(SEED)
    match subject.kind:
        case "torchvision":
            return torchvision_network(subject.member)
        case "timm":
            return timm_network(smallest[subject.family])
    return transformers_network(subject.family)


def torchvision_network(name: str) -> Network:
    builder = torchvision.models.get_model_builder(name)
    # Their auxiliary heads read, in train mode, what no cut keeps.
    keywords = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = builder(weights=None, **keywords)
    size = getattr(model, "image_size", 224 if name.startswith("maxvit") else None)
    return pictures(name, model, [size] if size else [*SIZES, 299])


def timm_network(name: str) -> Network:
    model = timm.create_model(name)
    card = model.pretrained_cfg
    default = card["input_size"][-1]
    sizes = [default] if card.get("fixed_input_size") else [*(size for size in SIZES if size < default), default]
    return pictures(name, model, sizes, channels=card["input_size"][0])


def pictures(name: str, model: nn.Module, sizes: Sequence[int], *, channels: int = 3) -> Network:
    """The network with pictures of the first size that it takes in both modes."""
    for size in sizes:

        def example(batch: int, size: int = size) -> torch.Tensor:
            return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(SEED + batch))

        try:
            with torch.no_grad():
                model.train()(example(2))
                model.eval()(example(2))
        except Exception:
            if size == sizes[-1]:
                raise
        else:
            break
    return Network(name, model, example)


def smallest_members(families: Sequence[str], file: Path) -> None:
    """Write down the member of each timm family that has the fewest parameters."""
    warnings.simplefilter("ignore")
    known = json.loads(file.read_text()) if file.exists() else {}
    for family in families:
        if family not in known:
            counts = {name: timm_parameters(name) for name in timm_members(family)}
            known[family] = min(counts, key=lambda name: counts[name])
            write(file, known)


def write(file: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1))
    new.replace(file)


def timm_members(family: str) -> list[str]:
    """The networks of a family, less those that timm made for its own tests."""
    return timm.list_models(module=family, exclude_filters="test_*")


def timm_parameters(name: str) -> float:
    try:
        with weightless():
            model = timm.create_model(name)
    except Exception:
        try:
            model = timm.create_model(name)
        except Exception:
            return float("inf")
    return sum(weight.numel() for weight in model.parameters())


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Give every parameter to the device `meta` as it is registered, which saves its memory and its initial values."""
    register = nn.Module.register_parameter

    def register_shape(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        register(module, name, weight)
        if weight is not None:
            module._parameters[name] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)

    nn.Module.register_parameter = register_shape
    try:
        yield
    finally:
        nn.Module.register_parameter = register


# --- transformers -----------------------------------------------------------------------------

VOCABULARY, TOKENS, PIXELS, LABELS = 300, 24, 64, 5


def text(batch: int, config: Any) -> dict[str, torch.Tensor]:
    """Token ids with a padding mask; every second row ends in padding."""
    generator = torch.Generator().manual_seed(SEED + batch)
    ids = torch.randint(10, VOCABULARY, (batch, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, TOKENS - 6 :] = 0
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < VOCABULARY:
        ids[torch.arange(batch), mask.sum(1) - 1] = end
    return {"input_ids": ids.masked_fill(mask == 0, getattr(config, "pad_token_id", None) or 0), "attention_mask": mask}


def ids(batch: int, config: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": text(batch, config)["input_ids"]}


def pixels(batch: int, config: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED + batch)
    return {"pixel_values": torch.randn(batch, 3, PIXELS, PIXELS, generator=generator)}


def waves(batch: int, config: Any) -> dict[str, torch.Tensor]:
    """Waveforms of a quarter of a second; every second one ends in padding."""
    generator = torch.Generator().manual_seed(SEED + batch)
    mask = torch.ones(batch, 4000, dtype=torch.long)
    mask[1::2, 3000:] = 0
    return {"input_values": torch.randn(batch, 4000, generator=generator) * mask, "attention_mask": mask}


def mel(batch: int, config: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED + batch)
    return {"input_features": torch.randn(batch, 20, 200, generator=generator)}


def spectrogram(batch: int, config: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED + batch)
    return {"input_values": torch.randn(batch, 64, 32, generator=generator)}


LAYERS = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
TEXT = {**LAYERS, "vocab_size": VOCABULARY, "num_labels": LABELS}
CAUSAL = {**TEXT, "num_key_value_heads": 2, "head_dim": 12, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}
VISION = {**LAYERS, "image_size": PIXELS, "patch_size": 16, "num_labels": LABELS}
WIDTHS = {"hidden_sizes": [16, 24, 32, 48], "depths": [2, 2, 2, 2], "num_labels": LABELS}
WINDOWS = {
    "image_size": PIXELS,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [2, 2, 2, 2],
    "num_heads": [2, 2, 4, 4],
    "window_size": 4,
    "num_labels": LABELS,
}
WAVE = {
    **LAYERS,
    "num_labels": LABELS,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
DECODER = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96}
ENCODER = {"d_model": 48, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}

# By name: the class of the model, its configuration and its inputs.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], Callable[[int, Any], dict[str, torch.Tensor]]]] = {
    "ALBERT": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}, text),
    "BART": ("BartForSequenceClassification", {**ENCODER, **DECODER, "vocab_size": 300, "num_labels": LABELS}, text),
    "BERT": ("BertForSequenceClassification", TEXT, text),
    "BigBird": ("BigBirdForSequenceClassification", {**TEXT, "attention_type": "original_full"}, text),
    "BLOOM": (
        "BloomForSequenceClassification",
        {"hidden_size": 48, "n_layer": 4, "n_head": 4, "vocab_size": 300, "pad_token_id": 3, "num_labels": LABELS},
        text,
    ),
    "CamemBERT": ("CamembertForSequenceClassification", TEXT, text),
    "CLIP text": ("CLIPTextModelWithProjection", {**TEXT, "projection_dim": 24, "eos_token_id": 2}, text),
    "ConvBERT": ("ConvBertForSequenceClassification", {**TEXT, "embedding_size": 16}, text),
    "Data2Vec text": ("Data2VecTextForSequenceClassification", TEXT, text),
    "DeBERTa": ("DebertaForSequenceClassification", {**TEXT, "pos_att_type": ["c2p", "p2c"]}, text),
    "DeBERTa-v2": (
        "DebertaV2ForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"},
        text,
    ),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        {"dim": 48, "hidden_dim": 96, "n_layers": 4, "n_heads": 4, "vocab_size": 300, "num_labels": LABELS},
        text,
    ),
    "ELECTRA": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 16}, text),
    "ERNIE": ("ErnieForSequenceClassification", TEXT, text),
    "ESM": ("EsmForSequenceClassification", {**TEXT, "pad_token_id": 1, "mask_token_id": 4}, text),
    "Falcon": ("FalconForSequenceClassification", {**TEXT, "new_decoder_architecture": False, "pad_token_id": 0}, text),
    "FNet": ("FNetForSequenceClassification", TEXT, ids),
    "Funnel": (
        "FunnelForSequenceClassification",
        {"block_sizes": [2, 2], "d_model": 48, "n_head": 4, "d_head": 12, "d_inner": 96, "vocab_size": 300},
        text,
    ),
    "Gemma": ("GemmaForSequenceClassification", CAUSAL, text),
    "GPT-2": (
        "GPT2ForSequenceClassification",
        {"n_embd": 48, "n_layer": 4, "n_head": 4, "vocab_size": 300, "pad_token_id": 0, "num_labels": LABELS},
        text,
    ),
    "GPT-J": (
        "GPTJForSequenceClassification",
        {"n_embd": 48, "n_layer": 4, "n_head": 4, "rotary_dim": 8, "vocab_size": 300, "pad_token_id": 0},
        text,
    ),
    "GPT-Neo": (
        "GPTNeoForSequenceClassification",
        {
            "hidden_size": 48,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "vocab_size": 300,
            "window_size": 8,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
        text,
    ),
    "GPT-NeoX": ("GPTNeoXForSequenceClassification", {**TEXT, "pad_token_id": 0}, text),
    "Llama": ("LlamaForSequenceClassification", CAUSAL, text),
    "Longformer": ("LongformerForSequenceClassification", {**TEXT, "attention_window": [8] * 4}, text),
    "Mamba": ("MambaModel", {"hidden_size": 48, "num_hidden_layers": 4, "state_size": 8, "vocab_size": 300}, ids),
    "Mistral": ("MistralForSequenceClassification", CAUSAL, text),
    "MobileBERT": (
        "MobileBertForSequenceClassification",
        {**TEXT, "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
        text,
    ),
    "ModernBERT": (
        "ModernBertForSequenceClassification",
        {**TEXT, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
        text,
    ),
    "MPNet": ("MPNetForSequenceClassification", TEXT, text),
    "OPT": (
        "OPTForSequenceClassification",
        {**LAYERS, "ffn_dim": 96, "word_embed_proj_dim": 48, "vocab_size": 300, "pad_token_id": 1},
        text,
    ),
    "Phi": ("PhiForSequenceClassification", {**TEXT, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}, text),
    "Qwen2": ("Qwen2ForSequenceClassification", CAUSAL, text),
    "Qwen3": ("Qwen3ForSequenceClassification", CAUSAL, text),
    "RemBERT": (
        "RemBertForSequenceClassification",
        {**TEXT, "input_embedding_size": 16, "output_embedding_size": 16},
        text,
    ),
    "RoBERTa": ("RobertaForSequenceClassification", TEXT, text),
    "RoFormer": ("RoFormerForSequenceClassification", TEXT, text),
    "SigLIP text": ("SiglipTextModel", {**TEXT, "projection_size": 24, "eos_token_id": 2}, text),
    "SqueezeBERT": ("SqueezeBertForSequenceClassification", {**TEXT, "embedding_size": 48}, text),
    "T5 encoder": (
        "T5EncoderModel",
        {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 4, "num_heads": 4, "vocab_size": 300},
        text,
    ),
    "XLM-R": ("XLMRobertaForSequenceClassification", TEXT, text),
    "XLNet": (
        "XLNetForSequenceClassification",
        {"d_model": 48, "n_layer": 4, "n_head": 4, "d_inner": 96, "vocab_size": 300, "num_labels": LABELS},
        text,
    ),
    "BEiT": ("BeitForImageClassification", {**VISION, "use_relative_position_bias": True}, pixels),
    "CLIP vision": ("CLIPForImageClassification", {"vision_config": VISION, "num_labels": LABELS}, pixels),
    "ConvNeXt": ("ConvNextForImageClassification", WIDTHS, pixels),
    "ConvNeXt V2": ("ConvNextV2ForImageClassification", WIDTHS, pixels),
    "CvT": (
        "CvtForImageClassification",
        {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
        pixels,
    ),
    "Data2Vec vision": ("Data2VecVisionForImageClassification", VISION, pixels),
    "DeiT": ("DeiTForImageClassification", VISION, pixels),
    "DINOv2": ("Dinov2ForImageClassification", VISION, pixels),
    "DINOv2 with registers": ("Dinov2WithRegistersForImageClassification", VISION, pixels),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 640, "num_labels": LABELS},
        pixels,
    ),
    "FocalNet": (
        "FocalNetForImageClassification",
        {"image_size": 64, "embed_dim": 16, "depths": [2, 2, 2, 2], "focal_levels": [2, 2, 2, 2]},
        pixels,
    ),
    "MobileNetV1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.5, "num_labels": LABELS}, pixels),
    "MobileNetV2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.5, "num_labels": LABELS}, pixels),
    "MobileViT": (
        "MobileViTForImageClassification",
        {"hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96], "image_size": PIXELS},
        pixels,
    ),
    "MobileViTV2": ("MobileViTV2ForImageClassification", {"width_multiplier": 0.5, "image_size": PIXELS}, pixels),
    "PoolFormer": ("PoolFormerForImageClassification", WIDTHS, pixels),
    "PVT": (
        "PvtForImageClassification",
        {**WIDTHS, "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 4, 4], "image_size": PIXELS},
        pixels,
    ),
    "PVTv2": (
        "PvtV2ForImageClassification",
        {**WIDTHS, "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 4, 4], "image_size": PIXELS},
        pixels,
    ),
    "RegNet": ("RegNetForImageClassification", {**WIDTHS, "embedding_size": 16, "groups_width": 8}, pixels),
    "ResNet": ("ResNetForImageClassification", {**WIDTHS, "embedding_size": 16, "layer_type": "basic"}, pixels),
    "SegFormer": (
        "SegformerForImageClassification",
        {**WIDTHS, "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 4, 4]},
        pixels,
    ),
    "SigLIP": ("SiglipForImageClassification", {"vision_config": VISION, "num_labels": LABELS}, pixels),
    "Swin": ("SwinForImageClassification", WINDOWS, pixels),
    "Swin V2": ("Swinv2ForImageClassification", WINDOWS, pixels),
    "ViT": ("ViTForImageClassification", VISION, pixels),
    "ViT-MSN": ("ViTMSNForImageClassification", VISION, pixels),
    "AST": (
        "ASTForAudioClassification",
        {**LAYERS, "patch_size": 16, "max_length": 64, "num_mel_bins": 32, "num_labels": LABELS},
        spectrogram,
    ),
    "Data2Vec audio": (
        "Data2VecAudioForSequenceClassification",
        {**WAVE, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2},
        waves,
    ),
    "HuBERT": ("HubertForSequenceClassification", WAVE, waves),
    "SEW": ("SEWForSequenceClassification", WAVE, waves),
    "UniSpeech": ("UniSpeechForSequenceClassification", WAVE, waves),
    "wav2vec 2.0": ("Wav2Vec2ForSequenceClassification", WAVE, waves),
    "wav2vec 2.0 with layer norm": (
        "Wav2Vec2ForSequenceClassification",
        {**WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        waves,
    ),
    "WavLM": ("WavLMForSequenceClassification", {**WAVE, "num_buckets": 32, "max_bucket_distance": 80}, waves),
    "Whisper encoder": (
        "WhisperForAudioClassification",
        {**ENCODER, **DECODER, "num_mel_bins": 20, "max_source_positions": 100, "classifier_proj_size": 16},
        mel,
    ),
}


def transformers_network(name: str) -> Network:
    import transformers

    transformers.logging.set_verbosity_error()
    class_name, keywords, inputs = ARCHITECTURES[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**keywords)
    return Network(name, model_class(config).eval(), lambda batch: inputs(batch, config))
