"""The mode that counts: what every operator costs, and the module that it belongs to, in the backward too."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from structprune.compat import (
    DisableTorchFunction,
    HigherOrderOperator,
    TorchDispatchMode,
    autograd_node,
    storage_key,
    tree_leaves,
)
from structprune.errors import InputError
from structprune.ir.registry import Registry
from structprune.ir.tensors import tensors_of
from structprune.meta.costs import nbytes, operator_flops, written_bytes
from structprune.meta.forward import module_paths, unseen
from structprune.meta.replica import walk
from structprune.meta.run import run_on_meta
from structprune.ops import OPERATORS

_PATH = "structprune module"


@dataclass
class Tally:
    """What the operators of one module added up to, those of the modules inside excluded."""

    flops: int = 0
    written: int = 0
    moved: int = 0


@dataclass
class _Alive:
    """Bytes of activations that are alive, and the most that ever were."""

    now: int = 0
    peak: int = 0
    holders: Counter[int] = field(default_factory=Counter)
    sizes: dict[int, int] = field(default_factory=dict)

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory until its last holder is gone."""
        key = storage_key(tensor)
        if key not in self.holders:
            self.sizes[key] = tensor.untyped_storage().nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
        self.holders[key] += 1
        weakref.finalize(tensor, self.drop, key).atexit = False

    def drop(self, key: int) -> None:
        """One holder of a memory is gone."""
        self.holders[key] -= 1
        if not self.holders[key]:
            del self.holders[key]
            self.now -= self.sizes.pop(key)


class CountingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators on the meta device and adds their cost to the module that runs."""

    # They arrive here too, where they are refused by name.
    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, rules: Registry | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rules = rules or OPERATORS
        self.stack: list[str] = []
        self.tallies: dict[str, Tally] = {}
        self.by_operator: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.alive = _Alive()
        self.ran = 0
        self._weights = {storage_key(t) for t in (*model.parameters(), *model.buffers())}

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count inputs among what is alive."""
        for tensor in tensors:
            self.alive.add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, HigherOrderOperator):
            self.refuse(func.__name__)
        # What is done here is not the model's own code, which a mode for functions watches.
        with DisableTorchFunction():
            return self._counted(func, args, kwargs or {})

    def refuse(self, operator: str) -> NoReturn:
        """Raise for an operator that runs functions of the model's."""
        raise InputError(unseen(operator, self._path()))

    def _counted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = self._rules.of(func)
        self.ran += 1
        out = run_on_meta(op, args, kwargs)
        tally = self.tallies.setdefault(self._path(), Tally())
        flops = operator_flops(op, args, kwargs, out)
        if flops is None:
            self.uncounted[op.name] += 1
        elif flops:
            tally.flops += flops
            self.by_operator[op.name] += flops
        results = tensors_of(out)
        if not func.is_view:
            written = written_bytes(args, kwargs, results)
            tally.written += written
            read = sum(nbytes(t) for a in args for t in tensors_of(a))
            if written or op.in_place:
                tally.moved += written + read
        for tensor in results:
            if storage_key(tensor) not in self._weights:
                self.alive.add(tensor)
        return out

    def _path(self) -> str:
        if self.stack:
            return self.stack[-1]
        node = autograd_node()
        return "" if node is None else str(_metadata(node).get(_PATH, ""))


@contextmanager
def counting_modules(model: nn.Module, stack: list[str], training: bool) -> Iterator[None]:
    """Know the module that runs; in training, write it on the autograd nodes too, for the backward."""
    with _marked_gradients(model, stack) if training else nullcontext(), module_paths(model, stack):
        yield


@contextmanager
def _marked_gradients(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Mark every autograd node with the innermost module that made it.

    What leads to a module's inputs was made outside it, what leads from there to its outputs inside.
    """
    handles = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        # The paths are kept by a hook that was put in front of this one.
        _mark((args, kwargs), stack[-2] if len(stack) > 1 else "")

    def watch(path: str) -> Callable[..., None]:
        def after(_module: nn.Module, _args: Any, out: Any) -> None:
            _mark(out, path)

        return after

    for path, module in walk(model):
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(watch(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mark(value: Any, path: str) -> None:
    pending = [t.grad_fn for t in tree_leaves(value) if isinstance(t, torch.Tensor) and t.grad_fn is not None]
    while pending:
        node = pending.pop()
        if _PATH not in _metadata(node):
            _metadata(node)[_PATH] = path
            pending.extend(following for following, _ in node.next_functions if following is not None)


def _metadata(node: Any) -> dict[str, Any]:
    """What may be kept with an autograd node; torch's annotation says that it is a method."""
    kept: dict[str, Any] = node.metadata
    return kept
