"""Marks in the code of a block, which say what pruning means where zeroed weights do not say it.

Outside of a judgement they do nothing. In the reference run of the dense network they leave out
the channels that the pruned network lost, so that a statistic is taken over the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor
Kept = Mapping[str, Mapping[int, Tensor]]

# By identity of a tensor of the dense network: the indices that its dimensions kept, and the tensor, held alive.
_kept: dict[int, Mapping[int, Tensor]] = {}
_exact = [False]


@contextmanager
def reference(model: nn.Module, kept: Kept) -> Iterator[None]:
    """Run a dense network as if it had only the slices in ``kept``, by names of its tensors."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    _kept.update({id(named[name]): dims for name, dims in kept.items() if name in named})
    saved = F.layer_norm, F.group_norm, F.rms_norm
    F.layer_norm, F.group_norm, F.rms_norm = _layer_norm, _group_norm, _rms_norm
    try:
        yield
    finally:
        F.layer_norm, F.group_norm, F.rms_norm = saved
        _kept.clear()


@contextmanager
def exact() -> Iterator[None]:
    """Both networks compute in float64 throughout, so that they can be compared to its precision."""
    _exact[0] = True
    try:
        yield
    finally:
        _exact[0] = False


def low(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a region of lower precision."""
    return torch.float64 if _exact[0] else dtype


def only_kept(x: Tensor, weight: Tensor, dim: int = -1, axis: int = 0) -> Tensor:
    """``x``, along ``dim`` only what ``weight`` keeps along ``axis``."""
    index = _kept.get(id(weight), {}).get(axis) if _kept else None
    return x if index is None else x.index_select(dim, index)


def without_gone(x: Tensor, weight: Tensor, fill: float, dim: int = -1, axis: int = 0) -> Tensor:
    """``x``, with ``fill`` where ``weight`` keeps nothing along ``axis``."""
    index = _kept.get(id(weight), {}).get(axis) if _kept else None
    if index is None:
        return x
    gone = torch.ones(x.shape[dim], dtype=torch.bool)
    gone[index] = False
    return x.index_fill(dim, gone.nonzero().flatten(), fill)


def _kept_of(weight: Any, size: int) -> Tensor:
    index = _kept.get(id(weight), {}).get(0) if weight is not None else None
    return torch.arange(size) if index is None else index


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    left = x[..., _kept_of(weight, x.shape[-1])]
    out = (x - left.mean(-1, keepdim=True)) / torch.sqrt(left.var(-1, unbiased=False, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    left = x[..., _kept_of(weight, x.shape[-1])]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    out = x * torch.rsqrt(left.pow(2).mean(-1, keepdim=True) + eps)
    return out if weight is None else out * weight


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    size = x.shape[1] // groups
    kept = set(_kept_of(weight, x.shape[1]).tolist())
    parts = []
    for g in range(groups):
        part = x[:, g * size : (g + 1) * size]
        inside = [i - g * size for i in range(g * size, (g + 1) * size) if i in kept]
        left = (part[:, inside] if inside else part).flatten(1)
        shape = (-1, *(1,) * (x.ndim - 1))
        mean, var = left.mean(1).reshape(shape), left.var(1, unbiased=False).reshape(shape)
        parts.append((part - mean) / torch.sqrt(var + eps))
    out = torch.cat(parts, 1)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)
