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

import numpy as np
import torch

from structprune.graph.record import Node, Record
from structprune.meta.signature import tensors_of
from structprune.resolve.crossings import (
    CROSSINGS,
    MOVES,
    WEIGHTS,
    Crossing,
    Source,
    UnfitError,
    Unmarked,
    across,
    uniform,
)
from structprune.resolve.replay import Mismatch
from structprune.surgery.cut import Vector

Gains = dict[str, Vector]
_PARAMETER = "parameter::"


def absorbed(record: Record, mismatches: Iterable[Mismatch], narrower: Collection[str]) -> tuple[list[Mismatch], Gains]:
    """The mismatches that weights can make up for, and the gains that do it.

    Args:
        record: Of the dense network.
        mismatches: What the cut network does otherwise.
        narrower: The parameters that lose rows: no other one is touched.

    Returns:
        The mismatches, and gains by parameter, for its dense rows.
    """
    mismatches = list(mismatches)
    ratios = {m.node.index: ratio for m in mismatches if (ratio := _ratio(m)) is not None}
    gains, done = Gains(), set[int]()
    for node in [m.node for m in mismatches if m.node.index in ratios]:
        if node.index in done:
            continue
        alike = {n for n, ratio in ratios.items() if math.isclose(ratio, ratios[node.index], rel_tol=1e-12)}
        try:
            rows, ends = _rows_behind(record, node, alike)
        except UnfitError:
            continue
        if node.index in ends and rows.keys() <= set(narrower):
            done |= ends
            for name, marked in rows.items():
                gains[name] = gains.get(name, np.ones(len(marked))) * np.where(marked, ratios[node.index], 1.0)
    return [m for m in mismatches if m.numbers is not None and m.node.index in done], gains


def alike(left: Gains, right: Gains) -> bool:
    """Whether the gains of two modes are the same."""
    return left.keys() == right.keys() and all(np.array_equal(gain, right[name]) for name, gain in left.items())


def _ratio(mismatch: Mismatch) -> float | None:
    """What has to come in as a multiple, so that times the cut network's number it is the dense one's product."""
    node = mismatch.node
    if mismatch.numbers is None or node.op not in ("aten::mul", "aten::div") or len(node.sources) != 1 or node.writes:
        return None
    cut, dense = mismatch.numbers if node.op == "aten::mul" else mismatch.numbers[::-1]
    return dense / cut if cut and 0 < dense / cut < math.inf else None


def _rows_behind(record: Record, node: Node, numbers: set[int]) -> tuple[dict[str, torch.Tensor], set[int]]:
    """The rows that what is multiplied at a node comes from, and the numbers at which all of them end."""
    weight, target = _weight_behind(record, node.sources[0])
    places = torch.arange(1.0, len(_tensor_of(record, weight)) + 1)
    reached = _flow(record, {weight: places}, upto=target[0]).get(target)
    if reached is None or not bool(reached.all()):
        raise UnfitError
    rows = {weight: torch.isin(places, reached).float()}
    while True:
        try:
            marks = _flow(record, rows, numbers=numbers)
        except Unmarked as missing:
            name = record.nodes[missing.source[0]].op
            if not name.startswith(_PARAMETER) or name.removeprefix(_PARAMETER) in rows:
                raise UnfitError from None
            rows[name.removeprefix(_PARAMETER)] = _of_vector(
                missing.marks, _tensor_of(record, name.removeprefix(_PARAMETER))
            )
            continue
        if any(source in marks for source in record.returned):
            raise UnfitError
        return {name: marked.bool() for name, marked in rows.items()}, {n for n, output in marks if output < 0}


def _flow(
    record: Record, rows: Mapping[str, torch.Tensor], *, upto: int | None = None, numbers: Collection[int] = ()
) -> dict[Source, torch.Tensor]:
    """The marks of every tensor, from rows of parameters on; a number at which they end is output -1 of its node.

    With ``upto`` it only guesses: it stops there, what is added need not be marked, and marks say which row it was.
    """
    found: dict[Source, torch.Tensor] = {}
    memory: set[int] = set()
    for node in record.nodes[: None if upto is None else upto + 1]:
        if node.is_leaf:
            marked = rows.get(node.op.removeprefix(_PARAMETER))
            if marked is not None:
                shape = _tensor_of(record, node.op.removeprefix(_PARAMETER)).shape
                found[node.index, 0] = marked.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
            continue
        _check_known(record, node, found, memory)
        marks = [found.get(source) for source in node.sources]
        if all(m is None for m in marks):
            continue
        if node.index in numbers:
            found[node.index, -1] = uniform(marks[0])
            continue
        for output, out in enumerate(across(node, marks, checks=upto is None)):
            if out is not None and bool(out.any()):
                found[node.index, output] = out
                memory |= {t.untyped_storage()._cdata for t in tensors_of(node.asked.out)} if node.asked else set()
    return found


def _check_known(record: Record, node: Node, found: Mapping[Source, torch.Tensor], memory: set[int]) -> None:
    """A tensor that no operator made may still be one that is marked: ``.data`` and subclasses share its memory."""
    if not memory or node.asked is None:
        return
    for tensor, source in zip(node.asked.tensors, node.sources, strict=True):
        if source not in found and record.nodes[source[0]].is_leaf and tensor.untyped_storage()._cdata in memory:
            raise UnfitError


def _weight_behind(record: Record, source: Source) -> tuple[str, Source]:
    """The nearest weight that a tensor is made with, and the tensor that has all rows of it that matter."""
    target = source
    while True:
        node = record.nodes[source[0]]
        own = [s for s in node.sources if not record.nodes[s[0]].parametric]
        if node.op in ("aten::mm", "aten::bmm") and len(own) == 2:
            source = target = own[0]  # scores: a product of queries and keys, of which one is enough
            continue
        if node.op in WEIGHTS and len(own) == 1 and node.asked is not None:
            position = Crossing(node, node.asked, (), checks=False).positions.get(WEIGHTS[node.op])
            if position is None:
                raise UnfitError
            return _parameter(record, node.sources[position]), target
        if node.op not in CROSSINGS or not own:
            raise UnfitError
        source = own[0]


def _parameter(record: Record, source: Source) -> str:
    """The parameter that a tensor is, moved at most."""
    node = record.nodes[source[0]]
    while not node.is_leaf:
        if node.op not in MOVES:
            raise UnfitError
        node = record.nodes[node.sources[0][0]]
    return node.op.removeprefix(_PARAMETER)


def _tensor_of(record: Record, name: str) -> torch.Tensor:
    """A parameter as an operator reads it, which has rows of floating-point numbers."""
    for node in record.nodes:
        for position, (source, _) in enumerate(node.sources):
            if record.nodes[source].op == _PARAMETER + name and node.asked is not None:
                tensor = node.asked.tensors[position]
                if not tensor.ndim or not tensor.is_floating_point():
                    raise UnfitError
                return tensor
    raise UnfitError


def _of_vector(marks: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The marks of a vector that is added along the last dimension."""
    if vector.ndim != 1 or marks.shape[-1:] != vector.shape:
        raise UnfitError
    row = marks.reshape(-1, len(vector))[0]
    if not torch.equal(marks, row.expand_as(marks)):
        raise UnfitError
    return row
