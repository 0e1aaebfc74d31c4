"""Operators that make tensors: uniform and random ones may shrink with what they meet, tables not."""

from __future__ import annotations

from structprune.ir.operators import free
from structprune.ir.slices import Labels
from structprune.ops.call import Call


def uniform(call: Call) -> Labels:
    """All entries are alike, or drawn alike: no position is special; what a seed decides is a table."""
    labels = tuple(
        call.fresh(size) if dense > 1 else None for size, dense in zip(call.out.shape, call.out_shape(), strict=True)
    )
    freeze_if_seeded(call, labels)
    return labels


def freeze_if_seeded(call: Call, labels: Labels) -> None:
    """Numbers that a generator of the forward's own draws are the same every time, each at its place."""
    if "generator" in call and call["generator"] is not None:
        for ids in labels:
            call.freeze(ids, "is drawn by a generator with a seed of its own")


def like(call: Call) -> Labels:
    """Uniform, of another tensor's shape: it shrinks with that tensor."""
    return call.labels(call.tensors[0])


def table(call: Call) -> Labels:
    """Every entry differs from the next: the sizes stay."""
    call.freeze_all("sets the size of a table")
    return (None,) * len(call.out.shape)


SPECS = (
    *free("full scalar_tensor", uniform, values="as given"),
    *free("ones zeros rand randn new_full new_ones new_zeros", uniform, values="floats"),
    *free("randint", uniform, values="integers"),
    *free("empty empty_permuted new_empty", uniform, values="none"),
    *free("empty_strided new_empty_strided", uniform, values="none", sizes=("stride",)),
    *free("full_like ones_like zeros_like rand_like randn_like randint_like", like, values="floats"),
    *free("empty_like", like, values="none"),
    *free("arange", table, values="as given"),
    *free("linspace logspace eye", table, values="floats"),
    *free("tril_indices triu_indices randperm", table, values="integers"),
    *free("multinomial", table),
)
