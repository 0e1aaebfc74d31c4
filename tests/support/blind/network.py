"""Networks with something in the middle that a trace does not see, or sees otherwise than the user runs it.

Each is a layer to 16 channels, the middle, and a layer from them. What the middle does to a
channel depends on its place or on how many there are, so that nothing of it may be cut, unless
weights make up for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Tensor = torch.Tensor
Middle = Callable[[Tensor], Tensor]
WIDTH = 16
BLIND: dict[str, Middle] = {}


class Blind(nn.Module):
    """What stands beside the middle ("a norm", "a value" or nothing) changes how it is followed and verified."""

    def __init__(self, middle: str, beside: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, 4)
        self.norm = nn.LayerNorm(12) if beside == "a norm" else nn.Identity()
        self.middle, self.beside = middle, beside

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(BLIND[self.middle](torch.tanh(self.first(x))))
        if self.beside == "a value" and float(h.detach().abs().sum()) > 1e9:
            h = -h
        return self.last(torch.relu(self.norm(h)))


def blind(middle: Middle) -> Middle:
    """Register a middle under the words of its name."""
    BLIND[middle.__name__.replace("_", " ")] = middle
    return middle


def build(middle: str, beside: str = "nothing") -> nn.Module:
    """A network in float64 and evaluation mode, with another value in every place of its tensors."""
    model = Blind(middle, beside).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        values = (torch.randperm(parameter.numel(), generator=generator) + 0.5) / parameter.numel() - 0.45
        parameter.data.copy_(values.view(parameter.shape))
    return model


def example() -> Tensor:
    """An input."""
    return torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
