"""Reductions: over a labelled dimension they mix it and end it, or, for indices, freeze it."""

from __future__ import annotations

from math import prod

from structprune.ir.operators import Surrogate, free
from structprune.ir.slices import Ids, Labels
from structprune.ops import scaling, shapes
from structprune.ops.call import Call, dims_of, normalised
from structprune.ops.surrogates import HIGHEST, LOWEST, SQUARES, SQUARES_AND_SUM, SUM


def reduction(call: Call) -> Labels:
    """A statistic over ``dim``: labelled dimensions among them mix."""
    return _reduced(call)


def two_reductions(call: Call) -> list[Labels]:
    """Two statistics over the same dimensions."""
    labels = _reduced(call)
    return [labels, labels]


def extreme(call: Call) -> Labels | list[Labels]:
    """Over all entries a statistic, over one dimension also an index; between two tensors pointwise."""
    if "other" in call and len(call.tensors) == 2:
        from structprune.ops.elementwise import meet

        return meet(call, call.tensors, call.out_shape())
    if "dim" not in call:
        return _reduced(call)
    labels = _indices(call)
    return [labels, labels]


def extremes(call: Call) -> list[Labels]:
    """Both at once: what is masked for the one would be the other, so that no proof covers a labelled dimension."""
    x = call.tensors[0]
    dims = dims_of(call["dim"], x.ndim)
    for dim in dims:
        call.freeze(call.labels(x)[dim], "is searched for both extremes")
    labels = _without(call, dims)
    return [labels, labels]


def index_of_extreme(call: Call) -> Labels:
    """The position of the extreme entry."""
    return _indices(call)


def order(call: Call) -> list[Labels]:
    """Positions along a dimension, which keeps its place in the output."""
    x = call.tensors[0]
    dim = normalised(call["dim"], x.ndim)
    call.freeze(call.labels(x)[dim], f"is ordered by {call.op}")
    kept = tuple(None if d == dim else ids for d, ids in enumerate(call.labels(x)))
    return [kept, kept]


def _reduced(call: Call) -> Labels:
    x = call.tensors[0]
    dims = dims_of(call["dim"] if "dim" in call else None, x.ndim)
    single = prod(x.shape[d] for d in dims) == 1 != prod(call.shape(x)[d] for d in dims)
    for dim in dims:
        if single and call.op in ("var", "std", "var_mean", "std_mean"):
            call.freeze(call.labels(x)[dim], "would have a variance of one entry, which is NaN")
        call.reduce(x, dim)
    return _without(call, dims)


def _indices(call: Call) -> Labels:
    x = call.tensors[0]
    dims = dims_of(call["dim"], x.ndim)
    for dim in dims:
        call.freeze(call.labels(x)[dim], f"is indexed by {call.op}")
    return _without(call, dims)


def _without(call: Call, dims: list[int]) -> Labels:
    """The labels of the first operand without the reduced dimensions, or with ones in their place."""
    labels = call.labels(call.tensors[0])
    if len(call.out_shape()) == len(labels):
        kept: list[Ids | None] = [None if d in dims else ids for d, ids in enumerate(labels)]
    else:
        kept = [ids for d, ids in enumerate(labels) if d not in dims]
    return tuple(kept)


SPECS = (
    *free("mean", reduction, on_meta=shapes.mean, surrogate=SUM, scaling=scaling.pooled),
    *free("sum", reduction, surrogate=Surrogate(), scaling=scaling.pooled),
    *free("amax", reduction, surrogate=LOWEST, scaling=scaling.pooled),
    *free("amin", reduction, surrogate=HIGHEST, scaling=scaling.pooled),
    *free("logsumexp", reduction, surrogate=LOWEST),
    *free("nansum linalg_vector_norm norm any count_nonzero", reduction, surrogate=Surrogate()),
    *free("all prod", reduction, surrogate=Surrogate(1.0)),
    *free("std var", reduction, surrogate=SQUARES),
    *free("std_mean var_mean", two_reductions, surrogate=SQUARES_AND_SUM),
    *free("max", extreme, surrogate=LOWEST, scaling=scaling.pooled),
    *free("min", extreme, surrogate=HIGHEST),
    *free("kthvalue median mode nanmedian", extreme),
    *free("aminmax", extremes),
    *free("argmax argmin", index_of_extreme),
    *free("cummax cummin sort topk", order),
)
