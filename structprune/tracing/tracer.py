"""Follows a forward operator by operator, and carries the labels of every tensor along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import nn

from structprune.compat import (
    DisableTorchFunction,
    HigherOrderOperator,
    StorageWeakRef,
    TorchDispatchMode,
    is_view,
    tree_leaves,
    tree_map_only,
)
from structprune.errors import RuleError, TraceError, brief
from structprune.ir.operators import Operator
from structprune.ir.record import LARGE, PARAMETER, Asked, Constant, Node, Output, Value
from structprune.ir.slices import Labels
from structprune.ir.tensors import memory_of, tensors_among
from structprune.meta.costs import is_counted, operator_flops
from structprune.meta.forward import module_paths, unseen
from structprune.meta.stand_ins import StandIns
from structprune.meta.watch import Watch
from structprune.ops import OPERATORS, is_built_in
from structprune.ops.boundary import LEAVES, OPAQUE
from structprune.ops.call import Call
from structprune.ops.recurrent import unfused
from structprune.tracing.arguments import comparable, places, source_line
from structprune.tracing.labelling import Observer, apply_rule

# Values this small are kept, so that a constant computed from a size can be compared with another.
_SMALL = 4096
_DRAWN = torch.Tag.nondeterministic_seeded


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a module under an observer, tensor by tensor.

    What is known of a tensor is an attribute on it, so that it goes when the tensor goes; the
    parameters and buffers are found by storage too, because ``.data`` makes a new tensor unseen.
    """

    # They arrive here too, where they are refused by name.
    supports_higher_order_operators = True

    def __init__(self, observer: Observer, device: torch.device | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer
        self._rules = observer.record.rules or OPERATORS
        self._device = device
        # A name for this run that keeps nothing alive: it is on every tensor.
        self._run = object()
        self._nodes = observer.record.nodes
        self._modules: list[str] = []
        self._values: dict[int, tuple[torch.Tensor, Value]] = {}
        self._storages: dict[int, tuple[torch.Tensor, Value, str]] = {}
        self._rewritten: dict[int, int] = {}
        self._given: dict[int, torch.Tensor] = {}
        self._unfilled: dict[int, StorageWeakRef] = {}
        self._stand_ins = StandIns()
        self._left = False
        self._computed: set[int] = set()

    def know(self, name: str, tensor: torch.Tensor, labels: Labels) -> None:
        """Give a parameter or buffer its labels."""
        node = self._leaf(f"{PARAMETER}{name}", parametric=True)
        value = Value(labels, node.index, 0, True, self._run)
        self._values[id(tensor)] = (tensor, value)
        if tensor.numel():
            self._storages[memory_of(tensor)] = (tensor, value, name)

    def give(self, values: Any) -> None:
        """Say what the model is called with: other tensors that no operator made are its own constants."""
        self._given.update((id(tensor), tensor) for tensor in tree_leaves(values) if isinstance(tensor, torch.Tensor))

    def forward(self, model: nn.Module, run: Callable[[], Any]) -> Any:
        """Call ``run`` with the modules of ``model`` under observation and return its result."""
        # The library may itself run without gradients; inference mode would hide the operators.
        watch = Watch(self._nodes.__len__, self._device, self._refuse)
        watching = watch if self._observer.watches else nullcontext()
        with torch.no_grad(), module_paths(model, self._modules), watching, self:
            try:
                return run()
            finally:
                self._observer.record.needs_watching |= watch.noticed

    def origin(self, tensor: torch.Tensor) -> tuple[int, int, Labels]:
        """The node that made a tensor, which of its outputs it is, and its labels."""
        value = self._value(tensor)
        return value.node, value.output, value.labels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator, apply its rule and label what comes out."""
        if isinstance(func, HigherOrderOperator):
            self._refuse(func.__name__)
        # What is done here, and by PyTorch within an operator, is not the model's own code, which is watched.
        with DisableTorchFunction():
            return self._traced(func, args, kwargs or {})

    def _refuse(self, operator: str) -> NoReturn:
        raise TraceError(unseen(operator, self._modules[-1] if self._modules else ""))

    def _traced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = self._rules.of(func)
        parts = unfused(op, args, kwargs)
        if parts is not None:
            with self:
                return parts(*args, **kwargs)
        arguments = op.arguments(args, kwargs)
        tensors = tensors_among(arguments.values())
        lifted = op.name == "aten::lift_fresh"  # of a Python number
        values = [self._value(t, lifted=lifted) for t in tensors]
        node = self._node(op, arguments, tensors, values)
        self._left |= op.name == LEAVES
        self._observer.start(node)
        try:
            out = self._observer.run(node, op, args, kwargs)
        except Exception:
            # The model's code may be prepared for it, and try something else.
            node.fails = True
            self._nodes.append(node)
            raise
        results = op.results(args, kwargs, out)
        node.returns_list = isinstance(out, (list, tuple))
        call = Call(self._observer, op, arguments, tensors, values, node, out)
        if self._unfilled or op.spec.values == "none":
            node.not_filled = self._not_filled(op, tensors, results)
        labels = apply_rule(self._observer, op, call, results)
        if self._observer.on_meta:
            constant = False
            node.asked = Asked(op, arguments, tensors, out)
            known = [*tensors, *results]
            if self._unfilled:
                node.constants = [None if t.is_meta or self._is_unfilled(t) else _kept(t) for t in known]
            else:
                node.constants = [None if t.is_meta else _kept(t) for t in known]
        else:
            constant = self._note_constants(node, op, arguments, tensors, values, results)
            # To hold on to the values would take gigabytes.
            node.asked = Asked(op, *self._stand_ins.of((arguments, tensors, out)))
        labels = self._observer.finish(node, out, labels)
        node.outputs = [Output(tuple(t.shape), t.dtype, t.device, la) for t, la in zip(results, labels, strict=True)]
        if node.parametric:
            sources = {id(t): s for t, s in zip(tensors, node.sources, strict=True)}
            node.replay = _replay(op, args, kwargs, sources, copies=node.writes or op.out_variant)
        if not self._observer.record.training:
            node.macs = _macs(op, args, kwargs, out)
        self._nodes.append(node)
        self._mark(node, results, labels, constant)
        for tensor in self._written(op, tensors, results):
            if is_view(tensor):
                self._rewritten[memory_of(tensor)] = node.index
                if not constant:
                    self._computed.add(memory_of(tensor))
        return out

    def _node(self, op: Operator, arguments: dict[str, Any], tensors: list[torch.Tensor], values: list[Value]) -> Node:
        """What is known of a call before it runs."""
        node = Node(
            len(self._nodes),
            op.name,
            self._modules[-1] if self._modules else "",
            tuple([v.node for v in values]) + self._rewriters(tensors),
            # What an opaque module makes of weights cannot be made again.
            bool(values) and all([v.parametric for v in values]) and op.name != OPAQUE,
            [tuple(t.shape) for t in tensors],
        )
        node.sources = tuple([(v.node, v.output) for v in values])
        node.spec = op.spec
        node.unchanging = tuple([(n, comparable(arguments.get(n, op.defaults[n]))) for n in op.unchanging])
        node.writes = op.in_place or bool(op.writes)
        if op.spec.placed:
            node.places = places({**op.defaults, **arguments}, values[0].labels)
        if op.spec.asks:
            node.line = source_line()
        return node

    def _written(self, op: Operator, tensors: list[torch.Tensor], results: list[torch.Tensor]) -> list[torch.Tensor]:
        """The arguments that an operator wrote into, but those that take its results (``out=``)."""
        others = [t for t in results if any(t is own for own in tensors)] if op.writes else []
        return [*(tensors[:1] if op.in_place else ()), *others]

    def _note_constants(
        self,
        node: Node,
        op: Operator,
        arguments: dict[str, Any],
        tensors: list[torch.Tensor],
        values: list[Value],
        results: list[torch.Tensor],
    ) -> bool:
        """Where floats are computed: keep what is a constant, and say whether the results are."""
        # What a generator of the forward's own draws is the same every time.
        drawn = _DRAWN in op.func.tags and arguments.get("generator") is None
        constants = [self._is_constant(t, v) for t, v in zip(tensors, values, strict=True)]
        constant = all(constants) and op.spec.values != "none" and not drawn
        for tensor in self._written(op, tensors, results):  # they are looked at once they are written
            constants[next(i for i, own in enumerate(tensors) if own is tensor)] = constant
        all_of_them = (*constants, *[constant] * len(results))
        node.constants = [_kept(t) if c else None for t, c in zip((*tensors, *results), all_of_them, strict=True)]
        return constant

    def _mark(self, node: Node, results: list[torch.Tensor], labels: list[Labels], constant: bool) -> None:
        """Let the results know what is known of them."""
        for i, (tensor, la) in enumerate(zip(results, labels, strict=True)):
            value = Value(la, node.index, i, node.parametric, self._run, constant)
            if id(tensor) in self._values:
                # Written in place, and not ours to mark: a weight, a buffer, an input.
                self._values[id(tensor)] = (tensor, value)
            else:
                tensor._structprune = value  # type: ignore[attr-defined]

    def _is_constant(self, tensor: torch.Tensor, value: Value) -> bool:
        """Whether a tensor is a constant, and so is all that was written into parts of its memory."""
        return value.constant and not (self._computed and memory_of(tensor) in self._computed)

    def _value(self, tensor: torch.Tensor, *, lifted: bool = False) -> Value:
        known = self._values.get(id(tensor))
        if known is None:
            value: Value | None = getattr(tensor, "_structprune", None)
            # One of another run is stale: the model kept its tensor.
            if value is not None and value.run is self._run:
                return value
        if known is None and tensor.numel():
            # A tensor that no operator made: an alias of a weight (``.data``), an input, a constant.
            alias = self._storages.get(memory_of(tensor))
            if alias is not None and alias[0].shape == tensor.shape and alias[0].stride() == tensor.stride():
                known = alias[:2]
        if known is not None:
            self._observer.record.touched.add(self._nodes[known[1].node].op)
            return known[1]
        node = self._leaf("input", parametric=False)
        own = id(tensor) not in self._given
        # Other code may have computed it from what left PyTorch before.
        constant = own and not self._left
        self._observer.record.needs_watching |= own
        self._observer.record.from_outside |= own and not (lifted and constant)
        value = Value((None,) * tensor.ndim, node.index, 0, False, self._run, constant)
        # Kept alive beside its value, so that its id is not given to another tensor.
        self._values[id(tensor)] = (tensor, value)
        return value

    def _not_filled(self, op: Operator, tensors: list[torch.Tensor], results: list[torch.Tensor]) -> tuple[int, ...]:
        """The tensors that an operator reads, by position, though none filled them: code that is not seen did."""
        if op.spec.values == "none":
            for tensor in results:
                if not tensor.numel():
                    continue  # what batch normalisation gives for statistics that it did not compute
                storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
                self._unfilled[storage.cdata] = storage
            return ()
        found = []
        if self._unfilled and not op.func.is_view:
            written = {i for i, t in enumerate(tensors) if any(t is w for w in self._written(op, tensors, results))}
            if op.out_variant:
                written = set(range(len(tensors) - len(results), len(tensors)))
            for position, tensor in enumerate(tensors):
                memory = memory_of(tensor)
                if memory in self._unfilled and tensor.numel():
                    alive = not self._unfilled.pop(memory).expired()  # type: ignore[no-untyped-call]
                    found += [position] if alive and position not in written else []
        return tuple(found)

    def _is_unfilled(self, tensor: torch.Tensor) -> bool:
        return bool(self._unfilled) and memory_of(tensor) in self._unfilled

    def _leaf(self, op: str, *, parametric: bool) -> Node:
        node = Node(len(self._nodes), op, "", (), parametric, [], is_leaf=True)
        self._nodes.append(node)
        return node

    def _rewriters(self, tensors: list[torch.Tensor]) -> tuple[int, ...]:
        """Nodes that wrote into a view of these tensors: what they read flows on through the whole."""
        if not self._rewritten:
            return ()
        found = (self._rewritten.get(memory_of(t)) for t in tensors if t.numel())
        return tuple(node for node in found if node is not None)


def _kept(tensor: torch.Tensor) -> Constant:
    return tensor.clone() if tensor.layout == torch.strided and tensor.numel() <= _SMALL else LARGE


def _replay(
    op: Operator, args: Sequence[Any], kwargs: dict[str, Any], sources: dict[int, tuple[int, int]], *, copies: bool
) -> Callable[[Callable[[int, int], torch.Tensor]], Any]:
    """How to compute an operator on weights again, given the outputs of the nodes that it read."""

    def replay(output: Callable[[int, int], torch.Tensor]) -> Any:
        def substitute(tensor: torch.Tensor) -> torch.Tensor:
            value = output(*sources[id(tensor)])
            return value.clone() if copies else value

        new_args, new_kwargs = tree_map_only(torch.Tensor, substitute, (list(args), kwargs))
        out = op.func(*new_args, **new_kwargs)
        return op.results(new_args, new_kwargs, out) if op.writes else out

    return replay


def _macs(op: Operator, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Multiply-accumulates of an operator, as ``count_flops`` counts them."""
    if not is_counted(op):
        return 0
    try:
        return (operator_flops(op, args, kwargs, out) or 0) // 2
    except Exception as error:
        if not is_built_in(op.spec):
            raise RuleError(f"The FLOPs of {op.name}, as its spec has them: {brief(error)}.") from error
        if isinstance(error, AssertionError):
            # The operands of a cut network do not fit: the operator failed, and the trial has noted it.
            return 0
        raise
