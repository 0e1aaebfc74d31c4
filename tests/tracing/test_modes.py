"""Modes: what only training runs, activations that are computed again, half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import structprune
from tests.support.attention import INPUTS, STREAM, TOKENS, Fused, Net, Separate
from tests.support.pruned import PAIR, X, pruned

Tensor = torch.Tensor


class Auxiliary(nn.Module):
    """A second head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Fused(), nn.Linear(STREAM, 5)
        self.side = nn.Sequential(nn.Linear(STREAM, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y = self.head(x + self.block(x))
        return (y, self.side(x)) if self.training else y


def test_a_head_that_only_training_runs() -> None:
    small = pruned(Auxiliary())
    assert (small.side[0].in_features, small.side[0].out_features, small.side[2].in_features) == (16, 6, 6)
    assert [y.shape for y in small.train()(PAIR)] == [(2, TOKENS, 5)] * 2


class Recomputed(nn.Module):
    """Blocks whose activations are computed again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(INPUTS, STREAM), nn.Linear(STREAM, 5)
        self.blocks = nn.ModuleList([Separate(), Fused()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.training else block(x))
        return self.head(x)


def test_gradient_checkpointing() -> None:
    small = pruned(Recomputed())
    assert (small.embed.out_features, small.blocks[0].heads, small.blocks[1].heads) == (16, 2, 2)
    small.train()(PAIR).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    small = pruned(Net(Separate()).to(dtype), X.to(dtype))
    assert small.block.heads == 2 and {p.dtype for p in small.parameters()} == {dtype}
    assert small(PAIR.to(dtype)).dtype == dtype


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(training: bool) -> None:
    model = Net(nn.TransformerEncoderLayer(STREAM, 4, 48, batch_first=True)).train(training)
    model.block.norm1.train(not training)
    small = pruned(model)
    for each in (model, small):
        assert each.training is training and each.block.norm1.training is not training
        assert each.block.self_attn.training is training


X8 = torch.zeros(2, 8)


def test_train_only_branches_are_traced() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.aux = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.body(x)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    small: Any = structprune.prune_model(Aux(), 0.5, example_inputs=X8, keep_representation=False)
    assert small.aux.in_features == small.head.in_features == 8
    assert len(small.train()(X8)) == 2


def test_a_mode_that_does_not_run_is_noted() -> None:
    class NoTraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("targets are needed")
            return self.layers(x)

    plan = structprune.plan_pruning(NoTraining(), 0.5, example_inputs=X8, keep_representation=False)
    assert plan.notes == ("not traced in training mode: ValueError: targets are needed",)


class Remembers(nn.Module):
    """Makes the masks of its dropout anew when the batch is another one than in its last call, and only then."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.last_batch = 16, 2
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.mask = torch.ones(2, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        if self.training and len(x) != self.last_batch:
            self.last_batch = len(x)
            self.mask = torch.ones(len(x), self.hidden_size).to(x)
        return self.head((h * self.mask if self.training else h).tanh())


def test_what_happens_only_for_a_new_batch_is_traced() -> None:
    model, x = Remembers(), torch.randn(1, 6)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=x, keep_representation=False, round_to=1)
    assert (small.embed.out_features, small.hidden_size) == (8, 8)
    assert small.train()(torch.randn(5, 6)).shape == (5, 3)
    assert structprune.prove(model, small.eval(), x)
