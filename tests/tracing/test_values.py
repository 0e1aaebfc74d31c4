"""Forwards in which values say how many entries there are: masks, predicted lengths, distinct numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune
from tests.support import oracle


def _boxes(pixels: Tensor, by: Tensor) -> Tensor:
    return pixels[by > 0.05]


def _selected(pixels: Tensor, by: Tensor) -> Tensor:
    return pixels.masked_select((by > 0.05).unsqueeze(1)).view(-1, pixels.shape[1])


def _repeated(pixels: Tensor, by: Tensor) -> Tensor:
    return pixels.repeat_interleave(by.exp().round().long(), 0)


def _distinct(pixels: Tensor, by: Tensor) -> Tensor:
    kinds = (8 * by).round().long()
    return torch.stack([pixels[kinds == kind].sum(0) for kind in kinds.unique()])


def _consecutive(pixels: Tensor, by: Tensor) -> Tensor:
    _, runs = (8 * by).round().long().unique_consecutive(return_inverse=True)
    return torch.zeros(int(runs.max()) + 1, pixels.shape[1]).to(pixels).index_add(0, runs, pixels)


def _written(pixels: Tensor, by: Tensor) -> Tensor:
    out = torch.zeros_like(pixels)
    out[by > 0.05] = pixels[by > 0.05] * 2
    return out


class Counted(nn.Module):
    """Two convolutions, then as many rows as values say, then a linear layer."""

    def __init__(self, rows: Callable[[Tensor, Tensor], Tensor], *, by_features: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        self.rows, self.by_features = rows, by_features

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu()).relu()
        by = y if self.by_features else x
        return self.head(self.rows(y.permute(0, 2, 3, 1).flatten(0, 2), by.mean(1).flatten()))


# What masked_select returns is flat, and does not say which channel an entry is of.
ROWS = [(_boxes, 8), (_selected, 16), (_repeated, 8), (_distinct, 8), (_consecutive, 8), (_written, 8)]


@pytest.mark.parametrize(("rows", "left"), ROWS)
def test_as_many_entries_as_values_say(rows: Callable[[Tensor, Tensor], Tensor], left: int) -> None:
    options: Any = {"keep_representation": False, "round_to": 1, "example_inputs": torch.randn(1, 3, 8, 8)}
    for by_features in (True, False):
        torch.manual_seed(0)
        model: Any = Counted(rows, by_features=by_features).eval()
        small = structprune.prune_model(model, 0.5, "channel", **options)
        assert (small.first.out_channels, small.second.out_channels, small.head.in_features) == (8, left, left)
        assert structprune.prove(model, small, options["example_inputs"])
    # What the inputs decide is decided alike in the masked and in the cut network.
    oracle.randomise(model)
    oracle.check(model, structprune.plan_of(small).apply(model), options["example_inputs"].double())
