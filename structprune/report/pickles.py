"""Reads what ``torch.save`` wrote without running it.

A pickle is a program: it names classes and functions, calls them, and gives them state. Python's own
reader runs it. This one knows the instructions that ``torch.save`` writes, makes only what is in
``allowed``, from arguments that ``rebuild`` checks, and counts what it makes. What it reads is what
the model is made of: no second reader sees the file.
"""

from __future__ import annotations

import pickletools
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

import torch
from torch import nn

from structprune.report.allowed import Rebuilt, found, full_name, is_known_home
from structprune.report.limits import (
    MOST_IMPORTS,
    MOST_LAYERS,
    MOST_NAMES,
    MOST_PLAN_BYTES,
    MOST_STEPS,
    Budget,
    Refused,
)
from structprune.report.rebuild import Rebuild

_LONGEST_NUMBER = 1 << 64


class NamesRefused(Refused):
    """A file names what may run code.

    Attributes:
        names: The reason for every name.
    """

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__("reading it would run code that it names")
        self.names = names


class Names:
    """The names that one file uses, each looked up once.

    Args:
        extra: Full names that the user lets through as well.
    """

    def __init__(self, extra: frozenset[str]) -> None:
        self._extra = extra
        self._found: dict[str, Any] = {}
        self._imports = 0

    def find(self, name: str) -> Any:
        """What a name stands for, ``None`` where it may not be used."""
        if name not in self._found:
            self._imports += name.rpartition(".")[0] not in sys.modules and is_known_home(name, self._extra)
            if len(self._found) >= MOST_NAMES or self._imports > MOST_IMPORTS:
                raise Refused(
                    f"it names more than {MOST_NAMES:,} classes and functions, or those of more than {MOST_IMPORTS} "
                    "modules that are not loaded yet; no network uses so many"
                )
            self._found[name] = found(name, self._extra)
        return self._found[name]

    def trusts(self, value: Any) -> bool:
        """Whether the user let a class, a function, or the class of an object through."""
        trusted = [self._found[name] for name in self._extra if name in self._found]
        return any(value is known or type(value) is known for known in trusted)

    def check(self, file: BinaryIO) -> None:
        """Look up everything that the next pickle in a file names, so that all of it is refused at once.

        Raises:
            NamesRefused: Some of it may not be used.
        """
        named = dict.fromkeys(full_name(a) for opcode, a in _instructions(file) if opcode == "GLOBAL")
        refused = {name: _reason(name) for name in named if self.find(name) is None}
        if refused:
            raise NamesRefused(refused)


def _reason(name: str) -> str:
    script = name.startswith("__main__.")
    return "it was defined in the script that saved it" if script else "it is not known to be harmless"


