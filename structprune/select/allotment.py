"""One ratio for all layers together: how many channels each of them gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structprune.select.scores import Scores

# Scores beside their mean that differ by less are equal: the mean of equal numbers may be off by a last digit.
_DIGITS = 12


@dataclass(frozen=True)
class Widths:
    """What may be left of partitions that lose the same share: all of their shares, or some multiples of a unit.

    Attributes:
        shares: Into how many equal shares they can be cut.
        size: Channels in a share, of all partitions together.
        unit: Shares that are left are a multiple of this, where any goes.
        least: The fewest shares that may be left.
    """

    shares: int
    size: int
    unit: int
    least: int

    @property
    def first(self) -> int:
        """The shares of the first step down; every other one is of ``unit``."""
        return self.shares - (self.shares - 1) // self.unit * self.unit

    @property
    def steps(self) -> int:
        """How many steps down there are."""
        return max(0, (self.shares - self.first - self._multiple) // self.unit + 1)

    @property
    def lowest(self) -> int:
        """The fewest shares that can be left."""
        return self.shares - self.gone(self.steps)

    @property
    def _multiple(self) -> int:
        return -(-self.least // self.unit) * self.unit

    def gone(self, steps: int) -> int:
        """The shares that go with so many steps down."""
        return self.first + (steps - 1) * self.unit if steps else 0

    def nearest(self, left: int) -> int:
        """The width nearest to this one, the larger of two as near."""
        return min(self.shares, max((left + self.unit // 2) // self.unit * self.unit, self._multiple))


def allotted(
    widths: Sequence[Widths], scores: Sequence[Sequence[Scores]], target: int, comparable: bool = False
) -> list[int]:
    """How many shares of each tied set go, so that as near as can be to ``target`` channels go, the weakest first.

    A tied set that cannot give what its scores say gives what it can, and the next weakest go elsewhere.

    Args:
        widths: What every tied set may be left with.
        scores: The scores of the channels of every partition of every tied set.
        target: Channels to remove of all tied sets together.
        comparable: Whether scores of two layers may be held against each other as they are; else each is held against
            the mean of its partition.
    """
    reached = _nearest(_totals(widths)[0], target)
    steps = _weakest(widths, scores, reached, comparable)
    if sum(w.gone(k) * w.size for w, k in zip(widths, steps, strict=True)) != reached:
        steps = _fitted(widths, steps, reached)
    return [w.gone(k) for w, k in zip(widths, steps, strict=True)]


def _weakest(widths: Sequence[Widths], scores: Sequence[Sequence[Scores]], target: int, comparable: bool) -> list[int]:
    """Steps of every tied set, the weakest first, as long as they fit into the target."""
    taken = [0] * len(widths)
    keys = [_keys(w, own, comparable) for w, own in zip(widths, scores, strict=True)]
    owner = np.repeat(np.arange(len(widths)), [w.steps for w in widths])
    number = np.concatenate([np.arange(w.steps) for w in widths])
    relative, place = np.concatenate(keys, axis=1)
    # Equal scores: all layers lose alike, not the first ones everything.
    order = np.lexsort((number, place, relative))
    for index in order.tolist():
        tied = int(owner[index])
        own = widths[tied]
        size = (own.unit if taken[tied] else own.first) * own.size
        # A step that does not fit is left out, and with it those after it in its tied set.
        if number[index] == taken[tied] and size <= target:
            taken[tied] += 1
            target -= size
        if not target:
            break
    return taken


def _keys(widths: Widths, scores: Sequence[Scores], comparable: bool) -> npt.NDArray[np.float64]:
    """By what a step of a tied set is ranked: its mean score beside its partition's mean, then its place there."""
    relative, place = [], []
    for own in scores:
        own = own - min(own.min(), 0.0)  # scores below 0 have no mean to stand beside
        relative.append((np.sort(own) / (1.0 if comparable else own.mean() or 1.0)).reshape(widths.shares, -1))
        place.append((np.arange(len(own)) / len(own)).reshape(widths.shares, -1))
    starts = [widths.gone(step) for step in range(widths.steps + 1)]
    sums = np.stack([np.concatenate(part, axis=1).sum(axis=1) for part in (relative, place)])
    running = np.concatenate([np.zeros((2, 1)), sums.cumsum(axis=1)], axis=1)[:, starts]
    means: npt.NDArray[np.float64] = np.diff(running) / (np.diff(starts) * widths.size)
    return np.round(means, _DIGITS)


# Sets of numbers of channels are bits of an integer: a hundred layers of a thousand channels each are added up at once.


def _totals(widths: Sequence[Widths]) -> list[int]:
    """The totals that can be removed of the tied sets from each one on, as sets."""
    totals = [1]
    for own in reversed(widths):
        sums = totals[-1]
        if own.steps:
            some, covered = sums << own.first * own.size, 1
            while covered < own.steps:
                more = min(covered, own.steps - covered)
                some |= some << more * own.unit * own.size
                covered += more
            sums |= some
        totals.append(sums)
    return totals[::-1]


def _nearest(totals: int, target: int) -> int:
    """The number in a set that is nearest to the target, the smaller of two as near."""
    below = (totals & ((1 << (target + 1)) - 1)).bit_length() - 1
    above = totals >> target
    if not above:
        return below
    after = target + (above & -above).bit_length() - 1
    return after if after - target < target - below else below


def _fitted(widths: Sequence[Widths], steps: Sequence[int], target: int) -> list[int]:
    """Steps that remove exactly the target, near those that were wanted."""
    # The coarsest first: the finest make up for what is missing.
    order = sorted(range(len(widths)), key=lambda i: -widths[i].unit * widths[i].size)
    totals = _totals([widths[i] for i in order])
    fitted = list(steps)
    for place, index in enumerate(order, start=1):
        own, wanted = widths[index], steps[index]
        after = [target - own.gone(step) * own.size for step in range(own.steps + 1)]
        possible = [step for step, rest in enumerate(after) if rest >= 0 and totals[place] >> rest & 1]
        fitted[index] = possible[int(np.argmin([abs(step - wanted) for step in possible]))]
        target -= own.gone(fitted[index]) * own.size
    return fitted
