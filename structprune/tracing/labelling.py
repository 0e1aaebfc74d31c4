"""Asks the rule of an operator that ran for the labels of its outputs, and checks what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from structprune.compat import is_view
from structprune.errors import described
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Record
from structprune.ir.slices import Ids, Labels
from structprune.ir.tensors import tensors_of
from structprune.ops import is_built_in
from structprune.ops.call import Call, Recorder


class Observer(Recorder, Protocol):
    """A recorder that also runs the operators."""

    record: Record
    # Whether floats are not computed: what has values then is a constant, or was decided by integers.
    on_meta: bool
    # Whether Python code may do more with tensors than to call operators; to watch takes a tenth of a trace's time.
    watches: bool

    def start(self, node: Node) -> None:
        """Called before an operator runs."""

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator and return what it returns."""

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Called with the labels of the outputs; returns those to go on with."""

    def rule_failed(self, node: Node, error: Exception) -> list[Labels]:
        """Called where a rule cannot make sense of what an operator was given; may return the labels to go on with."""

    def output(self, ids: Ids) -> None:
        """Called with every labelled dimension of what the model returns."""


def apply_rule(observer: Observer, op: Operator, call: Call, results: list[torch.Tensor]) -> list[Labels]:
    """The labels of an operator's outputs; one without a rule freezes what reaches it."""
    for position in call.node.not_filled:
        for ids in call.labels(call.tensors[position]):
            call.freeze(ids, "is memory that no operator filled, but code that is not seen")
    if op.spec.rule is None:
        if any(ids is not None for t in call.tensors for ids in call.labels(t)):
            name = op.name
            observer.record.unknown[name] = observer.record.unknown.get(name, 0) + 1
            call.freeze_all(f"{name.removeprefix('aten::')} has no rule")
        return _others(call, results)
    try:
        got = op.spec.rule(call.of_values(results) if op.out_variant else call)
        labels = got if isinstance(got, list) else [got]
        if observer.record.rules is not None and not is_built_in(op.spec):
            _check_labels(results, labels, len(tensors_of(call.out)))
        if op.out_variant or op.writes:
            _write_out(call, results, labels, parts=not op.out_variant)
    except Exception as error:
        return observer.rule_failed(call.node, error)
    return labels + _others(call, results[len(labels) :])


def _others(call: Call, results: list[torch.Tensor]) -> list[Labels]:
    """The labels of results that no rule speaks of: arguments that are written into keep theirs."""
    written = [any(t is own for own in call.tensors) for t in results] if call.writes else [False] * len(results)
    return [call.labels(t) if own else (None,) * t.ndim for t, own in zip(results, written, strict=True)]


def _check_labels(results: list[torch.Tensor], labels: list[Labels], returned: int) -> None:
    """What a rule of a user's returns has to fit the outputs."""
    shapes = [list(t.shape) for t in results]
    if len(labels) < returned:
        raise ValueError(f"it returned labels for {len(labels)} of {returned} outputs: {shapes}")
    if len(labels) > len(results):
        raise ValueError(
            f"it returned labels for {len(labels)} tensors, and there are {len(results)}: {shapes}. A list is for "
            "several outputs; the labels of one are a tuple"
        )
    for i, (shape, own) in enumerate(zip(shapes, labels, strict=False)):
        if not isinstance(own, tuple) or len(own) != len(shape):
            raise ValueError(f"output {i} has {len(shape)} dimensions; expected a tuple of as many labels, got {own!r}")
        for dim, (size, ids) in enumerate(zip(shape, own, strict=True)):
            if ids is None:
                continue
            if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind != "i":
                raise ValueError(f"the labels of dim {dim} of output {i} are {described(ids)}; expected a row of ids")
            if len(ids) != size:
                raise ValueError(f"dim {dim} of output {i} has {size} entries, and {len(ids)} labels")


def _write_out(call: Call, results: list[torch.Tensor], labels: list[Labels], *, parts: bool) -> None:
    """What an operator writes into tensors that were there must have their size; may they be parts of others?"""
    for tensor, made in zip(results, labels, strict=False):
        if not any(tensor is own for own in call.tensors):
            continue
        for dim, ids in enumerate(call.labels(tensor)):
            call.couple(made[dim], ids, "is written into a tensor of fixed size")
            if is_view(tensor) and not parts:
                call.freeze(ids, "is written into a part of another tensor")
