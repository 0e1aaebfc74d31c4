"""In which order the interpretations of split dimensions are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from structprune.ir.record import PARAMETER
from structprune.ir.slices import Ids, Mask
from structprune.meta.replica import held_tensors
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

    ``taken``: by question the interpretation that all its operators took; none where they took several. ``tables``:
    whether entries of tables go that queries and keys are turned by.
    """

    left: tuple[int, int]
    heads: int
    tables: bool
    taken: Mapping[str, str | None]


def rank_interpretations(
    session: Session, choose: Chooser, decisions: Decisions, excess: Excess | None = None
) -> tuple[Decisions, dict[str, tuple[str, ...]]]:
    """Order the interpretations of every split dimension: attention's heads first, then by how much they remove.

    Whole heads save real time, where narrower ones leave as many small products; and no configuration can say that
    some frequencies of a rotary embedding are gone. With ``excess`` the least of it comes first, and heads do not
    matter.
    """
    graph = session.discover(decisions)
    tables, questions, modules = _tables(session, graph), ambiguous_interpretations(graph), _modules(graph)
    ranking = dict(questions)
    unsettled: dict[str, dict[str, tuple[str, ...]]] = {}
    # What is asked in the same way in the same modules is answered alike: interpretations that are out.
    out: dict[tuple[str, frozenset[str]], set[str]] = {}
    now: _Sketched | None = None

    def rank(key: str) -> None:
        nonlocal decisions, now
        beside = {other: order for other, order in ranking.items() if other != key}
        if unsettled.pop(key, None) == beside:
            return
        refused = out.setdefault(modules[key], set())
        asked = [r for r in questions[key] if r not in refused] or questions[key]
        known = {
            # What the decisions give is known, as a rule.
            r: now
            if now and now.taken.get(key) == r
            else _sketched(session, choose, decisions.interpretation(key, r), excess, tables)
            for r in asked
        }
        narrower = _cut_tables(known)
        # Values have no frequencies, but go with their keys: whole heads or nothing.
        refused |= narrower
        ranking[key], removes = _ranked({r: sketched for r, sketched in known.items() if r not in narrower})
        first = known[ranking[key][0]]
        now = first if first.taken.get(key) == ranking[key][0] else None
        decisions = decisions.interpretation(key, *ranking[key])
        if not removes:
            unsettled[key] = beside

    for key in questions:
        rank(key)
    # What removes nothing under the first interpretations of those that came later may do so under the best.
    for key in list(unsettled):
        rank(key)
    return decisions, ranking


def _cut_tables(known: Mapping[str, _Sketched]) -> set[str]:
    """The interpretations under which entries of tables go, if there is another one than freezing."""
    if FROZEN not in known or known[FROZEN].tables:
        return set()
    found = {r for r, sketched in known.items() if sketched.tables}
    return found if known.keys() - found - {FROZEN} else set()


def _ranked(known: Mapping[str, _Sketched]) -> tuple[tuple[str, ...], bool]:
    """The interpretations of one question in order, and whether the first removes anything."""
    left = {interpretation: sketched.left for interpretation, sketched in known.items()}
    heads = {interpretation: sketched.heads for interpretation, sketched in known.items()}
    ordered = sorted(known, key=left.__getitem__)
    if FROZEN not in known:
        return tuple(ordered), True
    whole = left[FROZEN][0]
    # One that leaves as much as freezing is a wrong one, unless that is so of all.
    ordered = [r for r in ordered if r != FROZEN and left[r][0] <= whole]
    ordered = [r for r in ordered if left[r][0] < whole] or ordered
    if ordered:
        enough = whole - _MUCH * (whole - left[ordered[0]][0])
        whole_heads = max((r for r in ordered if left[r][0] <= enough), key=heads.__getitem__)
        if heads[whole_heads] > heads[FROZEN]:
            ordered = list(dict.fromkeys((whole_heads, *ordered)))
    return (*ordered, FROZEN), bool(ordered) and left[ordered[0]][0] < whole


def _sketched(session: Session, choose: Chooser, decisions: Decisions, excess: Excess | None, tables: Ids) -> _Sketched:
    graph = session.sketch(decisions)
    nodes = [node for record in graph.records for node in record.nodes]
    taken: dict[str, str | None] = {}
    for node in nodes:
        for question, choice in node.choices.items():
            asked = question_key(node, question)
            taken[asked] = choice.taken if taken.get(asked, choice.taken) == choice.taken else None
    # Of two that remove as much, the finer one: more channels to choose from.
    finer = -sum(g.width for g in graph.groups)
    present = choose(graph)
    if excess is not None:
        return _Sketched((excess(graph, present), finer), 0, False, taken)
    left, heads = (elements_left(graph, present), finer), sum(len(node.batched) for node in nodes)
    gone = tables[~present[tables]]
    return _Sketched(left, heads, bool(len(gone)) and bool(_summed(graph)[graph.roots[gone]].any()), taken)


def _summed(graph: DependencyGraph) -> Mask:
    """The channels that products of two activations sum over, such as those of queries and keys, by id."""
    summed = np.zeros(graph.space.size, dtype=bool)
    for record in graph.records:
        for node in record.nodes:
            if node.contracts and not any(record.nodes[parent].parametric for parent in node.parents):
                for operand in node.operands:
                    summed[graph.roots[operand.ids]] = True
    return summed


def _tables(session: Session, graph: DependencyGraph) -> Ids:
    """The slices of what the model holds besides weights and running statistics: frequencies, slopes."""
    statistics = {
        record.nodes[source].op.removeprefix(PARAMETER)
        for record in graph.records
        for node in record.nodes
        if node.spec.normalises
        for source, _ in node.sources
    }
    held = held_tensors(session.replica).items()
    names = [n for n, tensor in held if not isinstance(tensor, nn.Parameter) and n not in statistics]
    return np.concatenate([np.zeros(0, dtype=np.int64), *(a.ids for n in names for a in graph.space.by_tensor[n])])


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


def _modules(graph: DependencyGraph) -> dict[str, tuple[str, frozenset[str]]]:
    """By question and source line: the question, and the modules whose operators it is asked of."""
    asked: dict[str, str] = {}
    found: dict[str, set[str]] = {}
    for record in graph.records:
        for node in record.nodes:
            for question in node.choices:
                key = question_key(node, question)
                asked[key] = question
                found.setdefault(key, set()).add(node.module)
    return {key: (asked[key], frozenset(modules)) for key, modules in found.items()}