def _instructions(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number > MOST_STEPS:
                raise Refused(f"it has more than {MOST_STEPS:,} instructions, which no saved network needs")
            yield opcode.name, argument
    except ValueError as error:
        raise Refused(f"it is no pickle ({error})") from error


class Reader:
    """The stack machine of ``pickle``, with the instructions that ``torch.save`` writes.

    Args:
        named: Gives the storage that the pickle names.
        rebuild: Makes everything but modules.
        budget: What all of the file may take.
        names: What it may use; what the user lets through is called as the file says.
    """

    def __init__(self, named: Callable[[Any], Any], rebuild: Rebuild, budget: Budget, names: Names) -> None:
        self._named = named
        self._rebuild = rebuild
        self._budget = budget
        self._names = names
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self, file: BinaryIO) -> Any:
        """The object of the next pickle in a file."""
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for name, argument in _instructions(file):
                self._budget.spend(1)
                self._step(name, argument)
            return self._stack.pop()
        except (IndexError, KeyError) as error:
            raise Refused("it is a damaged pickle") from error

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PLAIN:
            stack.append(_PLAIN[name])
        elif name in _ARGUMENT:
            if type(argument) is int and not -_LONGEST_NUMBER <= argument <= _LONGEST_NUMBER:
                raise Refused("it has a number that no network needs")
            if type(argument) is str and len(argument) > MOST_PLAN_BYTES:
                raise Refused("it has a text that is longer than any plan")
            stack.append(argument)
        elif name in _CONTAINER:
            stack.append(_CONTAINER[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif name == "TUPLE":
            items = tuple(self._pop_mark())
            self._stack.append(items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(stack[-count:])
            del stack[-count:]
            stack.append(items)
        elif name in ("APPEND", "APPENDS"):
            self._append([stack.pop()] if name == "APPEND" else self._pop_mark())
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items([stack.pop(-2), stack.pop()] if name == "SETITEM" else self._pop_mark())
        elif name == "GLOBAL":
            stack.append(self._global(full_name(argument)))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "NEWOBJ":
            arguments, cls = stack.pop(), stack.pop()
            stack.append(self._new(cls, arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._set_state(stack[-1], state)
        elif name == "BINPERSID":
            stack.append(self._named(stack.pop()))
        elif name != "STOP" and (name, argument) != ("PROTO", 2):
            raise Refused(f"it uses the pickle instruction {name}, which torch.save does not write")

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise Refused(f"it appends to a {type(self._stack[-1]).__name__}")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict, Counter) or len(items) % 2:
            raise Refused(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._rebuild.check_key(key)] = value

    def _global(self, name: str) -> Any:
        target = self._names.find(name)
        if target is None:
            raise NamesRefused({name: _reason(name)})
        return target

    def _call(self, function: Any, arguments: Any) -> Any:
        if callable(function) and self._names.trusts(function):
            return function(*arguments)
        if not isinstance(function, Rebuilt):
            named = getattr(function, "__name__", "what it computed")
            raise Refused(f"it would call {named}; saved networks are made without calling their classes")
        return self._rebuild(function.name, arguments)

    def _new(self, cls: Any, arguments: Any) -> Any:
        if isinstance(cls, type) and self._names.trusts(cls):
            return cls.__new__(cls, *arguments)
        if not isinstance(cls, type) or issubclass(cls, torch.Tensor) or arguments != ():
            raise Refused("it makes an object in a way that torch.save does not use")
        self._budget.spend(4)
        return cls.__new__(cls)

    def _set_state(self, made: Any, state: Any) -> None:
        if self._names.trusts(made):
            _set_as_pickle_does(made, state)
        elif isinstance(made, partial):
            try:
                self._rebuild.set_partial(made, state)
            except TypeError as error:
                raise Refused("it gives a functools.partial a state that torch.save does not write") from error
        elif type(state) is not dict or any(type(key) is not str for key in state):
            raise Refused(f"it gives a {type(made).__name__} a state that torch.save does not write")
        elif isinstance(made, nn.Module):
            _check_loops(made, state)
            self._budget.spend(len(state))
            made.__setstate__(state)  # type: ignore[no-untyped-call]
        elif type(made) is not OrderedDict:
            # What somebody hung on an OrderedDict, such as the versions in a state dict, is left out.
            _set_plain(made, state)


def _check_loops(made: nn.Module, state: dict[str, Any]) -> None:
    """These make lists for every layer while their state is set."""
    layers = state.get("num_layers", 1)
    if isinstance(made, nn.RNNBase) and not (type(layers) is int and layers <= MOST_LAYERS):
        said = f"{layers:,}" if type(layers) is int else f"a {type(layers).__name__}"
        raise Refused(f"it sets num_layers of a {type(made).__name__} to {said}")


def _set_plain(made: Any, state: dict[str, Any]) -> None:
    """The state of a plain object of a library that is known."""
    home = type(made).__module__
    if isinstance(made, type) or not home.startswith("torchvision."):
        raise Refused(f"it would change a {type(made).__name__}")
    vars(made).update(state)


def _set_as_pickle_does(made: Any, state: Any) -> None:
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return
    plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    vars(made).update(plain or {})
    for name, value in (slots or {}).items():
        setattr(made, name, value)


_PLAIN: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENT = frozenset("BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING LONG1".split())
_CONTAINER: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
