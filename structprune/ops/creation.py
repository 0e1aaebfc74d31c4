"""Operators that make tensors: uniform and random ones may shrink with what they meet, tables not."""

from __future__ import annotations

from structprune.ir.slices import Labels
from structprune.ops.call import Call
from structprune.ops.registry import rule


@rule(
    "empty", "empty_strided", "full", "ones", "zeros", "rand", "randn", "randint", "new_empty", "new_full",
    "new_ones", "new_zeros", "new_empty_strided", "scalar_tensor", "empty_permuted",
)  # fmt: skip
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


@rule("empty_like", "full_like", "ones_like", "zeros_like", "rand_like", "randn_like", "randint_like")
def like(call: Call) -> Labels:
    """Uniform, of another tensor's shape: it shrinks with that tensor."""
    return call.labels(call.tensors[0])


@rule("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "randperm", "multinomial")
def table(call: Call) -> Labels:
    """Every entry differs from the next: the sizes stay."""
    call.freeze_all("sets the size of a table")
    return (None,) * len(call.out.shape)
