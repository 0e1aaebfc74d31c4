"""Operators that pick entries by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from structprune.ir.operators import free
from structprune.ir.slices import Ids, Labels
from structprune.ops import scaling, shapes
from structprune.ops.call import Call, normalised

MASKS = (torch.bool, torch.uint8)


def select(call: Call) -> Labels:
    """One entry of a dimension: the dimension ends, so its entries must keep their places."""
    x = call.tensors[0]
    dim = normalised(call["dim"], x.ndim)
    call.freeze(call.labels(x)[dim], "is indexed by position")
    return tuple(ids for d, ids in enumerate(call.labels(x)) if d != dim)


def unbind(call: Call) -> list[Labels]:
    """Every entry of a dimension as a tensor of its own."""
    x = call.tensors[0]
    dim = normalised(call["dim"], x.ndim)
    call.freeze(call.labels(x)[dim], "is taken apart entry by entry")
    return [tuple(ids for d, ids in enumerate(call.labels(x)) if d != dim)] * len(call.out)


def index_select(call: Call) -> Labels:
    """Entries of one dimension in the order of an index."""
    x, index = call["self"], call["index"]
    dim = normalised(call["dim"], x.ndim)
    call.freeze(call.labels(x)[dim], "is indexed by position")
    return tuple(call.labels(index)[0] if d == dim else ids for d, ids in enumerate(call.labels(x)))


def advanced_index(call: Call) -> Labels:
    """``x[i, j, ...]`` with tensors: the indexed dimensions must keep their places."""
    x = call["self"]
    indices: list[torch.Tensor | None] = list(call["indices"])
    labels = call.labels(x)
    for dim in covered_dims(indices):
        call.freeze(labels[dim], "is indexed by position")
    for index in indices:
        for ids in () if index is None else call.labels(index):
            call.freeze(ids, "is an index")
    places = picked(call, x, indices)
    return tuple(None if d is None else labels[d] for d in places)


def covered_dims(indices: Sequence[torch.Tensor | None]) -> list[int]:
    """The dimensions that indices stand for: a mask covers as many as it has."""
    covered: list[int] = []
    at = 0
    for index in indices:
        width = index.ndim if index is not None and index.dtype in MASKS else 1
        if index is not None:
            covered += range(at, at + width)
        at += width
    return covered


def picked(call: Call, x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> list[int | None]:
    """The dimensions of ``x[indices]``: those of ``x`` that it keeps, and ``None`` for those of the indices.

    The indices become the dimensions that they have when broadcast: in the place of the indexed ones, or in front
    where others lie between those.
    """
    covered = covered_dims(indices)
    rest: list[int | None] = [d for d in range(len(call.labels(x))) if d not in covered]
    if all(index is None for index in indices):
        return rest
    ranks = [1 if i.dtype in MASKS else len(call.shape(i)) for i in indices if i is not None]
    made: list[int | None] = [None] * max(ranks)
    if covered and covered == list(range(covered[0], covered[0] + len(covered))):
        return [*rest[: covered[0]], *made, *rest[covered[0] :]]
    return [*made, *rest]


def pack(call: Call) -> list[Labels]:
    """The steps of several sequences one behind the other, by their lengths: what each step holds passes."""
    x, lengths = call.tensors
    for ids in (*call.labels(x)[:2], *call.labels(lengths)):
        call.freeze(ids, "is a dimension of sequences or steps")
    return [(None, *call.labels(x)[2:]), (None,)]


def embedding(call: Call) -> Labels:
    """Rows of a table; the width of the rows is a produced channel."""
    weight, index = call.tensors[0], call.tensors[1]
    call.freeze(call.labels(weight)[0], "is indexed by position")
    ids: Ids | None = call.produce(weight, 1)
    call.size("embedding_dim", ids)
    return (*call.labels(index), ids)


def gather(call: Call) -> Labels:
    """``x[index]`` along one dimension; along the others the index may only repeat itself."""
    x, index = call["self"], call["index"]
    dim = normalised(call["dim"], max(x.ndim, 1))
    call.freeze(call.labels(x)[dim], "is indexed by position")
    others = beside(call, [x, index], dim, "is indexed by a table of fixed size")
    return tuple(call.labels(index)[dim] if d == dim else ids for d, ids in enumerate(others))


def beside(call: Call, tensors: Sequence[torch.Tensor], dim: int, why: str) -> Labels:
    """The labels along all dimensions but ``dim``, where tensors of one rank meet entry by entry."""
    labels: list[Ids | None] = []
    for d in range(len(call.labels(tensors[0]))):
        meeting = [call.labels(tensor)[d] for tensor in tensors]
        if d == dim:
            labels.append(None)
        elif call.remember(f"whole {d}", len({call.shape(tensor)[d] for tensor in tensors}) == 1):
            labels.append(met(call, meeting, why))
        else:
            for ids in meeting:
                call.freeze(ids, "is indexed in part")
            labels.append(None)
    return tuple(labels)


def met(call: Call, meeting: Sequence[Ids | None], why: str) -> Ids | None:
    """Couple dimensions that meet entry by entry; one without labels keeps all of them whole."""
    if any(ids is None for ids in meeting):
        for ids in meeting:
            call.freeze(ids, why)
        return None
    for ids in meeting[1:]:
        call.couple(meeting[0], ids, why)
    return meeting[0]


SPECS = (
    *free("select", select, moves="some", scaling=scaling.moved),
    *free("unbind", unbind, moves="some", scaling=scaling.moved),
    *free("index_select", index_select),
    *free("index", advanced_index),
    *free("_pack_padded_sequence", pack, by_numbers=shapes.packed),
    *free("embedding", embedding),
    *free("gather", gather),
    *free("repeat_interleave", sizes=("output_size",), reads_values=True),
    *free("bincount masked_select nonzero _unique2 unique_consecutive unique_dim", reads_values=True),
    *free("bucketize", has_steps=True),
)
