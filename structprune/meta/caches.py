"""What a forward keeps outside the model: ``functools`` caches, and the variables of its files and classes.

A trace computes without numbers. It may not be answered from what the user's own forward stored, which depends on what
ran before, and it may leave nothing there that the user's own forward would be handed.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from structprune.meta.replica import is_of_torch, walk

_Cache = type(functools.lru_cache(lambda: None))
# A table of another class may do anything when it is read.
_TABLES = (dict, OrderedDict, defaultdict)
# Larger tables are not copied at every run: what is added to them is found at their end.
_SMALL = 256
# Functions within functions are looked into this far.
_DEEPEST = 3
# Libraries whose caches hold nothing that a model's forward computes.
_LIBRARIES = frozenset(("torch", "numpy", "structprune", *sys.stdlib_module_names))
# The answers of one run, in the thread that runs it; ``None``: this thread does not trace.
_ANSWERS: ContextVar[dict[Any, Any] | None] = ContextVar("_ANSWERS", default=None)
_NONE = object()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a copy of a model with caches of its own, and leave the variables of its files as they were.

    One thread at a time may do so: see ``structprune.meta.forward.running``.
    """
    modules = [module for _, module in walk(model)]
    classes = frozenset(map(type, modules))
    places = [*_FILES.places(), *_places_of_classes(classes), *_places_in(modules)]
    kept = [_Kept(owner) for owner in _owners(classes)]
    token = _ANSWERS.set({})
    try:
        for place in places:
            place.put(place.stand_in)
        yield
    finally:
        for place in places:
            place.put(place.original)
        _ANSWERS.reset(token)
        for each in kept:
            each.restore()


class _StandIn:
    """Takes the place of a ``functools`` cache while a model is traced.

    In the thread that traces every run begins with an empty cache; other threads use the cache itself.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._settled: dict[Any, Any] = {}
        functools.update_wrapper(self, cache)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answers = _ANSWERS.get()
        if answers is None:
            return self._cache(*args, **kwargs)
        key = self._cache, *_key((args, tuple(kwargs.items())))
        answer = self._settled.get(key, _NONE)
        if answer is _NONE:
            answer = answers.get(key, _NONE)
        if answer is _NONE:
            answer = answers[key] = self._cache.__wrapped__(*args, **kwargs)
            # What no size and no tensor goes into or comes out of is the same in every run, and may be slow to find.
            if _is_plain((args, tuple(kwargs.values()))) and _is_plain(answer):
                self._settled[key] = answer
        return answer


def _key(value: Any) -> Any:
    """An argument as a key; equal numbers with other origins (``structprune.resolve.provenance``) are others."""
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    origins = getattr(value, "origins", None) if isinstance(value, (int, float)) else None
    return value if origins is None else (value, origins)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, str, type))


@dataclass(frozen=True)
class _Place:
    """Where a cache is reached from, the object that is there (the cache, or a method around it) and its stand-in."""

    owner: Any
    name: str
    original: Any
    stand_in: Any

    def put(self, value: Any) -> None:
        """Let this be found there."""
        if type(self.owner) is dict:
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)

    @property
    def is_there(self) -> bool:
        """Whether what was found there still is: files are edited and run again."""
        if isinstance(self.owner, CellType):
            return _contents(self.owner) is self.original
        held = self.owner if type(self.owner) is dict else vars(self.owner)
        return held.get(self.name) is self.original


# No cache is kept alive that no file has: one may hold a model.
_STAND_INS: WeakValueDictionary[int, _StandIn] = WeakValueDictionary()
_BY_MODULE: dict[str, tuple[ModuleType, int, list[_Place]]] = {}


class _Files:
    """The files that are loaded: there are thousands, and that none has changed must be quick to tell."""

    def __init__(self) -> None:
        self._loaded: Any = None
        self._names: list[str] = []
        self._files: list[Any] = []
        self._variables: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._places: list[_Place] = []

    def places(self) -> list[_Place]:
        """The caches in all of them: a model may call another's function through any."""
        loaded = len(sys.modules), next(reversed(sys.modules))
        if self._loaded != loaded:
            self._names = [name for name in sys.modules if name.partition(".")[0] not in _LIBRARIES]
            self._loaded = loaded
        files = list(map(sys.modules.get, self._names))
        if not self._are(files):
            # Sizes first: another thread may add to a file that was looked through.
            variables = [vars(file) for file in files if isinstance(file, ModuleType)]
            sizes = list(map(len, variables))
            pairs = zip(self._names, files, strict=True)
            self._places = [place for name, file in pairs for place in _places_of(name, file)]
            self._files, self._variables, self._sizes = files, variables, sizes
        return self._places

    def _are(self, files: list[Any]) -> bool:
        """Whether these were there last time, with as many variables each, and the caches where they were."""
        return (
            len(files) == len(self._files)
            and all(map(operator.is_, files, self._files))
            and list(map(len, self._variables)) == self._sizes
            and all(place.is_there for place in self._places)
        )


_FILES = _Files()


