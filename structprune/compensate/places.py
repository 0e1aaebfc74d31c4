"""Where the mean that a contraction loses can go: its bias, one that is added next, or the running mean behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from structprune.ir.record import Node, Record
from structprune.ir.slices import Ids, SliceSpace

PARAMETER = "parameter::"


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
            if not vectors.are_running(node):
                return None  # statistics of the batch: it takes the mean off by itself
            mean, variance = vectors.statistics(record, node, channels)
            return Place(vector or mean, not vector, variance) if vector or mean else None
        if node.op == "aten::add" and not vector and dict(node.unchanging).get("alpha", 1) == 1:
            vector = vectors.added(record, node, channels)
            if not vector:
                break
        elif node.spec.moves != "all":
            break
    return Place(vector, False, "") if vector else None


class Vectors:
    """The parameters and buffers of one dimension that lie along channels.

    Attributes:
        readers: How many operators read each tensor that the model holds.
    """

    def __init__(
        self, space: SliceSpace, roots: Ids, record: Record, statistics: Mapping[int, tuple[int, int]]
    ) -> None:
        self.readers = Counter(name for node in record.nodes for name in _read(record, node))
        # What something else reads as well must stay what it is there.
        axes = {name: axes for name, axes in space.by_tensor.items() if self.readers[name] == 1}
        self._axes = {name: found[0].ids for name, found in axes.items() if len(found) == 1}
        self._roots = roots
        self._statistics = statistics

    def added(self, record: Record, node: Node, channels: Ids) -> str:
        """The bias that an operator adds along these channels."""
        return next((name for name in _read(record, node) if self._along(name, channels)), "")

    def are_running(self, node: Node) -> bool:
        """Whether a batch norm normalises by running statistics."""
        return node.index in self._statistics

    def statistics(self, record: Record, node: Node, channels: Ids) -> tuple[str, str]:
        """The running mean and variance of a batch norm, if it alone reads them."""
        mean, variance = (_read(record, node)[position] for position in self._statistics[node.index])
        return (mean, variance) if self._along(mean, channels) and self._along(variance, channels) else ("", "")

    def _along(self, name: str, channels: Ids) -> bool:
        ids = self._axes.get(name)
        return ids is not None and np.array_equal(self._roots[ids], self._roots[channels])


def _read(record: Record, node: Node) -> list[str]:
    return [record.nodes[source].op.removeprefix(PARAMETER) for source, _ in node.sources]
