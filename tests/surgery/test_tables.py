"""Tensors that modules hold beside parameters and buffers: tables in plain attributes, and sparse constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import CheckpointError, ModelError
from tests.support import oracle

Tensor = torch.Tensor
X = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))
FREE: dict[str, Any] = {"keep_representation": False, "round_to": 1}
SHARED = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Positions(nn.Module):
    """A table of positions in a plain attribute, added to a residual stream."""

    def __init__(self, table: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up = nn.Linear(12, 16), nn.Linear(16, 24)
        self.down, self.head = nn.Linear(24, 16), nn.Linear(16, 5)
        self.positions = torch.randn(6, 16) if table is None else table

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        out: Tensor = self.head(x + self.down(torch.relu(self.up(x))))
        return out


@pytest.mark.parametrize("inplace", [False, True])
def test_a_plain_table_is_cut_with_its_channels(inplace: bool) -> None:
    dense: Any = oracle.randomise(Positions(SHARED.clone()))
    dense.positions = table = SHARED.clone()
    reference: Any = oracle.randomise(Positions(SHARED.clone()))
    reference.positions = SHARED.clone()
    small: Any = structprune.prune_model(dense, 0.5, "channel", example_inputs=X.double(), inplace=inplace, **FREE)
    plan = structprune.plan_of(small)
    kept = list(plan.kept["positions"][1])
    assert plan.plain == ("positions",) and small.embed.out_features == 8
    assert torch.equal(small.positions, SHARED[:, kept])
    # Somebody else may hold the table: it is replaced, never written.
    assert torch.equal(table, SHARED)
    assert oracle.check(reference, small, X) > 1e-3
    if not inplace:
        assert structprune.prove(dense, small, X.double()) and dense.positions is table


def test_a_plan_with_a_table_goes_through_json_files_and_steps(tmp_path: Path) -> None:
    dense = Positions()
    plan = structprune.Plan.from_json(
        structprune.plan_pruning(dense, 0.25, "channel", example_inputs=X, **FREE).to_json()
    )
    assert plan.plain == ("positions",) and plan.shapes["positions"] == (6, 16)
    small: Any = plan.apply(dense, example_inputs=X)
    structprune.save(small, tmp_path / "small.safetensors")
    loaded: Any = structprune.load(tmp_path / "small.safetensors", Positions())
    assert torch.equal(loaded(X), small(X)) and loaded.positions.shape == (6, 12)
    smaller: Any = structprune.prune_model(small, 0.5, "channel", example_inputs=X, **FREE)
    both = structprune.plan_of(smaller)
    assert both.shapes["positions"] == (6, 16) and smaller.positions.shape == (6, 6)
    assert structprune.prove(dense, smaller, X)
    assert both.after(plan).shapes["positions"] == (6, 12)


def test_a_table_that_no_cut_touches_is_no_part_of_the_plan() -> None:
    plan = structprune.plan_pruning(Positions(), 0.5, example_inputs=X)  # the stream stays
    assert plan.plain == () and "positions" not in plan.shapes
    bare = Positions()
    del bare.positions
    bare.positions = None  # type: ignore[assignment]
    assert plan.fits(bare)


class Graph(nn.Module):
    """A sparse adjacency in a buffer, which a forward may multiply with."""

    def __init__(self, *, reads: bool, persistent: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.reads = reads
        edges = torch.eye(4).roll(1, 0) + torch.eye(4)
        self.register_buffer("adjacency", edges.to_sparse(), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.reads:
            h = torch.sparse.mm(self.adjacency, h)  # type: ignore[no-untyped-call]
        out: Tensor = self.c(torch.relu(self.b(h)))
        return out


NODES = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reads", [False, True])
def test_a_sparse_buffer_is_followed_and_never_cut(reads: bool) -> None:
    dense = Graph(reads=reads)
    small: Any = structprune.prune_model(dense, 0.5, example_inputs=NODES, verify=True, **FREE)
    assert small.b.out_features == 8 and small.a.out_features == 8
    assert small.adjacency.layout == torch.sparse_coo
    assert torch.equal(small.adjacency.to_dense(), dense.get_buffer("adjacency").to_dense())


def test_files_and_parameters_are_not_sparse(tmp_path: Path) -> None:
    small = structprune.prune_model(Graph(reads=False, persistent=True), 0.5, example_inputs=NODES, **FREE)
    with pytest.raises(CheckpointError, match=r"adjacency is sparse \(torch.sparse_coo\)"):
        structprune.save(small, tmp_path / "small.safetensors")
    model = nn.Linear(8, 4)
    model.weight = nn.Parameter(model.weight.detach().to_sparse())
    with pytest.raises(ModelError, match=r"weight has the layout torch.sparse_coo and is a parameter: .* dense"):
        structprune.plan_pruning(model, 0.5, example_inputs=NODES)