def _places_of(name: str, module: Any) -> list[_Place]:
    """The caches in one file, looked for where it has changed."""
    if not isinstance(module, ModuleType):
        return []
    known, size = _BY_MODULE.get(name), len(vars(module))
    if known is None or known[0] is not module or known[1] != size or not all(p.is_there for p in known[2]):
        known = _BY_MODULE[name] = module, size, list(_places_in_file(module))
    return known[2]


def _places_in_file(module: ModuleType) -> Iterator[_Place]:
    for name, value in list(vars(module).items()):
        yield from _places_at(module, name, value)
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from _places_of_class(value)


def _places_of_classes(classes: frozenset[type]) -> Iterator[_Place]:
    """The caches in a model's classes, which may have been defined within functions."""
    for kind in {base for each in classes for base in each.__mro__ if not _is_library(base)}:
        module = sys.modules.get(kind.__module__)
        if module is None or vars(module).get(kind.__name__) is not kind:
            yield from _places_of_class(kind)


def _places_of_class(kind: type) -> Iterator[_Place]:
    for name, value in list(vars(kind).items()):
        yield from _places_at(kind, name, value)


def _places_in(modules: list[nn.Module]) -> Iterator[_Place]:
    """The caches that the modules of a copy hold themselves."""
    for module in modules:
        if is_of_torch(type(module)):
            continue
        held = vars(module)
        for name, value in list(held.items()):
            if type(value) is _Cache or type(value) is FunctionType:
                yield from _places_at(held, name, value)


def _places_at(owner: Any, name: str, value: Any, depth: int = 0) -> Iterator[_Place]:
    """The cache that something is, that a method wraps, or that a function has in its closure."""
    if isinstance(value, _Cache):
        if hasattr(value, "__wrapped__"):
            yield _Place(owner, name, value, _stand_in(value))
    elif isinstance(value, (staticmethod, classmethod)):
        inner = value.__func__
        if isinstance(inner, _Cache):
            yield _Place(owner, name, value, type(value)(_stand_in(inner)))
        else:
            yield from _places_at(owner, name, inner, depth)
    elif isinstance(value, FunctionType) and value.__closure__ and depth < _DEEPEST:
        for cell in value.__closure__:
            yield from _places_at(cell, "cell_contents", _contents(cell), depth + 1)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _stand_in(cache: Any) -> _StandIn:
    known = _STAND_INS.get(id(cache))
    if known is None or known._cache is not cache:
        known = _STAND_INS[id(cache)] = _StandIn(cache)
    return known


class _Kept:
    """The variables of a file or class as they were, and the dicts and lists among them.

    Put back is what the run left there: tensors that it made, and plain values such as counters and flags, which every
    run must find alike. All else is left alone: other threads may have stored it.
    """

    def __init__(self, owner: ModuleType | type) -> None:
        self._owner = owner
        self._names = _variables(owner)
        self._tables = [_Table(v) for v in self._names.values() if type(v) in _TABLES or type(v) is list]

    def restore(self) -> None:
        for name, value in _variables(self._owner).items():
            before = self._names.get(name, _NONE)
            if value is before or not (_is_ours(value) or (type(value) in _VALUES and type(before) in _VALUES)):
                continue
            delattr(self._owner, name) if before is _NONE else setattr(self._owner, name, before)
        for table in self._tables:
            table.restore()


class _Table:
    """A dict or list as it was: what is in a small one, the length of a large one."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._size = len(table)
        self._entries = table.copy() if self._size <= _SMALL else None

    def restore(self) -> None:
        table, entries = self._table, self._entries
        if type(table) is list:
            if entries is not None:
                for place, (now, before) in enumerate(zip(table, entries, strict=False)):
                    if now is not before and _is_ours(now):
                        table[place] = before
            for place in reversed(range(min(self._size, len(table)), len(table))):
                if _is_ours(table[place]):
                    del table[place]
            return
        added = max(len(table) - self._size, 0)
        for key in list(table if entries is not None else islice(reversed(table), added)):
            before = _NONE if entries is None else entries.get(key, _NONE)
            if table[key] is not before and _is_ours(table[key]):
                del table[key]
                if before is not _NONE:
                    table[key] = before


_VALUES = frozenset((type(None), bool, int, float, str))


def _is_ours(value: Any, depth: int = 2) -> bool:
    """Whether something is a tensor that a run without numbers made, or holds one."""
    if isinstance(value, torch.Tensor):
        return value.is_meta or hasattr(value, "_structprune")
    if type(value) in (list, tuple, *_TABLES) and depth and len(value) <= _SMALL:
        return any(_is_ours(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))
    return False


def _variables(owner: ModuleType | type) -> dict[str, Any]:
    return {n: v for n, v in vars(owner).items() if not n.startswith("__")}


def _owners(classes: frozenset[type]) -> list[ModuleType | type]:
    """The files and classes that a model's modules come from, those of libraries aside."""
    bases = {base for kind in classes for base in kind.__mro__ if not _is_library(base)}
    files = {name: sys.modules[name] for name in (base.__module__ for base in bases) if name in sys.modules}
    return [*files.values(), *bases]


def _is_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES
