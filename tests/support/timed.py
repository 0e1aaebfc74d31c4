"""A network to be timed, and its images."""

from __future__ import annotations

import torch
from torch import nn

X = torch.randn(2, 3, 64, 64)


def net(width: int = 48) -> nn.Module:
    """A few milliseconds a forward."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
