"""The kept slices of a tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from structprune.ir.slices import Ids

# Elements that are selected at a time.
_STRETCH = 1 << 22


def sliced(tensor: torch.Tensor, kept: Mapping[int, Ids]) -> torch.Tensor:
    """A copy of the kept slices: same values, dtype, device and memory format, never a view."""
    out = tensor.detach()
    if not kept:
        return out.clone()
    # Without values there is nothing to select, and PyTorch takes long to do it.
    out = out.new_empty(_shape_left(out, kept)) if out.is_meta else _selected(out, kept)
    for memory_format in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if memory_format is torch.channels_last else 5
        if tensor.ndim == rank and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=memory_format):
            return out.contiguous(memory_format=memory_format)
    return out


def _selected(tensor: torch.Tensor, kept: Mapping[int, Ids]) -> torch.Tensor:
    """Select along every dimension, a large tensor in stretches: no half-cut copy of it is ever whole."""
    (first, indices), *rest = kept.items()
    rows = torch.from_numpy(indices).to(tensor.device)

    def select(which: torch.Tensor) -> torch.Tensor:
        out = tensor.index_select(first, which)
        for dim, others in rest:
            out = out.index_select(dim, torch.from_numpy(others).to(out.device))
        return out

    if not rest or tensor.numel() <= _STRETCH:
        return select(rows)
    out = tensor.new_empty(_shape_left(tensor, kept))
    step = max(1, _STRETCH * tensor.shape[first] // tensor.numel())
    for start in range(0, len(rows), step):
        part = select(rows[start : start + step])
        out.narrow(first, start, part.shape[first]).copy_(part)
    return out


def _shape_left(tensor: torch.Tensor, kept: Mapping[int, Ids]) -> list[int]:
    return [len(kept[dim]) if dim in kept else size for dim, size in enumerate(tensor.shape)]
