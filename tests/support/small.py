"""Small networks with one property each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from structprune.demo import Bottleneck


class TinyResNet(nn.Module):
    """Two bottlenecks and a head: every role of a channel in 30,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block1 = Bottleneck(16, 16)
        self.block2 = Bottleneck(64, 16)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block2(self.block1(F.relu(self.stem(x)))).mean((2, 3)))


class Table(nn.Module):
    """A table of positions that the forward makes anew when the image has another size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
        self.register_buffer("table", torch.zeros(1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x))
        if self.table.shape != y.shape[2:]:
            self.table = torch.ones(y.shape[2:], dtype=y.dtype, device=y.device)
        return self.head((y * self.table).mean((2, 3)))


def chain(*widths: int, inputs: int = 3) -> nn.Sequential:
    """Convolutions and batch norms in a row, then a linear layer of 10."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


IMAGE = torch.zeros(1, 3, 16, 16)
