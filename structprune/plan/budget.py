"""How many channels of each group go, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from structprune.graph.groups import DependencyGraph, Group
from structprune.graph.slices import Ids, Mask, merged
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


@dataclass(frozen=True, eq=False)
class _Stratum:
    """Channels of one group that the ratio is taken of separately, each of ``slices`` slices of its widest axis."""

    group: Group
    channels: Ids
    slices: int


def select(graph: DependencyGraph, settings: Settings, scores: Scores) -> Selection:
    """Take the weakest channels of every group, the ratio separately in every stratum.

    A stratum is the set of a group's channels that occur in the same producing axes and the same
    pieces of split dimensions: taken together, a piece could be emptied, or equal pieces become unequal.
    Strata whose dimensions are tied lose the same share.
    """
    gone = np.zeros(graph.space.size, dtype=bool)
    selection = Selection(gone)
    strata = _strata(graph, settings, selection)
    blocked, bundles = _bundles(graph, strata)
    for index in blocked:
        group = strata[index].group
        selection.skipped.setdefault(group.index, f"must be as wide as {blocked[index]}, which stays whole")
    for bundle in bundles:
        lefts = _left(graph, [strata[i] for i in bundle], settings)
        if len(bundle) > 1 and all(left == len(strata[i].channels) for i, left in zip(bundle, lefts, strict=True)):
            for index in bundle:
                selection.skipped.setdefault(
                    strata[index].group.index, "must lose the same share as other widths, and no whole numbers do"
                )
        for index, left in zip(bundle, lefts, strict=True):
            group, stratum = strata[index].group, strata[index].channels
            if left == len(stratum):
                continue
            asked = math.floor(settings.ratio_of(p.name for p in group.producers) * len(stratum))
            if asked > len(stratum) - left and left * strata[index].slices <= _floor(settings.round_to):
                selection.floored.append(group.name)
            # Equal scores keep the lower index: a stable sort by falling score.
            weakest = stratum[np.argsort(-scores[stratum], kind="stable")[left:]]
            gone[weakest] = True
            selection.removed[group.index] = selection.removed.get(group.index, 0) + len(weakest)
    for tried in strata:
        if tried.group.index not in selection.removed:
            selection.skipped.setdefault(tried.group.index, "too narrow for this ratio and round_to")
    for index in selection.removed:
        selection.skipped.pop(index, None)
    selection.present = ~gone[graph.roots]
    return selection


def _strata(graph: DependencyGraph, settings: Settings, selection: Selection) -> list[_Stratum]:
    """What the ratio is taken of; notes why groups are skipped."""
    eligible = eligible_groups(graph, settings)
    signature = _signatures(graph)
    strata = []
    for group in graph.groups:
        if group.index not in eligible:
            selection.skipped[group.index] = _why_skipped(graph, group, settings)
            continue
        channels = eligible[group.index]
        slices = max(1, _widest(graph, group) // group.width)
        strata += [
            _Stratum(group, channels[signature[channels] == mark], slices) for mark in np.unique(signature[channels])
        ]
    return strata


def _bundles(graph: DependencyGraph, strata: list[_Stratum]) -> tuple[dict[int, str], list[list[int]]]:
    """Strata that lose the same share; and those that lose nothing, with what they are tied to."""
    owner = np.full(graph.space.size, -1)
    for index, stratum in enumerate(strata):
        owner[stratum.channels] = index
    whole: dict[int, str] = {}
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
    joined = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    bundle_of = merged(np.arange(len(strata)), joined[:, 0], joined[:, 1]).tolist()
    named = {bundle_of[i]: name for i, name in whole.items()}
    blocked = {i: named[bundle] for i, bundle in enumerate(bundle_of) if bundle in named}
    bundles: dict[int, list[int]] = {}
    for i, bundle in enumerate(bundle_of):
        if i not in blocked:
            bundles.setdefault(bundle, []).append(i)
    return blocked, list(bundles.values())


def _left(graph: DependencyGraph, bundle: Sequence[_Stratum], settings: Settings) -> list[int]:
    """Channels that stay of every stratum of a bundle, all the same share: at least one, a multiple where asked."""
    # The smallest share of all that leaves whole channels everywhere is one of this many.
    shares = math.gcd(*(len(s.channels) for s in bundle))
    ratio = min(settings.ratio_of(p.name for p in s.group.producers) for s in bundle)
    left = max(1, shares - math.floor(ratio * shares))
    unit = 1
    for stratum in bundle:
        if graph.plural[stratum.channels].any():
            left = max(left, math.ceil(2 * shares / len(stratum.channels)))
        own = _unit(len(stratum.channels), stratum.slices, settings.round_to)
        unit = math.lcm(unit, own // math.gcd(own, len(stratum.channels) // shares))
    if unit > 1:
        # The nearest multiple, the larger of two as near.
        left = min(shares, max(unit, math.floor(left / unit + 0.5) * unit))
    return [left * (len(s.channels) // shares) for s in bundle]


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


def _unit(count: int, slices: int, round_to: int | str) -> int:
    if round_to == "auto":
        width = count * slices
        if width % _AUTO_MULTIPLE or width < _AUTO_FROM:
            return 1
        return _AUTO_MULTIPLE // math.gcd(_AUTO_MULTIPLE, slices)
    return int(round_to) // math.gcd(int(round_to), slices)


def _floor(round_to: int | str) -> int:
    return _AUTO_MULTIPLE if round_to == "auto" else int(round_to)
