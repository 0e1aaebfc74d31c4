"""Means and mean squares of what contractions give, with and without the removed channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from structprune.ir.operators import Operator
from structprune.ir.record import Node
from structprune.ir.slices import Coupling, Ids, Labels, SliceSpace
from structprune.meta.pseudo import fill
from structprune.plan.plan import Plan
from structprune.verify.masking import filled
from structprune.verify.planned import Planned

Moments = npt.NDArray[np.float64]


class MomentReader(Planned):
    """Runs the dense network and measures its contractions that read removed channels.

    Attributes:
        moments: By node, for every output channel (columns): mean and mean square, then both without the
            removed channels.
        channels: The labels of those output channels.
        activations: The node that made what the contraction reads.
    """

    def __init__(self, space: SliceSpace, coupling: Coupling, plan: Plan, quantile: int | None) -> None:
        super().__init__(space, coupling, plan, Operator.run)
        self.moments: dict[int, Moments] = {}
        self.channels: dict[int, Ids] = {}
        self.activations: dict[int, int] = {}
        self._quantile = quantile
        self._call: tuple[Operator, Sequence[Any], dict[str, Any]]

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operator; a batch norm gives a quantile of what it gives in a trained network."""
        out = super().run(node, op, args, kwargs)
        self._call = op, args, kwargs
        if op.spec.normalises and self._quantile is not None:
            fill(out, op.arguments(args, kwargs), node.index, self._quantile)
        return out

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Measure what comes out, if weights read any removed channels."""
        op, args, kwargs = self._call
        read = [o for o in node.operands if not self._is_weight(node, o.position)]
        # A mean of complex numbers fits no bias: their absolute values are what is read of them, as a rule.
        if not (node.contracts and node.produced and read) or op.in_place or out.is_complex():
            return labels
        gone = self.gone(read[0].ids)
        _, _, produced = node.produced[0]
        along = [dim for dim, ids in enumerate(labels[0]) if ids is not None and np.array_equal(ids, produced)]
        if gone.any() and along and out.numel():
            args, kwargs = filled(args, kwargs, read[0], gone, 0.0)
            both = (out, op.func(*args, **kwargs))
            self.moments[node.index] = np.array([m for t in both for m in _moments(t, along[0])])
            self.channels[node.index] = produced
            self.activations[node.index] = node.sources[read[0].position][0]
        return labels

    def _is_weight(self, node: Node, position: int) -> bool:
        return self.record.nodes[node.sources[position][0]].parametric


def _moments(tensor: torch.Tensor, along: int) -> tuple[Moments, Moments]:
    """Mean and mean square over all dimensions but one."""
    rows = tensor.detach().double().movedim(along, 0).flatten(1) if tensor.ndim > 1 else tensor.double()[:, None]
    return rows.mean(1).cpu().numpy(), rows.square().mean(1).cpu().numpy()
