"""Networks that make images: diffusers and denoising-diffusion-pytorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.libraries.architecture import Architecture, image, made
from tests.zoo.calls import Call

_TIME = torch.tensor([3])
_TEXT = torch.zeros(1, 4, 32)
_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
_CONDITION: dict[str, Any] = {
    **_UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 32,
}
_LATENT = torch.zeros(1, 4, 16, 16)
_DIFFUSERS: dict[str, tuple[dict[str, Any], Call]] = {
    "UNet2DModel": (
        {
            **_UNET,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        Call((torch.zeros(1, 3, 16, 16), _TIME)),
    ),
    "UNet2DConditionModel": (
        {**_CONDITION, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        Call((_LATENT, _TIME, _TEXT)),
    ),
    "ControlNetModel": (
        {
            **{k: v for k, v in _CONDITION.items() if k != "sample_size"},
            "conditioning_embedding_out_channels": (8, 16),
        },
        Call((_LATENT, _TIME, _TEXT, torch.zeros(1, 3, 32, 32))),
    ),
    "AutoencoderKL": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (16, 32),
            "norm_num_groups": 4,
        },
        image(16),
    ),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (16, 16),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        image(16),
    ),
    "VQModel": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (16, 32),
            "norm_num_groups": 4,
            "num_vq_embeddings": 16,
        },
        image(16),
    ),
    "DiTTransformer2DModel": (
        {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "in_channels": 4,
            "num_layers": 2,
            "sample_size": 8,
            "norm_num_groups": 4,
        },
        Call((), {"hidden_states": torch.zeros(1, 4, 8, 8), "timestep": _TIME, "class_labels": torch.tensor([2])}),
    ),
    "PixArtTransformer2DModel": (
        {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "in_channels": 4,
            "num_layers": 2,
            "sample_size": 8,
            "cross_attention_dim": 32,
            "caption_channels": 32,
            "use_additional_conditions": False,
        },
        Call(
            (),
            {
                "hidden_states": torch.zeros(1, 4, 8, 8),
                "encoder_hidden_states": _TEXT,
                "timestep": _TIME,
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            },
        ),
    ),
    "SD3Transformer2DModel": (
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 32,
            "out_channels": 4,
            "pos_embed_max_size": 8,
        },
        Call(
            (),
            {
                "hidden_states": torch.zeros(1, 4, 8, 8),
                "encoder_hidden_states": _TEXT,
                "pooled_projections": torch.zeros(1, 32),
                "timestep": _TIME,
            },
        ),
    ),
    "FluxTransformer2DModel": (
        {
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        Call(
            (),
            {
                "hidden_states": torch.zeros(1, 16, 8),
                "encoder_hidden_states": _TEXT,
                "pooled_projections": torch.zeros(1, 32),
                "timestep": torch.tensor([0.5]),
                "img_ids": torch.arange(48).reshape(16, 3) % 4,
                "txt_ids": torch.zeros(4, 3, dtype=torch.long),
            },
        ),
    ),
    "PriorTransformer": (
        {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 16, "num_embeddings": 4},
        Call(
            (),
            {
                "hidden_states": torch.zeros(1, 16),
                "timestep": _TIME,
                "proj_embedding": torch.zeros(1, 16),
                "encoder_hidden_states": torch.zeros(1, 4, 16),
            },
        ),
    ),
}

ARCHITECTURES = [
    *(
        Architecture("diffusers", name, made(f"diffusers.{name}", **options), call)
        for name, (options, call) in _DIFFUSERS.items()
    ),
    Architecture(
        "denoising-diffusion-pytorch",
        "Unet",
        made("denoising_diffusion_pytorch.Unet", dim=16, dim_mults=(1, 2), attn_dim_head=8, flash_attn=False),
        Call((torch.zeros(1, 3, 16, 16), _TIME)),
    ),
    Architecture(
        "denoising-diffusion-pytorch",
        "Unet1D",
        made("denoising_diffusion_pytorch.Unet1D", dim=16, dim_mults=(1, 2), channels=4, attn_dim_head=8),
        Call((torch.zeros(1, 4, 16), _TIME)),
    ),
]
