"""Weights that make up for a number that code computes from a width.

Attention divides by the square root of a head's width. Where code computes that number anew, a narrower head gets
another one, and the cut network would not equal the masked dense one. But what is multiplied with the number
comes from rows of a weight: multiplied with the dense number over the cut one's, they cancel the difference.

Whether they do just that is followed through the record. Marks start at rows of parameters and cross an operator
only where scaling what is marked scales what comes out, and does nothing else. All have to end at such numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from structprune.graph.record import Node, Record
from structprune.meta.signature import tensors_of
from structprune.resolve.replay import Mismatch
from structprune.surgery.cut import Vector

Gains = dict[str, Vector]
# Whole numbers in the shape of a tensor; 0 is no mark. ``None``: no marks at all.
Marks = torch.Tensor | None
Source = tuple[int, int]
_PARAMETER = "parameter::"


class _UnfitError(Exception):
    """Scaling the marked rows would do more than to scale what the number is multiplied with."""


class _Unmarked(Exception):
    """Something is added to what is marked: it has to be marked as well."""

    def __init__(self, source: Source, marks: torch.Tensor) -> None:
        super().__init__(source)
        self.source, self.marks = source, marks


class _Crossing(NamedTuple):
    """What an operator does: its node, the marks of its tensors, and whether what is added must be marked alike."""

    node: Node
    marks: Sequence[Marks]
    exact: bool

    def filled(self, value: torch.Tensor) -> torch.Tensor:
        """Marks in the shape of the first output."""
        return value.expand(self.node.outputs[0].shape)

    def check_added(self, position: int, marks: torch.Tensor) -> None:
        """What is added at ``position`` has the marks of the sum."""
        if position >= len(self.marks) or not self.exact:
            return
        own = self.marks[position]
        if own is None:
            raise _Unmarked(self.node.sources[position], marks)
        if not torch.equal(own.expand_as(marks), marks):
            raise _UnfitError


def absorbed(record: Record, mismatches: Iterable[Mismatch]) -> tuple[list[Mismatch], Gains]:
    """The mismatches that weights can make up for, and the gains that do it: by parameter, for its dense rows."""
    mismatches = list(mismatches)
    ratios = {m.node.index: ratio for m in mismatches if (ratio := _ratio(m)) is not None}
    gains, done = Gains(), set[int]()
    for node in [m.node for m in mismatches if m.node.index in ratios]:
        if node.index in done:
            continue
        alike = {n for n, ratio in ratios.items() if math.isclose(ratio, ratios[node.index], rel_tol=1e-12)}
        try:
            rows, ends = _rows_behind(record, node, alike)
        except _UnfitError:
            continue
        if node.index in ends:
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
    count = _shape_of(record, weight)[0]
    places = torch.arange(1.0, count + 1)
    reached = _flow(record, {weight: places}, upto=target[0]).get(target)
    if reached is None or not bool(reached.all()):
        raise _UnfitError
    rows = {weight: torch.isin(places, reached).float()}
    while True:
        try:
            marks = _flow(record, rows, numbers=numbers)
        except _Unmarked as missing:
            name = record.nodes[missing.source[0]].op
            if not name.startswith(_PARAMETER) or name.removeprefix(_PARAMETER) in rows:
                raise _UnfitError from None
            rows[name.removeprefix(_PARAMETER)] = _along_rows(missing.marks, record, missing.source)
            continue
        if any(source in marks for source in record.returned):
            raise _UnfitError
        return {name: marked.bool() for name, marked in rows.items()}, {n for n, output in marks if output < 0}


def _flow(
    record: Record, rows: Mapping[str, torch.Tensor], *, upto: int | None = None, numbers: Iterable[int] = ()
) -> dict[Source, torch.Tensor]:
    """The marks of every tensor, from rows of parameters on; a number at which they end is output -1 of its node.

    With ``upto`` it stops there, and what is added need not be marked.
    """
    found: dict[Source, torch.Tensor] = {}
    for node in record.nodes[: None if upto is None else upto + 1]:
        if node.is_leaf:
            marked = rows.get(node.op.removeprefix(_PARAMETER))
            if marked is not None:
                shape = _shape_of(record, node.op.removeprefix(_PARAMETER))
                found[node.index, 0] = marked.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
            continue
        marks = [found.get(source) for source in node.sources]
        if all(m is None for m in marks):
            continue
        if node.index in numbers:
            found[node.index, -1] = _uniform(marks[0])
            continue
        cross = _CROSSINGS.get(node.op)
        if cross is None or node.writes or node.asked is None:
            raise _UnfitError
        for output, out in enumerate(cross(_Crossing(node, marks, upto is None))):
            if out is not None and bool(out.any()):
                found[node.index, output] = out
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
        if node.op in _WEIGHTS and len(own) == 1:
            return _parameter(record, node.sources[_WEIGHTS[node.op]]), target
        if node.op not in _CROSSINGS or not own:
            raise _UnfitError
        source = own[0]


def _parameter(record: Record, source: Source) -> str:
    """The parameter that a tensor is, moved at most."""
    node = record.nodes[source[0]]
    while not node.is_leaf:
        if node.op not in _MOVES:
            raise _UnfitError
        node = record.nodes[node.sources[0][0]]
    return node.op.removeprefix(_PARAMETER)


def _shape_of(record: Record, name: str) -> tuple[int, ...]:
    """The shape of a parameter, from an operator that reads it."""
    for node in record.nodes:
        for (source, _), shape in zip(node.sources, node.shapes, strict=False):
            if record.nodes[source].op == _PARAMETER + name:
                return shape
    raise _UnfitError


def _along_rows(marks: torch.Tensor, record: Record, source: Source) -> torch.Tensor:
    """The marks of a vector that is added along the last dimension."""
    (width,) = _shape_of(record, record.nodes[source[0]].op.removeprefix(_PARAMETER))[:1]
    rows = marks.reshape(-1, width)
    if not bool((rows == rows[0]).all()):
        raise _UnfitError
    return rows[0]


def _uniform(marks: Marks) -> torch.Tensor:
    """One mark, where all entries have the same."""
    if marks is None or not bool((marks == marks.flatten()[0]).all()) or not bool(marks.all()):
        raise _UnfitError
    return marks.flatten()[0]


# How marks cross an operator.


def _moved(c: _Crossing) -> Sequence[Marks]:
    """The operator itself, on marks."""
    assert c.node.asked is not None
    by_tensor = {
        id(t): torch.zeros(t.shape) if m is None else m for t, m in zip(c.node.asked.tensors, c.marks, strict=True)
    }
    arguments = tree_map_only(torch.Tensor, lambda t: by_tensor[id(t)], c.node.asked.arguments)
    return tensors_of(c.node.asked.operator.func(**arguments))


def _same(c: _Crossing) -> Sequence[Marks]:
    return [c.marks[0]]


def _pooled(c: _Crossing) -> Sequence[Marks]:
    """Over dimensions that may hold several channels: all of them are marked alike."""
    if len(c.marks) != 1:
        raise _UnfitError  # the larger of two tensors
    return [c.filled(_uniform(c.marks[0]))] if c.exact else _moved(c)[:1]


def _scaled(c: _Crossing) -> Sequence[Marks]:
    """A product with something that is not marked."""
    marked = [m for m in c.marks if m is not None]
    if len(marked) != 1 or (c.node.op == "aten::div" and c.marks[0] is None):
        raise _UnfitError
    return [c.filled(marked[0])]


def _added(c: _Crossing) -> Sequence[Marks]:
    if len(c.marks) != 2:
        raise _UnfitError  # a number is added
    known = c.filled(next(m for m in c.marks if m is not None))
    for position in (0, 1):
        c.check_added(position, known)
    return [known]


def _multiplied(c: _Crossing) -> Sequence[Marks]:
    """A matrix product: with a weight, whose columns lie along its last dimension, or of activations."""
    left, right = c.marks
    if left is None and right is not None and c.node.op == "aten::mm":
        if not torch.equal(right, right[:1].expand_as(right)):
            raise _UnfitError
        return [c.filled(right[0])]
    if (left is None) == (right is None):
        raise _UnfitError
    return [c.filled(_uniform(left if right is None else right))]


def _affine(c: _Crossing) -> Sequence[Marks]:
    """``addmm``, with the bias first."""
    _, x, weight = c.marks
    if x is not None or weight is None or not torch.equal(weight, weight[:1].expand_as(weight)):
        raise _UnfitError
    c.check_added(0, weight[0])
    return [c.filled(weight[0])]


def _convolved(c: _Crossing) -> Sequence[Marks]:
    assert c.node.asked is not None
    x, weight, *_ = c.marks
    if x is not None or weight is None or c.node.asked.arguments.get("transposed"):
        raise _UnfitError
    rows = weight.flatten(1)[:, 0]
    c.check_added(2, rows)
    return [c.filled(rows.reshape(1, -1, *[1] * (weight.ndim - 2)))]


def _normalised(c: _Crossing) -> Sequence[Marks]:
    """A layer norm's own weight and bias."""
    if len(c.marks) < 2 or c.marks[0] is not None or c.marks[1] is None:
        raise _UnfitError
    c.check_added(2, c.marks[1])
    return [c.filled(c.marks[1])]


_MOVES = frozenset(
    f"aten::{name}"
    for name in (
        "_unsafe_view", "alias", "cat", "clone", "detach", "expand", "permute", "reshape", "select", "slice", "split",
        "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze", "view",
    )
)  # fmt: skip
# f(a x) = a f(x) for a > 0.
_POOLS = ("amax", "amin", "max", "mean", "sum", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d")
_CROSSINGS: dict[str, Callable[[_Crossing], Sequence[Marks]]] = {
    **dict.fromkeys(_MOVES, _moved),
    **dict.fromkeys(("aten::neg", "aten::relu"), _same),
    **{f"aten::{name}": _pooled for name in _POOLS},
    **dict.fromkeys(("aten::mul", "aten::div"), _scaled),
    **dict.fromkeys(("aten::add", "aten::sub"), _added),
    **dict.fromkeys(("aten::mm", "aten::bmm"), _multiplied),
    "aten::addmm": _affine,
    "aten::convolution": _convolved,
    "aten::native_layer_norm": _normalised,
}
# Which of an operator's tensors is the weight whose rows its outputs have.
_WEIGHTS = {"aten::mm": 1, "aten::addmm": 2, "aten::convolution": 1, "aten::native_layer_norm": 1}
