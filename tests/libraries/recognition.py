"""Classifiers, descriptors and image restoration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.libraries.architecture import Architecture, Part, found, image, made
from tests.zoo.calls import Call

_PRETRAINEDMODELS = ("bninception", "dpn68", "se_resnet50", "xception", "polynet", "cafferesnet101")
_RESTORATION: dict[str, tuple[str, dict[str, Any], Call]] = {
    "ESRGAN": ("ESRGAN.__arch.RRDB.RRDBNet", {"num_filters": 16, "num_blocks": 2, "scale": 2}, image(16)),
    "Compact": ("Compact.__arch.SRVGG.SRVGGNetCompact", {"num_feat": 16, "num_conv": 3, "upscale": 2}, image(16)),
    "SwinIR": (
        "SwinIR.__arch.SwinIR.SwinIR",
        {
            "img_size": 16,
            "embed_dim": 24,
            "depths": [2],
            "num_heads": [4],
            "window_size": 4,
            "upscale": 2,
            "upsampler": "pixelshuffle",
        },
        image(16),
    ),
    "NAFNet": (
        "NAFNet.__arch.NAFNet_arch.NAFNet",
        {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]},
        image(16),
    ),
    "DnCNN": ("DnCNN.__arch.network_dncnn.DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 4}, image(16)),
    "RCAN": (
        "RCAN.__arch.rcan_arch.RCAN",
        {"n_resblocks": 2, "n_feats": 16, "n_resgroups": 2, "scale": 2, "reduction": 4},
        image(16),
    ),
    "SAFMN": ("SAFMN.__arch.safmn.SAFMN", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}, image(16)),
}


def _pyramid() -> nn.Module:
    """LPIPS, without weights."""
    return found("lpips.LPIPS")(pretrained=False, pnet_rand=True, net="squeeze", verbose=False)


def _loftr() -> nn.Module:
    config = {
        "backbone_type": "ResNetFPN",
        "resolution": (8, 2),
        "resnetfpn": {"initial_dim": 16, "block_dims": [16, 24, 32]},
    }
    return found("kornia.feature.loftr.backbone.build_backbone")(config)


def _spandrel(path: str, options: dict[str, Any]) -> Any:
    return made(f"spandrel.architectures.{path}", **options)


def _clip(image_model: dict[str, Any]) -> Any:
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
    return made("open_clip.model.CLIP", embed_dim=32, vision_cfg=image_model, text_cfg=text)


def _encode_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model.encode_text(tokens)
    return out


_TOKENS = torch.tensor([[1, 5, 9, 2, 30, 63, 0, 0]])

ARCHITECTURES = [
    Architecture("facenet-pytorch", "InceptionResnetV1", made("facenet_pytorch.InceptionResnetV1"), image(96)),
    *(
        Architecture(
            "facenet-pytorch",
            f"MTCNN {name}",
            made(f"facenet_pytorch.models.mtcnn.{name}", pretrained=False),
            image(side),
        )
        for name, side in (("PNet", 32), ("RNet", 24), ("ONet", 48))
    ),
    *(
        Architecture("kornia", name, made(f"kornia.feature.{name}", pretrained=False), image(32, 1))
        for name in ("HardNet", "TFeat", "HyNet", "SOSNet", "OriNet")
    ),
    Architecture("kornia", "LoFTR backbone", _loftr, image(32, 1)),
    Architecture("kornia", "DISK U-net", lambda: Part(found("kornia.feature.DISK")().unet, _forward), image(32)),
    Architecture(
        "efficientnet-pytorch",
        "efficientnet-b0",
        lambda: found("efficientnet_pytorch.EfficientNet").from_name("efficientnet-b0"),
        image(64),
    ),
    *(
        Architecture(
            "pretrainedmodels",
            name,
            made(f"pretrainedmodels.{name}", num_classes=1000, pretrained=None),
            image(224 if name in ("bninception", "dpn68", "cafferesnet101") else 299 if name == "polynet" else 224),
        )
        for name in _PRETRAINEDMODELS
        if name != "polynet"
    ),
    Architecture("resnest", "resnest50", made("resnest.torch.resnest50", pretrained=False), image(64)),
    Architecture("lpips", "LPIPS, squeeze", _pyramid, Call((torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)))),
    *(
        Architecture("spandrel", name, _spandrel(path, options), call)
        for name, (path, options, call) in _RESTORATION.items()
    ),
    Architecture(
        "open-clip-torch",
        "CLIP, ViT",
        _clip({"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}),
        Call((torch.zeros(1, 3, 32, 32), _TOKENS)),
    ),
    Architecture(
        "open-clip-torch",
        "CLIP, ResNet",
        _clip({"layers": [1, 1, 1, 1], "width": 16, "head_width": 8, "image_size": 64}),
        Call((torch.zeros(1, 3, 64, 64), _TOKENS)),
    ),
    Architecture(
        "open-clip-torch",
        "CLIP, attentional pool",
        _clip(
            {
                "layers": 2,
                "width": 32,
                "head_width": 8,
                "patch_size": 8,
                "image_size": 32,
                "attentional_pool": True,
                "attn_pooler_queries": 4,
                "attn_pooler_heads": 4,
            }
        ),
        Call((torch.zeros(1, 3, 32, 32), _TOKENS)),
    ),
]


def _forward(model: Any, *args: Any) -> Any:
    return model(*args)
