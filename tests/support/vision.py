"""torchvision beside a CPU-only torch: its compiled operators are declared, not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

_SCHEMAS = """
    nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor
    qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor
    roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor
    _roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor
    ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio) -> (Tensor, Tensor)
    _ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor
    roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> (Tensor, Tensor)
    _roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor
    ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> (Tensor, Tensor)
    _ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor
    deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor
    _deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)
"""
_LIBRARIES: list[torch.library.Library] = []
_WITH_ATTENTION = ("vit_", "swin", "maxvit")


def torchvision() -> ModuleType:
    """Import torchvision; without its compiled library its operators must be declared first."""
    if not _LIBRARIES and not _compiled():
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS.strip().splitlines():
            library.define(schema.strip())
        _LIBRARIES.append(library)
    import torchvision.models

    return torchvision


def _compiled() -> bool:
    """Whether torchvision's own library can be loaded: it is built against one PyTorch, and often for CUDA alone."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the tests need torchvision: see the Makefile", name="torchvision")
    try:
        for file in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(file)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def models() -> list[str]:
    """Torchvision's classification models; none where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    return list(torchvision().models.list_models(module=torchvision().models))


def classification_models() -> list[str]:
    """Torchvision's classification models without attention: 68 of 80."""
    return [n for n in models() if not n.startswith(_WITH_ATTENTION)]


class Published(NamedTuple):
    """What torchvision says of one set of weights."""

    crop: int
    giga_macs: float


def published(name: str) -> list[Published]:
    """Crop size and billions of multiply-accumulates of every set of weights of a model."""
    weights = torchvision().models.get_model_weights(name)
    return [Published(w.transforms.keywords["crop_size"], w.meta["_ops"]) for w in weights]


def build(name: str, **options: Any) -> nn.Module:
    """A torchvision model without weights, quick to make: the tests randomise it anyway."""
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    saved = nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.normal_

    def keep(tensor: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return tensor

    nn.init.trunc_normal_ = nn.init.kaiming_normal_ = nn.init.normal_ = keep
    try:
        return torchvision().models.get_model(name, weights=None, **options)
    finally:
        nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.normal_ = saved


def image_size(name: str) -> int:
    """A small image that the model takes in both modes."""
    if name.startswith(_WITH_ATTENTION):
        return 224
    return 299 if name == "inception_v3" else 224 if name in ("googlenet", "alexnet") else 96
