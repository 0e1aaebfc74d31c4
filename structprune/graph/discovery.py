"""The observer of the dense network: collects the coupling, under decisions taken so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from structprune.graph.operators import Operator
from structprune.graph.record import Node, Record
from structprune.graph.slices import Coupling, Ids, Labels, SliceSpace
from structprune.graph.tracer import source_line

T = TypeVar("T")


@dataclass(frozen=True)
class Decisions:
    """How ambiguous operators are read, and which operators freeze what reaches them.

    Attributes:
        readings: The reading by source line and operator, see ``reading_key``.
        frozen: Reasons by mode (training or not) and node.
    """

    readings: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[tuple[bool, int], str] = field(default_factory=dict)

    def reading(self, key: str, reading: str) -> Decisions:
        """These decisions with one more reading."""
        return replace(self, readings={**self.readings, key: reading})


def reading_key(line: str, op: str) -> str:
    """Readings are taken per source line and operator: all blocks of a network share them."""
    return f"{op} at {line}"


class Discovery:
    """Collects what the rules say of the dense network."""

    def __init__(
        self,
        space: SliceSpace,
        coupling: Coupling,
        decisions: Decisions,
        run: Callable[[Operator, Sequence[Any], dict[str, Any]], Any],
        *,
        training: bool,
        keeps_constants: bool = False,
    ) -> None:
        self.keeps_constants = keeps_constants
        self.record = Record(training)
        self._space = space
        self._coupling = coupling
        self._decisions = decisions
        self._run = run

    def start(self, node: Node) -> None:
        """Nothing to compare with."""

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operator."""
        return self._run(op, args, kwargs)

    def finish(self, node: Node, out: Any, operands: list[Labels], labels: list[Labels]) -> list[Labels]:
        """Freeze what reaches and what leaves an operator of which the resolution said so."""
        reason = self._decisions.frozen.get((self.record.training, node.index))
        if reason is not None:
            for value in (*operands, *labels):
                for ids in value:
                    if ids is not None:
                        self.freeze(node, ids, reason)
        return labels

    def output(self, ids: Ids) -> None:
        """A dimension of an output stays."""
        self._coupling.freeze(ids, "is a dimension of the model's output")

    def couple(self, node: Node, left: Ids, right: Ids) -> None:
        """Add to the coupling."""
        self._coupling.couple(left, right)

    def freeze(self, node: Node, ids: Ids, reason: str) -> None:
        """Freeze, with the place in the reason."""
        self._coupling.freeze(ids, f"{reason} ({node.where})")

    def fresh(self, node: Node, count: int) -> Ids:
        """New ids."""
        return self._space.fresh(count)

    def is_filling(self, ids: Ids) -> bool:
        """Whether no axis of a tensor has these ids."""
        return self._space.is_filling(ids)

    def choose(self, node: Node, readings: tuple[str, ...]) -> str:
        """The reading decided for this source line, else the first."""
        node.line = source_line()
        node.readings = readings
        chosen = self._decisions.readings.get(reading_key(node.line, node.op), readings[0])
        node.reading = chosen if chosen in readings else readings[-1]
        return node.reading

    def remember(self, node: Node, key: str, value: T) -> T:
        """Store for the replay."""
        node.memory[key] = value
        return value

    def expected(self, node: Node) -> Node:
        """The dense network's run is this one."""
        return node
