"""What torchvision's and torchaudio's compiled libraries give, where they cannot be loaded beside this torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import torch
from torch.library import Library

from tests.support import vision

_LIBRARIES: list[Library] = []


def register() -> None:
    """Give ``nms`` and ``roi_align``, which detectors call, kernels for the CPU if they have none."""
    _import_torchaudio()
    vision.torchvision()
    import torchvision.extension as extension

    if _LIBRARIES or torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        return
    library = Library("torchvision", "IMPL")
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _roi_align, "CPU")
    _LIBRARIES.append(library)
    extension._has_ops = lambda: True  # which its detectors ask before they call them


def _import_torchaudio() -> None:
    """Import torchaudio, whose networks are plain PyTorch, as if it had no compiled library."""
    glob = Path.glob

    def others(folder: Path, pattern: str) -> Iterable[Path]:
        return () if "torchaudio" in pattern else glob(folder, pattern)

    with mock.patch.object(Path, "glob", others):
        importlib.import_module("torchaudio")


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The boxes that no better box overlaps by more than the threshold, best first."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    overlaps = box_iou(boxes, boxes)
    kept: list[int] = []
    for index in order.tolist():
        if all(float(overlaps[index, other]) <= iou_threshold for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long)


def _roi_align(
    image: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Torchvision's own in Python, which it takes where its operators are missing."""
    from torchvision.ops.roi_align import _roi_align as in_python

    out: torch.Tensor = in_python(image, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned)
    return out
