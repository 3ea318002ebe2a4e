"""A sample of the zoo: `benchmarks/zoo.py` has all families, `docs/zoo.md` their table."""

import pytest
import torch

import frostline as fl
from frostline.testing import CLOSE
from frostline.trees import tensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

LAYERS = 3
WIDTHS = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
WORDS = {**WIDTHS, "vocab_size": 60, "pad_token_id": 0}
PATCHES = {**WIDTHS, "image_size": 32, "patch_size": 8}
WAVES = {
    **WIDTHS,
    "vocab_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
    "mask_time_length": 2,
}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4}
WHISPER = {
    "d_model": 32,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "classifier_proj_size": 16,
}
GPT2 = {"vocab_size": 60, "n_positions": 32, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "pad_token_id": 0}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 64}
MODERN = {**WORDS, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
SPECTROGRAM = {**WIDTHS, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8, "patch_size": 8}


def words(batch):
    ids = torch.randint(5, 60, (batch, 10))
    mask = torch.ones_like(ids)
    mask[1:, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def pixels(batch):
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


ZOO = {
    "BertForSequenceClassification": (WORDS, words, LAYERS + 3),
    "RobertaForSequenceClassification": (WORDS, words, LAYERS + 2),
    "DistilBertForSequenceClassification": (DISTIL, words, LAYERS + 3),
    "ElectraForSequenceClassification": ({**WORDS, "embedding_size": 32}, words, LAYERS + 2),
    "ModernBertForSequenceClassification": (MODERN, words, LAYERS + 3),
    "MPNetForSequenceClassification": (WORDS, words, LAYERS + 2),
    "GPT2ForSequenceClassification": (GPT2, words, LAYERS + 3),
    "LlamaForSequenceClassification": ({**WORDS, "num_key_value_heads": 4}, words, LAYERS + 2),
    "T5EncoderModel": (T5, words, LAYERS + 1),
    "ViTForImageClassification": (PATCHES, pixels, LAYERS + 2),
    "Dinov2ForImageClassification": (PATCHES, pixels, LAYERS + 2),
    "BeitForImageClassification": (
        {**PATCHES, "use_relative_position_bias": True, "vocab_size": 32},
        pixels,
        LAYERS + 2,
    ),
    "Wav2Vec2ForSequenceClassification": (
        WAVES,
        lambda batch: {"input_values": torch.randn(batch, 1500)},
        LAYERS + 5,
    ),
    "WhisperForAudioClassification": (
        WHISPER,
        lambda batch: {"input_features": torch.randn(batch, 8, 40)},
        LAYERS + 4,
    ),
    "ASTForAudioClassification": (
        SPECTROGRAM,
        lambda batch: {"input_values": torch.randn(batch, 32, 16)},
        LAYERS + 2,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_every_block_ends_in_a_cut_that_is_proven(name):
    options, example_of, stages = ZOO[name]
    build = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(build.config_class(**options)).eval()
        example, other = example_of(2), example_of(3)

    graph = fl.trace(model, example)

    assert len(graph.stages) == stages, [stage.name for stage in graph.stages]
    assert graph.open_depths == tuple(range(stages))
    for depth in (1, stages // 2, stages - 1):
        parts = fl.split(model, graph, depth)
        with torch.no_grad():
            found, expected = tensors(parts.live(*parts.frozen(other))), tensors(model(**other))
        assert fl.prove(model, graph, depth, example=example) is None, depth
        for one, same in zip(found, expected, strict=True):
            torch.testing.assert_close(one, same, **CLOSE)
