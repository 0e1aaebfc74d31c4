"""Tries readings until the identity trial passes; what none satisfies is frozen, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from structprune.errors import StructPruneError
from structprune.graph.discovery import Decisions, reading_key
from structprune.graph.groups import DependencyGraph
from structprune.graph.record import Choice, Node, Place, Record
from structprune.graph.rules.movement import FROZEN
from structprune.graph.session import Session
from structprune.graph.slices import Ids, Mask
from structprune.resolve.repairs import Repair, Repairs, Twins, repaired
from structprune.resolve.replay import Mismatch
from structprune.resolve.trial import Trial, run_trial
from structprune.surgery.attributes import layer_changes, layer_ties
from structprune.surgery.cut import Cut, elements_left, kept_indices

_MOST_TRIALS = 200
_FROZEN_ONE_BY_ONE = 2
# The share of the most that any reading removes at which whole heads are preferred.
_MUCH = 0.25
Chooser = Callable[[DependencyGraph], Mask]


@dataclass(frozen=True)
class Resolved:
    """A graph, the slices that stay (by id), the cut that this means, the MACs it leaves, and the repairs in it."""

    graph: DependencyGraph
    present: Mask
    cut: Cut
    macs: int
    repairs: tuple[Repair, ...] = ()


def resolve(session: Session, choose: Chooser) -> Resolved:
    """Find decisions under which the network, cut as ``choose`` says, passes the identity trial.

    Args:
        session: The model on the meta device.
        choose: Says for a graph which slices stay.
    """
    ties = layer_ties(session.replica)
    decisions, ranking = rank_readings(session, choose, Decisions(ties=ties))
    repairs = Repairs(session)
    put_off: dict[str, set[str]] = {}
    for _ in range(_MOST_TRIALS):
        graph = session.discover(replace(decisions, ties=(*ties, *repairs.ties)))
        present = choose(graph)
        resolved, trial = _tried(session, graph, present, repairs.repairs)
        if not trial.mismatches:
            other = _another_reading(graph, decisions, trial.absorbed, ranking, repairs, put_off)
            if other is None:
                return resolved
            decisions = other
            repairs.restart()
            continue
        if not repairs.advance(graph, trial.mismatches):
            alone = _left_alone(graph, trial.mismatches, present, decisions.plural)
            if alone:
                decisions = replace(decisions, plural=(*decisions.plural, *alone))
                repairs.restart()
                continue
            revised = _revised(session, graph, decisions, trial.mismatches, ranking, repairs)
            if revised.readings != decisions.readings:
                repairs.restart()
            decisions = revised
    raise StructPruneError(
        f"No consistent way to cut {session.model_name} was found in {_MOST_TRIALS} trials; the last one failed at "
        f"{trial.mismatches[0]}. Please report the model; ignore=[...] leaves the modules concerned alone."
    )


def resolve_again(session: Session, known: Resolved, choose: Chooser) -> Resolved:
    """As ``resolve``, from the decisions that were right for another choice; anew if they are wrong for this one."""
    resolved, trial = _tried(session, known.graph, choose(known.graph), known.repairs)
    return resolve(session, choose) if trial.mismatches else resolved


def _tried(
    session: Session, graph: DependencyGraph, present: Mask, repairs: Sequence[Repair]
) -> tuple[Resolved, Trial]:
    """A choice of slices on a graph, with the sizes that follow, and its trial."""
    kept = kept_indices(graph, present)
    if not kept:
        macs = graph.records[0].macs
        return Resolved(graph, present, Cut(kept), macs, tuple(repairs)), Trial((), macs)
    followed = repaired(session.replica, graph, repairs, present)
    cut = Cut(kept, (*layer_changes(session.replica, graph, present), *followed))
    trial = run_trial(session, graph, cut, present)
    cut = replace(cut, gains={name: gain[kept[name][0]] for name, gain in trial.gains.items()})
    return Resolved(graph, present, cut, trial.macs, tuple(repairs)), trial


@dataclass(frozen=True)
class _Sketched:
    """What is left under some readings, and how many operators run head by head.

    ``taken``: by question the reading that all its operators took; none where they took several.
    """

    left: tuple[int, int]
    heads: int
    taken: Mapping[str, str | None]


def rank_readings(
    session: Session, choose: Chooser, decisions: Decisions
) -> tuple[Decisions, dict[str, tuple[str, ...]]]:
    """Order the readings of every split dimension: attention's heads first, then by how much they remove.

    Whole heads save real time, where narrower ones leave as many small products.
    """
    questions = ambiguous_readings(session.discover(decisions))
    ranking = dict(questions)
    unsettled: dict[str, dict[str, tuple[str, ...]]] = {}
    now: _Sketched | None = None

    def rank(key: str) -> None:
        nonlocal decisions, now
        beside = {other: order for other, order in ranking.items() if other != key}
        if unsettled.pop(key, None) == beside:
            return
        ranking[key], removes, now = _ranked(session, choose, decisions, key, questions[key], now)
        decisions = decisions.reading(key, *ranking[key])
        if not removes:
            unsettled[key] = beside

    for key in questions:
        rank(key)
    # What removes nothing under the first readings of those that came later may do so under the best.
    for key in list(unsettled):
        rank(key)
    return decisions, ranking


def _ranked(
    session: Session, choose: Chooser, decisions: Decisions, key: str, readings: tuple[str, ...], now: _Sketched | None
) -> tuple[tuple[str, ...], bool, _Sketched | None]:
    """The readings of one question in order, whether the first removes anything, and what the first gave.

    ``now``, where it is known, is what the decisions give: a reading that is taken already need not be sketched.
    """
    known = {
        reading: now if now and now.taken.get(key) == reading else _sketched(session, choose, decisions, key, reading)
        for reading in readings
    }
    left = {reading: sketched.left for reading, sketched in known.items()}
    heads = {reading: sketched.heads for reading, sketched in known.items()}
    ordered = sorted(readings, key=left.__getitem__)
    removes = True
    if FROZEN in readings:
        whole = left[FROZEN][0]
        # One that leaves as much as freezing is a wrong one, unless that is so of all.
        ordered = [r for r in ordered if r != FROZEN and left[r][0] <= whole]
        ordered = [r for r in ordered if left[r][0] < whole] or ordered
        if ordered:
            enough = whole - _MUCH * (whole - left[ordered[0]][0])
            whole_heads = max((r for r in ordered if left[r][0] <= enough), key=heads.__getitem__)
            if heads[whole_heads] > heads[FROZEN]:
                ordered = list(dict.fromkeys((whole_heads, *ordered)))
        removes = bool(ordered) and left[ordered[0]][0] < whole
        ordered = [*ordered, FROZEN]
    first = known[ordered[0]]
    return tuple(ordered), removes, first if first.taken.get(key) == ordered[0] else None


def _sketched(session: Session, choose: Chooser, decisions: Decisions, key: str, reading: str) -> _Sketched:
    graph = session.sketch(decisions.reading(key, reading))
    nodes = [node for record in graph.records for node in record.nodes]
    taken: dict[str, str | None] = {}
    for node in nodes:
        for question, choice in node.choices.items():
            asked = reading_key(node, question)
            taken[asked] = choice.taken if taken.get(asked, choice.taken) == choice.taken else None
    # Of two that remove as much, the finer one: more channels to choose from.
    left = elements_left(graph, choose(graph)), -sum(g.width for g in graph.groups)
    return _Sketched(left, sum(len(node.batched) for node in nodes), taken)


def ambiguous_readings(graph: DependencyGraph) -> dict[str, tuple[str, ...]]:
    """Readings that remove different channels, by source line."""
    found: dict[str, tuple[str, ...]] = {}
    for record in graph.records:
        for node in record.nodes:
            for question, choice in node.choices.items():
                if choice.readings[0] != "free":
                    key = reading_key(node, question)
                    found[key] = tuple(dict.fromkeys((*found.get(key, ()), *choice.readings)))
    return found


def _freezable(graph: DependencyGraph, decisions: Decisions, mismatch: Mismatch) -> list[int]:
    """The nodes to freeze: the one that failed if it has labels, or the first one that reads a number made there.

    Where both are frozen already, Python code read the size before: all operators of the innermost
    module around it that has any left.
    """
    record = graph.record(mismatch.training)
    if _may_freeze(graph, decisions, record, mismatch.node):
        return [mismatch.node.index]
    if not _labels_at(record, mismatch.node):
        reached = {mismatch.node.index}
        for node in record.nodes[mismatch.node.index + 1 :]:
            if not reached.isdisjoint(node.parents):
                reached.add(node.index)
                if _may_freeze(graph, decisions, record, node):
                    return [node.index]
    path = mismatch.node.module
    while True:
        around = [n for n in record.nodes if not path or n.module == path or n.module.startswith(f"{path}.")]
        found = [n.index for n in around if _may_freeze(graph, decisions, record, n)]
        if found or not path:
            return found
        path = path.rpartition(".")[0]


def _may_freeze(graph: DependencyGraph, decisions: Decisions, record: Record, node: Node) -> bool:
    """Whether an operator has labels that are not frozen yet."""
    if (record.training, node.index) in decisions.frozen:
        return False
    return any(not graph.stuck[ids].all() for ids in _labels_at(record, node))


def _labels_at(record: Record, node: Node) -> list[Ids]:
    """All labelled dimensions that reach or leave an operator."""
    return [ids for _, ids in record.labelled(node)]


def _revised(
    session: Session,
    graph: DependencyGraph,
    decisions: Decisions,
    mismatches: tuple[Mismatch, ...],
    ranking: dict[str, tuple[str, ...]],
    repairs: Repairs,
) -> Decisions:
    """Take the next reading where there is one; else freeze what meets at the operators.

    Not both in one round: a reading that is wrong may be what the later operators trip over.
    """
    readings, whys = dict(decisions.readings), dict(decisions.whys)
    frozen, held = dict(decisions.frozen), dict(decisions.held)
    advanced: set[str] = set()
    for mismatch in mismatches:
        behind = [p for p in repairs.behind(graph, mismatch) if p not in held]
        questions = _questions(graph, mismatch, behind)
        if not advanced.isdisjoint(questions):
            continue
        for key, choice in questions.items():
            order = readings.get(key, ranking.get(key, choice.readings))
            # Only this one is out: where it was not possible, another one may be right.
            later = tuple(r for r in order if r != choice.taken)
            if any(r in choice.readings for r in later):
                readings[key] = later
                whys[key] = f"cannot shrink here: {mismatch.text}"
                advanced.add(key)
                break
        else:
            reason = f"cannot shrink here: {mismatch.text}"
            if behind:
                held |= dict.fromkeys(behind, f"{reason} ({mismatch.node.where})")
                continue
            for index in _freezable(graph, decisions, mismatch):
                frozen[mismatch.training, index] = reason
                for twin in _frozen_alike(session, repairs.twins, graph, decisions, (mismatch.training, index)):
                    frozen.setdefault((mismatch.training, twin), reason)
    if advanced:
        return replace(decisions, readings=readings, whys=whys)
    return replace(decisions, frozen=frozen, held=held)


def _another_reading(
    graph: DependencyGraph,
    decisions: Decisions,
    absorbed: tuple[Mismatch, ...],
    ranking: dict[str, tuple[str, ...]],
    repairs: Repairs,
    put_off: dict[str, set[str]],
) -> Decisions | None:
    """Readings under which no number changes come before one whose weights must make up for it: whole heads, mostly."""
    readings = dict(decisions.readings)
    for mismatch in absorbed:
        for key, choice in _questions(graph, mismatch, repairs.behind(graph, mismatch)).items():
            order = readings.get(key, ranking.get(key, choice.readings))
            last = put_off.setdefault(key, set())
            others = [r for r in order if r in choice.readings and r not in (choice.taken, FROZEN, *last)]
            if others:
                last.add(choice.taken)
                readings[key] = (*others, *(r for r in order if r not in others and r != FROZEN), FROZEN)
                return replace(decisions, readings=readings)
    return None


def _left_alone(
    graph: DependencyGraph, mismatches: tuple[Mismatch, ...], present: Mask, known: tuple[Place, ...]
) -> list[Place]:
    """Dimensions at operators that failed of which one entry is left: some operators treat those in another way."""
    return [
        place
        for mismatch in mismatches
        for place, ids in graph.record(mismatch.training).labelled(mismatch.node)
        if present[ids].sum() == 1 < len(ids) and place not in known
    ]


def _questions(graph: DependencyGraph, mismatch: Mismatch, behind: list[Place]) -> dict[str, Choice]:
    """What may be read in another way: the operator itself, else those in its module that split its labels before."""
    node, record = mismatch.node, graph.record(mismatch.training)
    if node.choices:
        return {reading_key(node, question): choice for question, choice in node.choices.items()}
    # Where it is known whose size made a number, those channels are to be looked at, not those that meet it.
    sources = [record.labels_at(place) for place in behind] or _labels_at(record, node)
    channels = [graph.roots[ids] for ids in sources if ids is not None]
    if not channels:
        return {}
    own = np.unique(np.concatenate(channels))
    found: dict[str, Choice] = {}
    for before in reversed(record.nodes[: node.index]):
        if before.module == node.module:
            for question, choice in before.choices.items():
                ids = [i for o in before.outputs for i in o.labels if i is not None]
                if any(np.isin(graph.roots[i], own).any() for i in ids):
                    found.setdefault(reading_key(before, question), choice)
    return found


def _frozen_alike(
    session: Session, twins: Twins, graph: DependencyGraph, decisions: Decisions, at: tuple[bool, int]
) -> list[int]:
    """The same operators in all modules of the class, once some of them had to be frozen one by one.

    Freezing more than needed is never wrong, and a deep network has dozens of the same block.
    """
    training, index = at
    record = graph.record(training)
    node = record.nodes[index]
    # torch.nn's layers are everywhere: the block around one is what comes again.
    owner = node.module
    while owner and type(session.replica.get_submodule(owner)).__module__.startswith("torch.nn."):
        owner = owner.rpartition(".")[0]
    alike = [twin for _, twin in twins.of(record, owner, node)]
    before = sum((training, twin.index) in decisions.frozen for twin in alike)
    if before < _FROZEN_ONE_BY_ONE:
        return []
    return [twin.index for twin in alike if _may_freeze(graph, decisions, record, twin)]
