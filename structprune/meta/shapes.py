"""Shape rules for the operators that convolutional networks spend their trace in.

PyTorch computes shapes on the meta device in Python, at hundreds of microseconds for a batch norm.
These give the same result for the plain cases and decline (``None``) everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Shaper = Callable[[Sequence[Any], dict[str, Any]], Any]


def batch_norm(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Output like the input, and two statistics per channel."""
    x = args[0]
    channels = x.shape[1] if x.ndim > 1 else -1
    if any(t is not None and t.shape != (channels,) for t in args[1:5]):
        return None
    return torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)


def convolution(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Output size by the arithmetic of `torch.nn.Conv2d`; only plain contiguous ones."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or x.ndim != weight.ndim or not x.is_contiguous() or x.dtype != weight.dtype:
        return None
    if x.shape[1] != weight.shape[1] * groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    size = [x.shape[0], weight.shape[0]]
    for i, extent in enumerate(x.shape[2:]):
        s, p, d = (v[i] if len(v) > 1 else v[0] for v in (stride, padding, dilation))
        out = (extent + 2 * p - d * (weight.shape[2 + i] - 1) - 1) // s + 1
        if out < 1:
            raise RuntimeError(
                f"kernel of {list(weight.shape[2:])} is larger than the padded input {list(x.shape[2:])}"
            )
        size.append(out)
    return x.new_empty(size)


def unary(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A floating-point function of every entry."""
    x = args[0]
    return torch.empty_like(x) if x.is_floating_point() and not kwargs else None


def unary_(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The same in place."""
    return args[0]


def pointwise(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Two tensors of one floating dtype, both contiguous or laid out alike; or a tensor and a number."""
    a, b = args[:2]
    if not isinstance(a, torch.Tensor) or not a.is_floating_point():
        return None
    if not isinstance(b, torch.Tensor):
        return torch.empty_like(a) if isinstance(b, (int, float)) else None
    if a.dtype != b.dtype or not (b.is_meta and a.is_meta):
        return None
    if a.shape == b.shape and a.stride() == b.stride():
        return torch.empty_like(a)
    if a.is_contiguous() and b.is_contiguous():
        return a.new_empty(torch.broadcast_shapes(a.shape, b.shape))  # type: ignore[no-untyped-call]
    return None


def pointwise_(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The same in place: the result must have the first operand's shape."""
    a, b = args[:2]
    if isinstance(b, torch.Tensor) and (a.shape != b.shape or not a.is_floating_point()):
        return None
    return a if isinstance(b, (torch.Tensor, int, float)) else None


_UNARY = "relu silu sigmoid hardswish hardsigmoid gelu tanh clone"
SHAPERS: dict[str, Shaper] = {
    "aten::native_batch_norm": batch_norm,
    "aten::convolution": convolution,
    **{f"aten::{name}": unary for name in _UNARY.split()},
    **{f"aten::{name}": pointwise for name in "add mul sub div".split()},
}
IN_PLACE_SHAPERS: dict[str, Shaper] = {
    **{f"aten::{name}": unary_ for name in _UNARY.split() if name != "clone"},
    **{f"aten::{name}": pointwise_ for name in "add mul sub div".split()},
}
