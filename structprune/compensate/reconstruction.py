"""Weights that read removed channels, solved anew: layer by layer, so that outputs are the dense network's again.

In the order in which the data flows, every contraction that lost a part of its inputs is fitted by ridge regression,
over the calibration batches: from what it reads in the network cut and fitted so far, to what the dense network gives
there. Layer-wise least squares after a cut is that of He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks" (2017), with the dense network's outputs as the target, whatever errors came before. Where the output is added
to a residual stream, the target is that the sum is the dense network's: what went wrong in the stream is mended too.

The fit is held near to the dense network's own weights, as strongly as serves a fifth of the rows best that the fit has
not seen: few batches never make it worse than the weights that it started from, there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.compensate.compensation import check_compensable, compensated
from structprune.compensate.lanes import ManyBatches, for_all, of_all, run_on_all, together
from structprune.compensate.moments import running_statistics
from structprune.compensate.places import Place, Vectors, place_of
from structprune.errors import InputError, ModelError, StructPruneError, brief
from structprune.inputs import Invocations
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Record
from structprune.ir.slices import Coupling, Labels, Mask, SliceSpace
from structprune.ir.tensors import memory_of, tensors_among
from structprune.meta.replica import held_tensors
from structprune.ops.rows import Rows
from structprune.plan.plan import Plan
from structprune.select.statistics import MOST_ENTRIES, picked
from structprune.surgery.cut import Solved
from structprune.surgery.slicing import cut_copy
from structprune.tracing.replay import DivergenceError, Replay
from structprune.tracing.session import follow, labels_of
from structprune.verify.planned import Planned
from structprune.verify.runs import left_by

# Rows that a layer is fitted to: at least this many, and so many times as its inputs are wide.
_ROWS, _ROWS_PER_ENTRY = 8192, 6
# The strengths that are tried, in units of the inputs' mean variance.
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_HELD_OUT = 5  # one row in so many
# The share of a power that rounding may take for more than a factor and an offset.
_AFFINE = 1e-4
_REACHES = 1e-2


def reconstructed(plan: Plan, model: nn.Module, examples: Invocations, batches: Sequence[Any]) -> Plan:
    """Solve the weights that read removed channels anew.

    Args:
        plan: The plan; its cut stays as it is.
        model: The dense model with its values; it is not changed.
        examples: Calls that it was traced with.
        batches: What to calibrate with, each as ``example_inputs``, all of the same shapes.

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
    targets = _Targets(space, coupling, plan)
    try:
        dense = follow(model, [call], targets, labels)
    except StructPruneError:
        raise
    except Exception as error:
        raise InputError(f"calibrate: {type(model).__name__} does not run with {call}: {brief(error)}") from error
    roots = coupling.roots()
    present = left_by(plan, space, roots)
    places = Vectors(space, roots, dense, targets.statistics)
    solver = _Solver(model, cut_copy(model, plan.cut), plan, dense, targets, places)
    _run_cut(
        solver,
        call,
        labels,
        Replay(dense, space, roots, None, present, solver, any_numbers=bool(plan.row_scales)),
        present,
    )
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
    except DivergenceError as error:
        raise ModelError(f"calibrate: the cut network cannot be followed: {error}") from error
    if replay.mismatches:
        raise ModelError(f"calibrate: the cut network cannot be followed: {replay.mismatches[0]}")


@dataclass(frozen=True)
class _Stream:
    """What the output of a contraction is added to in the dense network.

    Attributes:
        source: The node that made it, and which of its outputs it is.
        rows: Its values where the outputs were looked at.
        slope: What the outputs are multiplied with on the way to the sum.
    """

    source: tuple[int, int]
    rows: torch.Tensor
    slope: torch.Tensor


