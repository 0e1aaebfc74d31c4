"""What a ratio is taken of separately, and what must lose the same share."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structprune.ir.slices import Ids, Mask, merged
from structprune.select.options import Settings
from structprune.tracing.groups import DependencyGraph, Group


@dataclass(frozen=True, eq=False)
class Partition:
    """Channels of one group that the ratio is taken of separately, each of ``slices`` slices of its widest axis."""

    group: Group
    channels: Ids
    slices: int


def eligible_groups(graph: DependencyGraph, settings: Settings) -> dict[int, Ids]:
    """The channels that may go under the settings, by group; groups without any are left out."""
    eligible = {}
    for group in graph.groups:
        channels = group.channels[~_barred(graph, group.channels, settings)]
        names = [p.name for p in group.producers]
        if len(channels) and settings.ratio_of(group) > 0 and not settings.ignores(names):
            eligible[group.index] = channels
    return eligible


def partitions_of(graph: DependencyGraph, settings: Settings) -> tuple[list[Partition], dict[int, str]]:
    """What the ratio is taken of, and why groups are left out, by group.

    A partition is the set of a group's channels that occur in the same producing axes and the same
    pieces of split dimensions: taken together, a piece could be emptied, or equal pieces become unequal.
    """
    eligible = eligible_groups(graph, settings)
    signature = signatures(graph)
    partitions: list[Partition] = []
    skipped: dict[int, str] = {}
    for group in graph.groups:
        if group.index not in eligible:
            skipped[group.index] = _why_skipped(graph, group, settings)
            continue
        channels = eligible[group.index]
        slices = max(1, _widest(group) // group.width)
        partitions += [
            Partition(group, channels[signature[channels] == mark], slices) for mark in np.unique(signature[channels])
        ]
    return partitions, skipped


def tied_partitions(
    graph: DependencyGraph, partitions: list[Partition], settings: Settings
) -> tuple[dict[int, str], list[list[int]]]:
    """Partitions that lose the same share; and those that lose nothing, with what they must be as wide as."""
    whole: dict[int, str] = {}
    pairs = [*_tied(graph, partitions, whole)]
    if settings.uniform:
        pairs += _alike(graph, partitions, whole)
    joined = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    set_of = merged(np.arange(len(partitions)), joined[:, 0], joined[:, 1]).tolist()
    named = {set_of[i]: name for i, name in whole.items()}
    blocked = {i: named[tied] for i, tied in enumerate(set_of) if tied in named}
    ties: dict[int, list[int]] = {}
    for i, tied in enumerate(set_of):
        if i not in blocked:
            ties.setdefault(tied, []).append(i)
    return blocked, list(ties.values())


def _tied(graph: DependencyGraph, partitions: list[Partition], whole: dict[int, str]) -> list[tuple[int, int]]:
    """Pairs of partitions of which the model takes one's width for the other's; ``whole`` gets what cannot shrink."""
    owner = np.full(graph.space.size, -1)
    for index, partition in enumerate(partitions):
        owner[partition.channels] = index
    pairs: list[tuple[int, int]] = []
    for left, right in graph.ties:
        sides = [np.unique(owner[channels]) for channels in (left, right)]
        inside = [int(i) for side in sides for i in side if i >= 0]
        pairs += [(inside[0], i) for i in inside[1:]]
        if inside and any((side < 0).any() for side in sides):
            rigid = next(c for side, c in zip(sides, (left, right), strict=True) if (side < 0).any())
            name = next((g.name for g in graph.groups if np.isin(g.channels, rigid).any()), "")
            why = graph.reason(rigid)
            whole[inside[0]] = name or (f"a dimension that {why}" if why else "a dimension of fixed size")
    return pairs


def _alike(graph: DependencyGraph, partitions: list[Partition], whole: dict[int, str]) -> list[tuple[int, int]]:
    """Pairs of partitions of layers that repeat: the same names but for the numbers in them, and the same width."""
    able = {partition.group.index for partition in partitions}
    rigid = {_pattern(group): group.name for group in graph.groups if group.index not in able}
    first: dict[tuple[object, int], int] = {}
    pairs = []
    for index, partition in enumerate(partitions):
        pattern = _pattern(partition.group)
        pairs.append((first.setdefault((pattern, len(partition.channels)), index), index))
        if pattern in rigid:
            whole[index] = rigid[pattern]
    return pairs


def _pattern(group: Group) -> tuple[object, ...]:
    return (group.width, *sorted({re.sub(r"\d+", "#", producer.name) for producer in group.producers}))


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


def signatures(graph: DependencyGraph) -> npt.NDArray[np.uint64]:
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


def _widest(group: Group) -> int:
    """Slices of the group's channels along the producing axis that holds most of them."""
    return max(len(p.ids) for p in group.producers)
