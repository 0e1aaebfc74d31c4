"""What a traced forward leaves behind: one node per operator, and what it did to the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from structprune.graph.slices import Ids, Labels

Shape = tuple[int, ...]


@dataclass(slots=True)
class Value:
    """What is known of one tensor in one run: its labels, the node that made it, whether only weights went in."""

    labels: Labels
    node: int
    output: int
    parametric: bool
    run: object


@dataclass(frozen=True, slots=True)
class Output:
    """Shape, dtype and labels of one tensor that an operator returned."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    labels: Labels


@dataclass(frozen=True, slots=True)
class Operand:
    """A labelled dimension of an operator's tensor number ``position`` (in the order of its arguments)."""

    position: int
    dim: int
    ids: Ids


@dataclass(frozen=True, slots=True)
class SizeHeld:
    """A size that an operator was given and that follows ``ids``; a module may hold it as ``name``."""

    name: str
    entry: int | None
    ids: Ids


@dataclass(slots=True)
class Node:
    """One operator of a traced forward.

    Attributes:
        op: The operator without its overload, such as ``"aten::convolution"``.
        module: Path of the innermost module that was running.
        parents: Nodes whose outputs it read.
        parametric: Whether it derives from parameters and buffers alone.
        shapes: Shapes of its tensor arguments.
        contracts: Whether it sums over a dimension shared by two operands.
        operands: Labelled dimensions that the contraction sums over.
        produced: Where a channel begins: the labels that a parametric operand gives to the output.
        mixed: Labelled dimensions whose entries it mixes, by a statistic over them.
        reduced: Labels that end in a reduction.
        sources: For each tensor argument the node that made it, and which of its outputs it is.
        replay: For a parametric node: computes it again from other weights.
        constants: Small real tensors among its operands and outputs, where floats are not computed:
            they may hold a number that was computed from a size.
        writes: Whether it writes into its first operand.
        returns_list: Whether it returns several tensors, or a list of one.
        places: Positions that it was given along dimensions without labels: no shape shows them.
        readings: The ways in which it may be read, best first; ``reading`` is the one taken.
    """

    index: int
    op: str
    module: str
    parents: tuple[int, ...]
    parametric: bool
    shapes: list[Shape]
    outputs: list[Output] = field(default_factory=list)
    scalars: tuple[Any, ...] = ()
    constants: list[torch.Tensor] = field(default_factory=list)
    writes: bool = False
    returns_list: bool = False
    places: tuple[Any, ...] = ()
    contracts: bool = False
    operands: list[Operand] = field(default_factory=list)
    produced: list[tuple[int, int, Ids]] = field(default_factory=list)
    mixed: list[Operand] = field(default_factory=list)
    reduced: list[Ids] = field(default_factory=list)
    pieces: list[Ids] = field(default_factory=list)
    sizes: list[SizeHeld] = field(default_factory=list)
    fresh: list[Ids] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    line: str = ""
    readings: tuple[str, ...] = ()
    reading: str = ""
    macs: int = 0
    replay: Callable[[Callable[[int, int], torch.Tensor]], Any] | None = None
    sources: tuple[tuple[int, int], ...] = ()

    @property
    def where(self) -> str:
        """The operator and the module it ran in, for messages."""
        module = self.module or "the model's own forward"
        return f"{self.op.removeprefix('aten::')} in {module}"


@dataclass(slots=True)
class Record:
    """A traced forward: its nodes in order, and the nodes behind its outputs."""

    training: bool
    nodes: list[Node] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    results: list[Any] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the contractions."""
        return sum(node.macs for node in self.nodes)
