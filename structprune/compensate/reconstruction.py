"""Weights behind a cut, solved anew: layer by layer, so that outputs are the dense network's again.

In the order in which the data flows, every contraction that lost a part of its inputs, or whose inputs are others by
now, is fitted by ridge regression, over the calibration batches: from what it reads in the network cut and fitted so
far, to what the dense network gives there. Layer-wise least squares after a cut is that of He et al., "Channel Pruning
for Accelerating Very Deep Neural Networks" (2017), with the dense network's outputs as the target, whatever errors came
before. Where the output is added to a residual stream, the target is that the sum is the dense network's: what went
wrong in the stream is mended too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.compensate.compensation import check_compensable, compensated
from structprune.compensate.lanes import ManyBatches, for_all, run_on_all, together
from structprune.compensate.places import Place, Vectors, place_of
from structprune.compensate.ridge import fitted
from structprune.compensate.targets import Target, Targets, wide
from structprune.errors import InputError, ModelError, StructPruneError, brief
from structprune.inputs import Invocations
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Record
from structprune.ir.slices import Coupling, Labels, Mask, SliceSpace
from structprune.ir.tensors import memory_of
from structprune.meta.replica import held_tensors
from structprune.plan.plan import Plan
from structprune.progress import Advance, progress_bar
from structprune.surgery.cut import Solved
from structprune.surgery.slicing import cut_copy
from structprune.tracing.replay import Replay
from structprune.tracing.session import follow, labels_of
from structprune.verify.runs import DiffersError, left_by

# What the outputs are multiplied with must be this share of the largest factor, to mend what they are added to.
_REACHES = 1e-2


def reconstructed(
    plan: Plan, model: nn.Module, examples: Invocations, batches: Sequence[Any], progress: bool | None = False
) -> Plan:
    """Solve the weights behind the cut anew.

    Args:
        plan: The plan; its cut stays as it is.
        model: The dense model with its values; it is not changed.
        examples: Calls that it was traced with.
        batches: What to calibrate with, each as ``example_inputs``, all of the same shapes.
        progress: Whether a bar is shown; ``None``: where stderr is a terminal.

    Returns:
        The plan with the new values of those weights, and of the biases and batch norms behind them. What cannot be
        solved is made up for as ``compensated`` does.

    Raises:
        ModelError: The model is on the meta device, or the cut network takes another way through its code.
        InputError: It does not run with the batches.
    """
    check_compensable(model)
    if not plan.kept:
        return plan
    call = together(batches)
    plan = compensated(plan, model, examples, batches)
    space = SliceSpace()
    coupling, labels = Coupling(space), labels_of(model, space)
    targets = Targets(space, coupling, plan)
    try:
        dense = follow(model, [call], targets, labels)
    except StructPruneError:
        raise
    except Exception as error:
        raise InputError(f"calibrate: {type(model).__name__} does not run with {call}: {brief(error)}") from error
    roots = coupling.roots()
    try:
        present = left_by(plan, space, roots)
    except DiffersError as error:
        raise ModelError(f"calibrate: the cut network cannot be followed: {error}") from error
    places = Vectors(space, roots, dense)
    with progress_bar(progress, len(targets.found)) as advance:
        solver = _Solver(model, cut_copy(model, plan.cut), plan, dense, targets, places, advance)
        replay = Replay(dense, space, roots, None, present, solver, any_numbers=bool(plan.row_scales))
        _run_cut(solver, call, labels, replay, present)
    return solver.result(targets.skipped)


def _run_cut(solver: _Solver, call: ManyBatches, labels: dict[str, Labels], replay: Replay, present: Mask) -> None:
    left: dict[str, Labels] = {
        name: tuple(None if ids is None else ids[present[ids]] for ids in axes) for name, axes in labels.items()
    }
    try:
        # The solver writes into the copy that runs.
        follow(solver.model, [call], replay, left, consume=True)
    except StructPruneError:
        raise
    except Exception as error:  # the network takes another way, or its code fails
        raise ModelError(f"calibrate: the cut network cannot be followed: {brief(error)}") from error
    if replay.mismatches:
        raise ModelError(f"calibrate: the cut network cannot be followed: {replay.mismatches[0]}")


class _Solver:
    """Runs the cut network on all batches, and solves each contraction before it runs."""

    def __init__(
        self,
        dense: nn.Module,
        model: nn.Module,
        plan: Plan,
        record: Record,
        targets: Targets,
        vectors: Vectors,
        advance: Advance,
    ) -> None:
        self.model = model
        self._advance = advance
        self._plan = plan
        self._dense = held_tensors(dense)
        self._tensors = held_tensors(model)
        self._by_memory = {memory_of(t): n for n, t in self._tensors.items() if t.numel()}
        self._record = record
        self._targets = targets
        self._vectors = vectors
        self._solved: dict[str, Solved] = {}
        self._changed: set[str] = set()
        self._skipped: list[str] = []
        self._wanted = {t.stream.source for t in targets.found.values() if t.stream is not None}
        self._streams: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator; ``node`` is the dense network's run of it."""
        target = self._targets.found.pop(node.index, None)  # they are large
        if target is not None:
            self._advance("calibrate: weights", 0)
            self._solve(node, op, target, args, kwargs)
            self._advance("calibrate: weights", 1)
        out = run_on_all(op, args, kwargs)
        for number, tensor in enumerate(op.results(args, kwargs, out)):
            if (node.index, number) in self._wanted:
                self._streams[node.index, number] = tensor
        return out

    def _solve(self, node: Node, op: Operator, target: Target, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        rows, arguments = op.spec.rows, op.arguments(args, kwargs)
        weight = arguments[rows.weight]
        name = self._by_memory.get(memory_of(weight))
        if name is None or weight.numel() != self._tensors[name].numel():
            # A part of a weight, or one that is computed from others.
            self._skipped.append("its weight is computed from others")
            return
        if self._targets.reads[target.memory] > 1:
            # Fitted to one of its uses, it would not fit the others: tied embeddings, for instance.
            self._skipped.append("its weight is read more than once")
            return
        every = for_all(args, kwargs)
        inputs = wide(torch.cat([rows.inputs(op.arguments(own, more), target.picked) for own, more in every]))
        matrix = rows.matrix(arguments).detach()
        groups, outputs, _ = matrix.shape
        wanted = self._wanted_outputs(target).reshape(len(inputs), groups, outputs)
        place = place_of(self._record, node.index, target.channels, self._vectors)
        fit = fitted(inputs, wanted, matrix, centred=place is not None)
        if fit is None:
            self._skipped.append("there are fewer than five rows, or what it reads or gives is not finite")
            return
        if fit.nothing_wrong:
            return  # before the cut
        weight.copy_(rows.weight_of(fit.matrix.to(weight), arguments))
        self._changed.add(name)
        beside = () if place is None else self._put(place, fit.offset)
        self._changed.update(beside)
        self._solved[name] = Solved(fit.strength, fit.before, fit.after, beside)

    def _wanted_outputs(self, target: Target) -> torch.Tensor:
        """What the contraction is to give: the dense network's outputs, and what its residual stream lacks."""
        stream = target.stream
        if stream is None or stream.source not in self._streams:
            return target.outputs
        lacks = stream.rows - target.rows_of(self._streams.pop(stream.source))
        # What hardly reaches the sum cannot mend it.
        reaches = stream.slope.abs() > _REACHES * stream.slope.abs().max()
        return target.outputs + torch.where(reaches, lacks / stream.slope, 0)

    def _put(self, place: Place, offset: torch.Tensor) -> tuple[str, ...]:
        """Give a mean to the bias or batch norm that it belongs to, whose variance is the dense network's again."""
        vector = self._tensors[place.vector]
        vector.copy_(self._of_dense(place.vector) + (-offset if place.is_mean else offset).to(vector))
        if not place.variance:
            return (place.vector,)
        self._tensors[place.variance].copy_(self._of_dense(place.variance))
        return place.vector, place.variance

    def _of_dense(self, name: str) -> torch.Tensor:
        kept = self._plan.kept.get(name, {}).get(0)
        whole = self._dense[name].detach()
        return whole if kept is None else whole[list(kept)]

    def result(self, skipped: list[str]) -> Plan:
        """The plan with what was solved."""
        plan, values = self._plan, {name: self._tensors[name].detach().clone() for name in self._changed}
        return replace(
            plan,
            shifts={name: shift for name, shift in plan.shifts.items() if name not in values},
            scales={name: scale for name, scale in plan.scales.items() if name not in values},
            values=values,
            solved=self._solved,
            notes=(*(n for n in plan.notes if not n.startswith("compensate:")), *self._notes(skipped)),
        )

    def _notes(self, skipped: list[str]) -> list[str]:
        reasons = [*skipped, *self._skipped]
        total = len(self._solved) + len(reasons)
        notes = [f"calibrate: solved {len(self._solved)} of the {total} contractions behind the cut"]
        if self._solved:
            before, after = (
                float(np.median([getattr(s, name) for s in self._solved.values()])) for name in ("before", "after")
            )
            notes.append(
                f"calibrate: on rows held out, the median of their errors is {after:.3f} of the outputs' variance, "
                f"{before:.3f} with the dense network's weights"
            )
        return [*notes, *(f"calibrate: {reason} ({reasons.count(reason)})" for reason in dict.fromkeys(reasons))]
