"""In which order the interpretations of split dimensions are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from structprune.ir.slices import Mask
from structprune.ops.movement import FROZEN
from structprune.surgery.cut import elements_left
from structprune.tracing.discovery import Decisions, question_key
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import Session

# Whole heads are preferred where they remove this share of the most that any interpretation does: fewer products are
# faster in fact, narrower ones mostly on paper. With less than a quarter, too little of what was asked for would go.
_MUCH = 0.25
# Says for a graph which slices stay.
Chooser = Callable[[DependencyGraph], Mask]
# Says how bad a choice is, where the most that goes is not the best.
Excess = Callable[[DependencyGraph, Mask], int]


@dataclass(frozen=True)
class _Sketched:
    """What is left under some interpretations, and how many operators run head by head.

    ``taken``: by question the interpretation that all its operators took; none where they took several.
    """

    left: tuple[int, int]
    heads: int
    taken: Mapping[str, str | None]


def rank_interpretations(
    session: Session, choose: Chooser, decisions: Decisions, excess: Excess | None = None
) -> tuple[Decisions, dict[str, tuple[str, ...]]]:
    """Order the interpretations of every split dimension: attention's heads first, then by how much they remove.

    Whole heads save real time, where narrower ones leave as many small products. With ``excess`` the least of it comes
    first, and heads do not matter.
    """
    questions = ambiguous_interpretations(session.discover(decisions))
    ranking = dict(questions)
    unsettled: dict[str, dict[str, tuple[str, ...]]] = {}
    now: _Sketched | None = None

    def rank(key: str) -> None:
        nonlocal decisions, now
        beside = {other: order for other, order in ranking.items() if other != key}
        if unsettled.pop(key, None) == beside:
            return
        ranking[key], removes, now = _ranked(session, choose, decisions, key, questions[key], now, excess)
        decisions = decisions.interpretation(key, *ranking[key])
        if not removes:
            unsettled[key] = beside

    for key in questions:
        rank(key)
    # What removes nothing under the first interpretations of those that came later may do so under the best.
    for key in list(unsettled):
        rank(key)
    return decisions, ranking


def _ranked(
    session: Session,
    choose: Chooser,
    decisions: Decisions,
    key: str,
    interpretations: tuple[str, ...],
    now: _Sketched | None,
    excess: Excess | None,
) -> tuple[tuple[str, ...], bool, _Sketched | None]:
    """The interpretations of one question in order, whether the first removes anything, and what the first gave.

    ``now``, where it is known, is what the decisions give: an interpretation taken already need not be sketched.
    """
    known = {
        interpretation: now
        if now and now.taken.get(key) == interpretation
        else _sketched(session, choose, decisions.interpretation(key, interpretation), excess)
        for interpretation in interpretations
    }
    left = {interpretation: sketched.left for interpretation, sketched in known.items()}
    heads = {interpretation: sketched.heads for interpretation, sketched in known.items()}
    ordered = sorted(interpretations, key=left.__getitem__)
    removes = True
    if FROZEN in interpretations:
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


def _sketched(session: Session, choose: Chooser, decisions: Decisions, excess: Excess | None) -> _Sketched:
    graph = session.sketch(decisions)
    nodes = [node for record in graph.records for node in record.nodes]
    taken: dict[str, str | None] = {}
    for node in nodes:
        for question, choice in node.choices.items():
            asked = question_key(node, question)
            taken[asked] = choice.taken if taken.get(asked, choice.taken) == choice.taken else None
    # Of two that remove as much, the finer one: more channels to choose from.
    finer = -sum(g.width for g in graph.groups)
    if excess is not None:
        return _Sketched((excess(graph, choose(graph)), finer), 0, taken)
    left = elements_left(graph, choose(graph)), finer
    return _Sketched(left, sum(len(node.batched) for node in nodes), taken)


def ambiguous_interpretations(graph: DependencyGraph) -> dict[str, tuple[str, ...]]:
    """Interpretations that remove different channels, by source line."""
    found: dict[str, tuple[str, ...]] = {}
    for record in graph.records:
        for node in record.nodes:
            for question, choice in node.choices.items():
                if choice.interpretations[0] != "free":
                    key = question_key(node, question)
                    found[key] = tuple(dict.fromkeys((*found.get(key, ()), *choice.interpretations)))
    return found
