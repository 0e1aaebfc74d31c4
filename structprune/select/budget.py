"""How many channels of each group go, and which."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from structprune.ir.slices import Mask
from structprune.select.allotment import Widths, allotted
from structprune.select.options import Settings
from structprune.select.partitions import Partition, partitions_of, tied_partitions
from structprune.select.scores import Scores
from structprune.tracing.groups import DependencyGraph, Group

_AUTO_MULTIPLE = 8
_AUTO_FROM = 64


@dataclass
class Selection:
    """Which slices stay, and what became of every group.

    Attributes:
        present: For every slice id whether it stays.
        removed: Channels removed, by group.
        skipped: Why a group that could shrink was left alone, by group.
        notes: Where less goes than the ratio says, and what stands in the way.
    """

    present: Mask
    removed: dict[int, int] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    scores: Scores = field(default_factory=lambda: np.zeros(0))

    def score_removed(self, group: Group) -> float:
        """The share of a group's scores that its removed channels have; 0 where none goes."""
        if group.index not in self.removed:
            return 0.0
        scores = self.scores[group.channels]
        total = float(np.abs(scores).sum())
        return float(np.abs(scores[~self.present[group.channels]]).sum()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class _TiedSet:
    """Partitions that lose the same share: what may be left, the ratio that is asked for, and the most that may go."""

    partitions: list[Partition]
    widths: Widths
    ratio: float
    most: float | None

    @property
    def channels(self) -> int:
        """Channels of all its partitions together."""
        return self.widths.shares * self.widths.size


def select(graph: DependencyGraph, settings: Settings, scores: Scores, *, comparable: bool = False) -> Selection:
    """Take the weakest channels of every group, the ratio separately in every partition.

    A partition is the set of a group's channels that occur in the same producing axes and the same
    pieces of split dimensions: taken together, a piece could be emptied, or equal pieces become unequal.
    Partitions whose dimensions are tied lose the same share.

    Args:
        graph: The network.
        settings: What is asked for.
        scores: A score for every channel, at the id that stands for it.
        comparable: Whether scores of two layers may be held against each other as they are.
    """
    gone = np.zeros(graph.space.size, dtype=bool)
    partitions, skipped = partitions_of(graph, settings)
    selection = Selection(gone, skipped=skipped, scores=scores)
    blocked, together = tied_partitions(graph, partitions, settings)
    for index in blocked:
        group = partitions[index].group
        selection.skipped.setdefault(group.index, f"must be as wide as {blocked[index]}, which stays whole")
    ties = [_tied_together(graph, [partitions[i] for i in indices], settings) for indices in together]
    lefts = _lefts(graph, ties, settings, scores, comparable)
    selection.notes += [*_at_limit(ties, lefts, settings), *_shortfalls(graph, ties, lefts, settings)]
    for tied, shares_left in zip(ties, lefts, strict=True):
        for part in tied.partitions:
            group, partition = part.group, part.channels
            left = shares_left * (len(partition) // tied.widths.shares)
            if left == len(partition):
                if len(tied.partitions) > 1:
                    why = "must lose the same share as other widths, and no whole numbers do"
                    selection.skipped.setdefault(group.index, why)
                continue
            emptied = _floored(tied.ratio, len(partition)) > len(partition) - left
            if tied.most is None and emptied and left * part.slices <= _floor(settings.round_to):
                selection.notes.append(f"{group.name}: the ratio would empty it, it keeps its last channels")
            # Equal scores keep the lower index: a stable sort by falling score.
            weakest = partition[np.argsort(-scores[partition], kind="stable")[left:]]
            gone[weakest] = True
            selection.removed[group.index] = selection.removed.get(group.index, 0) + len(weakest)
    for tried in partitions:
        if tried.group.index not in selection.removed:
            selection.skipped.setdefault(tried.group.index, "too narrow for this ratio and round_to")
    for index in selection.removed:
        selection.skipped.pop(index, None)
    selection.present = ~gone[graph.roots]
    return selection


def _tied_together(graph: DependencyGraph, partitions: list[Partition], settings: Settings) -> _TiedSet:
    """What may be left of partitions, of all the same share: at least one, a multiple where asked."""
    # The smallest share of all that leaves whole channels everywhere is one of this many.
    shares = math.gcd(*(len(s.channels) for s in partitions))
    # Tied layers lose the least that any of them may.
    most = min((m for s in partitions if (m := settings.most_of(s.group)) is not None), default=None)
    least = 1 if most is None else max(1, shares - _floored(most, shares))
    unit = 1
    for partition in partitions:
        if graph.at_least_two[partition.channels].any():
            least = max(least, math.ceil(2 * shares / len(partition.channels)))
        own = _unit(len(partition.channels), partition.slices, settings.round_to)
        unit = math.lcm(unit, own // math.gcd(own, len(partition.channels) // shares))
    widths = Widths(shares, sum(len(s.channels) for s in partitions) // shares, unit, least)
    # And the least that any of them is asked for.
    return _TiedSet(partitions, widths, min(settings.ratio_of(s.group) for s in partitions), most)


def _lefts(
    graph: DependencyGraph, ties: list[_TiedSet], settings: Settings, scores: Scores, comparable: bool
) -> list[int]:
    """The shares that are left of every tied set."""
    if settings.scope == "local":
        return [b.widths.nearest(b.widths.shares - _floored(b.ratio, b.widths.shares)) for b in ties]
    lefts = [b.widths.shares for b in ties]
    for (ratio, _), of in _competing(graph, ties, settings).items():
        own = [[scores[partition.channels] for partition in ties[i].partitions] for i in of]
        target = _floored(ratio, sum(ties[i].channels for i in of))
        for i, gone in zip(of, allotted([ties[i].widths for i in of], own, target, comparable), strict=True):
            lefts[i] -= gone
    return lefts


def _competing(
    graph: DependencyGraph, ties: list[_TiedSet], settings: Settings
) -> dict[tuple[float, frozenset[Any]], list[int]]:
    """The places of those that lose one ratio together: all that are asked for it, or those of them that are alike."""
    kinds = _kinds(graph, ties) if settings.scope == "isomorphic" else [frozenset()] * len(ties)
    found: dict[tuple[float, frozenset[Any]], list[int]] = {}
    for place, (tied, kind) in enumerate(zip(ties, kinds, strict=True)):
        found.setdefault((tied.ratio, kind), []).append(place)
    return found


def _kinds(graph: DependencyGraph, ties: list[_TiedSet]) -> list[frozenset[Any]]:
    """What writes and reads the channels of every tied set: which contractions, under which kernels, and their role.

    Widths do not count: the blocks of a network are alike where they are of several widths. After Fang et al.,
    "Isomorphic Pruning for Vision Models" (2024), who compare the graphs of operators.
    """
    of: dict[int, int] = {}
    for place, tied in enumerate(ties):
        of.update((int(part.channels[0]), place) for part in tied.partitions)
    kinds: list[set[Any]] = [{part.group.role for part in tied.partitions} for tied in ties]
    firsts = np.array(list(of), dtype=np.int64)
    for node in graph.records[0].nodes:
        if not node.contracts:
            continue
        kernel = next((shape[2:] for shape in node.shapes[1:2]), ())
        sides = [("reads", o.ids) for o in node.operands] + [("writes", ids) for _, _, ids in node.produced]
        for side, ids in sides:
            for root in np.intersect1d(graph.roots[ids], firsts).tolist():
                kinds[of[root]].add((side, node.op, kernel))
    return [frozenset(kind) for kind in kinds]


def _at_limit(ties: list[_TiedSet], lefts: list[int], settings: Settings) -> Iterator[str]:
    """Which layers lose less than they would, for the most that they may."""
    names: dict[float, list[str]] = {}
    for tied, left in zip(ties, lefts, strict=True):
        shares = tied.widths.shares
        wanted = settings.scope != "local" or _floored(tied.ratio, shares) > shares - left
        if tied.most is not None and left == tied.widths.lowest < shares and wanted:
            names.setdefault(tied.most, []).append(tied.partitions[0].group.name)
    for most, layers in names.items():
        shown = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
        yield f"as narrow as max_ratio={most:g} lets a layer become: {shown}"


def _shortfalls(graph: DependencyGraph, ties: list[_TiedSet], lefts: list[int], settings: Settings) -> Iterator[str]:
    """Where all layers together lose less than the ratio. One that was searched for a target is nobody's wish."""
    if settings.scope == "local" or settings.target is not None:
        return
    for (ratio, _), of in _competing(graph, ties, settings).items():
        there = sum(ties[i].channels for i in of)
        gone = there - sum(lefts[i] * ties[i].widths.size for i in of)
        asked = _floored(ratio, there)
        if gone < asked:
            spent = all(lefts[i] == ties[i].widths.lowest for i in of)
            why = "no layer may lose more" if spent else "the widths that are allowed come no nearer"
            limits = sorted({1.0 if (most := ties[i].most) is None else most for i in of})
            limit = " and ".join(f"{most:g}" for most in limits)
            yield (
                f"the ratio {ratio:g} asks for {asked:,} of {there:,} channels, and {gone:,} go ({gone / there:.1%}): "
                f"{why} (max_ratio={limit}, round_to={settings.round_to!r}, widths that are tied)"
            )


def _floored(share: float, count: int) -> int:
    """``floor(share * count)``, where a share of whole channels may have lost its last digit."""
    return math.floor(share * count + 1e-9)


def _unit(count: int, slices: int, round_to: int | str) -> int:
    if round_to == "auto":
        width = count * slices
        if width % _AUTO_MULTIPLE or width < _AUTO_FROM:
            return 1
        return _AUTO_MULTIPLE // math.gcd(_AUTO_MULTIPLE, slices)
    return int(round_to) // math.gcd(int(round_to), slices)


def _floor(round_to: int | str) -> int:
    return _AUTO_MULTIPLE if round_to == "auto" else int(round_to)
