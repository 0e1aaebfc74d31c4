"""The observer of the dense network: collects the coupling, under decisions taken so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from structprune.errors import RuleError, brief
from structprune.ir.operators import Operator
from structprune.ir.record import Choice, Node, Place, Record, Tie
from structprune.ir.registry import Registry, rule_name
from structprune.ir.slices import Coupling, Ids, Labels, SliceSpace
from structprune.ir.tensors import tensors_of
from structprune.ops import is_built_in
from structprune.ops.call import Effect

T = TypeVar("T")
Interpretations = Mapping[str, tuple[str, ...]]
# What a run itself leaves in a node's memory, beside what its rule remembers.
RAN = ("decided", "number", "drawn")


@dataclass(frozen=True)
class Decisions:
    """How ambiguous operators are read, and which operators freeze what reaches them.

    Attributes:
        interpretations: How to interpret operators, by source line and operator, see ``question_key``: the first that
            is possible is taken.
        reasons: Why the interpretations before these were given up.
        frozen: Reasons by mode (training or not) and node.
        held: Reasons by dimension that must stay.
        ties: Dimensions that lose the same share.
        at_least_two: Dimensions that keep at least two, because operators treat a dimension of one in another way.
    """

    interpretations: Interpretations = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[tuple[bool, int], str] = field(default_factory=dict)
    held: Mapping[Place, str] = field(default_factory=dict)
    ties: tuple[Tie, ...] = ()
    at_least_two: tuple[Place, ...] = ()

    def interpretation(self, key: str, *order: str) -> Decisions:
        """These decisions with one more interpretation, and those to fall back on where that one is not possible."""
        return replace(self, interpretations={**self.interpretations, key: order})


def question_key(node: Node, question: str) -> str:
    """Interpretations are taken per source line and operator: all blocks of a network share them."""
    return f"{node.op} {question} at {node.line}"


class Discovery:
    """Collects what the rules say of the dense network."""

    def __init__(
        self,
        space: SliceSpace,
        coupling: Coupling,
        interpretations: Interpretations,
        run: Callable[[Operator, Sequence[Any], dict[str, Any]], Any],
        *,
        training: bool,
        on_meta: bool = False,
        reasons: Mapping[str, str] = MappingProxyType({}),
        rules: Registry | None = None,
    ) -> None:
        self.on_meta = on_meta
        self.watches = True
        self.record = Record(training, on_meta, rules)
        self._space = space
        self._coupling = coupling
        self._readings = interpretations
        self._whys = reasons
        self._run = run

    def start(self, node: Node) -> None:
        """Nothing to compare with."""

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operator; keep the numbers and indices that come out, where floats are computed."""
        out = self._run(op, args, kwargs)
        if not self.on_meta:
            # Copies: an operator that writes in place may come later.
            node.memory["decided"] = [None if is_float(t) else t.clone() for t in tensors_of(out)]
            if torch.Tag.nondeterministic_seeded in op.func.tags and kwargs.get("generator") is None:
                node.memory["drawn"] = [t.clone() for t in tensors_of(out)]
            if not isinstance(out, (torch.Tensor, tuple, list)):
                node.memory["number"] = out
        return out

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Nothing to compare with."""
        return labels

    def rule_failed(self, node: Node, error: Exception) -> list[Labels]:
        """On the dense network that is a fault of the rule.

        Raises:
            RuleError: The rule is a user's.
        """
        if is_built_in(node.spec):
            raise error
        raise RuleError(f"{node.where}: {rule_name(node.spec)} failed: {brief(error)}") from error

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

    def is_placeholder(self, ids: Ids) -> bool:
        """Whether no axis of a tensor has these ids."""
        return self._space.is_placeholder(ids)

    def meets_axis(self, ids: Ids) -> bool:
        """Whether they can only leave together with slices of a tensor."""
        return self._coupling.meets_axis(ids)

    def choose(self, node: Node, question: str, interpretations: tuple[str, ...], effect: Effect) -> str:
        """The interpretation decided for this source line, else the first."""
        wanted = self._readings.get(question_key(node, question), interpretations)
        taken = next((r for r in wanted if r in interpretations), interpretations[-1])
        node.choices[question] = Choice(interpretations, taken, self._whys.get(question_key(node, question), ""))
        return taken

    def remember(self, node: Node, key: str, value: T) -> T:
        """Store for the replay."""
        node.memory[key] = value
        return value

    def expected(self, node: Node) -> Node:
        """The dense network's run is this one."""
        return node


def is_float(tensor: torch.Tensor) -> bool:
    """Whether a tensor's entries are computed rather than decided: not indices, masks or counts."""
    return tensor.is_floating_point() or tensor.is_complex()
