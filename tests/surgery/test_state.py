"""State: tied and frozen weights, normalisation by buffers, sizes that nothing reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support import oracle
from tests.support.attention import STREAM, Fused, Net, Separate
from tests.support.pruned import X, pruned

Tensor = torch.Tensor


class Language(nn.Module):
    """An embedding whose weight the head shares, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.norm = nn.Embedding(11, STREAM), Fused(), nn.LayerNorm(STREAM)
        self.head = nn.Linear(STREAM, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.block(x)))


@pytest.mark.parametrize("inplace", [False, True])
def test_tied_and_frozen_weights(inplace: bool) -> None:
    model, ids = Language(), torch.arange(6)[None]
    model.block.requires_grad_(False)
    dense = copy.deepcopy(model)
    small: Any = structprune.prune_model(
        model, 0.5, "channel", example_inputs=ids, inplace=inplace, keep_representation=False, round_to=1
    )
    assert small.head.weight is small.embed.weight and small.embed.weight.shape == (11, 16)
    assert (small.embed.embedding_dim, small.head.in_features, small.block.heads) == (16, 16, 2)
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in dense.parameters()]
    assert not any(p.requires_grad for p in small.block.parameters()) and structprune.prove(dense, small, ids)


class FrozenBatchNorm(nn.Module):
    """As torchvision's: everything is a buffer, and the scale is computed from two of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


def test_normalisation_by_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), FrozenBatchNorm(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    small = pruned(oracle.randomise(model), x)
    assert {n: tuple(t.shape) for n, t in small[1].named_buffers()} == dict.fromkeys(
        ("weight", "bias", "running_mean", "running_var"), (8,)
    )
    oracle.check(model, small, x)


class Described(Separate):
    """Attention that also holds its width for code that no forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = STREAM

    def extra_state(self) -> int:
        return self.dim


def test_sizes_that_nothing_reads_are_listed() -> None:
    model = Net(Described())
    plan = structprune.plan_pruning(model, 0.5, "channel", example_inputs=X, keep_representation=False, round_to=1)
    assert (
        "Described.dim stays 32 beside widths that become 16 (block): no operator that was traced is given it"
        in plan.notes
    )
    assert not any("heads" in note or ".width" in note for note in plan.notes)
