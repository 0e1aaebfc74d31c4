"""Where the mean that a contraction loses can go: its bias, one that is added next, or the running mean behind it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

from structprune.ir.record import PARAMETER, Node, Record
from structprune.ir.slices import Ids, SliceSpace


class Place(NamedTuple):
    """The vector that a mean is added to (or taken off, from a running mean), and the variance that shrinks."""

    vector: str
    is_mean: bool
    variance: str


def place_of(record: Record, index: int, channels: Ids, vectors: Vectors) -> Place | None:
    """The bias of a contraction, or what is added or taken off next; and the batch norm after, if one follows."""
    node = record.nodes[index]
    vector = vectors.added(record, node, channels)
    while True:
        readers = [n for n in record.nodes[node.index + 1 :] if node.index in n.parents]
        if len(readers) != 1:
            break
        (node,) = readers
        if node.spec.normalises:
            found = vectors.statistics(record, node, channels)
            if found is None:
                return None  # statistics of the batch: it takes the mean off by itself
            mean, variance = found
            return Place(vector or mean, not vector, variance) if vector or mean else None
        if node.op == "aten::add" and not vector and dict(node.unchanging).get("alpha", 1) == 1:
            vector = vectors.added(record, node, channels)
            if not vector:
                break
        elif node.spec.moves != "all":
            break
    return Place(vector, False, "") if vector else None


class Vectors:
    """The parameters and buffers of one dimension that lie along channels."""

    def __init__(self, space: SliceSpace, roots: Ids, record: Record) -> None:
        readers = Counter(name for node in record.nodes for name in _read(record, node))
        # What something else reads as well must stay what it is there.
        axes = {name: axes for name, axes in space.by_tensor.items() if readers[name] == 1}
        self._axes = {name: found[0].ids for name, found in axes.items() if len(found) == 1}
        self._roots = roots

    def added(self, record: Record, node: Node, channels: Ids) -> str:
        """The bias that an operator adds along these channels."""
        return next((name for name in _read(record, node) if self._along(name, channels)), "")

    def statistics(self, record: Record, node: Node, channels: Ids) -> tuple[str, str] | None:
        """The running mean and variance of a batch norm, if it alone reads them; ``None``: it has none to go by."""
        arguments = node.asked.arguments if node.asked else {}
        given = [name for name in arguments if isinstance(arguments[name], torch.Tensor)]
        if not {"running_mean", "running_var"}.issubset(given) or arguments.get("training"):
            return None
        mean, variance = (_read(record, node)[given.index(name)] for name in ("running_mean", "running_var"))
        return (mean, variance) if self._along(mean, channels) and self._along(variance, channels) else ("", "")

    def _along(self, name: str, channels: Ids) -> bool:
        ids = self._axes.get(name)
        return ids is not None and np.array_equal(self._roots[ids], self._roots[channels])


def _read(record: Record, node: Node) -> list[str]:
    return [record.nodes[source].op.removeprefix(PARAMETER) for source, _ in node.sources]
