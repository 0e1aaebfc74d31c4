"""Operators that write at positions of some dimensions: those stay, along the others tensors meet entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from structprune.ir.operators import free
from structprune.ir.slices import Labels
from structprune.ops.call import Call, normalised
from structprune.ops.indexing import MASKS, beside, covered_dims, met, picked

_WRITTEN = "is written at positions"
_FIXED = "meets a tensor of fixed size"


def scatter(call: Call) -> Labels:
    """``x[index] = src`` along one dimension; an index that differs along another has no labels there, and stays."""
    x, index = call["self"], call["index"]
    source = call["src"] if "src" in call else None
    tensors = [x, index, *([source] if isinstance(source, torch.Tensor) else [])]
    dim = normalised(call["dim"], max(x.ndim, 1))
    for tensor in tensors:
        if tensor.ndim:
            call.freeze(call.labels(tensor)[dim], _WRITTEN)
    return beside(call, tensors, dim, _FIXED)


def written_along(call: Call) -> Labels:
    """Writes whole slices at positions of one dimension."""
    x, source = call["self"], call["source"]
    dim = normalised(call["dim"], max(x.ndim, 1))
    for tensor in (x, source):
        if tensor.ndim:
            call.freeze(call.labels(tensor)[dim], _WRITTEN)
    return beside(call, [x, source], dim, _FIXED)


def filled_along(call: Call) -> Labels:
    """One number at positions of one dimension; the others pass."""
    x = call["self"]
    dim = normalised(call["dim"], max(x.ndim, 1))
    if x.ndim:
        call.freeze(call.labels(x)[dim], _WRITTEN)
    return tuple(None if d == dim else ids for d, ids in enumerate(call.labels(x)))


def index_put(call: Call) -> Labels:
    """``x[i, j, ...] = values`` with tensors; the other dimensions meet those of the values, with broadcasting."""
    x, values = call["self"], call["values"]
    indices: list[torch.Tensor | None] = list(call["indices"])
    labels = list(call.labels(x))
    used = [index for index in indices if index is not None]
    if call.remember("one number", len(used) == 1 and used[0].dtype in MASKS and _is_number(call.shape(values))):
        for ids in call.labels(values):
            call.freeze(ids, "is broadcast along another dimension")
        return _filled_by_mask(call, x, indices)
    for covered in covered_dims(indices):
        call.freeze(labels[covered], _WRITTEN)
    for index in used:
        for ids in call.labels(index):
            call.freeze(ids, "is an index")
    places = picked(call, x, indices)
    shape = call.shape(values)
    for own, dim in zip(reversed(range(len(shape))), reversed(places), strict=False):
        ids = call.labels(values)[own]
        if dim is None:
            call.freeze(ids, _WRITTEN)
        elif shape[own] == 1:
            call.freeze(ids, "is broadcast along another dimension")
        else:
            labels[dim] = met(call, [labels[dim], ids], _FIXED)
    return tuple(None if d in covered_dims(indices) else ids for d, ids in enumerate(labels))


def _is_number(shape: Sequence[int]) -> bool:
    return all(size == 1 for size in shape)


def _filled_by_mask(call: Call, x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Labels:
    """``x[mask] = number`` treats every entry alike: mask and tensor meet."""
    first = next(d for d, index in enumerate(indices) if index is not None)
    mask = indices[first]
    assert mask is not None
    labels = list(call.labels(x))
    for own, ids in enumerate(call.labels(mask)):
        labels[first + own] = met(call, [labels[first + own], ids], _FIXED)
    return tuple(labels)


def masked_scatter(call: Call) -> Labels:
    """Takes the next entries of the source wherever the mask is set.

    Along the last dimensions, as long as the mask repeats itself there, whole rows of the source are taken.
    """
    x, mask, source = call["self"], call["mask"], call["source"]
    labels = list(call.labels(x))
    rows = call.remember("rows", _repeated(call, x, mask, source))
    for tensor in (x, mask, source):
        whole = tensor.ndim - rows
        for ids in call.labels(tensor)[: max(whole, 0)]:
            call.freeze(ids, _WRITTEN)
    for back in range(1, len(labels) + 1):
        if back > rows:
            labels[-back] = None
            continue
        wide = len(call.shape(mask)) >= back and call.shape(mask)[-back] != 1
        meeting = [labels[-back], call.labels(source)[-back], *([call.labels(mask)[-back]] if wide else [])]
        labels[-back] = met(call, meeting, _FIXED)
    return tuple(labels)


def _repeated(call: Call, x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> int:
    """How many of the last dimensions are as wide in the source, with a mask that is the same all along them."""
    rows = 0
    while rows < min(x.ndim, source.ndim - 1):
        back = rows + 1
        width = call.shape(x)[-back]
        # One entry that stands for all of them has no stride.
        alike = mask.ndim < back or mask.shape[-back] == 1 or mask.stride()[-back] == 0
        if not alike or call.shape(source)[-back] != width:
            break
        rows += 1
    return rows


def scatter_stretch(call: Call) -> Labels:
    """Writes a stretch, an entry or a diagonal: along what it lies in, entries keep their places."""
    x, source = call["self"], call["src"]
    labels = list(call.labels(x))
    theirs = list(call.labels(source))
    if call.op == "diagonal_scatter":
        written = sorted((normalised(call["dim1"], x.ndim), normalised(call["dim2"], x.ndim)))
    else:
        written = [normalised(call["dim"], x.ndim)]
    for dim in written:
        call.freeze(labels[dim], "is written at fixed positions")
        labels[dim] = None
    if call.op != "select_scatter":
        # A diagonal comes last; a stretch stays where it was.
        call.freeze(theirs.pop(-1 if call.op == "diagonal_scatter" else written[0]), "is written at fixed positions")
    for dim, ids in zip((d for d in range(x.ndim) if d not in written), theirs, strict=True):
        if labels[dim] is not None or ids is not None:
            labels[dim] = met(call, [labels[dim], ids], _FIXED)
    return tuple(labels)


def written_into_zeros(call: Call) -> Labels:
    """Writes into zeros of a size that is given as numbers."""
    call.freeze_all("is written at fixed positions")
    return (None,) * len(call.out.shape)


SPECS = (
    *free("scatter scatter_add scatter_reduce", scatter),
    *free("index_add index_copy index_reduce", written_along),
    *free("index_fill", filled_along),
    *free("index_put", index_put),
    *free("masked_scatter", masked_scatter),
    *free("slice_scatter select_scatter diagonal_scatter", scatter_stretch),
    *free("slice_backward select_backward", written_into_zeros),
)
