"""The identity trial: cut the meta replica, run it, and compare it operator by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from structprune.ir.operators import Operator
from structprune.ir.record import Node, Record
from structprune.ir.slices import Labels, Mask
from structprune.meta.run import run_on_meta
from structprune.resolve.provenance import SHAPING
from structprune.surgery.cut import Cut
from structprune.surgery.slicing import cut_copy
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.replay import DivergenceError, Mismatch, Replay
from structprune.tracing.row_scales import RowScales, absorbed, alike
from structprune.tracing.session import Session


@dataclass(frozen=True)
class Trial:
    """What a trial found: the mismatches (none: the cut is right), and the MACs of the cut network.

    Attributes:
        absorbed: Numbers that differ and that weights make up for.
        row_scales: What does it, by parameter, for the rows of the dense network.
    """

    mismatches: tuple[Mismatch, ...]
    macs: int
    absorbed: tuple[Mismatch, ...] = ()
    row_scales: RowScales = field(default_factory=dict)


def run_trial(session: Session, graph: DependencyGraph, cut: Cut, present: Mask) -> Trial:
    """Run the cut replica in the modes of the session, until one fails, and compare it with the dense network."""
    labels: dict[str, Labels] = {
        name: tuple(axis.ids[present[axis.ids]] for axis in axes) for name, axes in graph.space.by_tensor.items()
    }
    mismatches: list[Mismatch] = []
    made_up: list[Mismatch] = []
    narrower = {name for name, dims in cut.kept.items() if 0 in dims}
    row_scales: RowScales | None = None
    macs = 0
    for dense in graph.records:
        # To watch every function costs time: only where tensors are split, or where it turns out to be needed.
        splits = any(node.choices for node in dense.nodes)
        for within in (Foreseen,) if splits else (nullcontext, Foreseen):
            replay, record, error = _attempt(session, cut, graph, dense, labels, present, within)
            if error is None:
                break
        if error is not None:
            # Python code between two operators failed: what it waits for comes next.
            text = str(error).strip().splitlines()
            replay.mismatch(
                replay.upcoming(), f"the code before it fails: {type(error).__name__}: {text[0] if text else ''}"
            )
        if record is not None:
            macs = macs or record.macs
        own, found = absorbed(dense, replay.mismatches, narrower)
        mismatches += [m for m in replay.mismatches if m not in own]
        made_up += own
        if row_scales is not None and not alike(row_scales, found):
            mismatches += made_up  # no weights serve both modes
        row_scales = found
        if mismatches:
            break  # what is amiss in evaluation is so in training
    return Trial(tuple(mismatches), macs, () if mismatches else tuple(made_up), row_scales or {})


def _attempt(
    session: Session,
    cut: Cut,
    graph: DependencyGraph,
    dense: Record,
    labels: dict[str, Labels],
    present: Mask,
    within: Callable[[Replay], AbstractContextManager[Any]],
) -> tuple[Replay, Record | None, Exception | None]:
    """Run one mode; what was found, and the error of the model's own code, if it failed."""
    replay = Replay(dense, graph.space, graph.roots, graph.stuck, present, _on_meta)
    replica = cut_copy(session.replica, cut)
    try:
        with within(replay):
            record = session.follow(replica, replay, labels, consume=True)
        replay.end()
        return replay, record, None
    except DivergenceError:
        return replay, None, None  # noted as a mismatch where it was found
    except Exception as error:
        return replay, None, error


class Foreseen(TorchFunctionMode):
    """Hands on the predicted shape where a tensor cannot be shaped as asked.

    ``reshape`` and ``unflatten`` raise before any operator runs; with the shape that they should
    have returned, one run lists every mismatch.
    """

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self._replay = replay

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function; where it only shapes a tensor and fails, do what was predicted."""
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            foreseen = self._replay.foreseen_view() if func in SHAPING else None
            if foreseen is None or not isinstance(args[0], torch.Tensor):
                raise
            node, shape = foreseen
            if args[0].numel() != math.prod(shape):
                raise
            text = str(error).strip().splitlines()
            self._replay.mismatch(node, f"fails: {text[0] if text else type(error).__name__}")
            return args[0].reshape(shape)


def _on_meta(node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return run_on_meta(op, args, kwargs)
