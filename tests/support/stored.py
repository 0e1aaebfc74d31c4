"""Networks that are saved and loaded: with ties, with state that is no tensor, pruned, on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import structprune

TOKENS = torch.arange(6)[None]


class Tied(nn.Module):
    """Two names for the embedding, a table that no state_dict has, a bare parameter, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.gain = nn.Parameter(torch.rand(64))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight
        self.up.requires_grad_(False)
        self.register_buffer("shift", torch.linspace(0, 1, 64), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.head(x + self.down(F.gelu(self.up(x)) * self.gain + self.shift))


class WithState(nn.Module):
    """State that is no tensor of the module's: ``kind`` says as what it is handed over."""

    def __init__(self, kind: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.state = nn.Linear(8, 32), nn.Linear(32, 4), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        if state == "refused":
            raise ValueError("not this one")
        self.state = state


def pruned_one(build: Callable[[], nn.Module], inputs: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    example = inputs.float() if inputs.is_floating_point() else inputs
    return structprune.prune_model(build(), 0.5, example_inputs=example, round_to=1, keep_representation=False)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()
