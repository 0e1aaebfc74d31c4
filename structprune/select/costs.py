"""What channels cost: parameters and multiply-accumulates, to first order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structprune.ir.record import Node, Record
from structprune.ir.slices import Ids
from structprune.tracing.groups import DependencyGraph

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
    axes = [axis for axis in graph.space.axes if axis.size and axis.tensor in sizes]
    params = [(graph.roots[axis.ids], sizes[axis.tensor] / axis.size) for axis in axes]
    record = graph.records[0]
    macs = [
        (roots, node.macs / len(roots))
        for node in record.nodes
        if node.macs
        for roots in _dimensions(graph, record, node)
    ]
    return Costs(_summed(params, graph.space.size), _summed(macs, graph.space.size))


def _summed(shares: list[tuple[Ids, float]], size: int) -> Amounts:
    """The sum for every channel of what each of its slices has a share of."""
    if not shares:
        return np.zeros(size)
    amounts = np.repeat([share for _, share in shares], [len(roots) for roots, _ in shares])
    roots = np.concatenate([roots for roots, _ in shares])
    return np.bincount(roots, weights=amounts, minlength=size).astype(np.float64)


def _dimensions(graph: DependencyGraph, record: Record, node: Node) -> list[Ids]:
    """The labelled dimensions that a contraction runs over, each once though output and operand have it."""
    found: dict[bytes, Ids] = {}
    for _, ids in record.labelled(node):
        roots = graph.roots[ids]
        found.setdefault(roots.tobytes(), roots)
    return list(found.values())
