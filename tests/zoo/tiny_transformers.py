"""Small random networks of transformers' families: class, configuration and inputs in one table."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.zoo.calls import Call


class Tiny(NamedTuple):
    """A network: names of the model and configuration class, the configuration, the forward's arguments."""

    model: str
    config: str
    options: dict[str, Any]
    inputs: dict[str, Any]


def _ids(length: int = 12) -> torch.Tensor:
    return torch.arange(5, 5 + length)[None]


_LAYERS: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VIT: dict[str, Any] = {**_LAYERS, "intermediate_size": 128}
_PATCHES: dict[str, Any] = {"image_size": 64, "patch_size": 16, **_VIT}
_TEXT: dict[str, Any] = {"vocab_size": 100, **_VIT}
_GROUPED: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2}
_PYRAMID: dict[str, Any] = {"hidden_sizes": [32, 64, 80, 96], "depths": [1, 1, 1, 1]}
_SHIFTED: dict[str, Any] = {
    "image_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4],
}  # fmt: skip
_BOTH_SIDES: dict[str, Any] = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
}  # fmt: skip
_GPT2: dict[str, Any] = {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4}
_T5: dict[str, Any] = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}

_IMAGE = {"pixel_values": torch.zeros(1, 3, 64, 64)}
_IDS = {"input_ids": _ids()}
_CAUSAL = {**_IDS, "use_cache": False}
_SEQUENCES = {**_IDS, "decoder_input_ids": _ids(6)}
_SIGNAL = {"input_values": torch.zeros(1, 8000)}

