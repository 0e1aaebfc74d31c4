"""Operators that treat every position alike: labels that meet at a position are coupled."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from structprune.ir.slices import Ids, Labels
from structprune.ops.boundary import LEAVES
from structprune.ops.call import Call
from structprune.ops.creation import freeze_if_seeded
from structprune.ops.registry import rule

_UNARY = """
    abs acos acosh alias angle asin asinh atan atanh bernoulli bitwise_not ceil celu clamp clamp_max clamp_min
    clone cos cosh _conj _conj_physical deg2rad detach digamma elu erf erfc erfinv exp exp2 expm1 exponential floor frac
    gelu hardshrink hardsigmoid hardswish hardtanh i0 isinf isnan leaky_relu lgamma lift lift_fresh log log10 log1p
    log2 log_sigmoid_forward logical_not logit mish nan_to_num native_dropout neg normal rad2deg random reciprocal
    relu round rrelu_with_noise rsqrt sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink sqrt tan tanh
    threshold trunc uniform _to_copy fill zero
""".split()
_POINTWISE = """
    add addcdiv addcmul atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor complex
    copy copysign div eq floor_divide fmax fmin fmod ge gt heaviside hypot le lerp logaddexp logaddexp2
    logical_and logical_or logical_xor lt masked_fill maximum minimum mul ne nextafter polar pow remainder rsub
    special_xlog1py sub where xlogy _prelu_kernel
""".split()


@rule(*_UNARY)
def unary(call: Call) -> Labels | list[Labels]:
    """``y[i] = f(x[i])``, with parameters that may be tensors: the labels pass."""
    labels = meet(call, call.tensors, call.out_shape()) if len(call.tensors) > 1 else call.labels(call.tensors[0])
    freeze_if_seeded(call, labels)
    if isinstance(call.out, tuple):
        # A mask or buffer beside the result; some backends leave it empty.
        return [labels if t.shape == call.out[0].shape else (None,) * t.ndim for t in call.out]
    return labels


@rule(*_POINTWISE)
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


@rule("_local_scalar_dense")
def leaves_the_tracer(call: Call) -> list[Labels]:
    """What becomes a Python number is lost from sight."""
    call.freeze_all("is read by Python code")
    return []


@rule(LEAVES)
def leaves_pytorch(call: Call) -> list[Labels]:
    """What other code does with a tensor's memory is not seen."""
    call.freeze_all(f"leaves PyTorch through {call['how']}")
    return []


@rule("glu")
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
