"""The tracer and the groups, on networks made for one question each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from tests.support.small import IMAGE, chain

X8 = torch.zeros(2, 8)


class Functional(nn.Module):
    """Raw parameters and functional calls; argmax of the logits."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(16, 8))
        self.second = nn.Parameter(torch.randn(5, 16))
        self.ending = ending

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(F.relu(x @ self.first.t()), self.second)
        return x.argmax(1) if self.ending == "argmax" else getattr(x, self.ending)(1) if self.ending else x


@pytest.mark.parametrize("ending", ["", "argmax", "logsumexp", "softmax", "mean", "sum"])
def test_logits_keep_their_classes(ending: str) -> None:
    model = Functional(ending)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X8, keep_representation=False)
    assert small.first.shape == (8, 8) and small.second.shape == (5, 8)


def test_unknown_operators_freeze_and_are_named() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.linalg.matrix_exp(self.b(self.a(x))))

    graph = structprune.trace(Spectrum(), torch.zeros(8, 8))
    assert graph.unknown_operators == {"aten::linalg_matrix_exp": 2}
    assert "linalg_matrix_exp has no rule" in graph.frozen["b.weight"]
    assert "a.weight" not in graph.frozen


def test_data_aliases_and_in_place_writes_keep_their_labels() -> None:
    class Aliases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16, bias=False), nn.Linear(8, 16), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = x.new_zeros(len(x), self.a.weight.shape[0] + self.b.weight.shape[0])
            split = self.a.weight.shape[0]
            out[:, :split] = F.linear(x, self.a.weight.data)
            out[:, split:] = self.b(x)
            return self.c(out)

    model = Aliases()
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X8, keep_representation=False)
    assert (small.a.weight.shape, small.b.out_features, small.c.in_features) == ((8, 8), 8, 16)
    assert structprune.prove(model, small, X8)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (chain(8, 8), None),
        (chain(8, 8), (IMAGE,)),
        (chain(8, 8), {"input": IMAGE}),
        (chain(8, 8), [IMAGE, torch.zeros(2, 3, 32, 32)]),
        (chain(8, 8), lambda model: model(torch.zeros(1, 3, 20, 20))),
        (nn.Sequential(nn.Conv1d(5, 8, 3), nn.Conv1d(8, 8, 3)), None),
        (nn.Sequential(nn.Conv3d(1, 8, 3), nn.Conv3d(8, 8, 3)), None),
        (nn.Sequential(nn.Linear(7, 8), nn.Linear(8, 8)), None),
        (nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 2)), None),
        (nn.Sequential(nn.ConvTranspose2d(6, 8, 3), nn.Conv2d(8, 8, 3)), None),
    ],
)
def test_example_inputs(model: nn.Module, example: Any) -> None:
    plan = structprune.plan_pruning(model, 0.5, example_inputs=example, keep_representation=False)
    assert plan.params[1] < plan.params[0] and plan.notes == ()


def test_declared_inputs_are_used() -> None:
    model = chain(8, 8)
    model.pretrained_cfg = {"input_size": (3, 40, 40)}  # type: ignore[assignment]
    small_image = structprune.plan_pruning(model, 0, example_inputs=torch.zeros(1, 3, 40, 40))
    assert structprune.plan_pruning(model, 0).macs == small_image.macs


def test_strided_batch_norm_counter_and_cumulative_average() -> None:
    model = chain(8, 8)
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    small = structprune.prune_model(model, 0.5, example_inputs=IMAGE, keep_representation=False)
    assert int(small[1].num_batches_tracked) == 0  # type: ignore[index, arg-type]


def test_attention_is_frozen_with_a_reason() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    graph = structprune.trace(layer, torch.zeros(1, 6, 16))
    assert all(reason for reason in graph.frozen.values())
    small: Any = structprune.prune_model(layer, 0.5, example_inputs=torch.zeros(1, 6, 16), keep_representation=False)
    assert small.linear1.out_features == 16 and small.self_attn.in_proj_weight.shape == (48, 16)
    assert small(torch.zeros(1, 6, 16)).shape == (1, 6, 16)
