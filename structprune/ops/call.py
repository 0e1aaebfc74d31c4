"""What a rule sees of one operator call, and what it can say about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import torch

from structprune.ir.operators import Operator
from structprune.ir.record import Node, Operand, Shape, SizeHeld, Value
from structprune.ir.slices import Ids, Labels
from structprune.ir.tensors import tensors_of

T = TypeVar("T")
Effect: TypeAlias = "Callable[[str], tuple[Ids, Ids | None] | None]"


class Recorder(Protocol):
    """Where a call's statements go: into a new coupling, or into a comparison with a known one."""

    def couple(self, node: Node, left: Ids, right: Ids) -> None:
        """Take ``left[i]`` and ``right[i]`` as one channel."""

    def freeze(self, node: Node, ids: Ids, reason: str) -> None:
        """Take ``ids`` as slices that must stay."""

    def fresh(self, node: Node, count: int) -> Ids:
        """Ids for a dimension of ``count`` that may shrink with whatever it meets."""

    def is_placeholder(self, ids: Ids) -> bool:
        """Whether no axis of a tensor has these ids."""

    def meets_axis(self, ids: Ids) -> bool:
        """Whether, so far, they have met an axis of a tensor."""

    def choose(self, node: Node, question: str, interpretations: tuple[str, ...], effect: Effect) -> str:
        """One of the ways in which the operator can be read; it may ask several questions."""

    def remember(self, node: Node, key: str, value: T) -> T:
        """What the dense network's run of this operator stored under ``key`` (there: ``value``)."""

    def expected(self, node: Node) -> Node:
        """The dense network's run of this operator; decisions are taken on its shapes."""


