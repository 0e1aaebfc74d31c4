"""What a forward keeps outside the model: function caches, and tables of its files and classes.

None may be left holding what was computed without numbers, and every run must find them alike.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from structprune.meta.replica import walk

# A table of another class may do anything when it is read.
_TABLES = (dict, OrderedDict, defaultdict)
_Cache = type(functools.lru_cache(lambda: None))
_BY_CLASS: dict[type, frozenset[Any]] = {}
_BY_MODULE: dict[str, frozenset[Any]] = {}


def empty_caches(model: nn.Module) -> None:
    """Empty the ``functools`` caches of a model's files: filled ones would be hit in some runs and missed in others."""
    for cache in _caches(_classes(model)):
        if cache.cache_info().currsize:
            cache.cache_clear()


@contextmanager
def caches_restored(model: nn.Module) -> Iterator[None]:
    """Undo what a run leaves outside the model.

    The ``functools`` caches that it filled are emptied, and the variables, dicts and lists of the
    model's own files and classes are put back: the user's own forward would be handed tensors of
    the meta device.
    """
    classes = _classes(model)
    caches = _caches(classes)
    before = {cache: cache.cache_info().misses for cache in caches}
    kept = [_Kept(owner) for owner in _owners(classes)]
    try:
        yield
    finally:
        for cache, misses in before.items():
            if cache.cache_info().misses != misses:
                cache.cache_clear()
        for each in kept:
            each.restore()


class _Kept:
    """The variables of a file or class as they were, and the entries of the dicts and lists among them."""

    def __init__(self, owner: ModuleType | type) -> None:
        self._owner = owner
        self._names = {n: v for n, v in vars(owner).items() if not n.startswith("__")}
        self._dicts = [(v, dict(v)) for v in self._names.values() if type(v) in _TABLES]
        self._lists = [(v, list(v)) for v in self._names.values() if type(v) is list]

    def restore(self) -> None:
        now = {n: v for n, v in vars(self._owner).items() if not n.startswith("__")}
        for name in now.keys() - self._names.keys():
            delattr(self._owner, name)
        for name, value in self._names.items():
            if now.get(name) is not value:
                setattr(self._owner, name, value)
        for table, entries in self._dicts:
            if len(table) != len(entries) or any(table.get(k) is not v for k, v in entries.items()):
                table.clear()
                table.update(entries)
        for values, entered in self._lists:
            if len(values) != len(entered) or any(a is not b for a, b in zip(values, entered, strict=True)):
                values[:] = entered


def _classes(model: nn.Module) -> frozenset[type]:
    return frozenset(type(module) for _, module in walk(model))


@functools.cache
def _owners(classes: frozenset[type]) -> list[ModuleType | type]:
    """The files and classes that a model's modules come from, those of libraries aside."""
    bases = {base for kind in classes for base in kind.__mro__ if not _is_library(base.__module__)}
    files = {name: sys.modules[name] for name in (base.__module__ for base in bases) if name in sys.modules}
    return [*files.values(), *bases]


@functools.cache
def _caches(classes: frozenset[type]) -> frozenset[Any]:
    return frozenset().union(*map(_caches_of, classes))


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
