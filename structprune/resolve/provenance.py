"""Where the sizes that operators are given come from: integers that remember who holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from structprune.ir.record import Node, Place, Record, Value
from structprune.surgery.attributes import held_sizes, replace_size


@dataclass(frozen=True, slots=True)
class Holder:
    """An integer that a module holds: an attribute, an entry of one, or one of an object that it holds."""

    module: str
    name: str
    entry: int | None = None


Origin = Holder | Place
T = TypeVar("T")


class Remembers:
    """A number that remembers its origins: who holds it, or whose extent it is; arithmetic keeps the memory."""

    origins: frozenset[Origin]

    def __new__(cls, value: float, origins: frozenset[Origin]) -> Self:
        """A number of this value with these origins."""
        made = super().__new__(cls, value)  # type: ignore[call-arg]
        made.origins = origins
        return made

    def __deepcopy__(self, memo: Any) -> Self:
        """Every run is made on a copy of the model, which must remember too."""
        return self


class HeldInt(Remembers, int):
    """A size, or an integer computed from sizes."""

    def __eq__(self, other: object) -> bool:
        """Compare, and tell the uses that are being logged."""
        _note_comparison(self, other)
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        """Compare, and tell the uses that are being logged."""
        _note_comparison(self, other)
        return int(self) != other

    __hash__ = int.__hash__

    @property
    def holders(self) -> list[Holder]:
        """Those of its origins that are held, the innermost module first."""
        found = [o for o in self.origins if isinstance(o, Holder)]
        return sorted(found, key=lambda h: (-h.module.count("."), h.module, h.name, h.entry or 0))

    @property
    def extents(self) -> list[Place]:
        """Those of its origins that are extents of tensors."""
        found = [o for o in self.origins if isinstance(o, Place)]
        return sorted(found, key=lambda p: (p.node, p.index, p.dim))


class HeldFloat(Remembers, float):
    """A number computed from sizes: a scale that depends on them."""


def _remembering(value: Any, *operands: Any) -> Any:
    """A number with the origins of those that it was computed from."""
    origins = frozenset[Origin]().union(*(o.origins for o in operands if isinstance(o, Remembers)))
    if type(value) is int:
        return HeldInt(value, origins)
    return HeldFloat(value, origins) if type(value) is float else value


def _arithmetic(kind: type, name: str) -> Callable[..., Any]:
    original = getattr(kind, name)
    in_float = getattr(float, name, None)

    def operation(self: Any, *others: Any) -> Any:
        value = original(self, *others)
        if value is NotImplemented and in_float is not None and all(isinstance(o, float) for o in others):
            value = in_float(float(self), *others)
        return _remembering(value, self, *others)

    return operation


for _name in "add sub mul floordiv mod neg pow truediv".split():
    for _variant in (f"__{_name}__", f"__r{_name}__"):
        for _remembers, _kind in ((HeldInt, int), (HeldFloat, float)):
            if hasattr(_kind, _variant):
                setattr(_remembers, _variant, _arithmetic(_kind, _variant))


def hold_sizes(model: nn.Module) -> None:
    """Replace the integers that a (copied) model's own modules hold by ones that remember it.

    torch.nn's layers are left out: their sizes follow by the table of ``surgery.attributes``, and a
    kernel size equals a width by chance.
    """
    for size in held_sizes(model):
        holder = Holder(size.module, size.name, size.entry)
        replace_size(model, size, HeldInt(size.value, frozenset([holder])))


class SizeUse(NamedTuple):
    """A remembering integer that reached an operator; where it sets the size of an output's dimension, which one."""

    size: HeldInt
    dim: int | None


class Comparison(NamedTuple):
    """Two remembering integers that Python code compared before node number ``node`` ran."""

    node: int
    left: HeldInt
    right: HeldInt


