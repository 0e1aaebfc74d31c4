"""Operators that treat every position alike: labels that meet at a position are coupled."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from structprune.ir.operators import each, free
from structprune.ir.slices import Ids, Labels
from structprune.ops import scaling, shapes
from structprune.ops.call import Call
from structprune.ops.creation import freeze_if_seeded

_UNARY = """
    abs acos acosh angle asin asinh atan atanh bernoulli bitwise_not celu clamp clamp_max clamp_min cos cosh _conj
    _conj_physical deg2rad digamma elu erf erfc erfinv exp exp2 expm1 exponential fill hardshrink hardtanh i0 isinf
    isnan leaky_relu lgamma lift log log10 log1p log2 log_sigmoid_forward logical_not logit mish nan_to_num
    native_dropout normal rad2deg random reciprocal rrelu_with_noise rsqrt signbit sin sinc sinh softplus softshrink
    sqrt tan threshold uniform zero
"""
_ACTIVATIONS = "gelu hardsigmoid hardswish sigmoid silu tanh"
_POINTWISE = """
    addcdiv addcmul atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor complex copy
    copysign eq fmax fmin ge gt hypot le lerp logaddexp logaddexp2 logical_and logical_or logical_xor lt masked_fill
    maximum minimum ne nextafter polar pow rsub special_xlog1py where xlogy _prelu_kernel
"""


def unary(call: Call) -> Labels | list[Labels]:
    """``y[i] = f(x[i])``, with parameters that may be tensors: the labels pass."""
    labels = meet(call, call.tensors, call.out_shape()) if len(call.tensors) > 1 else call.labels(call.tensors[0])
    freeze_if_seeded(call, labels)
    if isinstance(call.out, tuple):
        # A mask or buffer beside the result; some backends leave it empty.
        return [labels if t.shape == call.out[0].shape else (None,) * t.ndim for t in call.out]
    return labels


def pointwise(call: Call) -> Labels:
    """``z[i] = f(x[i], y[i])`` with broadcasting: labels that meet are coupled."""
    if call.op == "_prelu_kernel":
        call.size("num_parameters", next((ids for ids in call.labels(call.tensors[1]) if ids is not None), None))
    return meet(call, call.tensors, call.out_shape())


def meet(call: Call, tensors: Sequence[torch.Tensor], out_shape: Sequence[int]) -> Labels:
    """Align tensors with broadcasting, couple the labels that meet, return those of the result."""
    result: list[Ids | None] = []
    for dim, size in enumerate(out_shape):
        labelled: Ids | None = None
        rigid = False
        for tensor in tensors:
            shape = call.shape(tensor)
            own = dim - len(out_shape) + len(shape)
            if own < 0:
                continue
            ids = call.labels(tensor)[own]
            if shape[own] == 1 and size != 1:
                # The one entry serves all positions: it has nowhere to go, and cannot leave.
                call.freeze(ids, "is broadcast along another dimension")
            elif ids is None:
                rigid = rigid or size != 1
            elif labelled is None:
                labelled = ids
            else:
                call.couple(labelled, ids, "")
        if rigid:
            # It never shrinks: what comes behind need not follow it.
            call.freeze(labelled, "meets a tensor of fixed size")
            labelled = None
        result.append(labelled)
    return tuple(result)


def leaves_the_tracer(call: Call) -> list[Labels]:
    """What becomes a Python number is lost from sight."""
    call.freeze_all("is read by Python code")
    return []


def gated_linear_unit(call: Call) -> Labels:
    """``a * sigmoid(b)`` with ``a`` and ``b`` the halves of one dimension."""
    x = call["self"]
    labels = list(call.labels(x))
    dim = call["dim"] % len(labels)
    ids = labels[dim]
    if ids is not None:
        half = len(ids) // 2
        call.couple(ids[:half], ids[half:], "")
        labels[dim] = call.piece(ids[:half])
    return tuple(labels)


SPECS = (
    *free(_UNARY, unary),
    *free(_ACTIVATIONS, unary, on_meta=shapes.like, on_meta_in_place=shapes.itself),
    *free("relu", unary, on_meta=shapes.like, on_meta_in_place=shapes.itself, scaling=scaling.same),
    *free("neg", unary, scaling=scaling.same),
    *free("_to_copy", unary, values="floats", scaling=scaling.same),
    *free("alias detach", unary, keeps_values=True, moves="all", scaling=scaling.same),
    *free("clone", unary, on_meta=shapes.like, keeps_values=True, moves="all", scaling=scaling.same),
    *free("lift_fresh", unary, keeps_values=True),
    *free("contiguous", keeps_values=True),
    *free("ceil floor frac round sgn sign trunc", unary, has_steps=True),
    *free(_POINTWISE, pointwise),
    *free("add sub", pointwise, on_meta=shapes.pointwise, on_meta_in_place=shapes.pointwise_, scaling=scaling.added),
    *free("mul div", pointwise, on_meta=shapes.pointwise, on_meta_in_place=shapes.pointwise_, scaling=scaling.scaled),
    *free("floor_divide fmod heaviside remainder", pointwise, has_steps=True),
    *each("fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask", has_steps=True),
    *free("_local_scalar_dense", leaves_the_tracer, reads_values=True),
    *free("glu", gated_linear_unit),
)
