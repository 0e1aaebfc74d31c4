"""The observer of a network that should behave as one already traced: every operator is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from structprune.compat import StorageWeakRef
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Output, Record
from structprune.ir.slices import Ids, Labels, Mask, SliceSpace
from structprune.ir.tensors import tensors_of
from structprune.ops.boundary import LEAVES
from structprune.ops.call import Effect

T = TypeVar("T")
Runner = Callable[[Node, Operator, Sequence[Any], dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a cut network does something else than the dense one with fewer channels.

    ``of_number``: it computes with another number, which depends on a size. ``numbers``: what an operand that is a
    number is in the cut network, and in the dense one.
    """

    training: bool
    node: Node
    text: str
    of_number: bool = False
    numbers: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.node.where}: {self.text}"


class DivergenceError(Exception):
    """The cut network runs other operators than the dense one."""


class Replay:
    """Compares a run with the record of the dense network, seen through the slices that are present.

    Where an operator's shape differs from the prediction, the predicted one is handed on: one run
    then lists every mismatch. With ``any_numbers`` operands that are numbers may differ. Random numbers are those of
    the dense network, unless it ``draws_anew``.
    """

    def __init__(
        self,
        dense: Record,
        space: SliceSpace,
        roots: Ids,
        stuck: Mask | None,
        present: Mask,
        run: Runner,
        *,
        any_numbers: bool = False,
        draws_anew: bool = False,
    ) -> None:
        self._space = space
        self.record = Record(dense.training, rules=dense.rules)
        self.on_meta = dense.on_meta
        self.watches = dense.needs_watching
        self.mismatches: list[Mismatch] = []
        self._expected = [n for n in dense.nodes if not n.is_leaf]
        self._next = 0
        self._matched: Node | None = None
        self._roots = roots
        self._stuck = stuck
        self._present = present
        self._run = run
        self._any_numbers = any_numbers
        self._draws_anew = draws_anew
        self._reads_values = dense.reads_values
        self._kept: dict[int, tuple[Ids, Ids]] = {}
        self._fresh_taken = 0
        self._left = False
        self._dense = dense.nodes
        self._returned = {index for index, _ in dense.returned}
        # What the dense network copies; to hold on to it would take gigabytes where values are computed.
        self._copied = {node.sources[0][0] for node in dense.nodes if node.op == "aten::clone"}
        self._storages: dict[int, list[StorageWeakRef]] = {}
        self._shared: list[StorageWeakRef] = []
        self._matches: dict[int, int] = {}

    def start(self, node: Node) -> None:
        """Find the dense network's run of this operator."""
        name = node.spec.same_as
        while True:
            expected = self._expected[self._next] if self._next < len(self._expected) else None
            if expected is not None and expected.spec.same_as == name:
                break
            if node.spec.keeps_values:
                self._matched = None
                return
            if expected is None or not expected.spec.keeps_values:
                text = f"the cut network runs {node.op} here" if expected else f"the cut network also runs {node.op}"
                self.mismatch(expected or self._expected[-1], text)
                raise DivergenceError(text)
            if expected.op == "aten::clone":
                # Of a dimension of one every order is contiguous: what was a copy becomes a view.
                self._shared += self._storages.get(expected.sources[0][0], [])
            self._next += 1
        self._next += 1
        self._matched = expected
        self._fresh_taken = 0
        self._matches[node.index] = expected.index
        self._compare_sources(node, expected)
        settings = dict(expected.unchanging)
        self._left |= expected.op == LEAVES
        for name, got in node.unchanging:
            dense = settings.get(name, got)
            if self._left and isinstance(got, float) and isinstance(dense, float):
                continue  # other code may have computed it from values, which differ
            # By their text: a NaN equals itself, a flag is no number.
            if got is not dense and repr(got) != repr(dense):
                kind = "number" if isinstance(got, (int, float, complex)) and type(got) is not bool else "argument"
                text = f"its {kind} {name!r} becomes {got}, was {dense}: it depends on the size"
                real = name == "other" and isinstance(got, (int, float)) and isinstance(dense, (int, float))
                if not (real and self._any_numbers):
                    self.mismatch(expected, text, of_number=True, numbers=(got, dense) if real else None)

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator; hand on what was predicted where something else comes out."""
        dense = self._matched
        if op.in_place and self._shared and dense is not None:
            memory = StorageWeakRef(args[0].untyped_storage())  # type: ignore[no-untyped-call]
            if any(s.cdata == memory.cdata and not s.expired() for s in self._shared):  # type: ignore[no-untyped-call]
                self.mismatch(dense, "writes into what was a copy in the dense network, and is none any more")
        try:
            out = self._run(dense or node, op, args, kwargs)
            if dense is not None and dense.fails:
                self.mismatch(dense, "fails in the dense network, and does not with other sizes")
        except Exception as error:
            if dense is None or op.in_place or op.writes or dense.fails:
                raise
            self.mismatch(dense, f"fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return self._predicted(dense)
        if dense is not None and "drawn" in dense.memory and not (self._draws_anew or op.out_variant or op.writes):
            out = self._as_drawn(dense, op, args, out)
        if dense is not None and self._reads_values:
            out = self._as_decided(dense, op, out)
        if dense is not None:
            shapes = [tuple(t.shape) for t in op.results(args, kwargs, out)]
            predicted = [self.predicted_shape(o) for o in dense.outputs]
            if shapes != predicted:
                self.mismatch(dense, f"returns {_shapes(shapes)} where {_shapes(predicted)} was expected")
                return out if op.in_place or op.writes else self._predicted(dense)
        return out

    def _as_decided(self, dense: Node, op: Operator, out: Any) -> Any:
        """The numbers, masks and indices of the dense network: a cut network may not take another way.

        Its values are others where it mixes channels, and a branch, a route or a size that depends on
        them would be another, too.
        """
        constant = [c is not None for c in dense.constants]  # what is made of sizes is compared instead
        if "number" in dense.memory:
            return out if constant and all(constant) else dense.memory["number"]
        decided = dense.memory.get("decided", [])
        each = list(out) if isinstance(out, (list, tuple)) else [out]
        for index, (known, output) in enumerate(zip(decided, dense.outputs, strict=False)):
            if any(constant[len(dense.sources) :]):
                break
            if known is not None and tuple(known.shape) == self.predicted_shape(output):
                each[index] = each[index].copy_(known) if op.in_place else known.clone()
        return type(out)(each) if isinstance(out, (list, tuple)) else each[0]

    def _as_drawn(self, dense: Node, op: Operator, args: Sequence[Any], out: Any) -> Any:
        """The random numbers of the dense network, of the channels that are present: fewer would be others."""
        each = list(out) if isinstance(out, (list, tuple)) else [out]
        known = [self.present_of(t, o) for t, o in zip(dense.memory["drawn"], dense.outputs, strict=True)]
        if [t.shape for t in each] != [t.shape for t in known]:
            return out
        if op.name == "aten::native_dropout":
            kept, scale = known[1], 1 / (1 - float(args[1])) if args[1] < 1 else 0.0
            return args[0] * kept * scale, kept
        if args and isinstance(args[0], torch.Tensor) and not (op.in_place or op.name.endswith("_like")):
            return out  # drawn from what an operand says
        made = [o.copy_(t) for o, t in zip(each, known, strict=True)]
        return type(out)(made) if isinstance(out, (list, tuple)) else made[0]

    def present_of(self, tensor: torch.Tensor, output: Output) -> torch.Tensor:
        """The channels of a dense network's tensor that are present."""
        for dim, ids in enumerate(output.labels):
            if ids is not None:
                left = np.flatnonzero(self._present[ids])
                if len(left) != tensor.shape[dim]:
                    tensor = tensor.index_select(dim, torch.from_numpy(left).to(tensor.device))
        return tensor

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Compare the labels with the dense network's, and go on with those."""
        dense = self._matched
        if dense is None:
            return labels
        if dense.index in self._copied:
            self._storages[dense.index] = [StorageWeakRef(t.untyped_storage()) for t in tensors_of(out)]  # type: ignore[no-untyped-call]
        dtypes = [t.dtype for t in tensors_of(out)]
        if dtypes != [o.dtype for o in dense.outputs[: len(dtypes)]]:
            self.mismatch(dense, f"computes in {dtypes[0]}, was {dense.outputs[0].dtype}: it depends on the size")
        self._compare_constants(node, dense)
        if node.places != dense.places:
            self.mismatch(dense, f"its positions become {node.places}, were {dense.places}: they depend on the size")
        expected = [tuple(None if ids is None else self.kept(ids) for ids in o.labels) for o in dense.outputs]
        for output, (got, want) in enumerate(zip(labels, expected, strict=True)):
            for dim, (ids, predicted) in enumerate(zip(got, want, strict=True)):
                if not self._same(ids, predicted):
                    self.mismatch(dense, f"output {output} holds other channels along dim {dim}")
        return expected

    def rule_failed(self, node: Node, error: Exception) -> list[Labels]:
        """The operands are not those predicted: go on as if they were."""
        dense = self.expected(node)
        if dense is node:
            raise error
        self.mismatch(dense, f"its operands do not fit: {error}")
        return [tuple(None if ids is None else self.kept(ids) for ids in o.labels) for o in dense.outputs]

    def output(self, ids: Ids) -> None:
        """Nothing to do: the labels of an output were compared."""

    def end(self) -> None:
        """Check that the dense network has no operator left that the cut one did not run."""
        left = [n for n in self._expected[self._next :] if not n.spec.keeps_values]
        if left and not self.mismatches:
            self.mismatch(left[0], "is not run by the cut network")

    def upcoming(self) -> Node:
        """The dense network's operator that comes next."""
        return self._expected[min(self._next, len(self._expected) - 1)]

    def foreseen_view(self) -> tuple[Node, tuple[int, ...]] | None:
        """The operator that comes next and the shape that it should return, if it only shapes a tensor anew."""
        if self._matched is not None and self._matched.fails:
            return None  # it fails in the dense network too, which tries something else
        for expected in self._expected[self._next :]:
            if expected.spec.same_as == "aten::view":
                return expected, self.predicted_shape(expected.outputs[0])
            if not expected.spec.keeps_values:
                break
        return None

    def mismatch(
        self, node: Node, text: str, *, of_number: bool = False, numbers: tuple[float, float] | None = None
    ) -> None:
        """Note a difference."""
        self.mismatches.append(Mismatch(self.record.training, node, text, of_number, numbers))

    def kept(self, ids: Ids) -> Ids:
        """The slices among ``ids`` that are present; arrays shared by many operators are cut once."""
        known = self._kept.get(id(ids))
        if known is None:
            mask = self._present[ids]
            known = self._kept[id(ids)] = (ids, ids if mask.all() else ids[mask])
        return known[1]

    def predicted_shape(self, output: Output) -> tuple[int, ...]:
        """The shape of a dense output without the slices that are gone."""
        return tuple(
            size if ids is None else len(self.kept(ids)) for size, ids in zip(output.shape, output.labels, strict=True)
        )

    # What the rules say.

    def couple(self, node: Node, left: Ids, right: Ids) -> None:
        """No coupling may appear that the dense network does not have."""
        if left.shape != right.shape:
            self.mismatch(self.expected(node), f"{len(left)} channels meet {len(right)}")
        elif not self._same(left, right):
            self.mismatch(self.expected(node), "couples channels that the dense network keeps apart")

    def freeze(self, node: Node, ids: Ids, reason: str) -> None:
        """Nothing may be frozen that was not."""
        if self._stuck is not None and not self._stuck[ids].all():
            self.mismatch(self.expected(node), f"a channel {reason} that does not in the dense network")

    def fresh(self, node: Node, count: int) -> Ids:
        """The ids that the dense network's run got at this place."""
        dense = self.expected(node)
        if dense is node or self._fresh_taken >= len(dense.fresh):
            return np.zeros(count, dtype=np.int64)
        self._fresh_taken += 1
        return self.kept(dense.fresh[self._fresh_taken - 1])

    def is_placeholder(self, ids: Ids) -> bool:
        """Whether no axis of a tensor has these ids."""
        return self._space.is_placeholder(ids)

    def meets_axis(self, ids: Ids) -> bool:
        """What the dense network's run remembers is asked instead."""
        return not self.is_placeholder(ids)

    def choose(self, node: Node, question: str, interpretations: tuple[str, ...], effect: Effect) -> str:
        """The interpretation that was taken for the dense network."""
        choice = self.expected(node).choices.get(question)
        return interpretations[0] if choice is None else choice.taken

    def remember(self, node: Node, key: str, value: T) -> T:
        """What the dense network's run stored."""
        return self.expected(node).memory.get(key, value)  # type: ignore[no-any-return]

    def expected(self, node: Node) -> Node:
        """The dense network's run of the operator that runs now."""
        return self._matched or node

    def _compare_sources(self, node: Node, expected: Node) -> None:
        """An operator must read what the dense network's run of it read."""
        for (index, output), (dense, of_dense) in zip(node.sources, expected.sources, strict=False):
            index, output = _origin(self.record.nodes, index, output)
            dense, of_dense = _origin(self._dense, dense, of_dense)
            own, other = self.record.nodes[index], self._dense[dense]
            if own.replay is None and own.op == other.op and own.is_leaf:
                continue
            if (self._matches.get(index), output) != (dense, of_dense):
                self.mismatch(expected, "reads another tensor than in the dense network")
                return

    def _same(self, left: Ids | None, right: Ids | None) -> bool:
        if left is right:
            return True
        if left is None or right is None or len(left) != len(right):
            return False
        return np.array_equal(left, right) or np.array_equal(self._roots[left], self._roots[right])

    def _predicted(self, dense: Node) -> Any:
        made = [torch.zeros(self.predicted_shape(o), dtype=o.dtype, device=o.device) for o in dense.outputs]
        return made[0] if len(made) == 1 and not dense.returns_list else made

    def _compare_constants(self, node: Node, dense: Node) -> None:
        """A constant that was computed from a size must not change with it.

        Constants that only meet each other are compared where what they give meets something else, or is returned.
        """
        count = len(node.sources)
        only = len(dense.constants) > count and all(c is not None for c in dense.constants)
        if only and dense.index not in self._returned:
            return
        for position, (got, expected) in enumerate(zip(node.constants, dense.constants, strict=False)):
            if (got is None) != (expected is None):
                # One is computed and the other was made of numbers, or the one of numbers is kept for a size.
                text = "a constant is another one than in the dense network: it depends on the size"
                self.mismatch(dense, text, of_number=True)
            elif not isinstance(got, torch.Tensor) or not isinstance(expected, torch.Tensor):
                continue
            elif got.shape == expected.shape and not torch.equal(got, expected):
                text = f"a constant of {got.numel()} entries becomes another one: it depends on the size"
                if got.numel() == 1:
                    text = f"a constant becomes {got.item():.6g}, was {expected.item():.6g}: it depends on the size"
                number = position < count and got.numel() == 1 and got.is_floating_point()
                if number and self._any_numbers:
                    continue
                numbers = (float(got), float(expected)) if number else None
                self.mismatch(dense, text, of_number=True, numbers=numbers)


def _origin(nodes: list[Node], index: int, output: int) -> tuple[int, int]:
    """Where a tensor comes from, operators that change no value aside."""
    while nodes[index].spec.keeps_values and nodes[index].sources:
        index, output = nodes[index].sources[0]
    return index, output


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(s)) for s in shapes)