@dataclass(frozen=True)
class _Target:
    """What a contraction that lost inputs gives in the dense network.

    Attributes:
        how: How it is a matrix product.
        picked: The rows that were looked at, of every batch.
        place: Where they are in an output.
        shape: Of the outputs of a batch.
        stays: The outputs that stay.
        outputs: Of all batches one after the other: ``(rows, outputs that stay)``.
        stream: What they are added to, if that was there before.
    """

    how: Rows
    picked: torch.Tensor
    place: tuple[Any, ...]
    shape: tuple[int, ...]
    stays: torch.Tensor
    outputs: torch.Tensor
    stream: _Stream | None = None

    def rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of a tensor of all batches, where the outputs were looked at."""
        return torch.cat([self.how.outputs(own, self.place) for own in of_all(tensor)]).detach().float()


class _Targets(Planned):
    """Runs the dense network on all batches, and keeps what contractions give that will lose inputs.

    Attributes:
        found: By node.
        statistics: By batch norm: which of its tensors are the running mean and variance.
        channels: By node of ``found``: the labels of its outputs.
        skipped: Why contractions that lose inputs are not solved.
    """

    def __init__(self, space: SliceSpace, coupling: Coupling, plan: Plan) -> None:
        super().__init__(space, coupling, plan, run_on_all)
        self.found: dict[int, _Target] = {}
        self.statistics: dict[int, tuple[int, int]] = {}
        self.channels: dict[int, Any] = {}
        self.skipped: list[str] = []
        self._read: dict[int, list[int]] = {}
        # Which contraction a node's output derives from by itself.
        self._flows: dict[int, int] = {}
        self._call: tuple[Operator, Sequence[Any], dict[str, Any]]

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operator on all batches."""
        self._call = op, args, kwargs
        if op.spec.normalises:
            found = running_statistics(op.arguments(args, kwargs))
            if found is not None:
                self.statistics[node.index] = found
        self._meet(node, op, tensors_among((*args, *kwargs.values())))
        return super().run(node, op, args, kwargs)

    def _meet(self, node: Node, op: Operator, tensors: list[torch.Tensor]) -> None:
        """Follow what contractions give to where it is added to a residual stream."""
        given = [(s, t) for s, t in zip(node.sources, tensors, strict=True) if not self.record.nodes[s[0]].parametric]
        flows = [self._flows.get(source) for (source, _), _ in given]
        if len(given) == 1 and flows[0] is not None and not node.contracts:
            self._flows[node.index] = flows[0]
        if len(given) != 2 or op.name != "aten::add":
            return
        for (reader, (_, own)), (stream, other) in (
            (z, given[1 - i]) for i, z in enumerate(zip(flows, given, strict=True))
        ):
            if reader is None or reader not in self.found or not stream[0] < reader or own.shape != other.shape:
                continue
            target = self.found[reader]
            alike = own.shape == target.shape or (len(target.shape) == 2 and own.shape[-1:] == target.shape[-1:])
            if not alike or own.numel() != math.prod(target.shape) or self.record.nodes[stream[0]].is_leaf:
                continue
            slope = _slope(target.outputs, target.rows_of(own)[:, target.stays])
            if slope is not None:
                rows = target.rows_of(other)[:, target.stays]
                self.found[reader] = replace(target, stream=_Stream(stream, rows, slope))

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Keep what a contraction gives, if it loses inputs."""
        op, args, kwargs = self._call
        rows = op.spec.rows
        read = [o for o in node.operands if not self.record.nodes[node.sources[o.position][0]].parametric]
        if not (node.contracts and node.produced and len(read) == 1) or not self.gone(read[0].ids).any():
            return labels
        arguments = op.arguments(args, kwargs)
        tensors = tensors_among((*args, *kwargs.values()))
        if rows is None or arguments[rows.activation] is not tensors[read[0].position] or not rows.count(arguments):
            self.skipped.append("it is no plain matrix product or convolution")
            return labels
        groups, _, entries = rows.matrix(arguments).shape
        gone = self.gone(read[0].ids).reshape(groups, -1)
        if gone.all(1).any():
            return labels  # depthwise: its outputs go too
        memory = memory_of(arguments[rows.weight])
        self._read.setdefault(memory, []).append(node.index)
        if len(self._read[memory]) > 1:
            # Fitted to one of its uses, a weight would not fit the others.
            first = self.found.pop(self._read[memory][0], None)
            self.skipped += ["its weight is read more than once"] * (1 if first is None else 2)
            return labels
        if entries > MOST_ENTRIES:
            self.skipped.append(f"it reads more than {MOST_ENTRIES:,} entries")
            return labels
        _, _, produced = node.produced[0]
        most = max(_ROWS, _ROWS_PER_ENTRY * entries) // len(of_all(out)) + 1
        index = picked(rows.count(arguments), most, node.index).to(out.device)
        stays = torch.from_numpy(np.flatnonzero(~self.gone(produced))).to(out.device)
        target = _Target(rows, index, rows.place(arguments, index), tuple(out.shape), stays, torch.zeros(0))
        self.found[node.index] = replace(target, outputs=target.rows_of(out)[:, stays])
        self.channels[node.index] = produced
        self._flows[node.index] = node.index
        return labels


def _slope(outputs: torch.Tensor, later: torch.Tensor) -> torch.Tensor | None:
    """What outputs are multiplied with, channel by channel, to give these but for an offset; ``None``: it is not so."""
    x, y = (t - t.mean(0) for t in (outputs, later))
    slope = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-20)
    wrong = (y - slope * x).square().sum()
    return slope if wrong <= _AFFINE * y.square().sum() else None


class _Solver:
    """Runs the cut network on all batches, and solves each contraction that lost inputs before it runs."""

    def __init__(
        self, dense: nn.Module, model: nn.Module, plan: Plan, record: Record, targets: _Targets, vectors: Vectors
    ) -> None:
        self.model = model
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
        target = self._targets.found.get(node.index)
        if target is not None:
            self._solve(node, op, target, args, kwargs)
        out = run_on_all(op, args, kwargs)
        for number, tensor in enumerate(op.results(args, kwargs, out)):
            if (node.index, number) in self._wanted:
                self._streams[node.index, number] = tensor
        return out

    def _solve(self, node: Node, op: Operator, target: _Target, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        rows, arguments = op.spec.rows, op.arguments(args, kwargs)
        weight = arguments[rows.weight]
        name = self._by_memory.get(memory_of(weight))
        if name is None or weight.numel() != self._tensors[name].numel():
            # A part of a weight, or one that is computed from others.
            self._skipped.append("its weight is computed from others")
            return
        every = for_all(args, kwargs)
        inputs = torch.cat([rows.inputs(op.arguments(own, more), target.picked) for own, more in every]).detach()
        matrix = rows.matrix(arguments).detach()
        groups, outputs, _ = matrix.shape
        wanted = self._wanted_outputs(target).reshape(len(inputs), groups, outputs)
        channels = self._targets.channels[node.index]
        place = place_of(self._record, node.index, channels, self._vectors)
        fit = fitted(inputs, wanted, matrix, centred=place is not None)
        if fit is None:
            self._skipped.append("what it reads or gives is not finite")
            return
        weight.copy_(rows.weight_of(fit.matrix.to(weight), arguments))
        self._changed.add(name)
        beside = () if place is None else self._put(place, node, channels, fit.offset)
        self._changed.update(beside)
        self._solved[name] = Solved(fit.strength, fit.before, fit.after, beside)

    def _wanted_outputs(self, target: _Target) -> torch.Tensor:
        """What the contraction is to give: the dense network's outputs, and what its residual stream lacks."""
        stream = target.stream
        if stream is None or stream.source not in self._streams:
            return target.outputs
        lacks = stream.rows - target.rows_of(self._streams.pop(stream.source))
        # What hardly reaches the sum cannot mend it.
        reaches = stream.slope.abs() > _REACHES * stream.slope.abs().max()
        return target.outputs + torch.where(reaches, lacks / stream.slope, 0)

    def _put(self, place: Place, node: Node, channels: Any, offset: torch.Tensor) -> tuple[str, ...]:
        """Give a mean to the bias or batch norm that it belongs to, whose variance is the dense network's again."""
        vector = self._tensors[place.vector]
        own = place.vector == self._vectors.added(self._record, node, channels)
        if own:
            vector.copy_(offset)
        else:
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
        notes = [f"calibrate: solved {len(self._solved)} of the {total} contractions that read removed channels"]
        if self._solved:
            before, after = (
                float(np.median([getattr(s, name) for s in self._solved.values()])) for name in ("before", "after")
            )
            notes.append(
                f"calibrate: on rows held out, the median of their errors is {after:.3f} of the outputs' variance, "
                f"{before:.3f} with the dense network's weights"
            )
        return [*notes, *(f"calibrate: {reason} ({reasons.count(reason)})" for reason in dict.fromkeys(reasons))]


