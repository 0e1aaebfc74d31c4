"""A run of the dense network, with its own weights, that masks the removed channels where contractions read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from structprune.ir.operators import Operator
from structprune.ir.record import PARAMETER, Node, Operand
from structprune.ir.slices import Coupling, Labels, SliceSpace
from structprune.ir.tensors import memory_of, tensors_among, tensors_of
from structprune.meta.costs import is_counted
from structprune.ops.boundary import LEAVES, OPAQUE
from structprune.plan.plan import Plan
from structprune.tracing.discovery import is_float
from structprune.verify.masking import filled
from structprune.verify.planned import Planned


class WritesWeightsError(Exception):
    """The forward writes into a weight, whose memory is the user's."""


class MaskedDense(Planned):
    """Zeroes what is removed in the activations that enter a contraction: all that later ones read derives from there.

    Attributes:
        mixed: Operators that take a statistic over removed channels, which no mask takes back.
        draws: Operators that draw random numbers.
        dtypes: The dtypes of what operators returned.
        decides: Whether integers, truth values or steps are computed from numbers: a route, an order, a mask.
        lent: The memory that the run must leave as it is: it raises ``WritesWeightsError`` before it would write.
    """

    def __init__(self, space: SliceSpace, coupling: Coupling, plan: Plan, labels: Mapping[str, Labels]) -> None:
        super().__init__(space, coupling, plan, Operator.run)
        self.mixed: list[str] = []
        self.draws: list[str] = []
        self.dtypes: set[torch.dtype] = set()
        self.decides = False
        self.lent: frozenset[int] = frozenset()
        self._of_weights = labels

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator on masked activations, if it contracts."""
        if op.in_place or op.out_variant or op.writes or op.name in (LEAVES, OPAQUE):
            written = tensors_among((*args[:1], *(v for k, v in kwargs.items() if k not in op.unchanging)))
            # Nobody knows what an opaque module writes into.
            written += tensors_among(args) if op.name == OPAQUE else op.results(args, kwargs, None)
            if any(memory_of(tensor) in self.lent for tensor in written):
                raise WritesWeightsError
        if torch.Tag.nondeterministic_seeded in op.func.tags:
            self.draws.append(node.where)
        if is_counted(op):
            # One operand is enough: what is multiplied with zero is gone. Where the activation is a constant, which
            # may shrink with what it meets, it is the weight.
            activations = [not self.record.nodes[source].parametric for source, _ in node.sources]
            masked = self._masked(node, [i for i, is_one in enumerate(activations) if is_one], args, kwargs)
            weights = [i for i, is_one in enumerate(activations) if not is_one]
            args, kwargs = masked or self._masked(node, weights, args, kwargs) or (args, kwargs)
        out = super().run(node, op, args, kwargs)
        self.dtypes.update(tensor.dtype for tensor in tensors_of(out))
        if not self.decides and any(map(is_float, tensors_among((*args, *kwargs.values())))):
            decided = not all(map(is_float, tensors_of(out))) or not isinstance(out, (torch.Tensor, tuple, list))
            self.decides = decided or op.spec.has_steps
        return out

    def _masked(
        self, node: Node, positions: Sequence[int], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]] | None:
        """The arguments with what is removed of some tensors set to zero; ``None`` if nothing is."""
        found = False
        for position in positions:
            for dim, ids in enumerate(self._labels_of(*node.sources[position])):
                if ids is not None and self.gone(ids).any():
                    found = True
                    args, kwargs = filled(args, kwargs, Operand(position, dim, ids), self.gone(ids), 0.0)
        return (args, kwargs) if found else None

    def _labels_of(self, source: int, output: int) -> Labels:
        node = self.record.nodes[source]
        if node.is_leaf:
            return self._of_weights.get(node.op.removeprefix(PARAMETER), ())
        return node.outputs[output].labels

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Note what masks cannot undo."""
        if any(self.gone(operand.ids).any() for operand in node.mixed):
            self.mixed.append(node.where)
        return labels
