"""Weights that make up for a number that code computes from a width.

Attention divides by the square root of a head's width. Where code computes that number anew, a narrower head gets
another one, and the cut network would not equal the masked dense one. But what is multiplied with the number
comes from rows of a weight: multiplied with the dense number over the cut one's, they cancel the difference.

Which rows these are is guessed first, by following the rows' numbers to where they are multiplied. Whether scaling them
does just that, and nothing else, is checked then: marks start at the rows and cross an operator only where scaling
what is marked scales what comes out. All have to end at such numbers. The guess may be wrong, the check decides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from heapq import heappop, heappush

import numpy as np
import torch

from structprune.ir.record import PARAMETER, Node, Record
from structprune.ir.slices import Vector
from structprune.ir.tensors import memory_of, tensors_of
from structprune.ops.scaling import (
    ScaledCall,
    Source,
    UnfitError,
    Unmarked,
    across,
    distinct,
    uniform,
)
from structprune.tracing.replay import Mismatch

RowScales = dict[str, Vector]


def absorbed(
    record: Record, mismatches: Iterable[Mismatch], narrower: Collection[str]
) -> tuple[list[Mismatch], RowScales]:
    """The mismatches that weights can make up for, and the row scales that do it.

    Args:
        record: Of the dense network.
        mismatches: What the cut network does otherwise.
        narrower: The parameters that lose rows: no other one is touched.

    Returns:
        The mismatches, and row scales by parameter, for its dense rows.
    """
    mismatches = list(mismatches)
    ratios = {m.node.index: ratio for m in mismatches if (ratio := _ratio(m)) is not None}
    if not ratios:
        return [], {}
    readers = Readers(record)
    row_scales, done = RowScales(), set[int]()
    for node in [m.node for m in mismatches if m.node.index in ratios]:
        if node.index in done:
            continue
        alike = {n for n, ratio in ratios.items() if math.isclose(ratio, ratios[node.index], rel_tol=1e-12)}
        try:
            rows, ends = _rows_behind(readers, node, alike)
        except UnfitError:
            continue
        if node.index in ends and rows.keys() <= set(narrower):
            done |= ends
            for name, marked in rows.items():
                row_scales[name] = row_scales.get(name, np.ones(len(marked))) * np.where(
                    marked, ratios[node.index], 1.0
                )
    return [m for m in mismatches if m.numbers is not None and m.node.index in done], row_scales


def alike(left: RowScales, right: RowScales) -> bool:
    """Whether the row scales of two modes are the same."""
    return left.keys() == right.keys() and all(
        np.array_equal(row_scale, right[name]) for name, row_scale in left.items()
    )


def _ratio(mismatch: Mismatch) -> float | None:
    """What has to come in as a multiple, so that times the cut network's number it is the dense one's product."""
    node = mismatch.node
    if mismatch.numbers is None or node.op not in ("aten::mul", "aten::div") or node.writes:
        return None
    if len(node.sources) > 1 and (_factor(node) is None or (node.op == "aten::div" and _factor(node) != 0)):
        return None
    cut, dense = mismatch.numbers if node.op == "aten::mul" else mismatch.numbers[::-1]
    return dense / cut if cut and 0 < dense / cut < math.inf else None


def _factor(node: Node) -> int | None:
    """The position of what a node multiplies with a number, which may itself be a tensor."""
    if len(node.sources) == 1:
        return 0
    numbers = [isinstance(c, torch.Tensor) and c.numel() == 1 for c in node.constants[:2]]
    return numbers.index(False) if numbers.count(True) == 1 else None


class Readers:
    """What reads what in a record: marks go from reader to reader, past the thousands of operators that have none.

    Attributes:
        record: The record.
        of: The nodes that read a node, in order.
        leaves: The nodes of parameters and buffers, by name.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.of: dict[int, list[int]] = {}
        self.leaves: dict[str, int] = {}
        # What was read though no operator made it: the reader, the leaf, and where its numbers lie.
        self._unmade: list[tuple[int, int, int]] = []
        for node in record.nodes:
            if node.is_leaf and node.op.startswith(PARAMETER):
                self.leaves[node.op.removeprefix(PARAMETER)] = node.index
            for position, (source, _) in enumerate(node.sources):
                self.of.setdefault(source, []).append(node.index)
                if record.nodes[source].is_leaf and node.asked is not None:
                    self._unmade.append((node.index, source, memory_of(node.asked.tensors[position])))

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter as an operator reads it, which has rows of floating-point numbers."""
        leaf = self.leaves.get(name, -1)
        for node in map(self.record.nodes.__getitem__, self.of.get(leaf, ())):
            if node.asked is not None:
                tensor = node.asked.tensors[[source for source, _ in node.sources].index(leaf)]
                if not tensor.ndim or not tensor.is_floating_point():
                    raise UnfitError
                return tensor
        raise UnfitError

    def check_known(self, found: Mapping[Source, torch.Tensor], memory: Mapping[int, int], upto: int | None) -> None:
        """A tensor that no operator made may still be one that is marked: ``.data`` and subclasses share its memory.

        Args:
            found: The marks.
            memory: Where marked numbers lie, with the node that put them there.
            upto: The last node that matters.
        """
        for node, leaf, where in self._unmade:
            if upto is not None and node > upto:
                return
            if (leaf, 0) not in found and memory.get(where, node) < node:
                raise UnfitError


def _rows_behind(readers: Readers, node: Node, numbers: set[int]) -> tuple[dict[str, torch.Tensor], set[int]]:
    """The rows that what is multiplied at a node comes from, and the numbers at which all of them end."""
    record = readers.record
    weight, target = _weight_behind(record, node.sources[_factor(node) or 0])
    places = torch.arange(1.0, len(readers.tensor(weight)) + 1)
    reached = _flow(readers, {weight: places}, upto=target[0]).get(target)
    if reached is None or not bool(distinct(reached).all()):
        raise UnfitError
    rows = {weight: torch.isin(places, distinct(reached)).float()}
    while True:
        try:
            marks = _flow(readers, rows, numbers=numbers)
        except Unmarked as missing:
            name = record.nodes[missing.source[0]].op
            if not name.startswith(PARAMETER) or name.removeprefix(PARAMETER) in rows:
                raise UnfitError from None
            rows[name.removeprefix(PARAMETER)] = _of_vector(missing.marks, readers.tensor(name.removeprefix(PARAMETER)))
            continue
        if any(source in marks for source in record.returned):
            raise UnfitError
        return {name: marked.bool() for name, marked in rows.items()}, {n for n, output in marks if output < 0}


def _flow(
    readers: Readers, rows: Mapping[str, torch.Tensor], *, upto: int | None = None, numbers: Collection[int] = ()
) -> dict[Source, torch.Tensor]:
    """The marks of every tensor, from rows of parameters on; a number at which they end is output -1 of its node.

    With ``upto`` it only guesses: it stops there, what is added need not be marked, and marks say which row it was.
    """
    found: dict[Source, torch.Tensor] = {}
    memory: dict[int, int] = {}
    waiting: list[int] = []

    def mark(source: Source, marked: torch.Tensor) -> None:
        found[source] = marked
        for reader in readers.of.get(source[0], ()):
            heappush(waiting, reader)

    for name, marked in rows.items():
        shape = readers.tensor(name).shape
        mark((readers.leaves[name], 0), marked.reshape(-1, *[1] * (len(shape) - 1)).expand(shape))
    done = -1
    while waiting:
        index = heappop(waiting)
        if index == done:
            continue  # it reads several tensors that are marked
        done = index
        if upto is not None and index > upto:
            break
        node = readers.record.nodes[index]
        marks = [found.get(source) for source in node.sources]
        if all(m is None for m in marks):
            continue
        if index in numbers:
            found[index, -1] = uniform(marks[_factor(node) or 0])
            continue
        for output, out in enumerate(across(node, marks, checks=upto is None)):
            if out is not None and bool(distinct(out).any()):
                mark((index, output), out)
                for tensor in tensors_of(node.asked.out) if node.asked else ():
                    memory.setdefault(memory_of(tensor), index)
    readers.check_known(found, memory, upto)
    return found


def _weight_behind(record: Record, source: Source) -> tuple[str, Source]:
    """The nearest weight that a tensor is made with, and the tensor that has all rows of it that matter."""
    target = source
    while True:
        node = record.nodes[source[0]]
        own = [s for s in node.sources if not record.nodes[s[0]].parametric]
        if node.op in ("aten::mm", "aten::bmm") and len(own) == 2:
            source = target = own[0]  # scores: a product of queries and keys, of which one is enough
            continue
        if node.spec.weight and len(own) == 1 and node.asked is not None:
            position = ScaledCall(node, node.asked, (), checks=False).positions.get(node.spec.weight)
            if position is None:
                raise UnfitError
            return _parameter(record, node.sources[position]), target
        if node.spec.scaling is None or not own:
            raise UnfitError
        source = own[0]


def _parameter(record: Record, source: Source) -> str:
    """The parameter that a tensor is, moved at most."""
    node = record.nodes[source[0]]
    while not node.is_leaf:
        if node.spec.moves is None:
            raise UnfitError
        node = record.nodes[node.sources[0][0]]
    return node.op.removeprefix(PARAMETER)


def _of_vector(marks: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The marks of a vector that is added along the last dimension."""
    if vector.ndim != 1 or marks.shape[-1:] != vector.shape:
        raise UnfitError
    row = marks.reshape(-1, len(vector))[0]
    if not torch.equal(marks, row.expand_as(marks)):
        raise UnfitError
    return row
