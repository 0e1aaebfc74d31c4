"""A small network, and a task that it learns in a few steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from structprune.transfer import Task

BATCH = 16


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def data(seed: int = 0, count: int = 96) -> TensorDataset:
    """Bright upper or lower halves, with noise: learnt in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.5
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 1
    return TensorDataset(images, labels)


TASK = Task("halves", data(0), data(1), classes=2)
