"""Operators that join tensors along a dimension, or cut one into stretches."""

from __future__ import annotations

import numpy as np
import torch

from structprune.ir.operators import free
from structprune.ir.slices import Ids, Labels
from structprune.ops import scaling, shapes
from structprune.ops.call import Call, normalised
from structprune.ops.elementwise import meet
from structprune.ops.movement import FROZEN


def cat(call: Call) -> Labels:
    """Lay tensors end to end along one dimension; along the others they meet."""
    parts = [t for t in call.tensors if call.shape(t) != (0,)]
    dim = normalised(call["dim"], call.out.ndim)
    labelled = any(call.labels(t)[dim] is not None for t in parts)
    joined: Ids | None = None
    if labelled:
        stretches = []
        for tensor in parts:
            ids = call.labels(tensor)[dim]
            stretches.append(call.fixed(tensor.shape[dim], "is a constant stretch of a cat") if ids is None else ids)
        joined = np.concatenate(stretches)
    shape = [1 if d == dim else size for d, size in enumerate(call.out_shape())]
    others = _meet_beside(call, parts, dim, shape)
    return (*others[:dim], joined, *others[dim + 1 :])


def stack(call: Call) -> Labels:
    """Lay tensors along a new dimension."""
    dim = normalised(call["dim"], call.out.ndim)
    shape = [size for d, size in enumerate(call.out_shape()) if d != dim]
    others = meet(call, call.tensors, shape)
    return (*others[:dim], None, *others[dim:])


def _meet_beside(call: Call, parts: list[torch.Tensor], dim: int, shape: list[int]) -> Labels:
    result: list[Ids | None] = []
    for d in range(len(shape)):
        first: Ids | None = None
        if d != dim:
            first = call.labels(parts[0])[d]
            for tensor in parts[1:]:
                ids = call.labels(tensor)[d]
                if shape[d] != 1 or (ids is not None and first is not None):
                    call.couple(first, ids, "is joined with a tensor of fixed size")
                first = ids if first is None else first
        result.append(first)
    return tuple(result)


def split(call: Call) -> list[Labels]:
    """Cut a dimension into stretches, which must shrink alike."""
    x = call["self"]
    dim = normalised(call["dim"], x.ndim)
    labels = call.labels(x)
    ids = labels[dim]
    result: list[Labels] = []
    start = 0
    if ids is not None and call.choose("free", FROZEN) == FROZEN:
        call.freeze(ids, "is split into pieces of fixed size")
    for piece in call.out:
        stop = start + piece.shape[dim]
        part = None if ids is None else call.piece(ids[start:stop])
        result.append((*labels[:dim], part, *labels[dim + 1 :]))
        start = stop
    return result


def slice_(call: Call) -> Labels:
    """A stretch of a dimension, or every ``step``-th entry of it."""
    x = call["self"]
    dim = normalised(call["dim"], x.ndim)
    labels = call.labels(x)
    ids = labels[dim]
    if ids is None:
        return labels
    dense = call.shape(x)[dim]
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(len(ids))
    if call.remember("whole", slice(call["start"], call["end"], call["step"]).indices(dense) == (0, dense, 1)):
        return labels
    if step > 1:
        _couple_strides(call, ids, step)
    interpretation = call.choose("free", "anchored", FROZEN)
    if interpretation == "anchored":
        _anchor(call, ids, call["start"], call["end"])
    elif interpretation == FROZEN:
        call.freeze(ids, "is sliced at fixed positions")
    first = start - start % step
    for stretch in (ids[:first], ids[first:stop], ids[stop:]):
        call.piece(stretch if len(stretch) else None)
    return (*labels[:dim], ids[start:stop:step], *labels[dim + 1 :])


def _couple_strides(call: Call, ids: Ids, step: int) -> None:
    """Runs of ``step`` entries leave together, so that every ``step``-th stays the one that it is."""
    runs = len(ids) // step
    whole = ids[: runs * step].reshape(runs, step)
    call.couple(whole.ravel(), whole[:, :1].repeat(step, 1).ravel(), "")
    call.freeze(ids[runs * step :], "is the rest of a strided slice")


def _anchor(call: Call, ids: Ids, start: int | None, end: int | None) -> None:
    """Freeze what a bound written as a number counts over, from the front or from the back."""
    for bound in (start, end):
        if bound is not None and abs(bound) < len(ids):
            counted = ids[:bound] if bound >= 0 else ids[bound:]
            call.freeze(counted, "is counted by a slice with fixed bounds")


def constant_pad(call: Call) -> Labels:
    """Constants before and behind, or, with a negative width, a stretch cut off."""
    x = call["self"]
    labels = list(call.labels(x))
    pads = list(call["pad"])
    for offset in range(len(pads) // 2):
        dim = x.ndim - 1 - offset
        before, behind = pads[2 * offset], pads[2 * offset + 1]
        ids = labels[dim]
        if ids is None or before == behind == 0:
            continue
        if before < 0 or behind < 0:
            call.freeze(ids, "is cut by a negative padding")
            labels[dim] = None
            continue
        labels[dim] = np.concatenate([call.fixed(before, "is padding"), ids, call.fixed(behind, "is padding")])
    return tuple(labels)


SPECS = (
    *free("cat", cat, on_meta=shapes.cat, moves="some", scaling=scaling.moved),
    *free("stack", stack, moves="some", scaling=scaling.moved),
    *free("split split_with_sizes", split, asks=True, moves="some", scaling=scaling.moved),
    *free("unsafe_split unsafe_split_with_sizes", split, asks=True),
    *free("slice", slice_, asks=True, sizes=("start", "end"), moves="some", scaling=scaling.moved, placed=True),
    *free("slice_copy", slice_, asks=True, sizes=("start", "end")),
    *free("constant_pad_nd", constant_pad),
)