@dataclass(frozen=True)
class Fit:
    """A matrix that was solved anew.

    Attributes:
        matrix: ``(groups, outputs, entries)``.
        offset: What is added to its outputs, ``(groups * outputs,)``.
        strength: How strongly it was held near to the matrix before, in units of the inputs' mean variance.
        before: The error of the matrix before, on rows that were held out, as a share of the outputs' variance; the
            mean of the outputs is met.
        after: The same of the new one.
    """

    matrix: torch.Tensor
    offset: torch.Tensor
    strength: float
    before: float
    after: float


def fitted(inputs: torch.Tensor, outputs: torch.Tensor, matrix: torch.Tensor, *, centred: bool = True) -> Fit | None:
    """Fit a matrix to inputs and outputs by ridge regression towards what it was.

    Args:
        inputs: ``(rows, groups, entries)``.
        outputs: ``(rows, groups, outputs)``.
        matrix: ``(groups, outputs, entries)``.
        centred: Whether an offset can be added.

    Returns:
        The fit, or ``None`` where something is not finite.
    """
    x, y = (t.transpose(0, 1) for t in (inputs, outputs))
    start = matrix.double()
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        return None
    # The last rows: those of other samples.
    train = x.shape[1] - x.shape[1] // _HELD_OUT
    seen = _Sums(x[:, :train], y[:, :train], centred)
    rest_x, rest_y = x[:, train:], y[:, train:]
    spread = float((rest_y - rest_y.mean(1, keepdim=True)).square().mean()) or 1.0

    def error(of: torch.Tensor) -> float:
        wrong = rest_y - rest_x @ of.transpose(1, 2).to(rest_x) - seen.offset(of).to(rest_y)
        return float(wrong.square().mean()) / spread

    errors = {strength: error(seen.solved(start, strength)) for strength in _STRENGTHS}
    before, best = error(start), min(errors, key=errors.__getitem__)
    after = errors[best]
    whole = seen.with_rows(rest_x, rest_y)
    if not after < before:
        return Fit(start, whole.offset(start).flatten(), 0.0, before, before)
    solved = whole.solved(start, best)
    return Fit(solved, whole.offset(solved).flatten(), best, before, after)


