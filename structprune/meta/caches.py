"""Function caches that a forward fills: none may be left holding what was computed without numbers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from structprune.meta.replica import walk

_Cache = type(functools.lru_cache(lambda: None))
_BY_CLASS: dict[type, frozenset[Any]] = {}
_BY_MODULE: dict[str, frozenset[Any]] = {}


@contextmanager
def caches_restored(model: nn.Module) -> Iterator[None]:
    """Empty the ``functools`` caches that were filled meanwhile, so that the next run fills them alike.

    A cached table may be a tensor on the meta device, which the user's own forward would be handed.
    """
    caches = frozenset().union(*map(_caches_of, {type(module) for _, module in walk(model)}))
    before = {cache: cache.cache_info().misses for cache in caches}
    try:
        yield
    finally:
        for cache, misses in before.items():
            if cache.cache_info().misses != misses:
                cache.cache_clear()


def _caches_of(kind: type) -> frozenset[Any]:
    """The caches in a class, in the files that it and its bases come from, and in those that these import from."""
    known = _BY_CLASS.get(kind)
    if known is None:
        files = {base.__module__ for base in kind.__mro__ if not _is_library(base.__module__)}
        known = _BY_CLASS[kind] = frozenset().union(*map(_caches_in, files))
    return known


def _caches_in(name: str) -> frozenset[Any]:
    known = _BY_MODULE.get(name)
    if known is None:
        found: set[Any] = set()
        imported: set[ModuleType] = set()
        module = sys.modules.get(name)
        for value in list(vars(module).values()) if module is not None else []:
            found |= _caches_behind(value)
            origin = sys.modules.get(getattr(value, "__module__", None) or "")
            if isinstance(value, FunctionType) and origin is not None and not _is_library(origin.__name__):
                imported.add(origin)
        for origin in imported:
            for value in list(vars(origin).values()):
                found |= _caches_behind(value)
        known = _BY_MODULE[name] = frozenset(found)
    return known


def _caches_behind(value: Any) -> set[Any]:
    """The cache that a function is, that it wraps, or that a class has among its methods."""
    if isinstance(value, _Cache):
        return {value}
    if isinstance(value, (staticmethod, classmethod)):
        return _caches_behind(value.__func__)
    if isinstance(value, type):
        return set().union(*(_caches_behind(v) for v in list(vars(value).values()) if not isinstance(v, type)))
    if isinstance(value, FunctionType) and value.__closure__:
        return {c.cell_contents for c in value.__closure__ if _is_filled(c) and isinstance(c.cell_contents, _Cache)}
    return set()


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in ("torch", "builtins", "typing", "abc", "collections", "functools")
