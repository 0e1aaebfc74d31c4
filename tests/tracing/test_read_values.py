"""Forwards that read values are traced with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import structprune
from structprune.tracing.discovery import Decisions
from structprune.tracing.session import Session
from tests.support.attention import INPUTS, STREAM, TOKENS, Separate
from tests.support.pruned import PAIR, X

Tensor = torch.Tensor


# State.


class Branches(nn.Module):
    """A forward whose way depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Separate(), nn.Linear(STREAM, 5)
        self.other = nn.Linear(STREAM, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.block(h)
        return self.head(h) if x.abs().max().item() < 100 else self.other(h)


def test_a_forward_that_reads_values_is_traced_with_them() -> None:
    model = Branches()
    plan = structprune.plan_pruning(
        model, 0.5, "channel", example_inputs=[X, X + 1000], keep_representation=False, round_to=1
    )
    assert any(note.startswith("the forward reads values of floating-point tensors: traced") for note in plan.notes)
    small: Any = plan.apply(model)
    assert (small.embed.out_features, small.block.heads, small.other.in_features) == (16, 2, 16)
    assert small(PAIR).shape == small(PAIR + 1000).shape == (2, TOKENS, 5)
    assert not any(p.is_meta for m in (model, small) for p in m.parameters())


# Wrapped models.


class CountsInPlace(nn.Module):
    """Reads a value, and writes into a mask that it has used before."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = x > 0
        scale = 2.0 if bool(mask.any()) else 1.0
        y = self.head(torch.relu(self.wide(x)) * scale) * mask.sum()
        mask.fill_(False)
        return y


def test_what_the_dense_network_decided_is_what_it_decided_then() -> None:
    x = torch.ones(2, 4)
    model = CountsInPlace()
    record = Session(model, x).discover(Decisions()).records[0]
    compared = next(node for node in record.nodes if node.op == "aten::gt")
    assert compared.memory["decided"][0].all()
    small = structprune.prune_model(model, 0.5, example_inputs=x, keep_representation=False, round_to=1)
    assert structprune.prove(model, small, x)
