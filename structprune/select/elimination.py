"""In which order channels go, if what is left is fitted anew after each: backward elimination by second moments.

A contraction ``y = W x`` reads channels. Without the entries ``J`` of a channel, and with the weights of the others
fitted anew by least squares, its output is wrong by ``W_J (P_JJ)^-1 W_J^T`` summed over the outputs, ``P`` the inverse
of the inputs' covariance: the optimal brain surgeon of Hassibi and Stork (1993), over entries of a channel together.
``W`` and ``P`` then follow by a low-rank update, and the next channel is chosen with them, as OSSCAR does for one layer
(Meng et al., 2024); here all that read a channel are asked together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from structprune.ir.slices import Ids
from structprune.progress import Advance, progress_bar
from structprune.select.scores import Scores
from structprune.select.statistics import WIDE

# Few inputs leave directions in which nothing varies: a share of the mean variance is added to each.
_DAMPING = 0.01
# A channel at a time is exact; of wide layers a few go together.
_STEPS = 128
# Once so much of a contraction's entries is left, what has gone is dropped.
_SHRUNK = 0.7


@dataclass(frozen=True)
class Reading:
    """A matrix product that reads channels.

    Attributes:
        roots: For every entry of its inputs the channel that it belongs to.
        covariance: Gives that of its inputs, ``(entries, entries)``: all of them at once may be gigabytes.
        matrix: ``(outputs, entries)``, in a scale in which the errors of several readings can be added up.
    """

    roots: Ids
    covariance: Callable[[], torch.Tensor]
    matrix: torch.Tensor


def eliminated(readings: Sequence[Reading], candidates: Ids, fixed: Scores, progress: bool | None = False) -> Scores:
    """The error that the removal of every channel makes, given that all cheaper ones have gone before it.

    Args:
        readings: All that read the channels.
        candidates: The channels that may go, by the id that stands for each.
        fixed: By id: an error that its removal makes besides, whatever else has gone.
        progress: Whether a bar is shown; ``None``: where stderr is a terminal.

    Returns:
        By id: the errors, rising in the order in which the channels go; 0 for all other ids.
    """
    scores = np.zeros(len(fixed))
    with progress_bar(progress, len(candidates)) as advance:
        for channels, own in _components(readings, candidates):
            _rank(channels, own, fixed, scores, advance)
    return scores


def _rank(channels: Ids, readings: list[Reading], fixed: Scores, scores: Scores, advance: Advance) -> None:
    """Write the errors of channels that are read together."""
    readers = [_Reader(reading, channels) for reading in readings]
    base = torch.from_numpy(fixed[channels])
    alive = torch.ones(len(channels), dtype=torch.bool)
    at_once = max(1, len(channels) // _STEPS)
    highest = 0.0
    while alive.any():
        costs = base + sum(reader.costs(len(channels)) for reader in readers)
        costs[~alive] = torch.inf
        taken = costs.argsort()[: min(at_once, int(alive.sum()))]
        for channel in taken.tolist():
            highest = max(highest, float(costs[channel]))
            scores[channels[channel]] = highest
        alive[taken] = False
        for reader in readers:
            reader.remove(taken)
        advance("calibrate: channels", len(taken))


def _components(readings: Sequence[Reading], candidates: Ids) -> list[tuple[Ids, list[Reading]]]:
    """Channels that are read together, with what reads them."""
    numbers = {int(root): number for number, root in enumerate(candidates)}
    parent = list(range(len(candidates)))

    def find(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    members: list[list[int]] = []
    for reading in readings:
        found = [numbers[root] for root in np.unique(reading.roots).tolist() if root in numbers]
        members.append(found)
        for number in found[1:]:
            parent[find(number)] = find(found[0])
    by_first: dict[int, tuple[list[int], list[Reading]]] = {}
    for number in range(len(candidates)):
        by_first.setdefault(find(number), ([], []))[0].append(int(candidates[number]))
    for reading, found in zip(readings, members, strict=True):
        if found:
            by_first[find(found[0])][1].append(reading)
    return [(np.array(channels, dtype=np.int64), own) for channels, own in by_first.values()]


class _Reader:
    """One reading, as it is after the channels that have gone."""

    def __init__(self, reading: Reading, channels: Ids) -> None:
        covariance = reading.covariance()
        # The damping keeps them well away from singular.
        dtype = torch.float32 if len(covariance) > WIDE else torch.float64
        damped = covariance.to(dtype, copy=True)
        damped.diagonal().add_(_DAMPING * covariance.diagonal().mean() + 1e-12)
        self._left = len(damped)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self._matrix = reading.matrix.to(dtype, copy=True)
        places = {int(root): place for place, root in enumerate(channels)}
        entries: dict[int, list[int]] = {}
        for entry, root in enumerate(reading.roots.tolist()):
            if root in places:
                entries.setdefault(places[root], []).append(entry)
        self._entries = entries
        self._blocks = self._grouped()

    def _grouped(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Channels with as many entries are looked at together."""
        blocks = []
        for size in sorted({len(own) for own in self._entries.values()}):
            own = {channel: e for channel, e in self._entries.items() if len(e) == size}
            blocks.append((torch.tensor(list(own)), torch.tensor(list(own.values()))))
        return blocks

    def costs(self, channels: int) -> torch.Tensor:
        """The error that every channel's removal would make; 0 for those that are gone or not read here."""
        costs = torch.zeros(channels, dtype=torch.float64)
        for own, entries in self._blocks:
            if entries.shape[1] == 1:
                flat = entries[:, 0]
                costs[own] = (self._matrix[:, flat].square().sum(0) / self._inverse.diagonal()[flat]).double()
                continue
            inverse = self._inverse[entries[:, :, None], entries[:, None, :]]
            weights = self._matrix[:, entries].transpose(0, 1)
            products = weights.transpose(1, 2) @ weights
            costs[own] = torch.linalg.solve(inverse, products).diagonal(dim1=1, dim2=2).sum(1).double()
        return costs

    def remove(self, gone: torch.Tensor) -> None:
        """Take channels out, and fit the weights of the others anew."""
        entries = [entry for channel in gone.tolist() for entry in self._entries.pop(channel, ())]
        if not entries:
            return
        rows = self._inverse[entries]
        solved = torch.linalg.solve(rows[:, entries], rows)
        self._matrix.addmm_(self._matrix[:, entries], solved, alpha=-1)
        self._inverse.addmm_(rows.T, solved, alpha=-1)
        self._matrix[:, entries] = 0
        self._inverse[entries] = 0
        self._inverse[:, entries] = 0
        self._inverse[entries, entries] = 1
        self._left -= len(entries)
        if self._left <= _SHRUNK * len(self._inverse):
            self._shrink()

    def _shrink(self) -> None:
        """Drop what has gone: every step takes time with the square of what is there."""
        gone = ~(self._matrix != 0).any(0)
        for own in self._entries.values():
            gone[own] = False
        stays = (~gone).nonzero()[:, 0]
        place = torch.zeros(len(gone), dtype=torch.int64)
        place[stays] = torch.arange(len(stays))
        self._inverse, self._matrix = self._inverse[stays][:, stays], self._matrix[:, stays]
        self._entries = {channel: place[own].tolist() for channel, own in self._entries.items()}
        self._left = len(stays)
        self._blocks = self._grouped()
