"""Pieces of a dimension: by the width they shrink alike, by numbers they stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support.small import IMAGE


class Sliced(nn.Module):
    """Slices of a convolution's channels, by functions of its width or by numbers."""

    def __init__(self, cut: Any) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 1)
        self.cut = cut
        parts = cut(torch.zeros(1, 16, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(p.shape[1], 4, 1) for p in parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.cut(self.wide(x))
        return torch.cat([conv(p) for conv, p in zip(self.convs, parts, strict=True)], 1)


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        (lambda x: x.chunk(2, 1), 8),
        (lambda x: x.chunk(4, 1), 8),
        (lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]), 8),
        (lambda x: (x[:, :6], x[:, 6:]), 11),
        (lambda x: (x[:, -4:],), 10),
        (lambda x: (x[:, ::2], x[:, 1::2]), 8),
        (lambda x: (x[:, ::4],), 8),
        (lambda x: (x.flip(1),), 8),
        (lambda x: (x.roll(x.shape[1] // 2, 1),), 8),
        (lambda x: (x.roll(4, 1),), 10),
        (lambda x: (x[:, torch.arange(4)],), None),
        (lambda x: x.split([6, 10], 1), None),
        (lambda x: (x[:, 3:4] * x,), 10),
    ],
)
def test_pieces(cut: Any, left: int | None) -> None:
    """By numbers, what is counted over stays; by the width, all pieces shrink alike."""
    torch.manual_seed(0)
    model = Sliced(cut)
    if left is None:
        with pytest.raises(structprune.NothingToPruneError):
            structprune.prune_model(model, 0.5, example_inputs=IMAGE, keep_representation=False, round_to=1)
        return
    small: Any = structprune.prune_model(model, 0.5, example_inputs=IMAGE, keep_representation=False, round_to=1)
    assert small.wide.out_channels == left
    # What no slice reads can go without a trace: then the proof has no power, and says so.
    proof = structprune.prove(model, small, IMAGE)
    assert proof or (cut(torch.arange(16).view(1, 16))[0].tolist() == [[12, 13, 14, 15]] and proof.power == 0)