class SizeUses(TorchFunctionMode):
    """Logs the remembering integers that every PyTorch function is called with, by the nodes it ran.

    While it is active, the extents of traced tensors are remembering integers too. Nodes are named
    by their index in the record of the dense network, from which this run may differ by operators
    that change no value.
    """

    def __init__(self, nodes: list[Node], dense: Record) -> None:
        super().__init__()
        self._nodes = nodes
        self._dense = dense
        self._matches: list[int | None] = []
        self._next = 0
        self._log: list[tuple[int, int, list[SizeUse], list[HeldFloat]]] = []
        self.comparisons: list[Comparison] = []

    def __enter__(self) -> SizeUses:
        """Start to log."""
        self._token = _LOGGING.set(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        super().__exit__(kind, error, at)  # type: ignore[no-untyped-call]
        _LOGGING.reset(self._token)

    def at(self, node: int) -> list[SizeUse]:
        """The integers that reached a node, those of the innermost function first."""
        hits = [(end - start, found) for start, end, found, _ in self._log if start <= node < end]
        return [i for _, found in sorted(hits, key=lambda hit: hit[0]) for i in found]

    def extents_behind(self, node: int) -> list[Place]:
        """The extents that the numbers which reached a node were computed from."""
        hits = [(found, floats) for start, end, found, floats in self._log if start <= node < end]
        numbers = [n for found, floats in hits for n in (*floats, *(use.size for use in found))]
        return [o for number in numbers for o in number.origins if isinstance(o, Place)]

    def compared(self, left: HeldInt, right: HeldInt) -> None:
        """Log a comparison."""
        if left.origins != right.origins:
            self.comparisons.append(Comparison(self._position(), left, right))

    def _position(self) -> int:
        """The dense network's node that comes next."""
        dense = self._dense.nodes
        for own in self._nodes[len(self._matches) :]:
            at = self._next
            while at < len(dense) and dense[at].op != own.op and dense[at].spec.keeps_values:
                at += 1
            matches = at < len(dense) and dense[at].op == own.op
            if not matches and not own.spec.keeps_values:
                at = len(dense)  # another way than the dense network's: what comes is of no use
            self._matches.append(at if matches else None)
            if matches or not own.spec.keeps_values:
                self._next = at + 1
        return self._next

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function and log what it was given."""
        kwargs = kwargs or {}
        found = _shape_asked(func, args, kwargs) or [
            SizeUse(i, None) for i in (*_held((args, kwargs), HeldInt), *_lengths((args, kwargs)))
        ]
        floats = list(_held((args, kwargs), HeldFloat))
        start = self._position() if found or floats else 0
        out = func(*args, **kwargs)
        if found or floats:
            self._log.append((start, self._position(), found, floats))
        if func is torch.Tensor.size or func == _SHAPE:
            return self._remembering(args[0], out, args[1:] or tuple(kwargs.values()))
        return out

    def _remembering(self, tensor: torch.Tensor, out: Any, asked: tuple[Any, ...]) -> Any:
        value: Value | None = getattr(tensor, "_structprune", None)
        if value is None or value.node >= len(self._nodes):
            return out
        outputs = self._nodes[value.node].outputs
        if value.output >= len(outputs) or outputs[value.output].labels is not value.labels:
            return out  # of another run: the model kept its tensor
        self._position()
        match = self._matches[value.node]
        if match is None:
            return out

        def extent(dim: int, size: int) -> int:
            if size < 2:
                return size
            return HeldInt(size, frozenset([Place(self._dense.training, match, True, value.output, dim)]))

        if isinstance(out, int):
            return extent(asked[0], out)
        return torch.Size([extent(dim, size) for dim, size in enumerate(out)])


_LOGGING: ContextVar[SizeUses | None] = ContextVar("_LOGGING", default=None)
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


def _shape_asked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[SizeUse]:
    """The sizes in the shape that a tensor is to have, with the dimensions that they are the sizes of."""
    if kwargs or func not in SHAPING:
        return []
    first = 0
    if func in (torch.Tensor.unflatten, torch.unflatten):
        if not isinstance(args[1], int) or args[1] < 0:
            return []
        first, args = args[1], (args[0], *args[2:])
    shape = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    return [SizeUse(size, first + i) for i, size in enumerate(shape) if isinstance(size, HeldInt)]


# Functions that give a tensor the shape that they are asked for.
SHAPING = frozenset((torch.Tensor.view, torch.Tensor.reshape, torch.reshape, torch.Tensor.unflatten, torch.unflatten))


def _note_comparison(left: HeldInt, right: object) -> None:
    uses = _LOGGING.get()
    if uses is not None and isinstance(right, HeldInt):
        uses.compared(left, right)


def _lengths(value: Any) -> Iterator[HeldInt]:
    """How long slices are between two remembering bounds."""
    if isinstance(value, slice):
        if isinstance(value.start, HeldInt) and isinstance(value.stop, HeldInt) and value.step is None:
            yield _remembering(int(value.stop) - int(value.start), value.stop, value.start)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _lengths(item)


def _held(value: Any, kind: type[T]) -> Iterator[T]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _held(item, kind)
    elif isinstance(value, dict):
        yield from _held(list(value.values()), kind)
    elif isinstance(value, slice):
        yield from _held((value.start, value.stop, value.step), kind)
