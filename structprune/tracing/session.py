"""A model on the meta device beside its example inputs: traced as often as the resolution asks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn

from structprune.errors import InputError, StructPruneError, brief
from structprune.inputs import Invocations, infer_inputs, read_inputs
from structprune.ir.record import Record
from structprune.ir.registry import Registry
from structprune.ir.slices import Coupling, Labels, SliceSpace
from structprune.meta.caches import undisturbed
from structprune.meta.forward import not_inferred, reads_values, running, way_on
from structprune.meta.replica import (
    device_of,
    duplicate,
    held_tensors,
    is_of_torch,
    like_parameter,
    meta_replica,
    named_tensors,
    to_meta,
    walk,
)
from structprune.meta.run import run_on_meta
from structprune.tracing.adapters import RANK, adapted, ranks
from structprune.tracing.discovery import Decisions, Discovery, Interpretations
from structprune.tracing.flow import freeze_unread
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.labelling import Observer
from structprune.tracing.layers import couple_states
from structprune.tracing.opaque import opaque_modules
from structprune.tracing.outputs import output_tensors
from structprune.tracing.relabel import can_relabel, relabel
from structprune.tracing.tracer import Tracer


class Session:
    """One model, its replica, and the calls that exercise it in evaluation and in training.

    Attributes:
        replica: The model on the meta device; where its forward reads values, a copy with its weights.
        calls: The calls by mode (``True``: training). A mode that cannot run is missing.
        examples: The calls in evaluation as they were given, or inferred.
        training_examples: The same in training, of two samples where one was given; empty if it does not run.
        notes: What the user should know about the trace.
        rules: What is known of operators, if it is more than structprune knows.
    """

    def __init__(self, model: nn.Module, example_inputs: Any = None, rules: Registry | None = None) -> None:
        self.model_name = type(model).__name__
        self.rules = rules
        self.replica = meta_replica(model)
        self.notes: list[str] = []
        self.calls: dict[bool, Invocations] = {}
        self.examples: Invocations = []
        self.training_examples: Invocations = []
        self._adapted = adapted(model)
        self._recorded: list[Record] | None = None
        self._evaluated: Record | None = None
        self._traced: tuple[Interpretations, tuple[SliceSpace, Coupling, list[Record]]] | None = None
        self._mode = False
        self._reads_values = False
        self._on_meta = True
        self._device = device_of(model)
        given = example_inputs is not None

        def candidates() -> Iterable[Invocations]:
            return [read_inputs(example_inputs)] if given else infer_inputs(model)

        try:
            self._settle(candidates(), given)
        except InputError as error:
            if not ((given or self._reads_values) and has_values(model)):
                raise
            self._on_meta = False
            self.replica = duplicate(model, _own_values, lambda tensor: tensor.detach().clone())
            try:
                self._settle(candidates(), given)
            except InputError:
                raise error from error.__cause__
            why = "reads values of floating-point tensors" if self._reads_values else "runs with values only"
            self.notes.append(
                f"the forward {why}: traced with those of the example inputs, and inputs that take another way are "
                f"not covered ({brief(error.__cause__ or error)})"
            )

    def discover(self, decisions: Decisions) -> DependencyGraph:
        """Trace the dense network in every mode that runs, join the constraints, and add what was decided."""
        if self._traced is None or self._traced[0] != decisions.interpretations:
            self._traced = decisions.interpretations, self._trace(decisions)
        space, coupling, records = self._traced[1]
        coupling = coupling.copy()
        by_mode = {record.training: record for record in records}
        for (training, index), reason in decisions.frozen.items():
            record = by_mode[training]
            for _, ids in record.labelled(record.nodes[index]):
                coupling.freeze(ids, f"{reason} ({record.nodes[index].where})")
        for place, reason in decisions.held.items():
            held = by_mode[place.training].labels_at(place)
            if held is not None:
                coupling.freeze(held, reason)
        if self._adapted:
            for ids in ranks(self._adapted, space, coupling.roots()):
                coupling.freeze(ids, RANK)
        wishes = decisions.ties, decisions.at_least_two
        return DependencyGraph(self.model_name, space, coupling, records, self.notes, *wishes)

    def sketch(self, decisions: Decisions) -> DependencyGraph:
        """The graph of evaluation alone, without what was frozen: to compare interpretations by."""
        if self._recorded is None:
            return self.discover(decisions)
        space, coupling, records = self._trace(decisions, [False])
        return DependencyGraph(self.model_name, space, coupling, records, self.notes, decisions.ties)

    def _trace(
        self, decisions: Decisions, modes: Iterable[bool] = (False, True)
    ) -> tuple[SliceSpace, Coupling, list[Record]]:
        space = SliceSpace()
        labels, coupling = labels_of(self.replica, space), Coupling(space)
        couple_states(self.replica, labels, coupling)
        self._freeze_opaque(labels, coupling)
        observers = [
            Discovery(
                space,
                coupling,
                decisions.interpretations,
                run_on_meta,
                training=mode,
                on_meta=self._on_meta,
                reasons=decisions.reasons,
                rules=self.rules,
            )
            for mode in modes
            if mode in self.calls
        ]
        if self._recorded is None:
            records = [self._first_run(observer, labels) for observer in observers]
            if all(map(can_relabel, records)):
                self._recorded = records
        else:
            records = [relabel(self._recorded[o.record.training], o, labels) for o in observers]
        return space, coupling, records

    def _freeze_opaque(self, labels: dict[str, Labels], coupling: Coupling) -> None:
        """What opaque modules hold stays, also where their forward is not what runs."""
        kinds = self.rules.opaque_modules if self.rules else ()
        paths = [path for path, module in walk(self.replica) if isinstance(module, kinds)] if kinds else []
        for name, axes in labels.items():
            path = next((p for p in paths if not p or name.startswith(f"{p}.")), None)
            if path is not None:
                for ids in axes:
                    if ids is not None:
                        coupling.freeze(ids, f"belongs to {path or 'the model'}, which the rules leave alone")

    def _first_run(self, observer: Discovery, labels: dict[str, Labels]) -> Record:
        """A mode's record. Of inputs that fail in training, evaluation has run already, and need not run again."""
        self._mode = observer.record.training
        if not self._mode and self._evaluated is not None:
            return relabel(self._evaluated, observer, labels)
        record = self.follow(self.replica, observer, labels)
        if not self._mode and can_relabel(record):
            self._evaluated = record
        return record

    def follow(
        self, model: nn.Module, observer: Observer, labels: dict[str, Labels], *, consume: bool = False
    ) -> Record:
        """Run one mode of a (dense or cut) replica under an observer."""
        self._mode = observer.record.training
        # A copy with its own weights is where the model is.
        device = self._device if self._on_meta else None
        return follow(model, self.calls[self._mode], observer, labels, consume=consume, device=device)

    def _settle(self, candidates: Iterable[Invocations], given: bool) -> None:
        """Take the first inputs that run in both modes, else the first that run in evaluation."""
        refused: list[str] = []
        evaluated: tuple[Invocations, Exception, Record | None] | None = None
        for candidate in candidates:
            failure = self._failure(candidate)
            if failure is None:
                return
            in_training, error = failure
            self._reads_values |= reads_values(error)
            if in_training:
                evaluated = evaluated or (candidate, error, self._evaluated)
                continue
            refused.append(f"{', '.join(map(str, candidate))}: {brief(error)}")
            if given:
                raise InputError(
                    f"{self.model_name} does not run with the example inputs {refused[-1]}. {way_on(error, candidate)}"
                ) from error
        if evaluated is None:
            raise InputError(not_inferred(self.replica, refused))
        self.examples, error, self._evaluated = evaluated
        self.training_examples = []
        self.calls = {False: [call.mapped(self._place) for call in self.examples]}
        self.notes.append(f"not traced in training mode: {brief(error)}")
        self._traced = self._recorded = None
        self.discover(Decisions())

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return to_meta(tensor) if self._on_meta else tensor

    def _failure(self, candidate: Invocations) -> tuple[bool, Exception] | None:
        """Trace with these inputs; the mode that fails, and how, or ``None``."""
        self.examples = candidate
        self._evaluated = None
        placed = [call.mapped(self._place) for call in candidate]
        failure: tuple[bool, Exception] | None = None
        batches = dict.fromkeys((_new_batch(self.replica), 2))
        for self.training_examples in (*([call.for_training(b) for call in candidate] for b in batches), candidate):
            self.calls = {False: placed, True: [call.mapped(self._place) for call in self.training_examples]}
            self._traced = self._recorded = None
            try:
                self.discover(Decisions())
                return None
            except StructPruneError:
                raise
            except Exception as error:
                failure = self._mode, error
                if not self._mode:
                    break
        return failure


def _new_batch(model: nn.Module) -> int:
    """A batch of two or more that no module remembers: one that keeps its last batch may do more for a new one.

    Where it only looks at the sizes that it holds when the batch changes, no other trace sees that it reads them.
    """
    own = (module for _, module in walk(model) if not is_of_torch(type(module)))
    held = {value for module in own for value in vars(module).values() if type(value) is int}
    return next(batch for batch in count(2) if batch not in held)


def labels_of(model: nn.Module, space: SliceSpace) -> dict[str, Labels]:
    """Give every tensor that a model holds its slices."""
    return {name: space.add_tensor(name, tensor.shape) for name, tensor in held_tensors(model).items()}


def follow(
    model: nn.Module,
    calls: Invocations,
    observer: Observer,
    labels: dict[str, Labels],
    *,
    consume: bool = False,
    device: torch.device | None = None,
    decomposed: bool = True,
) -> Record:
    """Run calls of a model under an observer and return the record, its outputs frozen.

    Args:
        model: The model, which is not changed: a forward may change what a model holds (caches, counters, statistics),
            so that it runs in a copy.
        calls: What to call it with.
        observer: What learns of every operator, and runs it.
        labels: The slices of its tensors.
        consume: The model is not needed any more: run it itself.
        device: For a copy on the meta device: where the user's model is.
        decomposed: Run attention as the operators that it is made of.
    """
    if not consume:
        model = lent(model)
    tracer = Tracer(observer, device)
    record = observer.record
    for name, tensor in held_tensors(model).items():
        tracer.know(name, tensor, labels[name])
    held: list[tuple[int, int, Labels]] = []
    kinds = record.rules.opaque_modules if record.rules else ()
    with running(model, record.training, decomposed=decomposed), undisturbed(model), opaque_modules(model, kinds):
        for call in calls:
            call = call.mapped(_own_copy)  # a forward may write into what it is given
            tracer.give((call.args, call.kwargs))
            out = tracer.forward(model, partial(call, model))
            found = output_tensors(out)
            held += [tracer.origin(tensor) for tensor in found.held]
            record.results += found.tensors
            for tensor in found.tensors:
                _returned(record, observer, *tracer.origin(tensor))
    # What an object holds and the model reads again is its state (keys and values of attention), and
    # follows the channels; what nothing reads is a result.
    read = {source for node in record.nodes for source in node.sources}
    for node, output, labels_of in held:
        if (node, output) not in read:
            _returned(record, observer, node, output, labels_of)
    freeze_unread(record, observer)
    return record


def _returned(record: Record, observer: Observer, node: int, output: int, labels: Labels) -> None:
    record.returned.append((node, output))
    for ids in labels:
        if ids is not None:
            observer.output(ids)


def has_values(model: nn.Module) -> bool:
    """Whether a model's weights are there, and not on the meta device."""
    return not any(tensor.is_meta for tensor in named_tensors(model).values())


def _own_values(_name: str, tensor: torch.Tensor) -> torch.Tensor:
    return like_parameter(tensor, tensor.detach().clone())


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def lent(model: nn.Module) -> nn.Module:
    """A copy to run: parameters over the same memory, and copies of all else, which a forward may write."""
    # A class that does more when its mode changes may write into its weights (adapters that are merged).
    shares = all(type(module).train is nn.Module.train for _, module in walk(model))

    def own(_name: str, tensor: torch.Tensor) -> torch.Tensor:
        same = tensor.detach()
        return like_parameter(tensor, same if shares and isinstance(tensor, nn.Parameter) else same.clone())

    return duplicate(model, own, lambda tensor: tensor.detach().clone())
