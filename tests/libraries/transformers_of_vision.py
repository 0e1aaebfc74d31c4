"""Vision transformers and mixers of vit-pytorch and its neighbours."""

from __future__ import annotations

from typing import Any

import torch

from tests.libraries.architecture import Architecture, image, made
from tests.zoo.calls import Call

_BASE: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4}
_VIT: dict[str, Any] = {**_BASE, "mlp_dim": 64, "dim_head": 8}
_CROSS: dict[str, Any] = {
    "image_size": 32,
    "num_classes": 10,
    "depth": 1,
    "sm_dim": 24,
    "lg_dim": 32,
    "sm_patch_size": 8,
    "sm_enc_depth": 1,
    "sm_enc_heads": 2,
    "sm_enc_dim_head": 8,
    "sm_enc_mlp_dim": 48,
    "lg_patch_size": 16,
    "lg_enc_depth": 1,
    "lg_enc_heads": 4,
    "lg_enc_dim_head": 8,
    "lg_enc_mlp_dim": 64,
    "cross_attn_depth": 1,
    "cross_attn_heads": 2,
    "cross_attn_dim_head": 8,
}
_THREE: dict[str, Any] = {f"s{i}_{name}": value for i in (1, 2, 3) for name, value in (("heads", i), ("mlp_mult", 2))}

