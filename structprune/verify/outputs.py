"""How far the outputs of two networks are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from structprune.verify.runs import distance


def relative_difference(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """The largest difference on the scale of an output; one of integers is no rounding."""
    pairs = [(a, b) for a, b in zip(expected, got, strict=True) if a.numel()]
    if any(not _computed(a) and not torch.equal(a, b) for a, b in pairs):
        return math.inf
    both = [_without_alike(a, b) for a, b in pairs if _computed(a)]
    # Each output on its own scale: beside a mask of the largest numbers nothing else would count.
    scales = [float(a.abs().max()) if a.numel() else 0.0 for a, _ in both]
    largest = max(scales, default=0.0) or 1.0
    return max((distance(a, b) / (own or largest) for (a, b), own in zip(both, scales, strict=True)), default=0.0)


def shows_something(tensor: torch.Tensor) -> bool:
    """Whether any entry is a number other than zero."""
    values = _widened(tensor) if _computed(tensor) else tensor
    return bool((values.isfinite() & (values != 0)).any())


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _without_alike(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors without the entries in which both are infinite or no number, and the same."""
    a, b = _widened(a), _widened(b)
    apart = a.isfinite() | ~((a == b) | (a.isnan() & b.isnan()))
    return (a, b) if bool(apart.all()) else (a[apart], b[apart])


def _computed(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
