"""Sizes that a model's own modules hold: found by provenance, followed through the predicted shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from structprune.graph.discovery import Decisions, Discovery
from structprune.graph.groups import DependencyGraph
from structprune.graph.record import Node, Record
from structprune.graph.session import Session
from structprune.graph.slices import Coupling, Ids, Mask, SliceSpace
from structprune.meta.replica import duplicate
from structprune.meta.run import run_on_meta
from structprune.resolve.provenance import Arrivals, HeldInt, Holder, hold_sizes
from structprune.resolve.replay import Mismatch
from structprune.surgery.cut import AttributeChange


@dataclass(frozen=True, slots=True)
class Repair:
    """A held size that follows a labelled dimension of one node, times a fixed factor.

    The node is named by mode and index, which every trace of the dense network shares.
    """

    holder: Holder
    training: bool
    node: int
    dimension: tuple[bool, int, int]
    reached: int


class Proposals:
    """Which held sizes may follow which dimensions, by where they arrive in the dense network.

    The arrivals are those of the dense network alone, so they are looked up once a mode.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._by_mode: dict[bool, Arrivals] = {}

    def at(self, graph: DependencyGraph, mismatches: Iterable[Mismatch]) -> list[Repair]:
        """Held sizes that reach the operators which failed, and that equal a size there which should shrink."""
        found: dict[Repair, None] = {}
        for mismatch in mismatches:
            record = _record(graph, mismatch.training)
            for reached in self._arrivals(mismatch.training).at(mismatch.node.index):
                for where, _ in _dimensions(record, mismatch.node, int(reached)):
                    for holder in _ordered(reached):
                        found[Repair(holder, mismatch.training, mismatch.node.index, where, int(reached))] = None
        return list(found)

    def alike(self, graph: DependencyGraph, repair: Repair) -> list[Repair]:
        """The same repair in the other modules of the same class: what one block needs, all of them do."""
        record = _record(graph, repair.training)
        arrivals = self._arrivals(repair.training)
        found = []
        for path, node in twins(self._session.replica, record, repair.holder.module, record.nodes[repair.node]):
            holder = replace(repair.holder, module=path)
            for reached in arrivals.at(node.index):
                places = [where for where, _ in _dimensions(record, node, int(reached))]
                if holder in reached.holders and repair.dimension in places:
                    found.append(Repair(holder, repair.training, node.index, repair.dimension, int(reached)))
                    break
        return found

    def _arrivals(self, training: bool) -> Arrivals:
        if training not in self._by_mode:
            self._by_mode[training] = _arrivals(self._session, training)
        return self._by_mode[training]


def twins(model: nn.Module, record: Record, owner: str, node: Node) -> Iterator[tuple[str, Node]]:
    """The operators that do in other modules of a class what a node does in one of them, with those modules' paths."""
    if node.module != owner and owner and not node.module.startswith(f"{owner}."):
        return
    inside = node.module[len(owner) :]
    by_place: dict[tuple[str, str], list[Node]] = {}
    for other in record.nodes:
        by_place.setdefault((other.module, other.op), []).append(other)
    occurrence = by_place[node.module, node.op].index(node)
    kind = type(model.get_submodule(owner))
    for path, module in model.named_modules():
        there = by_place.get((path + inside, node.op), [])
        if type(module) is kind and path != owner and occurrence < len(there):
            yield path, there[occurrence]


def _record(graph: DependencyGraph, training: bool) -> Record:
    return next(r for r in graph.records if r.training == training)


def repaired(
    model: nn.Module, graph: DependencyGraph, repairs: Iterable[Repair], present: Mask
) -> tuple[AttributeChange, ...]:
    """The attributes under a selection. A size that would not be a whole number is left as it is."""
    changes: dict[tuple[str, str], AttributeChange] = {}
    for repair in repairs:
        record = _record(graph, repair.training)
        node = record.nodes[repair.node]
        ids = next((i for where, i in _dimensions(record, node, repair.reached) if where == repair.dimension), None)
        if ids is None:
            continue
        holder = repair.holder
        old = getattr(model.get_submodule(holder.module), holder.name)
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


def _dimensions(record: Record, node: Node, size: int) -> Iterator[tuple[tuple[bool, int, int], Ids]]:
    """Labelled dimensions of this size among a node's outputs, then its operands."""
    for index, output in enumerate(node.outputs):
        for dim, ids in enumerate(output.labels):
            if ids is not None and output.shape[dim] == size:
                yield (True, index, dim), ids
    for position, (source, index) in enumerate(node.sources):
        outputs = record.nodes[source].outputs
        if outputs:
            for dim, ids in enumerate(outputs[index].labels):
                if ids is not None and outputs[index].shape[dim] == size:
                    yield (False, position, dim), ids


def _ordered(reached: HeldInt) -> list[Holder]:
    """The holders of an integer, those of the innermost module first."""
    return sorted(reached.holders, key=lambda h: (-h.module.count("."), h.module, h.name, h.entry or 0))


def _arrivals(session: Session, training: bool) -> Arrivals:
    """Run the dense network with sizes that remember their holders."""

    def same(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    model = duplicate(session.replica, lambda _name, tensor: tensor, same)
    hold_sizes(model)
    space = SliceSpace()
    labels = session.label(space)
    observer = Discovery(space, Coupling(space), Decisions(), run_on_meta, training=training)
    arrivals = Arrivals(observer.record.nodes)
    with arrivals:
        session.follow(model, observer, labels)
    return arrivals
