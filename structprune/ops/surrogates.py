"""What stands in for operators that mix channels, in proofs: it keeps channels apart, or sums what is there.

An operator that takes a statistic over channels has no exact counterpart among the masked ones: a mean over half of the
channels is another mean. So in both networks a surrogate takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from structprune.ir.operators import Surrogate
from structprune.ops.call import dims_of


def affine(first: int) -> Surrogate:
    """``x * weight + bias`` with the weight along the dimensions from ``first`` on."""

    def normalise(a: dict[str, Any]) -> Any:
        x = a["input"]
        scaled = x.clone()
        rank = len(a["normalized_shape"]) if "normalized_shape" in a else 1
        begin = x.ndim - rank if first < 0 else first
        shape = [1] * begin + list(x.shape[begin : begin + rank]) + [1] * (x.ndim - begin - rank)
        if a.get("weight") is not None:
            scaled = scaled * a["weight"].reshape(shape)
        if a.get("bias") is not None:
            scaled = scaled + a["bias"].reshape(shape)
        return scaled

    return Surrogate(function=normalise)


def _over(function: Callable[..., torch.Tensor]) -> Callable[[dict[str, Any]], Any]:
    """A reduction over the operator's dimensions, kept or not as it keeps them."""

    def reduce(a: dict[str, Any]) -> Any:
        x = a["self"]
        return function(x, dims_of(a.get("dim"), x.ndim), bool(a.get("keepdim", False)))

    return reduce


def _sum(x: torch.Tensor, dims: list[int], keepdim: bool) -> torch.Tensor:
    return x.sum(dims, keepdim)


def _squares(x: torch.Tensor, dims: list[int], keepdim: bool) -> torch.Tensor:
    return (x * x.conj()).real.sum(dims, keepdim) if x.is_complex() else (x * x).sum(dims, keepdim)


SOFT = Surrogate(function=lambda a: torch.tanh(a["self"]))
LOWEST, HIGHEST = Surrogate(float("-inf")), Surrogate(float("inf"))
SUM, SQUARES = Surrogate(function=_over(_sum)), Surrogate(function=_over(_squares))
SQUARES_AND_SUM = Surrogate(function=_over(_squares), also=_over(_sum))
