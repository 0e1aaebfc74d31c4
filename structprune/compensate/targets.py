"""What contractions with a weight give in the dense network, and what that is added to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from structprune.compensate.lanes import of_all, run_on_all
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Operand
from structprune.ir.slices import Coupling, Ids, Labels, SliceSpace
from structprune.ir.tensors import memory_of, tensors_among
from structprune.ops.rows import Rows
from structprune.plan.plan import Plan
from structprune.select.statistics import MOST_ENTRIES, picked
from structprune.verify.planned import Planned

# Rows that a layer is fitted to: at least this many, and so many times as its inputs are wide.
_ROWS, _ROWS_PER_ENTRY = 8192, 6
# The share of a power that rounding may take for more than a factor and an offset.
_AFFINE = 1e-4


@dataclass(frozen=True)
class Stream:
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
class Target:
    """What a contraction gives in the dense network.

    Attributes:
        how: How it is a matrix product.
        memory: That of its weight.
        picked: The rows that were looked at, of every batch.
        place: Where they are in an output.
        shape: Of the outputs of a batch.
        channels: Their labels.
        stays: The outputs that stay.
        outputs: Of all batches one after the other: ``(rows, outputs that stay)``.
        stream: What they are added to, if that was there before.
    """

    how: Rows
    memory: int
    picked: torch.Tensor
    place: tuple[Any, ...]
    shape: tuple[int, ...]
    channels: Ids
    stays: torch.Tensor
    outputs: torch.Tensor
    stream: Stream | None = None

    def rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of a tensor of all batches, where the outputs were looked at."""
        return wide(torch.cat([self.how.outputs(own, self.place) for own in of_all(tensor)]))


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor, in single precision at least."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


class Targets(Planned):
    """Runs the dense network on all batches, and keeps what its contractions give.

    Attributes:
        found: By node.
        reads: How many operators read the memory of a weight.
        skipped: Why contractions are not solved.
    """

    def __init__(self, space: SliceSpace, coupling: Coupling, plan: Plan) -> None:
        super().__init__(space, coupling, plan, run_on_all)
        self.found: dict[int, Target] = {}
        self.reads: Counter[int] = Counter()
        self.skipped: list[str] = []
        # Which contraction a node's output derives from by itself.
        self._flows: dict[int, int] = {}
        self._call: tuple[Operator, Sequence[Any], dict[str, Any]]

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operator on all batches."""
        self._call = op, args, kwargs
        tensors = tensors_among((*args, *kwargs.values()))
        if not op.func.is_view:
            parametric = [self.record.nodes[source].parametric for source, _ in node.sources]
            self.reads.update({memory_of(t) for t, is_one in zip(tensors, parametric, strict=True) if is_one})
        self._meet(node, op, tensors)
        return super().run(node, op, args, kwargs)

    def _meet(self, node: Node, op: Operator, tensors: list[torch.Tensor]) -> None:
        """Follow what contractions give to where it is added to a residual stream."""
        given = [(s, t) for s, t in zip(node.sources, tensors, strict=True) if not self.record.nodes[s[0]].parametric]
        flows = [self._flows.get(source) for (source, _), _ in given]
        if len(given) == 1 and flows[0] is not None and not node.contracts:
            self._flows[node.index] = flows[0]
        if len(given) == 2 and op.name == "aten::add" and dict(node.unchanging).get("alpha", 1) == 1:
            self._add_stream(flows[0], given[0][1], *given[1])
            self._add_stream(flows[1], given[1][1], *given[0])

    def _add_stream(self, reader: int | None, own: torch.Tensor, source: tuple[int, int], stream: torch.Tensor) -> None:
        """Keep what a contraction's output is added to, if that was there before it, and lies in the same order."""
        if reader not in self.found or source[0] >= reader or self.record.nodes[source[0]].is_leaf:
            return
        target = self.found[reader]
        # Of a matrix product the samples may lie in several dimensions by then.
        shape = own.shape if len(target.shape) > 2 else (own.numel() // own.shape[-1], own.shape[-1])
        if own.shape != stream.shape or tuple(shape) != target.shape:
            return
        slope = _slope(target.outputs, target.rows_of(own)[:, target.stays])
        if slope is not None:
            rows = target.rows_of(stream)[:, target.stays]
            self.found[reader] = replace(target, stream=Stream(source, rows, slope))

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Keep what a contraction gives; of one that lost nothing too: what it reads went wrong before."""
        op, args, kwargs = self._call
        read = [o for o in node.operands if not self.record.nodes[node.sources[o.position][0]].parametric]
        if node.contracts and node.produced and len(read) == 1:
            why = self._keep(node, op.spec.rows, op.arguments(args, kwargs), read[0], out)
            self.skipped += [why] if why else []
        return labels

    def _keep(self, node: Node, rows: Rows | None, arguments: dict[str, Any], read: Operand, out: torch.Tensor) -> str:
        """Keep what a contraction gives, or say why not; a depthwise one whose outputs go too is no matter."""
        tensors = tensors_among(arguments.values())
        added = arguments.get(rows.added) if rows is not None else None
        plain = rows is not None and arguments[rows.activation] is tensors[read.position] and rows.count(arguments)
        if rows is None or not plain or not (added is None or self._is_bias(node, added, tensors)):
            return "it is no plain matrix product or convolution"
        groups, _, entries = rows.matrix(arguments).shape
        if self.gone(read.ids).reshape(groups, -1).all(1).any():
            return ""
        if entries > MOST_ENTRIES:
            return f"it reads more than {MOST_ENTRIES:,} entries"
        _, _, produced = node.produced[0]
        most = max(_ROWS, _ROWS_PER_ENTRY * entries) // len(of_all(out)) + 1
        index = picked(rows.count(arguments), most, node.index).to(out.device)
        stays = torch.from_numpy(np.flatnonzero(~self.gone(produced))).to(out.device)
        target = Target(
            rows, memory_of(arguments[rows.weight]), index, rows.place(arguments, index), tuple(out.shape), produced,
            stays, torch.zeros(0),
        )  # fmt: skip
        # What is added comes on top of the fit too, or gives way to its offset.
        outputs = target.rows_of(out)[:, stays]
        outputs = outputs if added is None else outputs - added.detach().to(outputs)[stays]
        self.found[node.index] = replace(target, outputs=outputs)
        self._flows[node.index] = node.index
        return ""

    def _is_bias(self, node: Node, added: torch.Tensor, tensors: list[torch.Tensor]) -> bool:
        """Whether what an operator adds is one number for each output, and a weight."""
        position = next(i for i, tensor in enumerate(tensors) if tensor is added)
        return added.ndim == 1 and self.record.nodes[node.sources[position][0]].parametric


def _slope(outputs: torch.Tensor, later: torch.Tensor) -> torch.Tensor | None:
    """What outputs are multiplied with, channel by channel, to give these but for an offset; ``None``: it is not so."""
    x, y = (t - t.mean(0) for t in (outputs, later))
    slope = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-20)
    wrong = (y - slope * x).square().sum()
    return slope if wrong <= _AFFINE * y.square().sum() else None
