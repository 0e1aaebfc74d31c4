"""What makes a cut network behave: held sizes that follow, and widths that must lose the same share.

Both are found by provenance. Where an operator of the cut network does something else than
predicted, the integers that reached it in the dense network say who holds the size that it was
given, or whose extent that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from structprune.ir.record import Place, Record, Tie
from structprune.ir.slices import Coupling, Mask, SliceSpace
from structprune.meta.replica import duplicate
from structprune.meta.run import run_on_meta
from structprune.resolve.counterparts import Counterparts
from structprune.resolve.provenance import Holder, SizeUses, hold_sizes
from structprune.resolve.state import Attempt, Proposal, Repair, Site, State
from structprune.surgery.attributes import read_held
from structprune.surgery.cut import AttributeChange
from structprune.tracing.discovery import Discovery
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.replay import Mismatch
from structprune.tracing.session import Session, labels_of

# Numbers made of more sizes than this are not taken apart: a shape is asked for as a product of two, seldom three.
_MOST_HOLDERS = 3


class Proposals:
    """Which held sizes may follow which dimensions, by where they arrive in the dense network."""

    def __init__(self, session: Session, counterparts: Counterparts) -> None:
        self._session = session
        self._counterparts = counterparts
        self._by_mode: dict[bool, SizeUses] = {}

    def stages(self, graph: DependencyGraph, mismatch: Mismatch) -> list[list[Proposal]]:
        """What could be done about a mismatch, the surest first; each stage adds to the one before."""
        if mismatch.of_number:
            return []
        record = graph.record(mismatch.training)
        places = list(record.labelled(mismatch.node))
        sizes = {place: len(ids) for place, ids in places}
        direct = list(self._compared(graph, mismatch))
        # Of a number made of several sizes only one follows; which, is tried in turn.
        by_place: dict[Place, list[Repair]] = {}
        ties: list[Proposal] = []
        loose: list[Proposal] = []
        for reached, dim in self._size_uses(record).at(mismatch.node.index):
            fitting = [place for place, _ in places if sizes[place] == reached and _sets(dim, place)]
            only = len(reached.origins) == 1
            if only:
                direct += [Repair(h, place, int(reached)) for place in fitting for h in reached.holders]
            elif fitting:
                known = by_place.setdefault(fitting[0], [])
                more = (Repair(holder, fitting[0], int(reached)) for holder in reached.holders)
                known += [repair for repair in more if repair not in known]
            for extent in reached.extents:
                other = record.labels_at(extent)
                for place, ids in places:
                    if other is not None and place != extent and not _alike(graph, ids, other):
                        (ties if only and place in fitting else loose).append(Tie(place, extent))
        in_turn = [[own[turn] for own in by_place.values() if turn < len(own)] for turn in range(_MOST_HOLDERS)]
        first, second = _compatible(direct), _compatible([*direct, *ties])
        return [
            first,
            second,
            *(_compatible([*first, *turn]) for turn in in_turn),
            *(_compatible([*second, *turn]) for turn in in_turn),
            _compatible([*first, *loose]),
            *(_compatible([*first, *turn, *loose]) for turn in in_turn),
            # The same holder may follow another dimension of the same size.
            _compatible([*reversed(direct), *ties]),
            _compatible([*reversed(direct), *in_turn[0], *loose]),
        ]

    def behind(self, graph: DependencyGraph, mismatch: Mismatch) -> list[Place]:
        """The dimensions whose sizes the number was computed from that an operator was given."""
        record = graph.record(mismatch.training)
        if not mismatch.of_number:
            return []
        places = dict.fromkeys(self._size_uses(record).extents_behind(mismatch.node.index))
        return [place for place in places if record.labels_at(place) is not None]

    def holders_at(self, graph: DependencyGraph, mismatch: Mismatch) -> list[Holder]:
        """Who holds the sizes that an operator was given."""
        uses = self._size_uses(graph.record(mismatch.training)).at(mismatch.node.index)
        return [holder for reached, _ in uses for holder in reached.holders]

    def alike(self, graph: DependencyGraph, repair: Repair) -> list[Repair]:
        """The same repair in the other modules of the same class: what one block needs, all of them do."""
        record = graph.record(repair.place.training)
        uses = self._size_uses(record)
        found = []
        for path, node in self._counterparts.of(record, repair.holder.module, record.nodes[repair.place.node]):
            holder, place = replace(repair.holder, module=path), replace(repair.place, node=node.index)
            sizes = {p: len(ids) for p, ids in record.labelled(node)}
            for reached, dim in uses.at(node.index):
                if holder in reached.origins and sizes.get(place) == reached and _sets(dim, place):
                    found.append(Repair(holder, place, int(reached)))
                    break
        return found

    def _compared(self, graph: DependencyGraph, mismatch: Mismatch) -> Iterator[Proposal]:
        """Sizes that Python code compared before the operator: both follow the same dimension."""
        record = graph.record(mismatch.training)
        before = mismatch.node.index - 1
        while before >= 0 and record.nodes[before].is_leaf:
            before -= 1
        for node, left, right in self._size_uses(record).comparisons:
            if before < node <= mismatch.node.index and left == right:
                for held, of in ((left, right), (right, left)):
                    for place in of.extents:
                        yield from (Repair(h, place, int(of)) for h in held.holders)
                        yield from (Tie(place, other) for other in held.extents if held is left and place != other)

    def _size_uses(self, record: Record) -> SizeUses:
        if record.training not in self._by_mode:
            self._by_mode[record.training] = _size_uses(self._session, record)
        return self._by_mode[record.training]


def advanced(state: State, proposals: Proposals, graph: DependencyGraph, failed: Iterable[Mismatch]) -> State | None:
    """Propose something else at the operators that failed; ``None`` if there is nothing left to propose.

    Only those move on that have come least far: their proposals are the surest, and may mend what the others fail of.
    """
    in_force = {*state.repairs, *state.ties}
    attempts = dict(state.attempts)
    upcoming: dict[Site, Attempt] = {}
    for mismatch in failed:
        site = mismatch.training, mismatch.node.index
        if site in upcoming:
            continue
        attempt = attempts.setdefault(site, Attempt())
        stages = proposals.stages(graph, mismatch)
        for stage in range(attempt.stage + 1, len(stages)):
            new = set(stages[stage])
            if not new <= in_force and new != set(attempt.proposals) and not _holders(new) & state.refuted:
                upcoming[site] = Attempt(stage, tuple(stages[stage]))
                break
        else:
            attempts[site] = replace(attempt, proposals=())
    if not upcoming:
        return None
    least = min(attempt.stage for attempt in upcoming.values())
    moved = {site: attempt for site, attempt in upcoming.items() if attempt.stage == least}
    return _moved(replace(state, attempts=attempts), proposals, graph, moved)


def reconsidered(
    state: State, proposals: Proposals, graph: DependencyGraph, failed: Iterable[Mismatch]
) -> State | None:
    """Let another factor follow where a number was made of several sizes, and what failed is given the one that did.

    ``heads * width`` was met by a width that became smaller, and then ``view(..., -1, width)`` fails, which it did not.
    """
    moved: dict[Site, Attempt] = {}
    refuted: set[Holder] = set()
    for holder in dict.fromkeys(h for mismatch in failed for h in proposals.holders_at(graph, mismatch)):
        for site, attempt in state.attempts.items():
            if site in moved or holder not in _holders(attempt.proposals):
                continue
            node = graph.record(site[0]).nodes[site[1]]
            stages = proposals.stages(graph, Mismatch(site[0], node, ""))
            later = (stage for stage in range(attempt.stage + 1, len(stages)) if stages[stage])
            other = next((s for s in later if not _holders(stages[s]) & {holder, *state.refuted}), None)
            if other is not None:
                moved[site] = Attempt(other, tuple(stages[other]))
                refuted.add(holder)
    if not moved:
        return None
    return _moved(replace(state, refuted=state.refuted | refuted), proposals, graph, moved)


def _holders(proposals: Iterable[Proposal]) -> set[Holder]:
    return {proposal.holder for proposal in proposals if isinstance(proposal, Repair)}


def _moved(state: State, proposals: Proposals, graph: DependencyGraph, moved: dict[Site, Attempt]) -> State:
    """Take these attempts, also in modules that are alike."""
    copied = dict(state.copied)
    for repair in (p for attempt in moved.values() for p in attempt.proposals if isinstance(p, Repair)):
        for other in proposals.alike(graph, repair):
            copied.setdefault(other, repair)
    return replace(state, attempts={**state.attempts, **moved}, copied=copied)


def _sets(dim: int | None, place: Place) -> bool:
    """Whether a size that is given for an output's dimension ``dim`` (``None``: not known) may be that of a place."""
    return dim is None or (place.output and place.dim == dim)


