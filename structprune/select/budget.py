"""How many channels of each group go, and which."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from structprune.ir.slices import Mask
from structprune.select.allotment import Widths, allotted
from structprune.select.importance import Scores
from structprune.select.options import Settings
from structprune.select.strata import Stratum, bundles_of, strata_of
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
class _Bundle:
    """Strata that lose the same share: what may be left, the ratio that is asked for, and the most that may go."""

    strata: list[Stratum]
    widths: Widths
    ratio: float
    most: float | None

    @property
    def channels(self) -> int:
        """Channels of all its strata together."""
        return self.widths.shares * self.widths.size


def select(graph: DependencyGraph, settings: Settings, scores: Scores) -> Selection:
    """Take the weakest channels of every group, the ratio separately in every stratum.

    A stratum is the set of a group's channels that occur in the same producing axes and the same
    pieces of split dimensions: taken together, a piece could be emptied, or equal pieces become unequal.
    Strata whose dimensions are tied lose the same share.
    """
    gone = np.zeros(graph.space.size, dtype=bool)
    strata, skipped = strata_of(graph, settings)
    selection = Selection(gone, skipped=skipped, scores=scores)
    blocked, tied = bundles_of(graph, strata, settings)
    for index in blocked:
        group = strata[index].group
        selection.skipped.setdefault(group.index, f"must be as wide as {blocked[index]}, which stays whole")
    bundles = [_bundle(graph, [strata[i] for i in bundle], settings) for bundle in tied]
    lefts = _lefts(bundles, settings, scores)
    selection.notes += [*_at_limit(bundles, lefts, settings), *_shortfalls(bundles, lefts, settings)]
    for bundle, shares_left in zip(bundles, lefts, strict=True):
        for part in bundle.strata:
            group, stratum = part.group, part.channels
            left = shares_left * (len(stratum) // bundle.widths.shares)
            if left == len(stratum):
                if len(bundle.strata) > 1:
                    why = "must lose the same share as other widths, and no whole numbers do"
                    selection.skipped.setdefault(group.index, why)
                continue
            emptied = _floored(bundle.ratio, len(stratum)) > len(stratum) - left
            if bundle.most is None and emptied and left * part.slices <= _floor(settings.round_to):
                selection.notes.append(f"{group.name}: the ratio would empty it, it keeps its last channels")
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


def _bundle(graph: DependencyGraph, strata: list[Stratum], settings: Settings) -> _Bundle:
    """What may be left of strata, of all the same share: at least one, a multiple where asked."""
    # The smallest share of all that leaves whole channels everywhere is one of this many.
    shares = math.gcd(*(len(s.channels) for s in strata))
    # Tied layers lose the least that any of them may.
    most = min((m for s in strata if (m := settings.most_of(s.group)) is not None), default=None)
    least = 1 if most is None else max(1, shares - _floored(most, shares))
    unit = 1
    for stratum in strata:
        if graph.plural[stratum.channels].any():
            least = max(least, math.ceil(2 * shares / len(stratum.channels)))
        own = _unit(len(stratum.channels), stratum.slices, settings.round_to)
        unit = math.lcm(unit, own // math.gcd(own, len(stratum.channels) // shares))
    widths = Widths(shares, sum(len(s.channels) for s in strata) // shares, unit, least)
    # And the least that any of them is asked for.
    return _Bundle(strata, widths, min(settings.ratio_of(s.group) for s in strata), most)


def _lefts(bundles: list[_Bundle], settings: Settings, scores: Scores) -> list[int]:
    """The shares that are left of every bundle."""
    if settings.scope == "local":
        return [b.widths.nearest(b.widths.shares - _floored(b.ratio, b.widths.shares)) for b in bundles]
    lefts = [b.widths.shares for b in bundles]
    for ratio, of in _by_ratio(bundles).items():
        own = [[scores[stratum.channels] for stratum in bundles[i].strata] for i in of]
        target = _floored(ratio, sum(bundles[i].channels for i in of))
        for i, gone in zip(of, allotted([bundles[i].widths for i in of], own, target), strict=True):
            lefts[i] -= gone
    return lefts


def _by_ratio(bundles: list[_Bundle]) -> dict[float, list[int]]:
    """The places of those that are asked for the same ratio."""
    found: dict[float, list[int]] = {}
    for place, bundle in enumerate(bundles):
        found.setdefault(bundle.ratio, []).append(place)
    return found


def _at_limit(bundles: list[_Bundle], lefts: list[int], settings: Settings) -> Iterator[str]:
    """Which layers lose less than they would, for the most that they may."""
    names: dict[float, list[str]] = {}
    for bundle, left in zip(bundles, lefts, strict=True):
        shares = bundle.widths.shares
        wanted = settings.scope == "global" or _floored(bundle.ratio, shares) > shares - left
        if bundle.most is not None and left == bundle.widths.lowest < shares and wanted:
            names.setdefault(bundle.most, []).append(bundle.strata[0].group.name)
    for most, layers in names.items():
        shown = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
        yield f"as narrow as max_ratio={most:g} lets a layer become: {shown}"


def _shortfalls(bundles: list[_Bundle], lefts: list[int], settings: Settings) -> Iterator[str]:
    """Where all layers together lose less than the ratio. One that was searched for a target is nobody's wish."""
    if settings.scope == "local" or settings.target is not None:
        return
    for ratio, of in _by_ratio(bundles).items():
        there = sum(bundles[i].channels for i in of)
        gone = there - sum(lefts[i] * bundles[i].widths.size for i in of)
        asked = _floored(ratio, there)
        if gone < asked:
            spent = all(lefts[i] == bundles[i].widths.lowest for i in of)
            why = "no layer may lose more" if spent else "the widths that are allowed come no nearer"
            limits = sorted({1.0 if (most := bundles[i].most) is None else most for i in of})
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
