"""Slices, the tracer and the groups, on networks made for one question each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import structprune
from structprune.ir.slices import Coupling, SliceSpace
from structprune.ops.movement import dimension_blocks
from tests.support.small import IMAGE, chain

X8 = torch.zeros(2, 8)


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60),
    frozen=st.lists(st.integers(0, 29), max_size=3),
)
def test_coupling_against_a_naive_closure(pairs: list[tuple[int, int]], frozen: list[int]) -> None:
    space = SliceSpace()
    space.add_tensor("t", (30,))
    coupling = Coupling(space)
    member = {i: {i} for i in range(30)}
    for i, (a, b) in enumerate(pairs):
        coupling.couple(np.array([a]), np.array([b]))
        if i % 7 == 0:
            coupling.roots()
        joined = member[a] | member[b]
        for j in joined:
            member[j] = joined
    for i in frozen:
        coupling.freeze(np.array([i]), f"reason {i}")
    roots = coupling.roots()
    assert [int(r) for r in roots] == [min(member[i]) for i in range(30)]
    stuck = coupling.reasons()[0] >= 0
    assert stuck.tolist() == [bool(member[i] & set(frozen)) for i in range(30)]


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.data())
def test_dimension_blocks(before: list[int], data: st.DataObject) -> None:
    total = int(np.prod(before))
    after, left = [], total
    while left > 1:
        part = data.draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0]))
        after.append(part)
        left //= part
    for _ in range(data.draw(st.integers(0, 2))):
        after.insert(data.draw(st.integers(0, len(after))), 1)
    seen: dict[int, list[int]] = defaultdict(list)
    for inputs, outputs in dimension_blocks(before, after):
        assert np.prod([before[d] for d in inputs]) == np.prod([after[d] for d in outputs])
        seen[0] += inputs
        seen[1] += outputs
    assert sorted(seen[0]) == list(range(len(before))) and sorted(seen[1]) == list(range(len(after)))


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


def test_outputs_of_every_kind() -> None:
    class Pair(NamedTuple):
        one: torch.Tensor
        two: Any

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.side = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> Any:
            h = self.body(x)
            return {"pair": Pair(self.head(h), None), "list": [self.side(h), 3, "text"], "none": None}

    small: Any = structprune.prune_model(Many(), 0.5, example_inputs=X8, keep_representation=False)
    out = small(X8)
    assert out["pair"].one.shape == (2, 4) and out["list"][0].shape == (2, 3) and small.body.out_features == 8


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