class Call:
    """One operator call. Shapes are those of the dense network's run, labels those of this one."""

    def __init__(
        self,
        recorder: Recorder,
        operator: Operator,
        arguments: dict[str, Any],
        tensors: list[torch.Tensor],
        values: list[Value],
        node: Node,
        out: Any,
    ) -> None:
        self._recorder = recorder
        self._operator = operator
        self._arguments = arguments
        self._tensors = tensors
        self._values = values
        self._dense = recorder.expected(node)
        self.node = node
        self.out = out

    def of_values(self, written: Sequence[torch.Tensor]) -> Call:
        """The call without the tensors that it writes its results into (``out=``), which come last."""
        count = len(self._tensors) - len(written)
        arguments = self._operator, self._arguments, self._tensors[:count], self._values[:count]
        return Call(self._recorder, *arguments, self.node, self.out)

    def __getitem__(self, name: str) -> Any:
        """The argument called ``name`` in the operator's schema, or its default."""
        if name in self._arguments:
            return self._arguments[name]
        return self._operator.defaults[name]

    def __contains__(self, name: str) -> bool:
        """Whether the operator's schema has an argument called ``name``."""
        return name in self._operator.defaults

    @property
    def op(self) -> str:
        """The operator's name without namespace, overload and underscore."""
        return self._operator.name.removeprefix("aten::")

    @property
    def in_place(self) -> bool:
        """Whether the operator changes its first operand."""
        return self._operator.in_place

    @property
    def writes(self) -> bool:
        """Whether the operator writes into arguments besides its first."""
        return bool(self._operator.writes)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensor arguments in order."""
        return self._tensors

    def position(self, tensor: torch.Tensor) -> int:
        """The index of ``tensor`` among the tensor arguments."""
        for index, own in enumerate(self._tensors):
            if own is tensor:
                return index
        raise AssertionError("not an argument of this operator")

    def labels(self, tensor: torch.Tensor) -> Labels:
        """The labels of a tensor argument."""
        return self._values[self.position(tensor)].labels

    def parametric(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor argument derives from parameters and buffers alone."""
        return self._values[self.position(tensor)].parametric

    def shape(self, tensor: torch.Tensor) -> Shape:
        """The shape that a tensor argument has in the dense network."""
        return self._dense.shapes[self.position(tensor)]

    def out_shape(self, index: int = 0) -> Shape:
        """The shape that an output has in the dense network."""
        if self._dense is not self.node:
            return self._dense.outputs[index].shape
        return tuple(tensors_of(self.out)[index].shape)

    def couple(self, left: Ids | None, right: Ids | None, why: str) -> None:
        """Say that two dimensions lose the same indices; a dimension without labels freezes the other."""
        if left is not None and right is not None:
            self._recorder.couple(self.node, left, right)
        elif left is not None:
            self.freeze(left, why)
        elif right is not None:
            self.freeze(right, why)

    def freeze(self, ids: Ids | None, reason: str) -> None:
        """Say that slices must stay."""
        if ids is not None:
            self._recorder.freeze(self.node, ids, reason)

    def freeze_all(self, reason: str) -> None:
        """Say that every labelled dimension of every tensor argument must stay."""
        for value in self._values:
            for ids in value.labels:
                self.freeze(ids, reason)

    def fresh(self, count: int) -> Ids:
        """Labels for a dimension whose entries are all alike: it may shrink with its neighbours."""
        ids = self._recorder.fresh(self.node, count)
        self.node.fresh.append(ids)
        return ids

    def fixed(self, count: int, reason: str) -> Ids:
        """Labels for a stretch of a dimension that must stay as it is."""
        ids = self.fresh(count)
        self.freeze(ids, reason)
        return ids

    def is_placeholder(self, ids: Ids) -> bool:
        """Whether these are labels of ``fresh``, which no tensor's axis has."""
        return self._recorder.is_placeholder(ids)

    def meets_axis(self, ids: Ids) -> bool:
        """Whether labels of ``fresh`` have met an axis of a tensor by now; of the dense network only."""
        return self._recorder.meets_axis(ids)

    def contract(self, tensor: torch.Tensor, dim: int) -> None:
        """Say that the operator sums over this dimension of an operand."""
        self.node.contracts = True
        ids = self.labels(tensor)[dim]
        if ids is not None:
            self.node.operands.append(Operand(self.position(tensor), dim, ids))

    def produce(self, tensor: torch.Tensor, dim: int) -> Ids | None:
        """Hand a dimension of an operand to the output; channels begin there if it is a weight."""
        self.node.contracts = True
        ids = self.labels(tensor)[dim]
        if ids is not None and self.parametric(tensor):
            self.node.produced.append((self.position(tensor), dim, ids))
        return ids

    def batch(self, ids: Ids | None) -> Ids | None:
        """Say that the operator contracts separately for every entry along a dimension; returns it."""
        if ids is not None:
            self.node.batched.append(ids)
        return ids

    def mix(self, tensor: torch.Tensor, dim: int) -> None:
        """Say that the operator takes a statistic over this dimension."""
        ids = self.labels(tensor)[dim]
        if ids is not None:
            self.node.mixed.append(Operand(self.position(tensor), dim, ids))

    def reduce(self, tensor: torch.Tensor, dim: int) -> None:
        """Say that this dimension ends in a statistic."""
        ids = self.labels(tensor)[dim]
        if ids is not None:
            self.mix(tensor, dim)
            self.node.reduced.append(ids)

    def piece(self, ids: Ids | None) -> Ids | None:
        """Say that a dimension was cut into pieces, of which this is one; returns it."""
        if ids is not None:
            self.node.pieces.append(ids)
        return ids

    def size(self, name: str, ids: Ids | None, entry: int | None = None) -> None:
        """Say that an argument called ``name`` (its ``entry``) counts ``ids``: a module may hold it."""
        if ids is not None:
            self.node.sizes.append(SizeHeld(name, entry, ids))

    def choose(self, *interpretations: str, question: str = "", effect: Effect = lambda _: None) -> str:
        """Ask which of several interpretations to take; they are given best first.

        ``effect`` says of an interpretation which slices it couples, or which (with ``None``) must stay.
        """
        return (
            interpretations[0]
            if len(interpretations) == 1
            else self._recorder.choose(self.node, question, interpretations, effect)
        )

    def remember(self, key: str, value: T) -> T:
        """Keep a decision of the dense run, or get the one it took."""
        return self._recorder.remember(self.node, key, value)


def normalised(dim: int, ndim: int) -> int:
    """A dimension index that counts from the front."""
    return dim + ndim if dim < 0 else dim


def dims_of(dim: int | Sequence[int] | None, ndim: int) -> list[int]:
    """The dimensions that a reduction runs over; ``None`` and an empty list mean all of them."""
    if dim is None or (not isinstance(dim, int) and not len(dim)):
        return list(range(ndim))
    return [normalised(d, ndim) for d in ([dim] if isinstance(dim, int) else dim)]
