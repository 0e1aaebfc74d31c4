"""Transformers over sequences: x-transformers, its neighbours, and tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.libraries.architecture import Architecture, Build, found, ids, made, sequence, tokens
from tests.zoo.calls import Call

_LAYERS: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}


def _x_transformer(kind: str, **options: Any) -> Build:
    def build() -> nn.Module:
        layers = found(f"x_transformers.{kind}")(**_LAYERS, **options)
        model: nn.Module = found("x_transformers.TransformerWrapper")(num_tokens=64, max_seq_len=16, attn_layers=layers)
        return model

    return build


def _x_vit() -> nn.Module:
    encoder = found("x_transformers.Encoder")(**_LAYERS)
    model: nn.Module = found("x_transformers.ViTransformerWrapper")(
        image_size=32, patch_size=8, num_classes=10, attn_layers=encoder
    )
    return model


_DECODERS: dict[str, dict[str, Any]] = {
    "Decoder": {},
    "Decoder, rotary": {"rotary_pos_emb": True},
    "Decoder, RMSNorm and SwiGLU": {"use_rmsnorm": True, "ff_glu": True, "ff_swish": True},
    "Decoder, ALiBi": {"alibi_pos_bias": True, "alibi_num_heads": 2},
    "Decoder, one head of keys and values": {"attn_one_kv_head": True},
    "Decoder, flash": {"attn_flash": True},
}

ARCHITECTURES = [
    Architecture("x-transformers", "Encoder", _x_transformer("Encoder"), tokens(8)),
    Architecture("x-transformers", "Encoder, T5 bias", _x_transformer("Encoder", rel_pos_bias=True), tokens(8)),
    *(
        Architecture("x-transformers", name, _x_transformer("Decoder", **options), tokens(8))
        for name, options in _DECODERS.items()
    ),
    Architecture("x-transformers", "ViT", _x_vit, Call((torch.zeros(1, 3, 32, 32),))),
    Architecture(
        "conformer",
        "ConformerBlock",
        made("conformer.ConformerBlock", dim=32, dim_head=8, heads=4, ff_mult=2),
        sequence(8, 32),
    ),
    Architecture(
        "linformer",
        "Linformer",
        made("linformer.Linformer", dim=32, seq_len=16, depth=2, heads=4, k=8),
        sequence(16, 32),
    ),
    Architecture(
        "linformer",
        "LinformerLM",
        made("linformer.LinformerLM", num_tokens=64, dim=32, seq_len=16, depth=2, heads=4, k=8),
        tokens(16),
    ),
    Architecture(
        "nystrom-attention",
        "Nystromformer",
        made("nystrom_attention.Nystromformer", dim=32, depth=2, dim_head=8, heads=4, num_landmarks=4),
        sequence(16, 32),
    ),
    Architecture(
        "performer-pytorch",
        "PerformerLM",
        made("performer_pytorch.PerformerLM", num_tokens=64, max_seq_len=16, dim=32, depth=2, heads=4, dim_head=8),
        tokens(16),
    ),
    Architecture(
        "reformer-pytorch",
        "ReformerLM",
        made(
            "reformer_pytorch.ReformerLM",
            num_tokens=64,
            dim=32,
            depth=2,
            max_seq_len=16,
            heads=4,
            bucket_size=4,
            causal=True,
        ),
        tokens(16),
    ),
    Architecture(
        "tab-transformer-pytorch",
        "TabTransformer",
        made(
            "tab_transformer_pytorch.TabTransformer",
            categories=(8, 8, 4),
            num_continuous=5,
            dim=32,
            depth=2,
            heads=4,
            dim_head=8,
            mlp_act=nn.ReLU(),
        ),
        Call((ids(3, 4), torch.zeros(1, 5))),
        allow_untraced=True,  # an embedding of special tokens, of which there are none
    ),
    Architecture(
        "tab-transformer-pytorch",
        "FTTransformer",
        made(
            "tab_transformer_pytorch.FTTransformer",
            categories=(8, 8, 4),
            num_continuous=5,
            dim=32,
            depth=2,
            heads=4,
            dim_head=8,
        ),
        Call((ids(3, 4), torch.zeros(1, 5))),
    ),
    Architecture(
        "pytorch-tabnet",
        "TabNet",
        made("pytorch_tabnet.tab_network.TabNetNoEmbeddings", input_dim=16, output_dim=4, n_d=8, n_a=8),
        Call((torch.zeros(4, 16),)),
        allow_untraced=True,
    ),
    Architecture(
        "g-mlp-pytorch", "gMLP", made("g_mlp_pytorch.gMLP", num_tokens=64, dim=32, depth=2, seq_len=16), tokens(16)
    ),
    Architecture(
        "local-attention",
        "LocalTransformer",
        made(
            "local_attention.LocalTransformer",
            num_tokens=64,
            dim=32,
            depth=2,
            max_seq_len=16,
            local_attn_window_size=8,
            causal=True,
            heads=4,
            dim_head=8,
        ),
        tokens(16),
    ),
]