_OF_VIT_PYTORCH: dict[str, tuple[str, dict[str, Any], Call]] = {
    "ViT": ("vit.ViT", _VIT, image(32)),
    "SimpleViT": ("simple_vit.SimpleViT", _VIT, image(32)),
    "SimpleViT, qk norm": ("simple_vit_with_qk_norm.SimpleViT", _VIT, image(32)),
    "SimpleViT, register tokens": ("simple_vit_with_register_tokens.SimpleViT", _VIT, image(32)),
    "SimpleViT, patch dropout": ("simple_vit_with_patch_dropout.SimpleViT", _VIT, image(32)),
    "ViT 1d": (
        "vit_1d.ViT",
        {
            "seq_len": 64,
            "patch_size": 8,
            "num_classes": 10,
            "dim": 32,
            "depth": 2,
            "heads": 4,
            "mlp_dim": 64,
            "dim_head": 8,
        },
        Call((torch.zeros(1, 3, 64),)),
    ),
    "ViT 3d": (
        "vit_3d.ViT",
        {
            **{name: value for name, value in _VIT.items() if name != "patch_size"},
            "image_patch_size": 8,
            "frames": 4,
            "frame_patch_size": 2,
        },
        Call((torch.zeros(1, 3, 4, 32, 32),)),
    ),
    "ViViT": (
        "vivit.ViViT",
        {
            "image_size": 32,
            "image_patch_size": 8,
            "frames": 4,
            "frame_patch_size": 2,
            "num_classes": 10,
            "dim": 32,
            "spatial_depth": 1,
            "temporal_depth": 1,
            "heads": 4,
            "mlp_dim": 64,
            "dim_head": 8,
        },
        Call((torch.zeros(1, 3, 4, 32, 32),)),
    ),
    "DeepViT": ("deepvit.DeepViT", _VIT, image(32)),
    "CaiT": ("cait.CaiT", {**_VIT, "cls_depth": 1}, image(32)),
    "parallel ViT": ("parallel_vit.ViT", {**_VIT, "num_parallel_branches": 2}, image(32)),
    "small dataset ViT": ("vit_for_small_dataset.ViT", _VIT, image(32)),
    "PiT": ("pit.PiT", {**_VIT, "depth": (1, 1)}, image(32)),
    "LeViT": (
        "levit.LeViT",
        {"image_size": 64, "num_classes": 10, "stages": 2, "dim": (32, 48), "depth": 1, "heads": (2, 3), "mlp_mult": 2},
        image(64),
    ),
    "CvT": ("cvt.CvT", {"num_classes": 10, "s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 48, **_THREE}, image(64)),
    "CCT": (
        "cct.CCT",
        {
            "img_size": (32, 32),
            "embedding_dim": 32,
            "n_conv_layers": 1,
            "num_layers": 2,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "num_classes": 10,
        },
        image(32),
    ),
    "CrossViT": ("cross_vit.CrossViT", _CROSS, image(32)),
    "StandIns-SVT": (
        "twins_svt.TwinsSVT",
        {
            "num_classes": 10,
            "s1_emb_dim": 16,
            "s2_emb_dim": 32,
            "s3_emb_dim": 32,
            "s4_emb_dim": 48,
            "s3_depth": 1,
            "s1_local_patch_size": 4,
            "s2_local_patch_size": 4,
            "s3_local_patch_size": 2,
            "s4_local_patch_size": 2,
            "s1_global_k": 4,
            "s2_global_k": 4,
            "s3_global_k": 2,
            "s4_global_k": 2,
        },
        image(64),
    ),
    "RegionViT": (
        "regionvit.RegionViT",
        {"dim": (16, 24, 32, 48), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 10},
        image(64),
    ),
    "CrossFormer": (
        "crossformer.CrossFormer",
        {
            "num_classes": 10,
            "dim": (32, 32, 64, 64),
            "depth": (1, 1, 1, 1),
            "global_window_size": (4, 2, 2, 1),
            "local_window_size": 2,
        },
        image(64),
    ),
    "ScalableViT": (
        "scalable_vit.ScalableViT",
        {
            "num_classes": 10,
            "dim": 16,
            "heads": (2, 2, 4, 4),
            "depth": (1, 1, 1, 1),
            "ssa_dim_key": (8, 8, 8, 8),
            "reduction_factor": (4, 2, 2, 1),
            "window_size": (8, 4, None, None),
        },
        image(64),
    ),
    "SepViT": (
        "sep_vit.SepViT",
        {
            "num_classes": 10,
            "dim": 16,
            "dim_head": 8,
            "heads": (1, 2, 4, 8),
            "depth": (1, 1, 1, 1),
            "window_size": 7,
        },
        image(224),
    ),
    "MaxViT": (
        "max_vit.MaxViT",
        {"num_classes": 10, "dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4},
        image(64),
    ),
    "MobileViT": (
        "mobile_vit.MobileViT",
        {
            "image_size": (64, 64),
            "dims": [32, 40, 48],
            "channels": [8, 16, 24, 24, 32, 32, 40, 40, 48, 48, 64],
            "num_classes": 10,
        },
        image(64),
    ),
    "NesT": (
        "nest.NesT",
        {
            "image_size": 32,
            "patch_size": 4,
            "dim": 16,
            "heads": 2,
            "num_hierarchies": 2,
            "block_repeats": (1, 1),
            "num_classes": 10,
        },
        image(32),
    ),
    "XCiT": ("xcit.XCiT", {**_VIT, "cls_depth": 1}, image(32)),
    "patch merger": (
        "vit_with_patch_merger.ViT",
        {**_VIT, "patch_merge_layer": 1, "patch_merge_num_tokens": 4},
        image(32),
    ),
    "learnable memory ViT": ("learnable_memory_vit.ViT", _VIT, image(32)),
}

ARCHITECTURES = [
    *(
        # SepViT has weights for tokens of windows that only stages of several windows read.
        Architecture("vit-pytorch", name, made(f"vit_pytorch.{path}", **options), call, allow_untraced=name == "SepViT")
        for name, (path, options, call) in _OF_VIT_PYTORCH.items()
    ),
    Architecture(
        "mlp-mixer-pytorch",
        "MLPMixer",
        made("mlp_mixer_pytorch.MLPMixer", image_size=32, channels=3, patch_size=8, dim=32, depth=2, num_classes=10),
        image(32),
    ),
    Architecture(
        "g-mlp-pytorch",
        "gMLPVision",
        made("g_mlp_pytorch.gMLPVision", image_size=32, patch_size=8, num_classes=10, dim=32, depth=2),
        image(32),
    ),
    Architecture(
        "perceiver-pytorch",
        "Perceiver",
        made(
            "perceiver_pytorch.Perceiver",
            input_channels=3,
            input_axis=2,
            num_freq_bands=4,
            max_freq=10.0,
            depth=2,
            num_latents=8,
            latent_dim=32,
            cross_heads=1,
            latent_heads=4,
            cross_dim_head=8,
            latent_dim_head=8,
            num_classes=10,
        ),
        Call((torch.zeros(1, 16, 16, 3),)),
    ),
]
