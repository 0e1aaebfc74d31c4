"""Tries readings until the identity trial passes; what none satisfies is frozen, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from structprune.errors import StructPruneError
from structprune.graph.discovery import Decisions, reading_key
from structprune.graph.groups import DependencyGraph
from structprune.graph.session import Session
from structprune.graph.slices import Mask
from structprune.resolve.replay import Mismatch
from structprune.resolve.trial import run_trial
from structprune.surgery.attributes import layer_changes
from structprune.surgery.cut import Cut, elements_left, kept_indices

_MOST_TRIALS = 200
Chooser = Callable[[DependencyGraph], Mask]


@dataclass(frozen=True)
class Resolved:
    """A graph, the slices that stay (by id), the cut that this means, and the MACs it leaves."""

    graph: DependencyGraph
    present: Mask
    cut: Cut
    macs: int


def resolve(session: Session, choose: Chooser) -> Resolved:
    """Find decisions under which the network, cut as ``choose`` says, passes the identity trial.

    Args:
        session: The model on the meta device.
        choose: Says for a graph which slices stay.
    """
    decisions, ranking = rank_readings(session, choose)
    for _ in range(_MOST_TRIALS):
        graph = session.discover(decisions)
        present = choose(graph)
        cut = Cut(kept_indices(graph, present), layer_changes(session.replica, graph, present))
        if not cut.kept:
            return Resolved(graph, present, cut, graph.records[0].macs)
        trial = run_trial(session, graph, cut, present)
        if not trial.mismatches:
            return Resolved(graph, present, cut, trial.macs)
        decisions = _revised(decisions, trial.mismatches, ranking)
    raise StructPruneError(
        f"No consistent way to cut {session.model_name} was found in {_MOST_TRIALS} trials; the last one failed at "
        f"{trial.mismatches[0]}. Please report the model; ignore=[...] leaves the modules concerned alone."
    )


def rank_readings(session: Session, choose: Chooser) -> tuple[Decisions, dict[str, tuple[str, ...]]]:
    """Order the readings of every split dimension by how much they remove, and take the best of each."""
    decisions, ranking = Decisions(), {}
    for key, readings in ambiguous_readings(session.discover(decisions)).items():
        left = {}
        for reading in readings:
            graph = session.discover(decisions.reading(key, reading))
            left[reading] = elements_left(graph, choose(graph))
        ranking[key] = tuple(sorted(readings, key=left.__getitem__))
        decisions = decisions.reading(key, ranking[key][0])
    return decisions, ranking


def ambiguous_readings(graph: DependencyGraph) -> dict[str, tuple[str, ...]]:
    """Readings that remove different channels, by source line."""
    found: dict[str, tuple[str, ...]] = {}
    for record in graph.records:
        for node in record.nodes:
            if node.readings and node.readings[0] != "free":
                key = reading_key(node.line, node.op)
                found[key] = tuple(dict.fromkeys((*found.get(key, ()), *node.readings)))
    return found


def _revised(decisions: Decisions, mismatches: tuple[Mismatch, ...], ranking: dict[str, tuple[str, ...]]) -> Decisions:
    """Take the next reading where there is one; else freeze what meets at the operators.

    Not both in one round: a reading that is wrong may be what the later operators trip over.
    """
    readings, frozen = dict(decisions.readings), dict(decisions.frozen)
    advanced: set[str] = set()
    for mismatch in mismatches:
        node = mismatch.node
        key = reading_key(node.line, node.op)
        if key in advanced:
            continue
        options = ranking.get(key, node.readings)
        later = options[options.index(node.reading) + 1 :] if node.reading in options else ()
        if later and readings.get(key, node.reading) == node.reading:
            readings[key] = later[0]
            advanced.add(key)
        else:
            frozen[mismatch.training, node.index] = f"cannot shrink here: {mismatch.text}"
    return Decisions(readings, decisions.frozen if advanced else frozen)
