"""How many channels of each group go, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from structprune.graph.groups import DependencyGraph, Group
from structprune.graph.slices import Mask
from structprune.plan.importance import Scores
from structprune.plan.options import Settings
from structprune.plan.strata import Stratum, bundles_of, strata_of

_AUTO_MULTIPLE = 8
_AUTO_FROM = 64
# With one ratio for all layers together, none loses more: a floor, so that no layer collapses.
_MOST = 0.9


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
    scores: Scores = field(default_factory=lambda: np.zeros(0))

    def score_removed(self, group: Group) -> float:
        """The share of a group's scores that its removed channels have; 0 where none goes."""
        if group.index not in self.removed:
            return 0.0
        scores = self.scores[group.channels]
        total = float(np.abs(scores).sum())
        return float(np.abs(scores[~self.present[group.channels]]).sum()) / total if total > 0 else 0.0


def select(graph: DependencyGraph, settings: Settings, scores: Scores) -> Selection:
    """Take the weakest channels of every group, the ratio separately in every stratum.

    A stratum is the set of a group's channels that occur in the same producing axes and the same
    pieces of split dimensions: taken together, a piece could be emptied, or equal pieces become unequal.
    Strata whose dimensions are tied lose the same share.
    """
    gone = np.zeros(graph.space.size, dtype=bool)
    strata, skipped = strata_of(graph, settings)
    selection = Selection(gone, skipped=skipped, scores=scores)
    blocked, bundles = bundles_of(graph, strata, settings)
    for index in blocked:
        group = strata[index].group
        selection.skipped.setdefault(group.index, f"must be as wide as {blocked[index]}, which stays whole")
    asked = _asked(strata, bundles, settings, scores)
    for bundle, share in zip(bundles, asked, strict=True):
        lefts = _left(graph, [strata[i] for i in bundle], share, settings)
        if len(bundle) > 1 and all(left == len(strata[i].channels) for i, left in zip(bundle, lefts, strict=True)):
            for index in bundle:
                selection.skipped.setdefault(
                    strata[index].group.index, "must lose the same share as other widths, and no whole numbers do"
                )
        for index, left in zip(bundle, lefts, strict=True):
            group, stratum = strata[index].group, strata[index].channels
            if left == len(stratum):
                continue
            emptied = _floored(share, len(stratum)) > len(stratum) - left
            if share == _MOST or (emptied and left * strata[index].slices <= _floor(settings.round_to)):
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


def _asked(strata: list[Stratum], bundles: list[list[int]], settings: Settings, scores: Scores) -> list[float]:
    """The share that every bundle is to lose."""
    if settings.scope == "local":
        return [min(settings.ratio_of(strata[i].group) for i in bundle) for bundle in bundles]
    below = np.zeros(len(strata))
    for ratio in {settings.ratio_of(s.group) for s in strata}:
        ranked = [i for i, s in enumerate(strata) if settings.ratio_of(s.group) == ratio]
        for i, count in zip(ranked, _weakest_of_all([strata[i] for i in ranked], ratio, scores), strict=True):
            below[i] = count
    return [min(_MOST, below[bundle].sum() / sum(len(strata[i].channels) for i in bundle)) for bundle in bundles]


def _weakest_of_all(strata: list[Stratum], ratio: float, scores: Scores) -> list[int]:
    """How many channels of each stratum are among the weakest of all, scores beside the mean of their stratum."""
    relative, place = [], []
    for stratum in strata:
        own = scores[stratum.channels]
        own = own - min(own.min(), 0.0)  # scores below 0 have no mean to stand beside
        relative.append(own / (own.mean() or 1.0))
        place.append(np.argsort(np.argsort(own, kind="stable"), kind="stable") / len(own))
    owner = np.repeat(np.arange(len(strata)), [len(r) for r in relative])
    # Equal scores: all layers lose alike, not the first ones everything.
    weakest = np.lexsort((np.concatenate(place), np.concatenate(relative)))[: _floored(ratio, len(owner))]
    counts: list[int] = np.bincount(owner[weakest], minlength=len(strata)).tolist()
    return counts


def _floored(share: float, count: int) -> int:
    """``floor(share * count)``, where a share of whole channels may have lost its last digit."""
    return math.floor(share * count + 1e-9)


def _left(graph: DependencyGraph, bundle: Sequence[Stratum], ratio: float, settings: Settings) -> list[int]:
    """Channels that stay of every stratum of a bundle, all the same share: at least one, a multiple where asked."""
    # The smallest share of all that leaves whole channels everywhere is one of this many.
    shares = math.gcd(*(len(s.channels) for s in bundle))
    left = max(1, shares - _floored(ratio, shares))
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


def _unit(count: int, slices: int, round_to: int | str) -> int:
    if round_to == "auto":
        width = count * slices
        if width % _AUTO_MULTIPLE or width < _AUTO_FROM:
            return 1
        return _AUTO_MULTIPLE // math.gcd(_AUTO_MULTIPLE, slices)
    return int(round_to) // math.gcd(int(round_to), slices)


def _floor(round_to: int | str) -> int:
    return _AUTO_MULTIPLE if round_to == "auto" else int(round_to)
