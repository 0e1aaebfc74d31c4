"""Detectors: ultralytics and torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.libraries.architecture import Architecture, Build, found, image, made
from tests.zoo.calls import Call

_YOLO = (
    "yolov8n",
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov8n-cls",
    "yolov5n",
    "yolov10n",
    "yolo11n",
    "yolo11n-obb",
    "yolo12n",
)
_TASKS = {"seg": "SegmentationModel", "pose": "PoseModel", "cls": "ClassificationModel", "obb": "OBBModel"}
_SMALL = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 64, "num_classes": 3}
_TWO_STAGES = {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 16, "box_detections_per_img": 8}
_ONE_STAGE = {"score_thresh": 0.0, "detections_per_img": 8, "topk_candidates": 16}
_TORCHVISION: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": {**_SMALL, **_TWO_STAGES},
    "maskrcnn_resnet50_fpn": {**_SMALL, **_TWO_STAGES},
    "keypointrcnn_resnet50_fpn": {**_SMALL, **_TWO_STAGES},
    "retinanet_resnet50_fpn": {**_SMALL, **_ONE_STAGE},
    "fcos_resnet50_fpn": {**_SMALL, **_ONE_STAGE},
    "ssdlite320_mobilenet_v3_large": {"weights": None, "weights_backbone": None, "num_classes": 3, **_ONE_STAGE},
}
_LABELLED = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
_VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18")
_PHOTO = Call(([torch.zeros(3, 64, 64)],))


def _yolo(name: str) -> Build:
    task = _TASKS.get(name.partition("-")[2], "DetectionModel")

    def build() -> nn.Module:
        model: nn.Module = found(f"ultralytics.nn.tasks.{task}")(f"{name}.yaml", verbose=False)
        return model

    return build


ARCHITECTURES = [
    *(Architecture("ultralytics", name, _yolo(name), image(64)) for name in _YOLO),
    Architecture(
        "ultralytics",
        "rtdetr-l",
        lambda: found("ultralytics.nn.tasks.RTDETRDetectionModel")("rtdetr-l.yaml", verbose=False),
        image(64),
    ),
    *(
        Architecture("torchvision detection", name, made(f"torchvision.models.detection.{name}", **options), _PHOTO)
        for name, options in _TORCHVISION.items()
    ),
    *(
        Architecture(
            "torchvision segmentation",
            name,
            made(f"torchvision.models.segmentation.{name}", weights=None, weights_backbone=None, num_classes=4),
            image(64),
        )
        for name in _LABELLED
    ),
    *(
        Architecture(
            "torchvision video",
            name,
            made(f"torchvision.models.video.{name}", weights=None, num_classes=4),
            Call((torch.zeros(1, 3, 4, 32, 32),)),
        )
        for name in _VIDEO
    ),
]
