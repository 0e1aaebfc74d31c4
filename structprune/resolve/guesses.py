"""What to try next after a trial: guesses in the order in which they are made, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from structprune.ir.record import Choice, Node, Place, Record
from structprune.ir.slices import Ids, Mask
from structprune.ops.movement import FROZEN
from structprune.resolve.counterparts import Counterparts
from structprune.resolve.repairs import Proposals, advanced, reconsidered
from structprune.resolve.state import Site, State
from structprune.resolve.trial import Trial
from structprune.tracing.discovery import Decisions, question_key
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.replay import Mismatch

# Operators of repeating modules are frozen together once this many of them had to be frozen one by one: the first block
# is often unlike the others, two that are alike are a pattern, and every further one would cost a trial.
_FROZEN_ONE_BY_ONE = 2


@dataclass(frozen=True)
class Found:
    """What a trial found.

    Attributes:
        graph: The dense network under the decisions of the trial.
        present: The slices that stayed, by id.
        trial: Where the cut network did something else.
        ranking: The interpretations of every question, in the order in which they are tried.
        proposals: Which held sizes may follow which dimensions.
        counterparts: Modules that repeat.
    """

    graph: DependencyGraph
    present: Mask
    trial: Trial
    ranking: Mapping[str, tuple[str, ...]]
    proposals: Proposals
    counterparts: Counterparts

    def order(self, key: str, choice: Choice) -> tuple[str, ...]:
        """The interpretations of a question of which nothing was decided yet."""
        return self.ranking.get(key, choice.interpretations)


@dataclass(frozen=True)
class Guess:
    """Something to try.

    Attributes:
        name: What it does, for the log.
        reason: Why it comes where it does.
        make: Returns another state, or ``None`` where it has nothing to try.
    """

    name: str
    reason: str
    make: Callable[[State, Found], State | None]


def prefer_unscaled(state: State, found: Found) -> State | None:
    """Take interpretations under which no number changes before one whose weights must make up for it."""
    interpretations, deferred = dict(state.decisions.interpretations), dict(state.deferred)
    for mismatch in found.trial.absorbed:
        behind = found.proposals.behind(found.graph, mismatch)
        for key, choice in _questions(found.graph, mismatch, behind).items():
            order = interpretations.get(key, found.order(key, choice))
            last = deferred.get(key, frozenset())
            others = [r for r in order if r in choice.interpretations and r not in (choice.taken, FROZEN, *last)]
            if others:
                deferred[key] = last | {choice.taken}
                interpretations[key] = (*others, *(r for r in order if r not in others and r != FROZEN), FROZEN)
                state = replace(state, deferred=deferred)
                return state.decided(replace(state.decisions, interpretations=interpretations))
    return None


def follow_sizes(state: State, found: Found) -> State | None:
    """Let sizes that modules hold follow, or widths lose the same share."""
    return advanced(state, found.proposals, found.graph, found.trial.mismatches)


def other_factor(state: State, found: Found) -> State | None:
    """Let another factor of a product follow than the one that is in the way elsewhere."""
    return reconsidered(state, found.proposals, found.graph, found.trial.mismatches)


def keep_two(state: State, found: Found) -> State | None:
    """Keep at least two entries of dimensions at operators that failed, where one was left."""
    known = state.decisions.at_least_two
    alone = [
        place
        for mismatch in found.trial.mismatches
        for place, ids in found.graph.record(mismatch.training).labelled(mismatch.node)
        if found.present[ids].sum() == 1 < len(ids) and place not in known
    ]
    return state.decided(replace(state.decisions, at_least_two=(*known, *alone))) if alone else None


def next_interpretation(state: State, found: Found) -> State | None:
    """Interpret the operators that failed, or those that split what reaches them, in the next way."""
    interpretations, reasons = dict(state.decisions.interpretations), dict(state.decisions.reasons)
    changed: set[str] = set()
    given_up = set(state.decisions.held)
    for mismatch in found.trial.mismatches:
        behind = [p for p in found.proposals.behind(found.graph, mismatch) if p not in given_up]
        questions = _questions(found.graph, mismatch, behind)
        if not changed.isdisjoint(questions):
            continue  # it may have failed of what is interpreted anew
        for key, choice in questions.items():
            order = interpretations.get(key, found.order(key, choice))
            # Only this one is out: where it was not possible, another one may be right.
            later = tuple(r for r in order if r != choice.taken)
            if any(r in choice.interpretations for r in later):
                interpretations[key] = later
                reasons[key] = f"cannot shrink here: {mismatch.text}"
                changed.add(key)
                break
        else:
            given_up.update(behind)
    decisions = replace(state.decisions, interpretations=interpretations, reasons=reasons)
    return state.decided(decisions) if changed else None


def freeze(state: State, found: Found) -> State:
    """Freeze what meets at the operators that failed, or whose sizes a number was computed from."""
    decisions = state.decisions
    frozen, held = dict(decisions.frozen), dict(decisions.held)
    for mismatch in found.trial.mismatches:
        reason = f"cannot shrink here: {mismatch.text}"
        behind = [p for p in found.proposals.behind(found.graph, mismatch) if p not in held]
        if behind:
            held |= dict.fromkeys(behind, f"{reason} ({mismatch.node.where})")
            continue
        for index in _freezable(found.graph, decisions, mismatch):
            frozen[mismatch.training, index] = reason
            for other in _frozen_alike(found.counterparts, found.graph, decisions, (mismatch.training, index)):
                frozen.setdefault((mismatch.training, other), reason)
    # Labels keep their meaning: other repairs stay in force.
    failed = [(mismatch.training, mismatch.node.index) for mismatch in found.trial.mismatches]
    state = state.without_proposals(failed)
    return replace(state, decisions=replace(decisions, frozen=frozen, held=held))


# After a trial that passed but for numbers that weights make up for.
AFTER_SUCCESS = Guess(
    "prefer an interpretation without row scales",
    "Whole heads, mostly: they change no number, and save more time than narrower ones.",
    prefer_unscaled,
)
# After a trial that failed, the first that has something to try.
AFTER_FAILURE = (
    Guess("let sizes follow", "It costs no channel, and most failures are sizes that modules hold.", follow_sizes),
    Guess(
        "let another factor follow",
        "Of heads * width one became smaller; what fails now was right before, and is given the same one.",
        other_factor,
    ),
    Guess(
        "keep two entries", "Some operators treat a dimension of one in another way; one more entry is cheap.", keep_two
    ),
    Guess(
        "interpret anew",
        "Before anything is frozen: an interpretation that is wrong may be what later operators trip over.",
        next_interpretation,
    ),
    Guess("freeze", "The last resort: it is always right, and costs channels.", freeze),
)


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
        return {question_key(node, question): choice for question, choice in node.choices.items()}
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
                    found.setdefault(question_key(before, question), choice)
    return found


def _frozen_alike(counterparts: Counterparts, graph: DependencyGraph, decisions: Decisions, at: Site) -> list[int]:
    """The same operators in all modules of the class, once some of them had to be frozen one by one.

    Freezing more than needed is never wrong, and a deep network has dozens of the same block.
    """
    training, index = at
    record = graph.record(training)
    node = record.nodes[index]
    alike = [other for _, other in counterparts.of(record, counterparts.repeating(node.module), node)]
    before = sum((training, other.index) in decisions.frozen for other in alike)
    if before < _FROZEN_ONE_BY_ONE:
        return []
    return [other.index for other in alike if _may_freeze(graph, decisions, record, other)]
