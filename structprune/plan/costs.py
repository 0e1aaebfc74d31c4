"""What channels cost: parameters and multiply-accumulates, to first order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structprune.graph.groups import DependencyGraph
from structprune.graph.record import Node, Record
from structprune.graph.slices import Ids

Amounts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """What would be saved if a channel left alone, by the id that stands for it.

    Channels that meet in a weight save less together than the sum: the corner that both take is counted twice.
    """

    params: Amounts
    macs: Amounts


def costs_of(graph: DependencyGraph, sizes: Mapping[str, int]) -> Costs:
    """The parameters (``sizes``: their numbers of elements) and MACs of every channel."""
    params, macs = np.zeros(graph.space.size), np.zeros(graph.space.size)
    for axis in graph.space.axes:
        if axis.size and axis.tensor in sizes:
            np.add.at(params, graph.roots[axis.ids], sizes[axis.tensor] / axis.size)
    record = graph.records[0]
    for node in record.nodes:
        if node.macs:
            for roots in _dimensions(graph, record, node):
                np.add.at(macs, roots, node.macs / len(roots))
    return Costs(params, macs)


def _dimensions(graph: DependencyGraph, record: Record, node: Node) -> list[Ids]:
    """The labelled dimensions that a contraction runs over, each once though output and operand have it."""
    found: dict[bytes, Ids] = {}
    for _, ids in record.labelled(node):
        roots = graph.roots[ids]
        found.setdefault(roots.tobytes(), roots)
    return list(found.values())
