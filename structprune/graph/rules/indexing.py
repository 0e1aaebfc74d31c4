"""Operators that pick entries by position."""

from __future__ import annotations

import torch

from structprune.graph.call import Call, normalised
from structprune.graph.operators import rule
from structprune.graph.slices import Ids, Labels


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
            width = index.ndim if index.dtype in (torch.bool, torch.uint8) else 1
            for covered in range(dim, dim + width):
                call.freeze(labels[covered], "is indexed by position")
            for ids in call.labels(index):
                call.freeze(ids, "is an index")
    rank = len(call.out.shape)
    # With one index the result takes its place; with several, adjacent or not, only what lies
    # before and behind them in the same order is sure.
    if len(used) == 1 and indices[used[0]].dtype not in (torch.bool, torch.uint8):  # type: ignore[union-attr]
        dim = used[0]
        return (*labels[:dim], *(None,) * (rank - len(labels) + 1), *labels[dim + 1 :])
    for ids in labels:
        call.freeze(ids, "is a dimension of a tensor indexed in several dimensions")
    return (None,) * rank


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
    """``x[index]`` along one dimension."""
    call.freeze_all("is indexed by position")
    return (None,) * len(call.out.shape)


@rule("scatter", "scatter_add", "index_put", "index_add", "index_copy", "masked_scatter", "scatter_reduce")
def scatter(call: Call) -> Labels:
    """Writes at positions."""
    call.freeze_all("is written at positions")
    return (None,) * len(call.out.shape)
