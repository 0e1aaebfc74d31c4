"""Which sizes that modules hold reach which operators: integers that remember where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, slots=True)
class Holder:
    """An integer attribute of a module, or one entry of a tuple or list of integers."""

    module: str
    name: str
    entry: int | None = None


class HeldInt(int):
    """An integer that remembers its holders; arithmetic keeps the memory."""

    holders: frozenset[Holder]

    def __new__(cls, value: int, holders: frozenset[Holder]) -> HeldInt:
        """An integer of this value with these holders."""
        made = super().__new__(cls, value)
        made.holders = holders
        return made

    def __deepcopy__(self, memo: Any) -> HeldInt:
        """Every run is made on a copy of the model, which must remember too."""
        return self


def _arithmetic(name: str) -> Callable[..., Any]:
    original = getattr(int, name)

    def operation(self: HeldInt, *others: Any) -> Any:
        value = original(self, *others)
        if type(value) is not int:
            return value
        return HeldInt(value, self.holders.union(*(o.holders for o in others if isinstance(o, HeldInt))))

    return operation


for _name in "add sub mul floordiv mod neg".split():
    for _variant in (f"__{_name}__", f"__r{_name}__"):
        if hasattr(int, _variant):
            setattr(HeldInt, _variant, _arithmetic(_variant))


def hold_sizes(model: nn.Module) -> None:
    """Replace the integers that a (copied) model's own modules hold by ones that remember it.

    torch.nn's layers are left out: their sizes follow by the table of ``surgery.attributes``, and a
    kernel size equals a width by chance.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        for name, value in list(vars(module).items()):
            if _is_size(value):
                setattr(module, name, HeldInt(value, frozenset([Holder(path, name)])))
            elif type(value) in (list, tuple) and value and all(map(_is_size, value)):
                held = [HeldInt(v, frozenset([Holder(path, name, i)])) for i, v in enumerate(value)]
                setattr(module, name, type(value)(held))


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 1


class Arrivals(TorchFunctionMode):
    """Logs the remembering integers that every PyTorch function is called with, by the nodes it ran."""

    def __init__(self, nodes: list[Any]) -> None:
        super().__init__()
        self._nodes = nodes
        self._log: list[tuple[int, int, list[HeldInt]]] = []

    def at(self, node: int) -> list[HeldInt]:
        """The integers that reached a node, those of the innermost function first."""
        hits = [(end - start, found) for start, end, found in self._log if start <= node < end]
        return [i for _, found in sorted(hits, key=lambda hit: hit[0]) for i in found]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function and log what it was given."""
        kwargs = kwargs or {}
        found = list(_held_ints((args, kwargs)))
        start = len(self._nodes)
        out = func(*args, **kwargs)
        if found:
            self._log.append((start, len(self._nodes), found))
        return out


def _held_ints(value: Any) -> Iterator[HeldInt]:
    if isinstance(value, HeldInt):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _held_ints(item)
    elif isinstance(value, dict):
        yield from _held_ints(list(value.values()))
    elif isinstance(value, slice):
        yield from _held_ints((value.start, value.stop, value.step))
