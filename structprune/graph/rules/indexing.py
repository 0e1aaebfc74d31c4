"""Operators that pick entries by position."""

from __future__ import annotations

import torch

from structprune.graph.call import Call, normalised
from structprune.graph.operators import rule
from structprune.graph.slices import Ids, Labels

_MASKS = (torch.bool, torch.uint8)


@rule("select")
def select(call: Call) -> Labels:
    """One entry of a dimension: the dimension ends, so its entries must keep their places."""
    x = call.tensors[0]
    dim = normalised(call["dim"], x.ndim)
    call.freeze(call.labels(x)[dim], "is indexed by position")
    return tuple(ids for d, ids in enumerate(call.labels(x)) if d != dim)


@rule("unbind")
def unbind(call: Call) -> list[Labels]:
    """Every entry of a dimension as a tensor of its own."""
    x = call.tensors[0]
    dim = normalised(call["dim"], x.ndim)
    call.freeze(call.labels(x)[dim], "is taken apart entry by entry")
    return [tuple(ids for d, ids in enumerate(call.labels(x)) if d != dim)] * len(call.out)


@rule("index_select")
def index_select(call: Call) -> Labels:
    """Entries of one dimension in the order of an index."""
    x, index = call["self"], call["index"]
    dim = normalised(call["dim"], x.ndim)
    call.freeze(call.labels(x)[dim], "is indexed by position")
    return tuple(call.labels(index)[0] if d == dim else ids for d, ids in enumerate(call.labels(x)))


@rule("index")
def advanced_index(call: Call) -> Labels:
    """``x[i, j, ...]`` with tensors: the indexed dimensions must keep their places."""
    x = call["self"]
    indices: list[torch.Tensor | None] = list(call["indices"])
    labels = call.labels(x)
    used = [d for d, index in enumerate(indices) if index is not None]
    for dim, index in enumerate(indices):
        if index is not None:
            width = index.ndim if index.dtype in _MASKS else 1
            for indexed in range(dim, dim + width):
                call.freeze(labels[indexed], "is indexed by position")
            for ids in call.labels(index):
                call.freeze(ids, "is an index")
    if not used:
        return labels
    # The indices become the dimensions that they have when broadcast: in the place of the indexed
    # ones, or in front where others lie between those. A mask covers as many dimensions as it has.
    covered = [
        d
        for at in used
        for d in range(at, at + (indices[at].ndim if indices[at].dtype in _MASKS else 1))  # type: ignore[union-attr]
    ]
    made: Labels = (None,) * (len(call.out.shape) - len(labels) + len(covered))
    if covered == list(range(covered[0], covered[0] + len(covered))):
        return (*labels[: covered[0]], *made, *labels[covered[-1] + 1 :])
    return (*made, *(ids for d, ids in enumerate(labels) if d not in covered))


@rule("_pack_padded_sequence")
def pack(call: Call) -> list[Labels]:
    """The steps of several sequences one behind the other, by their lengths: what each step holds passes."""
    x, lengths = call.tensors
    for ids in (*call.labels(x)[:2], *call.labels(lengths)):
        call.freeze(ids, "is a dimension of sequences or steps")
    return [(None, *call.labels(x)[2:]), (None,)]


@rule("embedding")
def embedding(call: Call) -> Labels:
    """Rows of a table; the width of the rows is a produced channel."""
    weight, index = call.tensors[0], call.tensors[1]
    call.freeze(call.labels(weight)[0], "is indexed by position")
    ids: Ids | None = call.produce(weight, 1)
    call.size("embedding_dim", ids)
    return (*call.labels(index), ids)


@rule("gather")
def gather(call: Call) -> Labels:
    """``x[index]`` along one dimension; along the others the index may only repeat itself."""
    x, index = call["self"], call["index"]
    dim = normalised(call["dim"], max(x.ndim, 1))
    call.freeze(call.labels(x)[dim], "is indexed by position")
    beside = _beside(call, x, index, dim, "is indexed by a table of fixed size")
    return tuple(call.labels(index)[dim] if d == dim else ids for d, ids in enumerate(beside))


@rule("index_add", "index_copy")
def written_along(call: Call) -> Labels:
    """Writes whole slices at positions of one dimension; along the others the two tensors meet."""
    x, source = call["self"], call["source"]
    dim = normalised(call["dim"], max(x.ndim, 1))
    for tensor in (x, source):
        call.freeze(call.labels(tensor)[dim], "is written at positions")
    return _beside(call, x, source, dim, "meets a tensor of fixed size")


def _beside(call: Call, x: torch.Tensor, other: torch.Tensor, dim: int, why: str) -> Labels:
    """The labels of ``x`` along all dimensions but ``dim``, where the two tensors meet entry by entry."""
    labels: list[Ids | None] = []
    for d, (ids, met) in enumerate(zip(call.labels(x), call.labels(other), strict=True)):
        if d != dim and call.remember(f"whole {d}", call.shape(x)[d] == call.shape(other)[d]):
            call.couple(ids, met, why)
        elif d != dim:
            call.freeze(ids, "is indexed in part")
            ids = None
        labels.append(ids if d != dim and met is not None else None)
    return tuple(labels)


@rule("scatter", "scatter_add", "index_put", "masked_scatter", "scatter_reduce")
def scatter(call: Call) -> Labels:
    """Writes at positions."""
    call.freeze_all("is written at positions")
    return (None,) * len(call.out.shape)
