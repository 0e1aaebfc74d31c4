"""The rules asked again over a recorded forward, under other interpretations: no operator runs a second time."""

from __future__ import annotations

import torch

from structprune.ir.record import PARAMETER, Asked, Node, Output, Record, Value
from structprune.ir.slices import Labels
from structprune.ops.call import Call
from structprune.tracing.arguments import places
from structprune.tracing.discovery import RAN, Discovery
from structprune.tracing.flow import freeze_unread
from structprune.tracing.labelling import apply_rule

_MOST_DIMS = 64


def results_of(asked: Asked) -> list[torch.Tensor]:
    """The tensors that a recorded call gave."""
    return asked.operator.results((), asked.arguments, asked.out)


def can_relabel(record: Record) -> bool:
    """Whether every tensor still has the shape that its operators saw; some change it in place."""
    for node in record.nodes:
        if node.asked is not None:
            if [tuple(t.shape) for t in node.asked.tensors] != node.shapes:
                return False
            if [tuple(t.shape) for t in results_of(node.asked)] != [o.shape for o in node.outputs]:
                return False
    return True


def relabel(dense: Record, observer: Discovery, labels: dict[str, Labels]) -> Record:
    """What a run of the same forward under ``observer`` would record."""
    record = observer.record
    record.returned, record.results = dense.returned, dense.results
    record.touched, record.needs_watching = dense.touched, dense.needs_watching
    record.from_outside = dense.from_outside
    leaves: dict[int, Labels] = {}

    def labels_of(source: int, output: int) -> Labels:
        node = record.nodes[source]
        return leaves[source] if node.is_leaf else node.outputs[output].labels

    for old in dense.nodes:
        node = Node(old.index, old.op, old.module, old.parents, old.parametric, old.shapes, spec=old.spec)
        node.is_leaf = old.is_leaf
        record.nodes.append(node)
        node.fails = old.fails
        if old.fails:
            continue
        if old.asked is None:
            name = old.op.removeprefix(PARAMETER)
            # An input is all unlabelled, whatever its rank.
            leaves[old.index] = labels[name] if old.op.startswith(PARAMETER) else (None,) * _MOST_DIMS
            continue
        node.sources, node.unchanging, node.writes = old.sources, old.unchanging, old.writes
        node.returns_list, node.constants, node.line = old.returns_list, old.constants, old.line
        node.replay, node.macs, node.not_filled = old.replay, old.macs, old.not_filled
        values = [
            Value(labels_of(n, o)[: len(shape)], n, o, record.nodes[n].parametric, observer)
            for (n, o), shape in zip(old.sources, old.shapes, strict=True)
        ]
        node.asked = old.asked
        node.memory |= {key: old.memory[key] for key in RAN if key in old.memory}
        op, arguments, tensors, out = old.asked
        if old.spec.placed:
            node.places = places({**op.defaults, **arguments}, values[0].labels)
        made = apply_rule(
            observer, op, Call(observer, op, arguments, tensors, values, node, out), results_of(old.asked)
        )
        node.outputs = [
            Output(before.shape, before.dtype, before.device, la) for before, la in zip(old.outputs, made, strict=True)
        ]
    for index, output in record.returned:
        for ids in labels_of(index, output):
            if ids is not None:
                observer.output(ids)
    freeze_unread(record, observer)
    return record
