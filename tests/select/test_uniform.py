"""Uniform widths: layers that repeat keep one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support.attention import INPUTS, TOKENS, Net, Separate

# Uniform widths.


class Blocks(nn.Module):
    """Three blocks, the second with an auxiliary output that is of its hidden units."""

    def __init__(self, tapped: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 32), "down": nn.Linear(32, 8)}) for _ in range(3))
        self.head, self.tapped = nn.Linear(8, 4), tapped

    def forward(self, x: torch.Tensor) -> Any:
        taps = []
        for layer in self.layers:
            hidden = layer["up"](x).relu()  # type: ignore[index]
            taps.append(hidden)
            x = x + layer["down"](hidden)  # type: ignore[index]
        return (self.head(x), taps[1]) if self.tapped else self.head(x)


@pytest.mark.parametrize(
    ("tapped", "uniform", "scope", "widths"),
    [
        (False, False, "local", [16, 16, 16]), (True, False, "local", [16, 32, 16]),
        (True, True, "local", None), (False, True, "global", [16, 16, 16]),
    ],
)  # fmt: skip
def test_layers_that_repeat_keep_one_width(tapped: bool, uniform: bool, scope: Any, widths: list[int] | None) -> None:
    torch.manual_seed(0)
    model, x = Blocks(tapped), torch.randn(2, 8)
    options: dict[str, Any] = {"uniform": uniform, "scope": scope, "round_to": 1, "example_inputs": x}
    if widths is None:
        with pytest.raises(structprune.NothingToPruneError, match=r"as wide as layers\.1\.up\.weight, which stays"):
            structprune.plan_pruning(model, 0.5, **options)
        return
    small: Any = structprune.prune_model(model, 0.5, **options)
    assert [layer["up"].out_features for layer in small.layers] == widths


def test_patterns_that_make_a_uniform_width_impossible() -> None:
    plan = structprune.plan_pruning(
        Blocks(False), {"layers": 0.5, "layers.1": 0.25}, uniform=True, round_to=1, example_inputs=torch.randn(2, 8)
    )
    assert {32 - g.removed for g in plan.groups if "up" in g.name} == {16}


# Sensitivity.


def test_heads_are_uniform_as_well() -> None:
    model, x = Net(nn.Sequential(Separate(), Separate())), torch.randn(1, TOKENS, INPUTS)
    small = structprune.prune_model(
        model, 0.5, "channel", uniform=True, scope="global", keep_representation=False, round_to=1, example_inputs=x
    )
    assert small.block[0].heads == small.block[1].heads < 4  # type: ignore[index, union-attr]
    assert structprune.prove(model, small, x)