def _alike(graph: DependencyGraph, left: Any, right: Any) -> bool:
    """Whether two dimensions hold the same channels."""
    mine, other = graph.roots[left], graph.roots[right]
    return set(mine.tolist()) == set(other.tolist())


def _compatible(proposals: Iterable[Proposal]) -> list[Proposal]:
    """The first proposal of every holder and of every place."""
    taken: set[object] = set()
    chosen: list[Proposal] = []
    for proposal in proposals:
        if isinstance(proposal, Tie):
            keys: set[object] = {proposal}
        else:
            keys = {proposal.holder, proposal.place}
        if not keys & taken:
            taken |= keys
            chosen.append(proposal)
    return chosen


def repaired(
    model: nn.Module, graph: DependencyGraph, repairs: Iterable[Repair], present: Mask
) -> tuple[AttributeChange, ...]:
    """The attributes under a selection. A size that would not be a whole number is left as it is."""
    changes: dict[tuple[str, str], AttributeChange] = {}
    for repair in repairs:
        ids = graph.record(repair.place.training).labels_at(repair.place)
        if ids is None or len(ids) != repair.reached:
            continue
        holder = repair.holder
        old = read_held(model.get_submodule(holder.module), holder.name)
        dense = old if holder.entry is None else old[holder.entry]
        size, rest = divmod(dense * int(present[ids].sum()), repair.reached)
        if rest or size < 1:
            continue
        known = changes.get((holder.module, holder.name))
        new: Any = size
        if holder.entry is not None:
            entries = list(known.new if known else old)
            entries[holder.entry] = size
            new = tuple(entries)
        changes[holder.module, holder.name] = AttributeChange(
            holder.module, holder.name, tuple(old) if isinstance(old, list) else old, new
        )
    return tuple(c for c in changes.values() if c.new != c.old)


def _size_uses(session: Session, dense: Record) -> SizeUses:
    """Run the dense network with sizes that remember their holders."""

    def same(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    model = duplicate(session.replica, lambda _name, tensor: tensor, same)
    hold_sizes(model)
    space = SliceSpace()
    labels = labels_of(session.replica, space)
    observer = Discovery(space, Coupling(space), {}, run_on_meta, training=dense.training, rules=dense.rules)
    uses = SizeUses(observer.record.nodes, dense)
    with uses:
        session.follow(model, observer, labels)
    return uses
