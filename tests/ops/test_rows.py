"""Contractions with a weight, written as matrix products: the rows times the matrix are what the operator gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from structprune.ops import OPERATORS
from structprune.ops.rows import Rows

aten = torch.ops.aten


def _convolution(*shape: int, weight: tuple[int, ...], transposed: bool = False, **settings: Any) -> tuple[Any, ...]:
    rank = len(weight) - 2
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **settings}
    stride, padding, dilation = (
        list(v) if isinstance(v, tuple) else [v] * rank for v in (given["stride"], given["padding"], given["dilation"])
    )
    x, w = torch.randn(shape, dtype=torch.float64), torch.randn(weight, dtype=torch.float64)
    return x, w, None, stride, padding, dilation, transposed, [0] * rank, given["groups"]


CASES = {
    "one tap": _convolution(2, 6, 5, 4, weight=(8, 6, 1, 1)),
    "three taps": _convolution(2, 6, 5, 4, weight=(8, 6, 3, 3), padding=1),
    "uneven": _convolution(2, 6, 9, 8, weight=(8, 6, 3, 5), padding=(1, 2), stride=(2, 3), dilation=(2, 1)),
    "groups": _convolution(3, 6, 7, 7, weight=(9, 2, 3, 3), stride=2, groups=3),
    "depthwise": _convolution(2, 6, 7, 7, weight=(6, 1, 3, 3), padding=1, groups=6),
    "one dimension": _convolution(2, 6, 20, weight=(8, 6, 5), padding=2, stride=3),
    "three dimensions": _convolution(2, 3, 5, 6, 4, weight=(4, 3, 3, 1, 2), padding=(1, 0, 1)),
}


def _checked(rows: Rows, arguments: dict[str, Any], out: torch.Tensor) -> None:
    every = torch.arange(rows.count(arguments))
    inputs, matrix = rows.inputs(arguments, every), rows.matrix(arguments)
    outputs = rows.outputs(out, rows.place(arguments, every)).reshape(len(every), len(matrix), -1)
    assert len(every) * matrix.shape[0] * matrix.shape[1] == out.numel()
    torch.testing.assert_close(torch.einsum("rge,goe->rgo", inputs, matrix), outputs)
    torch.testing.assert_close(rows.weight_of(matrix, arguments), arguments[rows.weight])
    some = every[1::3]
    assert torch.equal(rows.inputs(arguments, some), inputs[some])


@pytest.mark.parametrize("name", CASES)
def test_a_convolution_is_a_product_of_patches(name: str) -> None:
    op, args = OPERATORS.of(aten.convolution.default), CASES[name]
    _checked(op.spec.rows, op.arguments(args, {}), op.func(*args))


def test_a_transposed_convolution_is_not_written_so() -> None:
    op, args = (
        OPERATORS.of(aten.convolution.default),
        _convolution(2, 6, 5, 5, weight=(6, 8, 2, 2), stride=2, transposed=True),
    )
    assert op.spec.rows.count(op.arguments(args, {})) == 0


def test_matrix_products() -> None:
    x, w, bias = torch.randn(7, 5), torch.randn(5, 3), torch.randn(3)
    for op, args, out in (
        (OPERATORS.of(aten.mm.default), (x, w), x @ w),
        (OPERATORS.of(aten.addmm.default), (bias, x, w), x @ w),
    ):
        _checked(op.spec.rows, op.arguments(args, {}), out)
    scaled = OPERATORS.of(aten.addmm.default).arguments((bias, x, w), {"alpha": 2})
    assert OPERATORS.of(aten.addmm.default).spec.rows.count(scaled) == 0
