"""What a traced forward leaves behind: one node per operator, and what it did to the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch

from structprune.ir.operators import Operator, OperatorSpec
from structprune.ir.registry import Registry
from structprune.ir.slices import Ids, Labels

_MASKS = (torch.bool, torch.uint8)

Shape = tuple[int, ...]
Constant: TypeAlias = "torch.Tensor | Literal['large'] | None"
LARGE: Final = "large"
# In front of the name of a tensor that the model holds, where a record has the name of an operator.
PARAMETER: Final = "parameter::"
# Of what no operator made.
NO_OPERATOR: Final = OperatorSpec("")


@dataclass(frozen=True, slots=True)
class Place:
    """A dimension of one node's output (or operand) number ``index``: every trace of a network has it."""

    training: bool
    node: int
    output: bool
    index: int
    dim: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """The first ``length`` slices along a dimension of a parameter or buffer."""

    tensor: str
    dim: int
    length: int


@dataclass(frozen=True, slots=True)
class Tie:
    """Two dimensions of which the model takes one's size for the other's: both lose the same share."""

    left: Place | Stretch
    right: Place | Stretch


@dataclass(slots=True)
class Value:
    """What is known of one tensor in one run: its labels, the node that made it, and what went in.

    ``parametric``: only weights. ``constant``: nothing that the model was called with, and no weight.
    """

    labels: Labels
    node: int
    output: int
    parametric: bool
    run: object
    constant: bool = False


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


class Asked(NamedTuple):
    """One call of an operator: its arguments, the tensors among them, and what it returned."""

    operator: Operator
    arguments: dict[str, Any]
    tensors: list[torch.Tensor]
    out: Any


@dataclass(frozen=True, slots=True)
class Choice:
    """The ways in which an operator may be read, best first, the one taken, and why others were given up."""

    interpretations: tuple[str, ...]
    taken: str
    reason: str = ""


@dataclass(slots=True)
class Node:
    """One operator of a traced forward.

    Attributes:
        op: The operator without its overload, such as ``"aten::convolution"``.
        module: Path of the innermost module that was running.
        parents: Nodes whose outputs it read.
        parametric: Whether it derives from parameters and buffers alone.
        shapes: Shapes of its tensor arguments.
        unchanging: The arguments that must not change with a cut, by name.
        contracts: Whether it sums over a dimension shared by two operands.
        operands: Labelled dimensions that the contraction sums over.
        produced: Where a channel begins: the labels that a parametric operand gives to the output.
        batched: Labels along which a contraction runs separately: attention's heads.
        mixed: Labelled dimensions whose entries it mixes, by a statistic over them.
        reduced: Labels that end in a reduction.
        sources: For each tensor argument the node that made it, and which of its outputs it is.
        replay: For a parametric node: computes it again from other weights.
        constants: The values of its operands and outputs that are constants: they may hold a number that was computed
            from a size. ``None`` for what is no constant, ``LARGE`` where they are not kept.
        writes: Whether it writes into what it is given.
        returns_list: Whether it returns several tensors, or a list of one.
        places: Positions that it was given along dimensions without labels: no shape shows them.
        choices: What it asked of how it is to be read, by a name for each question.
        asked: What its rule saw, without values: the rule can be asked again under other interpretations.
        is_leaf: Whether no operator made its tensor: a parameter, a buffer, an input or a constant.
        not_filled: Its tensors, by position, that lie in memory which no operator filled.
        fails: Whether it raised an error, and the model's code went on.
        spec: What is known of the operator.
    """

    index: int
    op: str
    module: str
    parents: tuple[int, ...]
    parametric: bool
    shapes: list[Shape]
    outputs: list[Output] = field(default_factory=list)
    unchanging: tuple[tuple[str, Any], ...] = ()
    constants: list[Constant] = field(default_factory=list)
    writes: bool = False
    returns_list: bool = False
    places: tuple[Any, ...] = ()
    contracts: bool = False
    operands: list[Operand] = field(default_factory=list)
    produced: list[tuple[int, int, Ids]] = field(default_factory=list)
    batched: list[Ids] = field(default_factory=list)
    mixed: list[Operand] = field(default_factory=list)
    reduced: list[Ids] = field(default_factory=list)
    pieces: list[Ids] = field(default_factory=list)
    sizes: list[SizeHeld] = field(default_factory=list)
    fresh: list[Ids] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    line: str = ""
    choices: dict[str, Choice] = field(default_factory=dict)
    macs: int = 0
    replay: Callable[[Callable[[int, int], torch.Tensor]], Any] | None = None
    sources: tuple[tuple[int, int], ...] = ()
    asked: Asked | None = None
    is_leaf: bool = False
    not_filled: tuple[int, ...] = ()
    fails: bool = False
    spec: OperatorSpec = NO_OPERATOR

    @property
    def where(self) -> str:
        """The operator and the module it ran in, for messages."""
        module = self.module or "the model's own forward"
        return f"{self.op.removeprefix('aten::')} in {module}"


@dataclass(slots=True)
class Record:
    """A traced forward: its nodes in order, and which of their outputs (node, index) it returned."""

    training: bool
    on_meta: bool = False
    rules: Registry | None = None
    nodes: list[Node] = field(default_factory=list)
    returned: list[tuple[int, int]] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    # Whether Python code did more with tensors than to call operators, see ``Watch``, or the forward read constants
    # that it holds: it may hold others for other sizes, or make them then.
    needs_watching: bool = False
    # Whether tensors came from code that the trace does not see (NumPy, a kernel): what that code reads is not known.
    from_outside: bool = False
    results: list[torch.Tensor] = field(default_factory=list)

    def labels_at(self, place: Place) -> Ids | None:
        """The labels of a dimension of an output or operand."""
        node = self.nodes[place.node]
        if place.output:
            return node.outputs[place.index].labels[place.dim]
        source, output = node.sources[place.index]
        outputs = self.nodes[source].outputs
        return outputs[output].labels[place.dim] if outputs else None

    def labelled(self, node: Node) -> Iterator[tuple[Place, Ids]]:
        """The labelled dimensions of a node's outputs, then those of its operands."""
        for index, output in enumerate(node.outputs):
            for dim, ids in enumerate(output.labels):
                if ids is not None:
                    yield Place(self.training, node.index, True, index, dim), ids
        for position, (source, index) in enumerate(node.sources):
            outputs = self.nodes[source].outputs
            if outputs:
                for dim, ids in enumerate(outputs[index].labels):
                    if ids is not None:
                        yield Place(self.training, node.index, False, position, dim), ids

    @property
    def reads_values(self) -> bool:
        """Whether the forward's way, or a shape in it, depends on values that were computed."""
        return any(node.spec.reads_values or self._selects_by_mask(node) for node in self.nodes)

    def _selects_by_mask(self, node: Node) -> bool:
        """Whether an operator takes as many entries as a mask, which was computed, has."""
        if node.op != "aten::index":
            return False
        made = [(self.nodes[source].outputs, output) for source, output in node.sources[1:]]
        return any(outputs and outputs[output].dtype in _MASKS for outputs, output in made)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the contractions, which are counted in evaluation."""
        return sum(node.macs for node in self.nodes)