TINY: dict[str, Tiny] = {
    "albert": Tiny("AlbertForSequenceClassification", "AlbertConfig", {"embedding_size": 32, **_TEXT}, _IDS),
    "ast": Tiny(
        "ASTForAudioClassification", "ASTConfig", {"max_length": 64, "num_mel_bins": 32, **_VIT},
        {"input_values": torch.zeros(1, 64, 32)},
    ),
    "bart": Tiny(
        "BartForConditionalGeneration", "BartConfig", {"vocab_size": 100, **_BOTH_SIDES},
        {**_SEQUENCES, "use_cache": False},
    ),
    "beit": Tiny("BeitForImageClassification", "BeitConfig", {"use_relative_position_bias": True, **_PATCHES}, _IMAGE),
    "bert": Tiny("BertForSequenceClassification", "BertConfig", _TEXT, _IDS),
    "bert-masked": Tiny("BertForMaskedLM", "BertConfig", _TEXT, _IDS),
    "blip": Tiny(
        "BlipForConditionalGeneration", "BlipConfig",
        {
            "text_config": {
                "encoder_hidden_size": 64, "max_position_embeddings": 20, "bos_token_id": 0, "sep_token_id": 1,
                "pad_token_id": 2, **_TEXT,
            },
            "vision_config": _PATCHES, "projection_dim": 32,
        },
        {**_IMAGE, **_IDS},
    ),
    "bloom": Tiny(
        "BloomForCausalLM", "BloomConfig", {"vocab_size": 100, "hidden_size": 64, "n_layer": 2, "n_head": 4}, _CAUSAL
    ),
    "clip": Tiny(
        "CLIPModel", "CLIPConfig",
        {
            "text_config": {"bos_token_id": 0, "eos_token_id": 99, "max_position_embeddings": 20, **_TEXT},
            "vision_config": _PATCHES, "projection_dim": 32,
        },
        {**_IMAGE, **_IDS},
    ),
    "convnext": Tiny(
        "ConvNextForImageClassification", "ConvNextConfig",
        {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]}, _IMAGE,
    ),
    "cvt": Tiny(
        "CvtForImageClassification", "CvtConfig",
        {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, _IMAGE,
    ),
    "deberta": Tiny("DebertaV2ForSequenceClassification", "DebertaV2Config", _TEXT, _IDS),
    "deit": Tiny("DeiTForImageClassificationWithTeacher", "DeiTConfig", _PATCHES, _IMAGE),
    "detr": Tiny(
        "DetrForObjectDetection", "DetrConfig",
        {
            "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
            "backbone_config": {
                "model_type": "resnet", "embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 1],
                "out_features": ["stage2"],
            },
            "num_queries": 10, **_BOTH_SIDES,
        },
        _IMAGE,
    ),
    "dinov2": Tiny(
        "Dinov2ForImageClassification", "Dinov2Config", {"image_size": 64, "patch_size": 16, **_LAYERS}, _IMAGE
    ),
    "distilbert": Tiny(
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": 100, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, _IDS,
    ),
    "dpt": Tiny(
        "DPTForDepthEstimation", "DPTConfig",
        {
            **_PATCHES, "num_hidden_layers": 4, "neck_hidden_sizes": [16, 32, 48, 64], "fusion_hidden_size": 32,
            "backbone_out_indices": [0, 1, 2, 3],
        },
        _IMAGE,
    ),
    "efficientnet": Tiny(
        "EfficientNetForImageClassification", "EfficientNetConfig",
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 64}, _IMAGE,
    ),
    "electra": Tiny("ElectraForSequenceClassification", "ElectraConfig", {"embedding_size": 32, **_TEXT}, _IDS),
    "falcon": Tiny("FalconForCausalLM", "FalconConfig", {"vocab_size": 100, **_LAYERS}, _CAUSAL),
    "focalnet": Tiny(
        "FocalNetForImageClassification", "FocalNetConfig",
        {"image_size": 64, "embed_dim": 32, "depths": [1, 1, 2, 1]}, _IMAGE,
    ),
    "funnel": Tiny(
        "FunnelForSequenceClassification", "FunnelConfig",
        {"vocab_size": 100, "block_sizes": [1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128}, _IDS,
    ),
    "gemma": Tiny(
        "GemmaForCausalLM", "GemmaConfig", {**_TEXT, "num_key_value_heads": 1, "head_dim": 16}, _CAUSAL
    ),
    "gemma2": Tiny("Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "head_dim": 16}, _CAUSAL),
    "gpt2": Tiny("GPT2LMHeadModel", "GPT2Config", _GPT2, _CAUSAL),
    "gpt2-cache": Tiny("GPT2LMHeadModel", "GPT2Config", _GPT2, _IDS),
    "hubert": Tiny("HubertForSequenceClassification", "HubertConfig", {"conv_dim": [32] * 7, **_TEXT}, _SIGNAL),
    "levit": Tiny(
        "LevitForImageClassification", "LevitConfig",
        {
            "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        _IMAGE,
    ),
    "llama": Tiny("LlamaForCausalLM", "LlamaConfig", _GROUPED, _CAUSAL),
    "llama-cache": Tiny("LlamaForCausalLM", "LlamaConfig", _GROUPED, _IDS),
    "longformer": Tiny(
        "LongformerForSequenceClassification", "LongformerConfig",
        {"attention_window": [8, 8], "max_position_embeddings": 64, **_TEXT}, {"input_ids": _ids(16)},
    ),
    "mamba": Tiny(
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, _CAUSAL,
    ),
    "mistral": Tiny("MistralForCausalLM", "MistralConfig", _GROUPED, _CAUSAL),
    "mixtral": Tiny("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4, **_GROUPED}, _CAUSAL),
    "mobilebert": Tiny(
        "MobileBertForSequenceClassification", "MobileBertConfig",
        {**_TEXT, "intermediate_size": 64, "embedding_size": 32, "intra_bottleneck_size": 32}, _IDS,
    ),
    "mobilenetv2": Tiny("MobileNetV2ForImageClassification", "MobileNetV2Config", {}, _IMAGE),
    "mobilevit": Tiny(
        "MobileViTForImageClassification", "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [16, 32, 32, 48, 64, 80, 160]}, _IMAGE,
    ),
    "neox": Tiny("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, _CAUSAL),
    "opt": Tiny(
        "OPTForCausalLM", "OPTConfig", {"vocab_size": 100, "ffn_dim": 128, "word_embed_proj_dim": 64, **_LAYERS},
        _CAUSAL,
    ),
    "phi": Tiny("PhiForCausalLM", "PhiConfig", _TEXT, _CAUSAL),
    "phi3": Tiny("Phi3ForCausalLM", "Phi3Config", {"pad_token_id": 0, **_GROUPED}, _CAUSAL),
    "poolformer": Tiny("PoolFormerForImageClassification", "PoolFormerConfig", _PYRAMID, _IMAGE),
    "pvt": Tiny(
        "PvtForImageClassification", "PvtConfig",
        {"image_size": 64, "num_attention_heads": [1, 2, 5, 6], **_PYRAMID}, _IMAGE,
    ),
    "qwen2": Tiny("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, _CAUSAL),
    "qwen3": Tiny("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 16}, _CAUSAL),
    "regnet": Tiny(
        "RegNetForImageClassification", "RegNetConfig",
        {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2], "groups_width": 16}, _IMAGE,
    ),
    "resnet": Tiny(
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}, _IMAGE,
    ),
    "roberta": Tiny("RobertaForSequenceClassification", "RobertaConfig", _TEXT, _IDS),
    "segformer": Tiny(
        "SegformerForSemanticSegmentation", "SegformerConfig", {"decoder_hidden_size": 64, **_PYRAMID}, _IMAGE
    ),
    "siglip": Tiny(
        "SiglipModel", "SiglipConfig",
        {"text_config": {"max_position_embeddings": 20, **_TEXT}, "vision_config": _PATCHES}, {**_IMAGE, **_IDS},
    ),
    "swin": Tiny("SwinForImageClassification", "SwinConfig", _SHIFTED, _IMAGE),
    "swinv2": Tiny("Swinv2ForImageClassification", "Swinv2Config", _SHIFTED, _IMAGE),
    "t5": Tiny("T5ForConditionalGeneration", "T5Config", _T5, {**_SEQUENCES, "use_cache": False}),
    "t5-cache": Tiny("T5ForConditionalGeneration", "T5Config", _T5, _SEQUENCES),
    "videomae": Tiny(
        "VideoMAEForVideoClassification", "VideoMAEConfig", {"num_frames": 4, **_PATCHES},
        {"pixel_values": torch.zeros(1, 4, 3, 64, 64)},
    ),
    "vilt": Tiny(
        "ViltModel", "ViltConfig", {**_PATCHES, "max_position_embeddings": 20, **_TEXT},
        {**_IMAGE, **_IDS, "pixel_mask": torch.ones(1, 64, 64, dtype=torch.long)},
    ),
    "vit": Tiny("ViTForImageClassification", "ViTConfig", _PATCHES, _IMAGE),
    "vitmae": Tiny("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0, **_PATCHES}, _IMAGE),
    "wav2vec2": Tiny("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", {"conv_dim": [32] * 7, **_TEXT}, _SIGNAL),
    "whisper": Tiny(
        "WhisperForConditionalGeneration", "WhisperConfig",
        {
            "vocab_size": 100, "num_mel_bins": 16, "max_source_positions": 50, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "decoder_start_token_id": 1, **_BOTH_SIDES,
        },
        {"input_features": torch.zeros(1, 16, 100), "decoder_input_ids": _ids(6), "use_cache": False},
    ),
    "xlnet": Tiny(
        "XLNetForSequenceClassification", "XLNetConfig",
        {"vocab_size": 100, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}, _IDS,
    ),
    "yolos": Tiny(
        "YolosForObjectDetection", "YolosConfig",
        {**_PATCHES, "image_size": [64, 64], "num_detection_tokens": 10}, _IMAGE,
    ),
}  # fmt: skip


def build_tiny(name: str) -> tuple[nn.Module, Call]:
    """A network of the table and its call."""
    import transformers

    tiny = TINY[name]
    # Configurations keep, and change, the dicts and lists that they are given.
    config = getattr(transformers, tiny.config)(**copy.deepcopy(tiny.options))
    return getattr(transformers, tiny.model)(config), Call(kwargs=tiny.inputs)
