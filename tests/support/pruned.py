"""Attention's tokens, a function between two layers, and a pruning without any floor that is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support import vision
from tests.support.attention import INPUTS, TOKENS

Tensor = torch.Tensor
X = torch.randn(1, TOKENS, INPUTS, generator=torch.Generator().manual_seed(0))
PAIR = torch.cat([X, X.flip(1)])


def pruned(model: nn.Module, x: Any = X, granularity: Any = "channel", **options: Any) -> Any:
    """Prune without any floor and prove it."""
    options = {"keep_representation": False, "round_to": 1, **options}
    small = structprune.prune_model(model, 0.5, granularity, example_inputs=x, **options)
    proof = structprune.prove(model, small, x)
    assert proof, str(proof)
    return small


class Between(nn.Module):
    """A function of the channels between two layers."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor], out: int, **held: Any) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(INPUTS, 16), nn.Linear(out, 5), function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), self))


def imported(name: str) -> Any:
    """A library that imports torchvision."""
    vision.torchvision()
    return pytest.importorskip(name)
