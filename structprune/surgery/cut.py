"""What goes, as plain data: the slices that stay along every axis, and the sizes that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from structprune.ir.slices import Ids, Mask, Vector
from structprune.tracing.groups import DependencyGraph


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """A size that a module holds and that changes with the cut."""

    module: str
    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return (
            f"{self.module}.{self.name}: {self.old} -> {self.new}"
            if self.module
            else f"{self.name}: {self.old} -> {self.new}"
        )


@dataclass(frozen=True, slots=True)
class Solved:
    """How a weight that reads removed channels was solved anew.

    Attributes:
        strength: How strongly it was held near to the weight before, in units of its inputs' mean variance.
        before: The error of the weight before on rows that were held out, as a share of the outputs' variance.
        after: That of the new one.
        beside: The bias or batch-norm statistics that were set with it.
    """

    strength: float
    before: float
    after: float
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cut:
    """The indices that stay, by tensor and dimension (only those that lose any), and what changes besides.

    Attributes:
        attributes: Sizes that modules hold.
        shifts: What is added to vectors once they are cut, an entry for each that is left.
        scales: What vectors are multiplied with, likewise.
        row_scales: What the rows of a tensor (along its first dimension) are multiplied with in the end, an entry for
            each that is left, so that a number which the code computes from a width makes no difference.
        values: Tensors that get other values, as they are in the end.
    """

    kept: Mapping[str, Mapping[int, Ids]]
    attributes: tuple[AttributeChange, ...] = ()
    shifts: Mapping[str, Vector] = field(default_factory=dict)
    scales: Mapping[str, Vector] = field(default_factory=dict)
    row_scales: Mapping[str, Vector] = field(default_factory=dict)
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        """The tensors that do not stay as they are."""
        return list(dict.fromkeys((*self.kept, *self.shifts, *self.scales, *self.row_scales, *self.values)))


def kept_indices(graph: DependencyGraph, present: Mask) -> dict[str, dict[int, Ids]]:
    """The indices that stay along every axis that loses some."""
    kept: dict[str, dict[int, Ids]] = {}
    axes = graph.space.axes
    counts = _present_per_axis(graph, present)
    for axis, count in zip(axes, counts, strict=True):
        if count != axis.size:
            mask = present[axis.start : axis.start + axis.size]
            kept.setdefault(axis.tensor, {})[axis.dim] = np.flatnonzero(mask)
    return kept


def _present_per_axis(graph: DependencyGraph, present: Mask) -> list[int]:
    total = np.concatenate([[0], np.cumsum(present)])
    starts = np.array([a.start for a in graph.space.axes], dtype=np.int64)
    ends = np.array([a.start + a.size for a in graph.space.axes], dtype=np.int64)
    counts: list[int] = (total[ends] - total[starts]).tolist()
    return counts


def elements_left(graph: DependencyGraph, present: Mask) -> int:
    """How many elements the tensors have left: what interpretations are ranked by."""
    counts = _present_per_axis(graph, present)
    left: dict[str, int] = {}
    for axis, count in zip(graph.space.axes, counts, strict=True):
        left[axis.tensor] = left.get(axis.tensor, 1) * count
    return sum(left.values())
