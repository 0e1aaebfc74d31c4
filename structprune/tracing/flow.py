"""How channels flow through a recorded forward: residual additions, and the way back from the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from structprune.ir.record import Node, Record
from structprune.ir.slices import Ids, Labels, Mask
from structprune.ops.call import Recorder


def walk_back(record: Record, *, reductions: bool) -> Iterator[tuple[Ids, str]]:
    """Walk from the outputs back to the last contractions with weights.

    Yields what those contractions sum over, or, with ``reductions``, the labels that ended in a
    reduction on the way. Where a residual stream is the output itself, the last branch that was
    added to it is the way back: all branches before it would be "last" otherwise.
    """
    pending, seen = [node for node, _ in record.returned], set()
    residual = set() if reductions else {node.index for node in residual_additions(record)}
    while pending:
        index = pending.pop()
        if index in seen:
            continue
        seen.add(index)
        node = record.nodes[index]
        weighted = node.contracts and any(record.nodes[p].parametric for p in node.parents)
        if reductions:
            yield from ((ids, node.where) for ids in node.reduced)
        elif weighted:
            yield from ((operand.ids, node.where) for operand in node.operands)
        if index in residual:
            pending.append(max(source for source, _ in node.sources))
        elif not weighted:
            pending.extend(node.parents)


def residual_additions(record: Record) -> Iterator[Node]:
    """The additions of which one operand derives from the other through a contraction, and has its channels.

    What has none of them, as a mask that every layer adds to its attention scores, carries nothing on. Ancestors are
    sets of outputs, kept as the bits of one integer per node.
    """
    nodes = record.nodes
    starts, bits = [], 0
    for node in nodes:
        starts.append(bits)
        bits += max(len(node.outputs), 1)
    reached = [0] * len(nodes)  # ancestors of a node
    through = [0] * len(nodes)  # those that lie behind a contraction
    for node in nodes:
        above = behind = 0
        for parent, output in (*node.sources, *((p, 0) for p in node.parents[len(node.sources) :])):
            if not nodes[parent].parametric:
                above |= reached[parent] | 1 << (starts[parent] + output)
                behind |= through[parent]
        reached[node.index] = above
        through[node.index] = above if node.contracts else behind
        if node.op == "aten::add" and len(node.sources) == 2 and node.outputs:
            (a, i), (b, j) = node.sources
            if not (nodes[a].outputs and nodes[b].outputs):
                continue
            if not _share_channels(nodes[a].outputs[i].labels, nodes[b].outputs[j].labels):
                continue
            if _derives(nodes, through[b], starts, a, i) or _derives(nodes, through[a], starts, b, j):
                yield node


def _share_channels(left: Labels, right: Labels) -> bool:
    """Whether both have channels along a dimension that an addition aligns."""
    return any(a is not None and b is not None for a, b in zip(reversed(left), reversed(right), strict=False))


def _derives(nodes: list[Node], through: int, starts: list[int], node: int, output: int) -> bool:
    """Whether a tensor, or what it was before operators that keep its channels, is in ``through``."""
    while True:
        if through >> (starts[node] + output) & 1:
            return True
        current = nodes[node]
        before = [s for s in current.sources if not nodes[s[0]].parametric]
        if len(before) != 1 or current.contracts or len(current.outputs) != 1:
            return False
        parent, of_parent = before[0]
        if not nodes[parent].outputs:
            return False
        kept = [ids for ids in current.outputs[0].labels if ids is not None]
        source = nodes[parent].outputs[of_parent].labels
        if not kept or not all(any(ids is other for other in source) for ids in kept):
            return False
        node, output = parent, of_parent


def freeze_unread(record: Record, recorder: Recorder) -> None:
    """Where tensors came from code that is not seen, freeze what no operator on the way to an output reads.

    That code had to read something: what else is computed for nothing.
    """
    nodes = record.nodes
    if not (record.from_outside or any(node.not_filled for node in nodes)):
        return
    alive: set[int] = set()
    pending = [node for node, _ in record.returned]
    while pending:
        index = pending.pop()
        if index not in alive:
            alive.add(index)
            pending.extend(nodes[index].parents)
    made = [node for node in nodes if not node.parametric]
    read = _mask(ids for node in made if node.index in alive for ids in _labels(node))
    for node in made:
        if node.index not in alive:
            for ids in _labels(node):
                if not read[ids[ids < len(read)]].any():
                    recorder.freeze(
                        node, ids, "is read by nothing on the way to an output, but perhaps by code that is not seen"
                    )


def _labels(node: Node) -> Iterator[Ids]:
    return (ids for output in node.outputs for ids in output.labels if ids is not None)


def _mask(arrays: Iterable[Ids]) -> Mask:
    """Which ids are among the arrays; many operators share one array."""
    distinct = {id(ids): ids for ids in arrays if len(ids)}
    found = np.zeros(1 + max((int(ids.max()) for ids in distinct.values()), default=-1), dtype=bool)
    for ids in distinct.values():
        found[ids] = True
    return found
