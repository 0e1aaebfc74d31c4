"""How many channels of each group go, and which."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from structprune.graph.groups import DependencyGraph, Group
from structprune.graph.slices import Ids, Mask
from structprune.plan.importance import Scores
from structprune.plan.options import Settings

_AUTO_MULTIPLE = 8
_AUTO_FROM = 64


@dataclass
class Selection:
    """Which slices stay, and what became of every group.

    Attributes:
        present: For every slice id whether it stays.
        removed: Channels removed, by group.
        skipped: Why a group that could shrink was left alone, by group.
        floored: Groups in which the ratio would have emptied a layer.
    """

    present: Mask
    removed: dict[int, int] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    floored: list[str] = field(default_factory=list)


def eligible_groups(graph: DependencyGraph, settings: Settings) -> dict[int, Ids]:
    """The channels that may go under the settings, by group; groups without any are left out."""
    eligible = {}
    for group in graph.groups:
        channels = group.channels[~_barred(graph, group.channels, settings)]
        names = [p.name for p in group.producers]
        if len(channels) and settings.ratio_of(names) > 0 and not settings.ignores(names):
            eligible[group.index] = channels
    return eligible


def select(graph: DependencyGraph, settings: Settings, scores: Scores) -> Selection:
    """Take the weakest channels of every group, the ratio separately in every stratum.

    A stratum is the set of a group's channels that occur in the same producing axes and the same
    pieces of split dimensions: taken together, a piece could be emptied, or equal pieces become unequal.
    """
    eligible = eligible_groups(graph, settings)
    signature = _signatures(graph)
    gone = np.zeros(graph.space.size, dtype=bool)
    selection = Selection(gone)
    for group in graph.groups:
        if group.index not in eligible:
            selection.skipped[group.index] = _why_skipped(graph, group, settings)
            continue
        channels = eligible[group.index]
        ratio = settings.ratio_of(p.name for p in group.producers)
        width = _widest(graph, group)
        slices = max(1, width // group.width)
        for mark in np.unique(signature[channels]):
            stratum = channels[signature[channels] == mark]
            left = _left(len(stratum), slices, ratio, settings.round_to)
            if left == len(stratum):
                continue
            if math.floor(ratio * len(stratum)) > len(stratum) - left and left * slices <= _floor(settings.round_to):
                selection.floored.append(group.name)
            # Equal scores keep the lower index: a stable sort by falling score.
            weakest = stratum[np.argsort(-scores[stratum], kind="stable")[left:]]
            gone[weakest] = True
            selection.removed[group.index] = selection.removed.get(group.index, 0) + len(weakest)
        if group.index not in selection.removed:
            selection.skipped[group.index] = "too narrow for this ratio and round_to"
    selection.present = ~gone[graph.roots]
    return selection


def _barred(graph: DependencyGraph, channels: Ids, settings: Settings) -> Mask:
    barred: Mask = graph.stuck[channels]
    if settings.granularity == "filter":
        barred = barred | graph.residual[channels]
    if settings.keep_representation:
        barred = barred | graph.representation[channels]
    return barred


def _why_skipped(graph: DependencyGraph, group: Group, settings: Settings) -> str:
    names = [p.name for p in group.producers]
    if settings.ignores(names):
        return "ignored"
    if graph.stuck[group.channels].all():
        return group.reasons[0]
    if _barred(graph, group.channels, settings).all():
        if settings.keep_representation and graph.representation[group.channels].any():
            return "is the representation that the head reads (keep_representation=True)"
        return 'rides a residual stream (granularity="filter")'
    return "no ratio" if isinstance(settings.ratio, dict) else "ratio 0"


def _signatures(graph: DependencyGraph) -> npt.NDArray[np.uint64]:
    """A hash per channel of the producing axes and pieces in which it occurs, by id."""
    random = np.random.default_rng(0)
    signature = np.zeros(graph.space.size, dtype=np.uint64)
    seen: set[bytes] = set()
    arrays = [p.ids for group in graph.groups for p in group.producers]
    arrays += [ids for record in graph.records for node in record.nodes for ids in node.pieces]
    for ids in arrays:
        roots = np.unique(graph.roots[ids])
        key = roots.tobytes()
        if key not in seen:
            seen.add(key)
            signature[roots] ^= random.integers(1, 2**63, dtype=np.uint64)
    return signature


def _widest(graph: DependencyGraph, group: Group) -> int:
    """Slices of the group's channels along the producing axis that holds most of them."""
    return max(len(p.ids) for p in group.producers)


def _left(count: int, slices: int, ratio: float, round_to: int | str) -> int:
    """Channels that stay of ``count``, each of ``slices`` slices: at least one, a multiple where asked."""
    left = max(1, count - math.floor(ratio * count))
    unit = _unit(count, slices, round_to)
    if unit == 1:
        return left
    # The nearest multiple, the larger of two as near.
    return min(count, max(unit, math.floor(left / unit + 0.5) * unit))


def _unit(count: int, slices: int, round_to: int | str) -> int:
    if round_to == "auto":
        width = count * slices
        if width % _AUTO_MULTIPLE or width < _AUTO_FROM:
            return 1
        return _AUTO_MULTIPLE // math.gcd(_AUTO_MULTIPLE, slices)
    return int(round_to) // math.gcd(int(round_to), slices)


def _floor(round_to: int | str) -> int:
    return _AUTO_MULTIPLE if round_to == "auto" else int(round_to)
