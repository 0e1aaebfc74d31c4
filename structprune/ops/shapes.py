"""Shape rules for the operators that networks spend their trace in.

PyTorch computes shapes on the meta device in Python, at hundreds of microseconds for a batch norm.
These give the same result for the plain cases and decline (``None``) everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence


def _empty(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """``x.new_empty(shape)``, which takes three times as long on the meta device."""
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _like(x: torch.Tensor) -> torch.Tensor:
    """``empty_like``, which is slow on the meta device where it has strides to think about."""
    return _empty(x, x.shape) if x.is_contiguous() else torch.empty_like(x)


def batch_norm(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Output like the input, and two statistics per channel."""
    x = args[0]
    channels = x.shape[1] if x.ndim > 1 else -1
    if any(t is not None and t.shape != (channels,) for t in args[1:5]):
        return None
    return _like(x), _empty(x, (channels,)), _empty(x, (channels,))


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
    return _empty(x, size)


def like(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A floating-point function of every entry."""
    x = args[0]
    return _like(x) if x.is_floating_point() and not kwargs.keys() - {"approximate"} else None


def itself(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The same in place."""
    return args[0]


def pointwise(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Two tensors of one floating dtype, both contiguous or laid out alike; or a tensor and a number."""
    a, b = args[:2]
    if not isinstance(a, torch.Tensor) or not a.is_floating_point():
        return None
    if not isinstance(b, torch.Tensor):
        return _like(a) if isinstance(b, (int, float)) else None
    if a.dtype != b.dtype or not (b.is_meta and a.is_meta):
        return None
    if a.shape == b.shape and a.stride() == b.stride():
        return _like(a)
    if a.is_contiguous() and b.is_contiguous() and a.ndim == b.ndim:
        sizes = list(zip(a.shape, b.shape, strict=True))
        if all(m == n or 1 in (m, n) for m, n in sizes):
            return _empty(a, [n if m == 1 else m for m, n in sizes])
    return None


def pointwise_(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The same in place: the result must have the first operand's shape."""
    a, b = args[:2]
    if isinstance(b, torch.Tensor) and (a.shape != b.shape or not a.is_floating_point()):
        return None
    return a if isinstance(b, (torch.Tensor, int, float)) else None


def layer_norm(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Output like the input, and two statistics for every position."""
    x, shape, *affine = args
    rank = len(shape)
    if x.dtype not in _FULL or not x.is_contiguous() or tuple(x.shape[-rank:]) != tuple(shape):
        return None
    if any(t is not None and isinstance(t, torch.Tensor) and tuple(t.shape) != tuple(shape) for t in affine):
        return None
    statistics = (*x.shape[:-rank], *(1,) * rank)
    return _like(x), _empty(x, statistics), _empty(x, statistics)


def product(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``(…, n, k) @ (…, k, m)`` of two tensors of one rank."""
    a, b = args[:2]
    if kwargs or a.dtype != b.dtype or a.ndim != b.ndim:
        return None
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        return None
    return _empty(a, (*a.shape[:-1], b.shape[-1]))


def product_and_sum(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The same plus a bias along the last dimension."""
    bias, a, b = args[:3]
    if len(args) > 3 or kwargs or tuple(bias.shape) != (b.shape[-1],) or bias.dtype != a.dtype:
        return None
    return product((a, b), {})


def softmax(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Like the input."""
    x = args[0]
    return _like(x) if not kwargs and x.is_contiguous() and x.is_floating_point() else None


def transposed(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A matrix the other way round, over the same memory."""
    x = args[0]
    return x.as_strided(x.shape[::-1], x.stride()[::-1]) if x.ndim == 2 else None


def mean(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Over the dimensions named."""
    x, dims, *more = args if len(args) > 1 else (args[0], None)
    if kwargs or not dims or not x.is_contiguous() or not x.is_floating_point():
        return None
    gone = {d % x.ndim for d in dims}
    if more and more[0]:
        return _empty(x, [1 if d in gone else n for d, n in enumerate(x.shape)])
    return _empty(x, [n for d, n in enumerate(x.shape) if d not in gone])


def upsample(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """To the size named, plain and contiguous."""
    x, size = args[:2]
    if kwargs or not x.is_contiguous() or len(size) != x.ndim - 2:
        return None
    return _empty(x, (*x.shape[:2], *size))


def cat(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Contiguous tensors of one dtype, end to end."""
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if kwargs or any(t.dtype != first.dtype or t.ndim != first.ndim or not t.is_contiguous() for t in tensors):
        return None
    dim %= max(first.ndim, 1)
    beside = {(*t.shape[:dim], *t.shape[dim + 1 :]) for t in tensors}
    if len(beside) != 1 or not first.ndim:
        return None
    return _empty(first, (*first.shape[:dim], sum(t.shape[dim] for t in tensors), *first.shape[dim + 1 :]))


def grouped_product(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``_grouped_mm`` with rows of whole 16 bytes; torch's own shape function takes bfloat16 only."""
    a, b, offs = (*args, *kwargs.values(), None)[:3]
    if len(args) + len(kwargs) > 3 or kwargs.keys() - {"offs"} or a.dtype != b.dtype or a.dtype not in _GROUPED:
        return None
    if a.shape[-1] != b.shape[-2]:
        return None
    if a.ndim == b.ndim == 3:
        if offs is not None or a.shape[0] != b.shape[0]:
            return None
    elif (a.ndim, b.ndim) != (2, 3) or offs is None or offs.dtype != torch.int32 or offs.shape != b.shape[:1]:
        return None
    entries = 16 // a.element_size()
    if not (_whole_rows(a, entries) and _whole_rows(b, entries)):
        raise RuntimeError(f"strides {a.stride()} and {b.stride()} should be multiples of 16 bytes")
    width = b.shape[2]
    padded = -(-width // entries) * entries
    shape = (*a.shape[:-1], width)
    return a.new_empty_strided(shape, (padded, 1) if a.ndim == 2 else (a.shape[1] * padded, padded, 1))


def _whole_rows(x: torch.Tensor, entries: int) -> bool:
    """Whether the last two dimensions are a matrix, or the transpose of one, whose rows are whole stretches."""
    (rows, columns), (down, across) = x.shape[-2:], x.stride()[-2:]
    if down == 1 and across >= max(1, rows):
        return across % entries == 0
    return across == 1 and down >= max(1, columns) and down % entries == 0


_GROUPED = (torch.float32, torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)


def packed(x: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> Any:
    """``_pack_padded_sequence``: the lengths say how many sequences each step has left."""
    counts = pack_padded_sequence(torch.empty(x.shape[:2]), lengths, batch_first).batch_sizes
    return torch.empty((int(lengths.sum()), *x.shape[2:]), dtype=x.dtype, device="meta"), counts
