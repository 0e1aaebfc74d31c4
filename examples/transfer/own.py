"""Your own network and images, in place of the small ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from structprune.transfer import Task

Transform = Callable[[Any], torch.Tensor]


def load(name: str, weights: Path | None, image_size: int | None) -> tuple[nn.Module, Transform, torch.Tensor]:
    """A pretrained network, what turns an image into its input, and an input of one image.

    Args:
        name: ``torchvision:NAME`` or ``timm:NAME``.
        weights: A file of its ``state_dict``; without one the hub's own are downloaded.
        image_size: Pixels; by default as it was pretrained.
    """
    hub, _, name = name.partition(":")
    if hub == "timm":
        model, transform = _timm(name, weights is None, image_size)
    elif hub == "torchvision":
        model, transform = _torchvision(name, weights is None, image_size)
    else:
        raise SystemExit(f"--model is {hub!r}: expected torchvision:NAME or timm:NAME, such as torchvision:resnet50")
    if weights is not None:
        model.load_state_dict(_read(weights))
    from PIL import Image

    return model, transform, transform(Image.new("RGB", (512, 512)))[None]


def tasks(folders: list[Path], transform: Transform) -> tuple[list[Task], list[Task]]:
    """A task for every folder, and the same to choose learning rates on: a fifth of the training images tests there.

    A folder has a folder for each class, or ``train`` and ``val`` with those; without ``val`` every fifth image tests.
    """
    from torchvision.datasets import ImageFolder

    stream, development = [], []
    for folder in folders:
        if (folder / "train").is_dir():
            train: Dataset[Any] = ImageFolder(folder / "train", transform)
            test: Dataset[Any] = ImageFolder(folder / "val", transform)
            classes = len(train.classes)  # type: ignore[attr-defined]
        else:
            whole = ImageFolder(folder, transform)
            train, test, classes = *_split(whole), len(whole.classes)
        stream.append(Task(folder.name, train, test, classes))
        development.append(Task(f"part of {folder.name}", *_split(train), classes))
    return stream, development


def _split(data: Any) -> tuple[Subset[Any], Subset[Any]]:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    return Subset(data, order[len(order) // 5 :]), Subset(data, order[: len(order) // 5])


def _timm(name: str, pretrained: bool, image_size: int | None) -> tuple[nn.Module, Transform]:
    import timm

    model = timm.create_model(name, pretrained=pretrained)
    config = timm.data.resolve_data_config({"img_size": image_size} if image_size else {}, model=model)
    return model, timm.data.create_transform(**config)


def _torchvision(name: str, pretrained: bool, image_size: int | None) -> tuple[nn.Module, Transform]:
    from torchvision import models
    from torchvision.transforms._presets import ImageClassification

    weights = models.get_model_weights(name)["DEFAULT"]
    size = {"crop_size": image_size, "resize_size": image_size * 8 // 7} if image_size else {}
    transform = ImageClassification(**{**weights.transforms.keywords, **size})
    return models.get_model(name, weights=weights if pretrained else None), transform


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state
