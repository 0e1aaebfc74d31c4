"""A ResNet that is small enough to be trained hundreds of times on a laptop."""

from __future__ import annotations

import torch
from torch import nn

from structprune.demo import Bottleneck


class SmallResNet(nn.Module):
    """Three stages of bottlenecks, for images ``(n, 1, 16, 16)``.

    Bottlenecks have what both granularities need: filters inside a block, and channels of the residual stream.
    """

    def __init__(self, classes: int, width: int = 32, expansion: int = 2, blocks: int = 2) -> None:
        """Make the layers.

        Args:
            classes: Width of the head.
            width: Channels inside the blocks of the first stage; twice and four times as many in the others.
            expansion: How many times wider than the inside of its blocks the residual stream is.
            blocks: Of a stage.
        """
        super().__init__()
        channels = 2 * width
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        stages: list[nn.Module] = []
        for stage in range(3):
            for block in range(blocks):
                stages.append(Bottleneck(channels, width * 2**stage, 2 if stage and not block else 1, expansion))
                channels = expansion * width * 2**stage
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to logits."""
        features: torch.Tensor = self.stages(self.stem(x)).mean((2, 3))
        logits: torch.Tensor = self.fc(features)
        return logits
