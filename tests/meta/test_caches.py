"""Tables that are computed once and kept: by a function, in a dict, in a module."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support.attention import TOKENS, Net, Separate
from tests.support.pruned import X, pruned

Tensor = torch.Tensor


@functools.cache
def angles(tokens: int, device: torch.device) -> Tensor:
    """A table that is computed once."""
    return torch.arange(tokens, device=device) * torch.full((1,), 0.5, device=device)


class Tabled(Separate):
    """Attention that weighs positions by a cached table, made by a function and by a method."""

    @functools.cache  # noqa: B019
    def decay(self, tokens: int, device: torch.device) -> Tensor:
        return torch.linspace(1, 2, tokens, device=device)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = angles(q.shape[2], q.device).cos() * self.decay(q.shape[2], q.device)
        return super().mixed(q, k, v * weights[:, None])


def test_cached_tables_are_left_with_values() -> None:
    angles.cache_clear()
    model = Net(Tabled())
    small = pruned(model)
    assert small.block.heads == 2
    for each in (model, small):
        assert each(X).device.type == "cpu" and bool(each(X).isfinite().all())
    # A table that the user's own forward filled is of no use under another device, and does no harm.
    assert angles(TOKENS, torch.device("cpu")).device.type == "cpu"
    assert structprune.prove(model, pruned(model), X)


def test_a_table_that_the_users_own_forward_has_cached() -> None:
    angles.cache_clear()
    model = Net(OneTable(lambda v: row(v.shape[2]).to(v)))
    model(X)
    assert pruned(model).block.heads == 2


def test_a_table_in_a_dict_of_the_file_is_left_with_values() -> None:
    ROWS.clear()
    model = Net(OneTable(lambda v: kept_row(v.shape[2], v.device)))
    try:
        assert pruned(model).block.heads == 2
    finally:
        assert model(X).device.type == "cpu"


class BiasByDevice(Separate):
    """As LeViT: biases of positions for every head, looked up once for every device and kept in evaluation."""

    def __init__(self, key: Callable[[torch.device], Any]) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(self.heads, TOKENS))
        self.register_buffer("distances", (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs())
        self.key = key
        self.cache: dict[Any, Tensor] = {}

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key = self.key(q.device)
        if self.training or key not in self.cache:
            self.cache[key] = self.biases[:, self.distances]
        return ((q * self.scale @ k.transpose(-2, -1)) + self.cache[key]).softmax(-1) @ v


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("key", [str, torch.device], ids=["named", "device"])
def test_a_table_that_a_module_keeps_for_every_device(key: Any, inplace: bool) -> None:
    model = Net(BiasByDevice(key)).eval()
    with torch.no_grad():
        model(X)
    dense = copy.deepcopy(model)
    options = {"keep_representation": False, "round_to": 1, "inplace": inplace}
    small: Any = structprune.prune_model(model, 0.5, "channel", example_inputs=X, **options)
    assert small.block.heads == 2
    assert list(small.block.cache) == [] and list(dense.block.cache) == [key(X.device)]
    small(X)
    assert structprune.prove(dense, small, X)


@functools.cache
def row(tokens: int) -> Tensor:
    """A table whose key is a size alone."""
    return torch.linspace(0, 1, tokens)


ROWS: dict[int, Tensor] = {}


def kept_row(tokens: int, device: torch.device) -> Tensor:
    """The same, kept in a dict, on the device of the first call."""
    if tokens not in ROWS:
        ROWS[tokens] = torch.linspace(0, 1, tokens, device=device)
    return ROWS[tokens]


class OneTable(Separate):
    """Attention that weighs positions by a table."""

    def __init__(self, table: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table = table

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().mixed(q, k, v * self.table(v)[:, None])
