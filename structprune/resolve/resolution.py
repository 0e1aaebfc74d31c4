"""Tries decisions until the identity trial passes; what nothing satisfies is frozen, with the reason."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from structprune.errors import StructPruneError
from structprune.ir.slices import Mask
from structprune.resolve.counterparts import Counterparts
from structprune.resolve.guesses import AFTER_FAILURE, AFTER_SUCCESS, Found
from structprune.resolve.ranking import Chooser, Excess, rank_interpretations
from structprune.resolve.repairs import Proposals, repaired
from structprune.resolve.state import Repair, State
from structprune.resolve.story import changes, in_short
from structprune.resolve.trial import Trial, run_trial
from structprune.surgery.attributes import layer_changes, layer_ties
from structprune.surgery.cut import Cut, kept_indices
from structprune.tracing.discovery import Decisions
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import Session

# Most networks take one to ten; a search that goes on for longer goes round in circles.
_MOST_TRIALS = 200
_log = logging.getLogger("structprune")


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

    With ``logging`` at DEBUG, the logger ``structprune`` tells what is tried, and why it is given up.

    Args:
        session: The model on the meta device.
        choose: Says for a graph which slices stay.
        excess: By what interpretations are ranked, the least first; by default they are by how much goes.

    Raises:
        StructPruneError: No decisions were found.
    """
    ties = layer_ties(session.replica)
    decisions, ranking = rank_interpretations(session, choose, Decisions(ties=ties), excess)
    for key, order in ranking.items():
        _log.debug("%s is interpreted as %s", in_short(key), ", else ".join(order))
    counterparts = Counterparts(session.replica)
    proposals = Proposals(session, counterparts)
    state = State(decisions)
    for number in range(1, _MOST_TRIALS + 1):
        graph = session.discover(replace(state.decisions, ties=(*ties, *state.ties)))
        present = choose(graph)
        resolved, trial = _tried(session, graph, present, state.repairs)
        _log.debug("trial %d: %s", number, _outcome(trial))
        after = step(state, Found(graph, present, trial, ranking, proposals, counterparts))
        if after is None:
            return resolved
        state = after
    raise StructPruneError(
        f"No consistent way to cut {session.model_name} was found in {_MOST_TRIALS} trials; the last one failed at "
        f"{trial.mismatches[0]}. Please report the model; ignore=[...] leaves the modules concerned alone."
    )


def step(state: State, found: Found) -> State | None:
    """What to try after a trial; ``None`` if it is as good as it can be."""
    for guess in AFTER_FAILURE if found.trial.mismatches else (AFTER_SUCCESS,):
        after = guess.make(state, found)
        if after is not None:
            for change in changes(state, after):
                _log.debug("  %s: %s", guess.name, change)
            return after
    return None


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
    cut = replace(cut, row_scales={name: row_scale[kept[name][0]] for name, row_scale in trial.row_scales.items()})
    return Resolved(graph, present, cut, trial.macs, tuple(repairs)), trial


def _outcome(trial: Trial) -> str:
    if trial.mismatches:
        others = f", and {len(trial.mismatches) - 1} more" if len(trial.mismatches) > 1 else ""
        return f"fails at {trial.mismatches[0]}{others}"
    return "passes, with rows of weights scaled" if trial.row_scales else "passes"
