"""Grouped products, as mixtures of experts run them: what stands in for the operator against the operator itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune.ops import OPERATORS
from structprune.ops.shapes import grouped_product
from structprune.verify.masking import run_in_double

pytestmark = pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="PyTorch 2.6 does not have the operator")
R = torch.randn
HALF = torch.bfloat16


def ends(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


CASES: dict[str, tuple[torch.Tensor | None, ...]] = {
    "rows": (R(4, 8), R(2, 8, 12), ends(2, 4)),
    "a group of none": (R(4, 8), R(3, 8, 12), ends(2, 2, 4)),
    "matrices transposed": (R(4, 8), R(2, 12, 8).mT, ends(2, 4)),
    "padded": (R(4, 8), R(2, 6, 8).mT, ends(2, 4)),
    "padded halves": (R(4, 8).to(HALF), R(2, 12, 8).to(HALF).mT, ends(1, 4)),
    "misaligned": (R(4, 8), R(2, 8, 6), ends(2, 4)),
    "one wide": (R(4, 8), R(2, 8, 1), ends(2, 4)),
    "one wide, transposed": (R(4, 8), R(2, 1, 8).mT, ends(2, 4)),
    "one deep": (R(4, 1), R(2, 1, 8), ends(2, 4)),
    "one row": (R(1, 8), R(2, 8, 8), ends(0, 1)),
    "an expanded row": (R(1, 8).expand(4, 8), R(2, 8, 8), ends(2, 4)),
    "every second column": (R(4, 16)[:, ::2], R(2, 8, 8), ends(2, 4)),
    "batches": (R(2, 4, 8), R(2, 8, 12), None),
    "padded batches": (R(2, 4, 8), R(2, 6, 8).mT, None),
    "misaligned batches": (R(2, 4, 6), R(2, 6, 8), None),
    "without offsets": (R(4, 8), R(2, 8, 8), None),
    "long offsets": (R(4, 8), R(2, 8, 8), torch.tensor([2, 4])),
    "too many offsets": (R(4, 8), R(2, 8, 8), ends(1, 2, 4)),
    "float64": (R(4, 8).double(), R(2, 8, 8).double(), ends(2, 4)),
}


def on_meta(tensor: torch.Tensor | None) -> Any:
    return (
        None
        if tensor is None
        else torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    )


@pytest.mark.parametrize("name", CASES)
def test_its_shape_is_known_where_it_runs(name: str) -> None:
    operands = CASES[name]
    try:
        real = torch.ops.aten._grouped_mm(*operands)
    except RuntimeError:
        # Refused, or left to PyTorch's own shape function, which refuses.
        try:
            assert grouped_product([on_meta(t) for t in operands], {}) is None
        except RuntimeError as error:
            assert "multiples of 16 bytes" in str(error)
        return
    shaped = grouped_product([on_meta(t) for t in operands], {})
    assert (shaped.shape, shaped.stride(), shaped.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize(
    ("a", "b", "offs"),
    [
        (R(6, 8), R(3, 8, 12), ends(2, 2, 6)),
        (R(2, 5, 8), R(2, 8, 12), None),
        (R(2, 4, 8), R(8, 12), ends(4, 12)),
        (R(4, 12), R(12, 8), ends(4, 12)),
    ],
    ids=["rows", "batches", "columns", "inner"],
)
def test_its_form_in_float64(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None) -> None:
    func = torch.ops.aten._grouped_mm.default
    exact = run_in_double(OPERATORS.of(func), (a, b, offs), {})
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), func(a, b, offs), rtol=1e-4, atol=1e-5)


class Experts(nn.Module):
    """Two experts, each for half of the rows."""

    def __init__(self, width: int, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 3)
        shapes = ((2, width, 16), (2, 16, width)) if turned else ((2, 16, width), (2, width, 16))
        self.up, self.down = (nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: torch.Tensor) -> Any:
        up, down = (self.up.mT, self.down.mT) if self.turned else (self.up, self.down)
        offs = ends(len(x) // 2, len(x))
        hidden = torch._grouped_mm(self.first(x), up, offs=offs).relu()
        return self.last(torch._grouped_mm(hidden, down, offs=offs))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.95])
@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_experts_run_after_the_cut_at_any_ratio(granularity: Any, ratio: float, turned: bool) -> None:
    torch.manual_seed(0)
    model, x = Experts(16, turned), torch.randn(4, 16)
    try:
        pruned = structprune.prune_model(model, ratio, granularity, example_inputs=x, round_to=1)
    except structprune.NothingToPruneError:
        assert ratio > 0.5
        return
    assert pruned(x).shape == (4, 3)
    proof = structprune.prove(model, pruned, x)
    assert proof, str(proof)
    if ratio == 0.5:
        assert pruned.up.numel() <= model.up.numel() // 2
