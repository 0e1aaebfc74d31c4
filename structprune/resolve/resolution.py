"""Tries readings until the identity trial passes; what none satisfies is frozen, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from structprune.errors import StructPruneError
from structprune.graph.discovery import Decisions, reading_key
from structprune.graph.groups import DependencyGraph
from structprune.graph.record import Node, Record
from structprune.graph.session import Session
from structprune.graph.slices import Ids, Mask
from structprune.resolve.repairs import Proposals, Repair, repaired, twins
from structprune.resolve.replay import Mismatch
from structprune.resolve.trial import Trial, run_trial
from structprune.surgery.attributes import layer_changes
from structprune.surgery.cut import Cut, elements_left, kept_indices

_MOST_TRIALS = 200
_FROZEN_ONE_BY_ONE = 2
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
    repairs = Repairs(session)
    for _ in range(_MOST_TRIALS):
        graph = session.discover(decisions)
        present = choose(graph)
        kept = kept_indices(graph, present)
        if not kept:
            return Resolved(graph, present, Cut(kept), graph.records[0].macs)
        followed = repaired(session.replica, graph, repairs.taken, present)
        cut = Cut(kept, (*layer_changes(session.replica, graph, present), *followed))
        trial = run_trial(session, graph, cut, present)
        if not trial.mismatches:
            return Resolved(graph, present, cut, trial.macs)
        if not repairs.judge(graph, trial):
            decisions = _revised(session, graph, decisions, trial.mismatches, ranking)
    raise StructPruneError(
        f"No consistent way to cut {session.model_name} was found in {_MOST_TRIALS} trials; the last one failed at "
        f"{trial.mismatches[0]}. Please report the model; ignore=[...] leaves the modules concerned alone."
    )


class Repairs:
    """The held sizes that are followed. One is kept only if the cut network gets further with it."""

    def __init__(self, session: Session) -> None:
        self.taken: list[Repair] = []
        self._proposals = Proposals(session)
        self._alike: list[Repair] = []
        self._on_trial: list[Repair] = []
        self._refused: set[Repair] = set()
        self._reached: tuple[int, int] | None = None

    def judge(self, graph: DependencyGraph, trial: Trial) -> bool:
        """Keep or refuse what was on trial, put something else on trial; whether there was any."""
        if self._on_trial and self._reached is not None and trial.reached <= self._reached:
            gone = {*self._on_trial, *self._alike}
            self.taken = [r for r in self.taken if r not in gone]
            # Those that are only alike may still be right where they are.
            self._refused.update(self._on_trial)
            self._on_trial, self._alike = [], []
            # What failed without them is not what failed now: look again from there.
            self._reached = None
            return True
        known = {r.holder for r in self.taken}
        fresh = [
            r for r in self._proposals.at(graph, trial.mismatches) if r not in self._refused and r.holder not in known
        ]
        self._on_trial, self._alike = [], []
        taken: set[object] = set()
        for repair in fresh:
            # Two holders of one dimension are alternatives, and so are two dimensions for one holder.
            place = (repair.training, repair.node, repair.dimension)
            if repair.holder not in taken and place not in taken:
                taken |= {repair.holder, place}
                self._on_trial.append(repair)
        for repair in self._on_trial:
            for twin in self._proposals.alike(graph, repair):
                place = (twin.training, twin.node, twin.dimension)
                if not {twin.holder, place} & taken and twin.holder not in known and twin not in self._refused:
                    taken |= {twin.holder, place}
                    self._alike.append(twin)
        self._reached = trial.reached if self._on_trial else None
        self.taken = [*self.taken, *self._on_trial, *self._alike]
        return bool(self._on_trial)


def rank_readings(session: Session, choose: Chooser) -> tuple[Decisions, dict[str, tuple[str, ...]]]:
    """Order the readings of every split dimension by how much they remove, and take the best of each."""
    decisions, ranking = Decisions(), {}
    for key, readings in ambiguous_readings(session.discover(decisions)).items():
        left = {}
        for reading in readings:
            graph = session.discover(decisions.reading(key, reading))
            # Of two that remove as much, the finer one: more channels to choose from.
            left[reading] = elements_left(graph, choose(graph)), -sum(g.width for g in graph.groups)
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


def _freezable(graph: DependencyGraph, decisions: Decisions, mismatch: Mismatch) -> list[int]:
    """The nodes to freeze: the one that failed if it has labels, or the first one that reads a number made there.

    Where both are frozen already, Python code read the size before: all operators of the innermost
    module around it that has any left.
    """
    record = next(r for r in graph.records if r.training == mismatch.training)
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
    labels = [o.labels for o in node.outputs]
    labels += [record.nodes[i].outputs[o].labels for i, o in node.sources if record.nodes[i].outputs]
    return [ids for each in labels for ids in each if ids is not None]


def _revised(
    session: Session,
    graph: DependencyGraph,
    decisions: Decisions,
    mismatches: tuple[Mismatch, ...],
    ranking: dict[str, tuple[str, ...]],
) -> Decisions:
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
            reason = f"cannot shrink here: {mismatch.text}"
            for index in _freezable(graph, decisions, mismatch):
                frozen[mismatch.training, index] = reason
                for twin in _frozen_alike(session, graph, decisions, mismatch.training, index):
                    frozen.setdefault((mismatch.training, twin), reason)
    return Decisions(readings, decisions.frozen if advanced else frozen)


def _frozen_alike(
    session: Session, graph: DependencyGraph, decisions: Decisions, training: bool, index: int
) -> list[int]:
    """The same operators in all modules of the class, once some of them had to be frozen one by one.

    Freezing more than needed is never wrong, and a deep network has dozens of the same block.
    """
    record = next(r for r in graph.records if r.training == training)
    node = record.nodes[index]
    # torch.nn's layers are everywhere: the block around one is what comes again.
    owner = node.module
    while owner and type(session.replica.get_submodule(owner)).__module__.startswith("torch.nn."):
        owner = owner.rpartition(".")[0]
    alike = [twin for _, twin in twins(session.replica, record, owner, node)]
    before = sum((training, twin.index) in decisions.frozen for twin in alike)
    if before < _FROZEN_ONE_BY_ONE:
        return []
    return [twin.index for twin in alike if _may_freeze(graph, decisions, record, twin)]
