"""Networks that label pixels and voxels: segmentation_models_pytorch, MONAI and Segment Anything."""

from __future__ import annotations

from typing import Any

import torch

from tests.libraries.architecture import Architecture, Build, Part, found, image, made, volume
from tests.zoo.calls import Call

_SMP: dict[str, dict[str, Any]] = {
    "Unet": {"encoder_name": "resnet18"},
    "UnetPlusPlus": {"encoder_name": "resnet18"},
    "FPN": {"encoder_name": "mobilenet_v2"},
    "PSPNet": {"encoder_name": "resnet18"},
    "DeepLabV3": {"encoder_name": "resnet18"},
    "DeepLabV3Plus": {"encoder_name": "resnet18"},
    "MAnet": {"encoder_name": "resnet18"},
    "Linknet": {"encoder_name": "resnet18"},
    "PAN": {"encoder_name": "resnet18"},
    "UPerNet": {"encoder_name": "resnet18"},
    "Segformer": {"encoder_name": "mit_b0"},
}
_MONAI: dict[str, tuple[dict[str, Any], Call]] = {
    "UNet": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 2,
            "channels": (16, 32, 64),
            "strides": (2, 2),
            "num_res_units": 2,
        },
        image(32, 1),
    ),
    "BasicUNet": ({"spatial_dims": 2, "in_channels": 1, "features": (16, 16, 32, 32, 64, 16)}, image(32, 1)),
    "BasicUNetPlusPlus": ({"spatial_dims": 2, "in_channels": 1, "features": (16, 16, 32, 32, 64, 16)}, image(32, 1)),
    "SegResNet": ({"spatial_dims": 3, "init_filters": 8, "in_channels": 1}, volume(16)),
    "SegResNetDS": ({"spatial_dims": 2, "init_filters": 16, "in_channels": 1, "blocks_down": (1, 1, 1)}, image(32, 1)),
    "DynUNet": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [16, 32, 64],
        },
        image(32, 1),
    ),
    "UNETR": (
        {
            "in_channels": 1,
            "out_channels": 2,
            "img_size": 32,
            "spatial_dims": 2,
            "feature_size": 8,
            "hidden_size": 48,
            "mlp_dim": 96,
            "num_heads": 4,
        },
        image(32, 1),
    ),
    "SwinUNETR": ({"in_channels": 1, "out_channels": 2, "spatial_dims": 2, "feature_size": 12}, image(64, 1)),
    "VNet": ({"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, volume(16)),
    "AttentionUnet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (16, 32, 64), "strides": (2, 2)},
        image(32, 1),
    ),
    "DenseNet": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 4,
            "init_features": 16,
            "growth_rate": 8,
            "block_config": (2, 2),
        },
        image(32, 1),
    ),
    "SENet154": ({"spatial_dims": 2, "in_channels": 3, "layers": (1, 1, 1, 1)}, image(64)),
    "FlexibleUNet": (
        {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0", "spatial_dims": 2},
        image(64),
    ),
    "HighResNet": ({"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, volume(8)),
    "AutoEncoder": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (16, 32), "strides": (2, 2)},
        image(32, 1),
    ),
    "ViT": (
        {
            "in_channels": 1,
            "img_size": 32,
            "patch_size": 8,
            "hidden_size": 48,
            "mlp_dim": 96,
            "num_layers": 2,
            "num_heads": 4,
            "spatial_dims": 2,
            "classification": True,
        },
        image(32, 1),
    ),
}


def _monai(name: str, options: dict[str, Any]) -> Build:
    return made(f"monai.networks.nets.{name}", **options)


def _sam_encoder() -> Any:
    return found("segment_anything.modeling.ImageEncoderViT")(
        img_size=64,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=4,
        out_chans=32,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1,),
    )


def _sam_decoder() -> Any:
    two_way = found("segment_anything.modeling.TwoWayTransformer")(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4)
    decoder = found("segment_anything.modeling.MaskDecoder")(transformer_dim=32, transformer=two_way)

    def forward(
        model: Any, image: torch.Tensor, places: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
    ) -> Any:
        return model(image, places, sparse, dense, multimask_output=True)

    return Part(decoder, forward)


ARCHITECTURES = [
    *(
        Architecture(
            "segmentation-models-pytorch",
            f"{name}, {options['encoder_name']}",
            made(f"segmentation_models_pytorch.{name}", **options, encoder_weights=None, classes=2),
            image(128 if name == "PAN" else 64),
            allow_untraced=name in ("PSPNet", "PAN"),
        )
        for name, options in _SMP.items()
    ),
    *(
        Architecture("monai", name, _monai(name, options), call, allow_untraced=True)
        for name, (options, call) in _MONAI.items()
    ),
    Architecture("segment-anything", "image encoder", _sam_encoder, image(64)),
    Architecture(
        "segment-anything",
        "mask decoder",
        _sam_decoder,
        Call(
            (
                torch.zeros(1, 32, 8, 8),
                torch.zeros(1, 32, 8, 8),
                torch.zeros(1, 2, 32),
                torch.zeros(1, 32, 8, 8),
            )
        ),
    ),
]
