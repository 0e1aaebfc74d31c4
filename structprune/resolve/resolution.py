"""Tries readings until the identity trial passes; what none satisfies is frozen, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from structprune.apply.attributes import layer_changes, layer_ties
from structprune.apply.cut import Cut, kept_indices
from structprune.errors import StructPruneError
from structprune.ir.slices import Mask
from structprune.resolve.ranking import Chooser, Excess, rank_readings
from structprune.resolve.repairs import Repair, Repairs, repaired
from structprune.resolve.revision import another_reading, left_alone, revised
from structprune.resolve.trial import Trial, run_trial
from structprune.tracing.discovery import Decisions
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import Session

_MOST_TRIALS = 200


@dataclass(frozen=True)
class Resolved:
    """A graph, the slices that stay (by id), the cut that this means, the MACs it leaves, and the repairs in it."""

    graph: DependencyGraph
    present: Mask
    cut: Cut
    macs: int
    repairs: tuple[Repair, ...] = ()


def resolve(session: Session, choose: Chooser, excess: Excess | None = None) -> Resolved:
    """Find decisions under which the network, cut as ``choose`` says, passes the identity trial.

    Args:
        session: The model on the meta device.
        choose: Says for a graph which slices stay.
        excess: By what readings are ranked, the least first; by default they are by how much goes.
    """
    ties = layer_ties(session.replica)
    decisions, ranking = rank_readings(session, choose, Decisions(ties=ties), excess)
    repairs = Repairs(session)
    put_off: dict[str, set[str]] = {}
    for _ in range(_MOST_TRIALS):
        graph = session.discover(replace(decisions, ties=(*ties, *repairs.ties)))
        present = choose(graph)
        resolved, trial = _tried(session, graph, present, repairs.repairs)
        if not trial.mismatches:
            other = another_reading(graph, decisions, trial.absorbed, ranking, repairs, put_off)
            if other is None:
                return resolved
            decisions = other
            repairs.restart()
            continue
        if not repairs.advance(graph, trial.mismatches):
            alone = left_alone(graph, trial.mismatches, present, decisions.plural)
            if alone:
                decisions = replace(decisions, plural=(*decisions.plural, *alone))
                repairs.restart()
                continue
            other = revised(session, graph, decisions, trial.mismatches, ranking, repairs)
            if other.readings != decisions.readings:
                repairs.restart()
            decisions = other
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