class _Sums:
    """Moments of rows, and what solves them."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, centred: bool) -> None:
        self._count, self._centred = max(1, x.shape[1]), centred
        # About the means, products in single precision lose no digits.
        self._mean_x, self._mean_y = ((t.mean(1, keepdim=True) if centred else t[:, :1] * 0).double() for t in (x, y))
        x, y = x - self._mean_x.to(x), y - self._mean_y.to(y)
        self._xx, self._xy = ((x.transpose(1, 2) @ t).double() / self._count for t in (x, y))

    def with_rows(self, x: torch.Tensor, y: torch.Tensor) -> _Sums:
        """The moments of these rows and of others together."""
        if not x.shape[1]:
            return self
        more, whole = _Sums(x, y, self._centred), copy.copy(self)
        whole._count = self._count + more._count
        share = more._count / whole._count
        dx, dy = more._mean_x - self._mean_x, more._mean_y - self._mean_y
        whole._mean_x, whole._mean_y = self._mean_x + share * dx, self._mean_y + share * dy
        whole._xx = torch.lerp(self._xx, more._xx, share) + share * (1 - share) * dx.transpose(1, 2) * dx
        whole._xy = torch.lerp(self._xy, more._xy, share) + share * (1 - share) * dx.transpose(1, 2) * dy
        return whole

    def solved(self, start: torch.Tensor, strength: float) -> torch.Tensor:
        """The matrix of least error that is held near to ``start``."""
        entries = self._xx.shape[1]
        size = self._xx.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-12
        system = self._xx + strength * size * torch.eye(entries, dtype=self._xx.dtype, device=self._xx.device)
        step: torch.Tensor = torch.linalg.solve(system, self._xy - self._xx @ start.transpose(1, 2))
        return start + step.transpose(1, 2)

    def offset(self, matrix: torch.Tensor) -> torch.Tensor:
        """What is to be added to the outputs, ``(groups, 1, outputs)``."""
        offset: torch.Tensor = self._mean_y - self._mean_x @ matrix.transpose(1, 2)
        return offset
