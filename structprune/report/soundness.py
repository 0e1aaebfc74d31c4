"""Holds what was read out of a file against what walks through it later: structprune, PyTorch, Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from structprune.report.allowed import Rebuilt, StorageKind
from structprune.report.limits import DEEPEST, LONGEST_NAME, MOST_KEPT, MOST_MODULES, MOST_WALKED, Refused
from structprune.report.storages import Storage

_CONTAINERS = (dict, list, tuple, set, frozenset)
_TABLES: dict[str, type] = {"_parameters": nn.Parameter, "_buffers": torch.Tensor, "_modules": nn.Module}


def check_sound(value: Any, trusts: Callable[[Any], bool]) -> None:
    """Refuse what would send a walk astray: cycles, floods, and modules with something else in their place.

    Args:
        value: What a file holds.
        trusts: Whether the user let a class or function of the file through.

    Raises:
        Refused: With what is wrong.
    """
    modules: dict[int, nn.Module] = {}
    _walk(value, _children, modules, [MOST_WALKED])
    left = [MOST_KEPT]
    waiting = list(modules.values())
    while waiting:
        module = waiting.pop()
        if not trusts(module):
            _check_module(module, trusts)
        found: dict[int, nn.Module] = {}
        for held in vars(module).values():
            _walk(held, _children, found, left)
        waiting += [m for key, m in found.items() if key not in modules]
        modules |= found
    if isinstance(value, nn.Module):
        _walk(value, _submodules, {}, [MOST_MODULES])


def _walk(value: Any, children: Callable[[Any], Iterable[Any]], modules: dict[int, nn.Module], left: list[int]) -> None:
    """Count what a walk without a memory meets; a value within itself would have no end."""
    sizes: dict[int, int] = {}
    above: list[tuple[Any, Iterator[Any], list[int]]] = []
    within: set[int] = set()

    def enter(item: Any) -> int:
        """The size of an item that is known or has no parts; 0 where its parts come first."""
        if isinstance(item, (Rebuilt, StorageKind, Storage)):
            raise Refused(f"it keeps {getattr(item, 'name', 'a storage')} itself, which it may only build with")
        if isinstance(item, nn.Module):
            modules[id(item)] = item
        if id(item) in sizes:
            return sizes[id(item)]
        if id(item) in within or len(above) > DEEPEST:
            raise Refused(f"it holds something within itself, or nested deeper than {DEEPEST} levels")
        parts = children(item)
        if parts is _NONE:
            return 1
        within.add(id(item))
        above.append((item, iter(parts), [1]))
        return 0

    size = enter(value)
    while above:
        item, rest, total = above[-1]
        total[0] += size
        if total[0] > left[0]:
            raise Refused(f"it repeats itself to more than {left[0]:,} values or modules")
        size = 0
        for part in rest:
            size = enter(part)
            break
        else:
            above.pop()
            within.discard(id(item))
            size = sizes[id(item)] = total[0]
    left[0] -= size


_NONE: tuple[Any, ...] = ()


def _children(item: Any) -> Iterable[Any]:
    """What a container holds; a module counts as one."""
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, _CONTAINERS):
        return list(item)
    if isinstance(item, partial):
        return [item.args, item.keywords]
    # Plain objects of the one library that keeps such.
    return [vars(item)] if type(item).__module__.startswith("torchvision.") and hasattr(item, "__dict__") else _NONE


def _submodules(item: Any) -> Iterable[Any]:
    return list(item._modules.values()) if isinstance(item, nn.Module) else _NONE


def _check_module(module: nn.Module, trusts: Callable[[Any], bool]) -> None:
    """A module of a library that is known is what its class makes of it, with other numbers."""
    kind = type(module)
    for name, held in vars(module).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) or name == "_compiled_call_impl":
            hooks = held.values() if isinstance(held, dict) else () if held is None else (held,)
            if not all(trusts(hook) for hook in hooks):
                raise Refused(f"a {kind.__name__} in it has {name}, which would be called")
        elif callable(getattr(kind, name, None)) and not trusts(held):
            raise Refused(f"{name}: the file would put something of its own in its place in a {kind.__name__}")
    for table, expected in _TABLES.items():
        held = vars(module).get(table)
        if not isinstance(held, dict):
            raise Refused(f"a {kind.__name__} in it has no {table}")
        for name, entry in held.items():
            if not _is_name(name):
                said = f"{name!r:.100}" if isinstance(name, str) else f"a {type(name).__name__}"
                raise Refused(f"a {kind.__name__} in it has a part of the name {said}, which no part can have")
            if entry is not None and not isinstance(entry, expected):
                raise Refused(f"a {kind.__name__} in it has a {type(entry).__name__} in its {table}")
    if not isinstance(vars(module).get("training"), bool):
        raise Refused(f"a {kind.__name__} in it does not say whether it is in training mode")


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and "." not in name and name.isprintable()
