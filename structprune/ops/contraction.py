"""Operators that sum over a dimension which two operands share. Channels end here, and begin."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from structprune.ir.operators import OperatorSpec, each
from structprune.ir.slices import Ids, Labels
from structprune.ir.tensors import tensors_of
from structprune.ops import flops, rows, scaling, shapes
from structprune.ops.call import Call

_FIXED = "is multiplied with a tensor of fixed size"


def couple_positions(call: Call, ids: Ids | None, groups: int) -> None:
    """Couple the same positions of every one of ``groups`` equal stretches of a dimension."""
    if ids is not None and groups > 1:
        call.couple(ids, np.tile(ids[: len(ids) // groups], groups), "")


def convolution(call: Call) -> Labels:
    """``y[o] = sum_i w[o, i] * x[i]`` in each of ``groups`` groups of channels."""
    x, weight, bias = call.tensors[0], call.tensors[1], call["bias"] if "bias" in call else None
    groups: int = call["groups"]
    transposed = bool(call["transposed"]) if "transposed" in call else False
    kernel_rank = len(call.shape(weight)) - 2
    channel = len(call.shape(x)) - kernel_rank - 1
    beside = [_beside(call, ids, d) for d, ids in enumerate(call.labels(x)[channel + 1 :])]
    for ids in call.labels(weight)[2:]:
        call.freeze(ids, "is a kernel's extent")

    if call.remember("depthwise", 1 < groups == call.shape(x)[channel]):
        out = _depthwise(call, x, channel, weight, transposed)
    elif transposed:
        out = _transposed(call, x, channel, weight, groups)
    else:
        out = _grouped(call, x, channel, weight, groups)
    if isinstance(bias, torch.Tensor):
        call.couple(out, call.labels(bias)[0], _FIXED)
    call.size("in_channels", call.labels(x)[channel])
    call.size("out_channels", out)
    lead = call.labels(x)[:channel]
    return (*lead, out, *beside)


def _beside(call: Call, ids: Ids | None, spatial: int) -> Ids | None:
    """A spatial dimension: a kernel of one tap treats every position alike, a larger one slides over them."""
    if ids is None:
        return None
    settings = [call[name] if name in call else (0,) for name in ("stride", "dilation", "padding", "output_padding")]
    stride, _, padding, more = (s[spatial] if len(s) > 1 else s[0] for s in settings)
    taps = call.shape(call.tensors[1])[2 + spatial]
    if call.remember(f"one tap {spatial}", (taps, stride, padding, more) == (1, 1, 0, 0)):
        return ids
    call.freeze(ids, "is slid over by a kernel")
    return None


def _grouped(call: Call, x: torch.Tensor, channel: int, weight: torch.Tensor, groups: int) -> Ids | None:
    """Weight ``(out, in / groups, ...)``; every group loses the same positions."""
    inputs, taps = call.labels(x)[channel], call.labels(weight)[1]
    call.contract(x, channel)
    call.contract(weight, 1)
    call.couple(inputs, None if taps is None else np.tile(taps, groups), _FIXED)
    couple_positions(call, call.labels(weight)[0], groups)
    return call.produce(weight, 0)


def _transposed(call: Call, x: torch.Tensor, channel: int, weight: torch.Tensor, groups: int) -> Ids | None:
    """Weight ``(in, out / groups, ...)``; every group loses the same positions."""
    inputs, taps = call.labels(x)[channel], call.labels(weight)[0]
    call.contract(x, channel)
    call.contract(weight, 0)
    call.couple(inputs, taps, _FIXED)
    couple_positions(call, taps, groups)
    out = call.produce(weight, 1)
    return None if out is None else np.tile(out, groups)


def _depthwise(call: Call, x: torch.Tensor, channel: int, weight: torch.Tensor, transposed: bool) -> Ids | None:
    """One input channel a group: a channel leaves with its group, and with all that it makes."""
    inputs, filters, multipliers = call.labels(x)[channel], *call.labels(weight)[:2]
    call.size("groups", inputs)
    call.freeze(multipliers, "is the multiplier of a depthwise convolution")
    if transposed:
        call.couple(inputs, filters, _FIXED)
        return None if filters is None else np.repeat(filters, call.shape(weight)[1])
    repeats = call.shape(weight)[0] // call.shape(x)[channel]
    call.couple(None if inputs is None else np.repeat(inputs, repeats), filters, _FIXED)
    return filters


def matrix_product(call: Call) -> Labels:
    """``(…, n, k) @ (…, k, m)``."""
    a, b = call.tensors[0], call.tensors[1]
    return _product(call, a, b)


def grouped_product(call: Call) -> Labels:
    """``(n, k) @ (e, k, m)``: rows up to each offset meet a matrix of their own, as experts do; or batches of both."""
    a, b = call.tensors[0], call.tensors[1]
    ranks = len(call.shape(a)), len(call.shape(b))
    if ranks == (3, 3):
        return _product(call, a, b)
    for tensor in call.tensors[2:]:
        for ids in call.labels(tensor):
            call.freeze(ids, "is an offset or a bias of a grouped product")
    if ranks != (2, 3):
        call.freeze_all("is cut into groups by offsets")
        return (None,) * len(call.out_shape())
    call.freeze(call.labels(a)[0], "is cut into groups by offsets")
    call.freeze(call.labels(b)[0], "counts the matrices of a grouped product")
    call.couple(call.labels(a)[1], call.labels(b)[1], _FIXED)
    call.contract(a, 1)
    call.contract(b, 1)
    return (call.labels(a)[0], call.produce(b, 2))


def matrix_product_and_sum(call: Call) -> Labels:
    """``beta * bias + a @ b``."""
    bias, a, b = call.tensors[0], call.tensors[1], call.tensors[2]
    labels = _product(call, a, b)
    return _with_bias(call, bias, labels)


def matrix_vector(call: Call) -> Labels:
    """``(n, k) @ (k,)``."""
    a, v = call.tensors
    call.couple(call.labels(a)[1], call.labels(v)[0], _FIXED)
    call.contract(a, 1)
    call.contract(v, 0)
    return (call.produce(a, 0),)


def dot(call: Call) -> Labels:
    """``sum_i a[i] * b[i]``."""
    a, b = call.tensors
    call.couple(call.labels(a)[0], call.labels(b)[0], _FIXED)
    call.contract(a, 0)
    call.contract(b, 0)
    return ()


def _product(call: Call, a: torch.Tensor, b: torch.Tensor) -> Labels:
    rank = len(call.shape(a))
    call.couple(call.labels(a)[rank - 1], call.labels(b)[rank - 2], _FIXED)
    call.contract(a, rank - 1)
    call.contract(b, rank - 2)
    batch = []
    for dim in range(rank - 2):
        ids, other = call.labels(a)[dim], call.labels(b)[dim]
        call.couple(ids, other, _FIXED)
        batch.append(call.batch(ids if ids is not None else other))
    labels = (*batch, call.produce(a, rank - 2), call.produce(b, rank - 1))
    call.size("in_features", call.labels(a)[rank - 1])
    call.size("out_features", labels[-1])
    return labels


def _with_bias(call: Call, bias: torch.Tensor, labels: Labels) -> Labels:
    shape, sizes = call.shape(bias), call.out_shape()
    for dim, ids in enumerate(labels):
        own = dim - len(sizes) + len(shape)
        if own >= 0 and (shape[own] != 1 or sizes[dim] == 1):
            call.couple(ids, call.labels(bias)[own], "meets a bias of fixed size" if shape[own] != 1 else "")
    return labels


def attention(call: Call) -> list[Labels]:
    """``softmax(q @ k.T / sqrt(d)) @ v`` over ``(batch, head, token, width)``."""
    query, key, value = call["query"], call["key"], call["value"]
    last = len(call.shape(query)) - 1
    labels = []
    for dim in range(last - 1):
        ids = call.labels(query)[dim]
        call.couple(ids, call.labels(key)[dim], _FIXED)
        call.couple(ids, call.labels(value)[dim], _FIXED)
        labels.append(call.batch(ids))
    call.couple(call.labels(query)[last], call.labels(key)[last], _FIXED)
    if call["scale"] is None:
        call.freeze(call.labels(query)[last], "sets the scale 1/sqrt(width) of an attention")
    for tensor in (query, key):
        call.contract(tensor, last)
    for tensor in (key, value):
        call.freeze(call.labels(tensor)[last - 1], "is a dimension of tokens")
    for tensor in call.tensors[3:]:
        for ids in call.labels(tensor):
            call.freeze(ids, "is the mask of an attention")
    rows = (*labels, call.labels(query)[last - 1])
    # Some kernels return the logarithm of the softmax's sums as well.
    rest = [rows if t.ndim == last else (None,) * t.ndim for t in tensors_of(call.out)[1:]]
    return [(*rows, call.produce(value, last)), *rest]


def grouped_product_in_double(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """``_grouped_mm``, which has no kernel for float64: one product for each stretch between offsets."""
    if bias is not None:
        raise NotImplementedError("aten::_grouped_mm with a bias has no form in float64")
    if offs is None:
        return torch.bmm(a, b)
    stretches = list(pairwise([0, *offs.tolist()]))
    if a.ndim == b.ndim == 2:
        return torch.stack([a[:, start:end] @ b[start:end] for start, end in stretches])
    if a.ndim == 2:
        out = a.new_zeros(a.shape[0], b.shape[2])
        for matrix, (start, end) in zip(b, stretches, strict=True):
            out[start:end] = a[start:end] @ matrix
        return out
    out = a.new_zeros(a.shape[1], b.shape[1])
    for matrix, (start, end) in zip(a, stretches, strict=True):
        out[:, start:end] = matrix @ b[:, start:end]
    return out


SPECS = (
    OperatorSpec(
        "convolution", convolution, sizes=("groups",), on_meta=shapes.convolution, scaling=scaling.convolved,
        weight="weight", rows=rows.OF_CONVOLUTION,
    ),
    OperatorSpec("_convolution", convolution, sizes=("groups",)),
    *each("convolution_overrideable cudnn_convolution mkldnn_convolution", convolution),
    OperatorSpec("convolution_backward", flops=flops.convolution_backward),
    OperatorSpec(
        "mm", matrix_product, on_meta=shapes.product, scaling=scaling.multiplied, weight="mat2", rows=rows.OF_PRODUCT
    ),
    OperatorSpec("bmm", matrix_product, on_meta=shapes.product, scaling=scaling.multiplied),
    OperatorSpec(
        "addmm", matrix_product_and_sum, on_meta=shapes.product_and_sum, scaling=scaling.affine, weight="mat2",
        rows=rows.OF_PRODUCT_AND_SUM,
    ),
    *each("baddbmm _sparse_addmm", matrix_product_and_sum),
    OperatorSpec(
        "_grouped_mm", grouped_product, on_meta=shapes.grouped_product, flops=flops.grouped_product,
        in_double=grouped_product_in_double,
    ),
    OperatorSpec("mv", matrix_vector, flops=flops.matrix_vector),
    *each("dot vdot", dot, flops=flops.matrix_vector),
    OperatorSpec("_scaled_dot_product_flash_attention_for_cpu", attention, flops=flops.attention),
    *each("_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention", attention),
    OperatorSpec("_scaled_dot_product_fused_attention_overrideable", flops=flops.attention),
    OperatorSpec("addmv", flops=flops.added_matrix_vector),
    OperatorSpec("addbmm", flops=flops.added_batches),
    *each("linear mkldnn_linear", flops=flops.linear),
    OperatorSpec("_int_mm", flops=flops.integer_product),
    OperatorSpec("_addmm_activation", flops=flops.added_product),
    OperatorSpec("_trilinear", flops=flops.trilinear),
)  # fmt: skip
