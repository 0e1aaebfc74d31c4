"""FLOPs of operators that PyTorch's own table lacks or counts wrong: two for a multiply and add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_flop_count


def convolution_backward(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """One forward's work for each of the two gradients that are asked for, at any number of groups.

    torch's own formula reads the weight of the transposed convolution as if it had one group, and
    counts forward + backward over forward as 2 + groups where it is 3.
    """
    grad, x, weight = args[:3]
    transposed, mask = args[7], args[10]
    # Every entry of the smaller-channelled side of the kernel meets every position once.
    positions = x if transposed else grad
    macs = positions.numel() * weight.numel() // max(weight.shape[0], 1)
    return 2 * int(macs) * (int(mask[0]) + int(mask[1]))


def matrix_vector(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``(n, k) @ (k,)``, and a product of two vectors."""
    return 2 * int(args[0].numel())


def added_matrix_vector(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``bias + (n, k) @ (k,)``."""
    return 2 * int(args[1].numel())


def added_batches(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``bias`` and the sum over batches of ``(n, k) @ (k, m)``."""
    batch, rows, inner = args[1].shape
    return 2 * int(batch * rows * inner * args[2].shape[2])


def linear(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``x @ weight.T``, with a bias or without."""
    return 2 * int(out.numel()) * int(args[1].shape[-1])


def integer_product(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``(n, k) @ (k, m)`` of integers."""
    return 2 * int(out.numel()) * int(args[0].shape[-1])


def grouped_product(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Every row meets one matrix; with two flat operands every column of the one meets one row of the other."""
    flat = args[0].ndim == args[1].ndim == 2
    return 2 * int(args[0].numel() * args[1].shape[-1] if flat else out.numel() * args[0].shape[-1])


def added_product(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``bias + (n, k) @ (k, m)``."""
    return 2 * int(out.numel()) * int(args[1].shape[-1])


def trilinear(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """The sum over ``sumdim`` of three expanded factors, as two contractions, the cheaper order aside."""
    factors, expansions = args[:3], args[3:6]
    shapes = []
    for factor, dims in zip(factors, expansions, strict=True):
        shape = list(factor.shape)
        for dim in sorted(dims):
            shape.insert(dim, 1)
        shapes.append(shape)
    return 2 * math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def attention(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Both products of an attention."""
    return int(sdpa_flop_count(*(a.shape for a in args[:3])))  # type: ignore[no-untyped-call]


def recurrent_layer(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``mkldnn_rnn_layer``: every step multiplies each weight matrix by one vector a sequence."""
    x, weights = args[0], args[1:3]
    return 2 * int(x.shape[0] * x.shape[1] * sum(w.numel() for w in weights))
