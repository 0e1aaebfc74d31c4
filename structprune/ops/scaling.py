"""How scales of rows cross an operator: only where scaling what is marked does nothing but scale what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from structprune.compat import tree_map_only
from structprune.ir.record import Asked, Node
from structprune.ir.tensors import tensors_of

# In the shape of a tensor; 0 is no mark. ``None``: no marks at all.
Marks = torch.Tensor | None
Source = tuple[int, int]


class UnfitError(Exception):
    """Scaling the marked rows would do more than to scale what the number is multiplied with."""


class Unmarked(Exception):
    """Something is added to what is marked: it has to be marked as well."""

    def __init__(self, source: Source, marks: torch.Tensor) -> None:
        super().__init__(source)
        self.source, self.marks = source, marks


@dataclass
class ScaledCall:
    """An operator that marks are to cross: its node, its call, the marks of its tensors.

    ``checks``: whether what is added has to be marked alike.
    """

    node: Node
    asked: Asked
    marks: Sequence[Marks]
    checks: bool

    @cached_property
    def positions(self) -> dict[str, int]:
        """Where the tensors lie that are arguments by themselves, by the names of the schema."""
        found, position = {}, 0
        for name, value in self.asked.arguments.items():
            if isinstance(value, torch.Tensor):
                found[name] = position
            position += len(tensors_of(value))
        return found

    def of(self, name: str) -> Marks:
        """The marks of an argument; ``None`` too where it is not given."""
        position = self.positions.get(name)
        return None if position is None else self.marks[position]

    def filled(self, value: torch.Tensor) -> torch.Tensor:
        """Marks in the shape of the first output."""
        return value.expand(self.node.outputs[0].shape)

    def check_added(self, name: str, marks: torch.Tensor) -> None:
        """What is added, if anything is, has the marks of the sum."""
        position = self.positions.get(name)
        if position is None or not self.checks:
            return
        own = self.marks[position]
        if own is None:
            raise Unmarked(self.node.sources[position], marks)
        if not torch.equal(own.expand_as(marks), marks):
            raise UnfitError


def across(node: Node, marks: Sequence[Marks], *, checks: bool) -> Sequence[Marks]:
    """The marks of what an operator returns; none crosses one that writes, rounds or makes integers."""
    cross, asked = node.spec.scaling, node.asked
    if cross is None or asked is None or node.writes or asked.operator.out_variant:
        raise UnfitError
    arguments = asked.arguments
    if arguments.get("rounding_mode") is not None or (node.op == "aten::view" and "dtype" in arguments):
        raise UnfitError
    if not node.outputs[0].dtype.is_floating_point:
        raise UnfitError
    return cross(ScaledCall(node, asked, marks, checks))


def uniform(marks: Marks) -> torch.Tensor:
    """One mark, where all entries have the same."""
    if marks is None:
        raise UnfitError
    low, high = distinct(marks).aminmax()
    if not bool(low == high) or not bool(low):
        raise UnfitError
    return low


def distinct(marks: torch.Tensor) -> torch.Tensor:
    """Marks without what repeats them: most are expanded, a row's mark over all positions of an activation."""
    return marks[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in marks.stride())]


def moved(c: ScaledCall) -> Sequence[Marks]:
    """The operator itself, on marks."""
    by_tensor = {id(t): torch.zeros(t.shape) if m is None else m for t, m in zip(c.asked.tensors, c.marks, strict=True)}
    arguments = tree_map_only(torch.Tensor, lambda t: by_tensor[id(t)], c.asked.arguments)
    return tensors_of(c.asked.operator.func(**arguments))


def viewed(c: ScaledCall) -> Sequence[Marks]:
    """Another shape, in which marks stay expanded where they can."""
    marked = c.marks[0]
    return [None if marked is None else marked.reshape(c.node.outputs[0].shape)]


def same(c: ScaledCall) -> Sequence[Marks]:
    """Every entry is scaled by itself."""
    return [c.marks[0]]


def pooled(c: ScaledCall) -> Sequence[Marks]:
    """Over dimensions that may hold several channels: all of them are marked alike."""
    if len(c.marks) != 1:
        raise UnfitError  # the larger of two tensors
    return [c.filled(uniform(c.marks[0]))] if c.checks else moved(c)[:1]


def scaled(c: ScaledCall) -> Sequence[Marks]:
    """A product with something that is not marked."""
    marked = [m for m in c.marks if m is not None]
    if len(marked) != 1 or (c.node.op == "aten::div" and c.of("self") is None):
        raise UnfitError
    return [c.filled(marked[0])]


def added(c: ScaledCall) -> Sequence[Marks]:
    """A sum of two tensors that are scaled alike."""
    if c.positions.keys() != {"self", "other"}:
        raise UnfitError  # a number is added
    known = c.filled(next(m for m in c.marks if m is not None))
    for name in c.positions:
        c.check_added(name, known)
    return [known]


def multiplied(c: ScaledCall) -> Sequence[Marks]:
    """A matrix product: with a weight, whose rows lie along the last dimension, or of activations."""
    left, right = c.marks
    if left is None and right is not None and c.node.op == "aten::mm":
        return [c.filled(_columns(right))]
    if (left is None) == (right is None):
        raise UnfitError
    return [c.filled(uniform(left if right is None else right))]


def affine(c: ScaledCall) -> Sequence[Marks]:
    """A matrix product with a weight, and a bias that is scaled as its columns are."""
    weight = c.of("mat2")
    if c.of("mat1") is not None or weight is None:
        raise UnfitError
    known = c.filled(_columns(weight))
    c.check_added("self", known)
    return [known]


def _columns(weight: torch.Tensor) -> torch.Tensor:
    """The marks of a transposed weight, which are those of its columns as a whole."""
    rows = distinct(weight)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        raise UnfitError
    return weight[0]


def convolved(c: ScaledCall) -> Sequence[Marks]:
    """A convolution with a weight whose filters are scaled, and its bias."""
    weight = c.of("weight")
    if c.of("input") is not None or weight is None or c.asked.arguments.get("transposed"):
        raise UnfitError
    rows = weight.flatten(1)[:, 0]
    own = distinct(weight)
    if not torch.equal(own, rows[: len(own)].reshape(-1, *[1] * (weight.ndim - 1)).expand_as(own)):
        raise UnfitError
    c.check_added("bias", rows)
    return [c.filled(rows.reshape(1, -1, *[1] * (weight.ndim - 2)))]


def normalised(c: ScaledCall) -> Sequence[Marks]:
    """A layer norm's own weight and bias."""
    weight = c.of("weight")
    if c.of("input") is not None or weight is None:
        raise UnfitError
    c.check_added("bias", weight)
    return [c.filled(weight)]
