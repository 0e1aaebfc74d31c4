"""What to decide anew after a trial that failed: another reading, a dimension left alone, or channels that stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from structprune.ir.record import Choice, Node, Place, Record
from structprune.ir.slices import Ids, Mask
from structprune.ops.movement import FROZEN
from structprune.resolve.repairs import Repairs, Twins
from structprune.resolve.replay import Mismatch
from structprune.tracing.discovery import Decisions, reading_key
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import Session

_FROZEN_ONE_BY_ONE = 2


def left_alone(
    graph: DependencyGraph, mismatches: tuple[Mismatch, ...], present: Mask, known: tuple[Place, ...]
) -> list[Place]:
    """Dimensions at operators that failed of which one entry is left: some operators treat those in another way."""
    return [
        place
        for mismatch in mismatches
        for place, ids in graph.record(mismatch.training).labelled(mismatch.node)
        if present[ids].sum() == 1 < len(ids) and place not in known
    ]


def another_reading(
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


def revised(
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
