"""Axes, slices and their coupling: which slices of which tensors can only leave together.

An axis is one dimension of one parameter or buffer; a slice is one index along it. Every slice has
an id, the ids of an axis are consecutive. Computed tensors have no slices of their own: they carry
*labels*, one array of slice ids per dimension (``None`` where the dimension never shrinks).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Vector: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = tuple[Ids | None, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """Dimension ``dim`` of the tensor called ``tensor``; its slices are ``start .. start+size-1``."""

    index: int
    tensor: str
    dim: int
    size: int
    start: int

    @property
    def ids(self) -> Ids:
        """The slice ids of this axis, in order."""
        return np.arange(self.start, self.start + self.size)

    def __str__(self) -> str:
        return f"{self.tensor}[dim {self.dim}]"


class SliceSpace:
    """Hands out slice ids: to the axes of named tensors, and to dimensions that belong to none."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.by_tensor: dict[str, list[Axis]] = {}
        self.size = 0
        self._starts: Ids | None = None

    def add_tensor(self, name: str, shape: Iterable[int]) -> Labels:
        """Give every dimension of a tensor its ids and return them as the tensor's labels."""
        axes = []
        for dim, size in enumerate(shape):
            axis = Axis(len(self.axes), name, dim, size, self.size)
            self.axes.append(axis)
            axes.append(axis)
            self.size += size
        self.by_tensor[name] = axes
        self._starts = None
        return tuple(axis.ids for axis in axes)

    def fresh(self, count: int) -> Ids:
        """Ids for a computed dimension that may shrink with whatever it meets."""
        ids = np.arange(self.size, self.size + count)
        self.size += count
        return ids

    def is_placeholder(self, ids: Ids) -> bool:
        """Whether none of ``ids`` lies on a tensor's axis; all tensors are added before the first fresh id."""
        last = self.axes[-1]
        return bool((ids >= last.start + last.size).all())

    def axes_of(self, ids: Ids) -> list[Axis]:
        """The distinct axes that ``ids`` lie on; ids handed out by ``fresh`` lie on none."""
        if self._starts is None:
            self._starts = np.array([a.start for a in self.axes], dtype=np.int64)
        # Zero-sized axes share a start; "right" - 1 finds the last, which holds the id.
        found = np.unique(np.searchsorted(self._starts, ids, side="right") - 1)
        axes = (self.axes[i] for i in found if i >= 0)
        return [a for a in axes if ((ids >= a.start) & (ids < a.start + a.size)).any()]


class Coupling:
    """A union-find over slices, written as batches of pairs and solved when it is read.

    Solving in batches keeps the whole of a large network in a few vectorised passes; see Shiloach
    and Vishkin (1982) for the hooking and pointer-jumping scheme.
    """

    def __init__(self, space: SliceSpace) -> None:
        self._space = space
        self._parent = np.arange(0)
        self._left: list[Ids] = []
        self._right: list[Ids] = []
        self._frozen: list[tuple[Ids, str]] = []
        self._read: tuple[Ids, Ids] | None = None

    def copy(self) -> Coupling:
        """One that may be added to while this one stays as it is."""
        self._solve()
        other = Coupling(self._space)
        other._parent, other._read = self._parent, self._read
        other._frozen = list(self._frozen)
        return other

    def couple(self, left: Ids, right: Ids) -> None:
        """Say that ``left[i]`` and ``right[i]`` can only leave together, for every ``i``."""
        if left is right:
            return
        if left.shape != right.shape:
            raise AssertionError(f"coupling {left.shape} slices with {right.shape}")
        self._left.append(left)
        self._right.append(right)
        self._read = None

    def meets_axis(self, ids: Ids) -> bool:
        """Whether any of these can, so far, only leave together with slices of a tensor."""
        # Those of tensors have the smallest ids, and the smallest stands for the others.
        return not self._space.is_placeholder(self.roots()[ids].min(keepdims=True))

    def freeze(self, ids: Ids, reason: str) -> None:
        """Say that these slices must stay, and why. The first reason given is the one kept."""
        self._frozen.append((ids, reason))
        self._read = None

    def roots(self) -> Ids:
        """For every slice id the smallest id of its channel."""
        return self._solve()[0]

    def reasons(self) -> tuple[Ids, list[str]]:
        """For every slice id the index of the reason why it is frozen (-1: it is not), and the reasons."""
        return self._solve()[1], [reason for _, reason in self._frozen]

    def _solve(self) -> tuple[Ids, Ids]:
        if self._read is not None and len(self._read[0]) == self._space.size:
            return self._read
        known = len(self._parent)
        parent = np.concatenate([self._parent, np.arange(known, self._space.size)])
        if self._left:
            parent = merged(parent, np.concatenate(self._left), np.concatenate(self._right))
            self._left.clear()
            self._right.clear()
        self._parent = parent
        reason = np.full(self._space.size, -1)
        for index in reversed(range(len(self._frozen))):
            reason[parent[self._frozen[index][0]]] = index
        self._read = (parent, reason[parent])
        return self._read


def merged(parent: Ids, left: Ids, right: Ids) -> Ids:
    """Join the classes of ``left[i]`` and ``right[i]`` in a fully compressed ``parent`` array, which is written."""
    while True:
        left, right = parent[left], parent[right]
        differ = left != right
        if not differ.any():
            return parent
        left, right = left[differ], right[differ]
        # Hooking the larger root under the smaller cannot close a circle. Were any of them let win, a root with many
        # partners (a group of a convolution, the heads of a query) would lose one a round.
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
        while True:
            jumped = parent[parent]
            if np.array_equal(jumped, parent):
                break
            parent = jumped
