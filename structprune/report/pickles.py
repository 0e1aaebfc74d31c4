"""What a pickle would do, read without doing it.

A pickle is a program: it names classes and functions, calls them, and gives them state. Here the
program is followed with symbols in place of objects. Only what ``torch.save`` writes for modules and
tensors is let through; in particular no class is *called*, because a constructor may do anything.
"""

from __future__ import annotations

import importlib
import os
import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

# nn.Module subclasses are let through by exact name if they are defined in one of these.
_MODULE_HOMES = (
    "torch.nn.modules",
    "torch.ao.nn",
    "torch.ao.quantization.stubs",
    "torch.ao.quantization.observer",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm.models",
    "timm.layers",
    "transformers.models",
    "transformers.activations",
    "transformers.pytorch_utils",
    "structprune.demo",
)

_ACTIVATIONS = (
    "celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish prelu relu "
    "relu6 rrelu selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold"
)
# Helpers that the modules of these libraries keep in attributes: pure functions of tensors, enums, plain data.
_HELPERS = frozenset(
    (
        "functools.partial",
        "builtins.slice",
        "builtins.range",
        "builtins.frozenset",
        "torch.nn.utils.parametrize.ParametrizationList",
        "timm.layers.format.Format",
        "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
        "torchvision.models.detection._utils.BoxCoder",
        "torchvision.models.detection._utils.BoxLinearCoder",
        "torchvision.models.detection._utils.Matcher",
        "torchvision.models.detection._utils.SSDMatcher",
        "torchvision.models.optical_flow.raft._pass_through_h",
        "torchvision.ops.boxes.box_iou",
        *(f"torch.nn.functional.{name}" for name in _ACTIVATIONS.split()),
        *(f"torch._C._nn.{name}" for name in _ACTIVATIONS.split()),
    )
)
# What a pickle may call. Besides these only what torch itself lets weights-only files call.
_CALLABLE = frozenset(
    ("functools.partial", "builtins.slice", "builtins.range", "builtins.frozenset", "timm.layers.format.Format")
)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Made:
    """Something that the program made: of which class or by which call."""

    of: str


@dataclass
class Reading:
    """What a pickle asks for.

    Attributes:
        names: Everything that it names, in order.
        refused: What must not run, with the reason, by name.
    """

    names: dict[str, None] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


Allowed: TypeAlias = "Callable[..., Any] | tuple[Callable[..., Any], str]"


def allowed_objects(names: dict[str, None], extra: frozenset[str]) -> list[Allowed]:
    """The objects behind the names that are let through, as ``torch.serialization.safe_globals`` takes them."""
    known = _torch_allows()
    found: list[Allowed] = []
    for name in names:
        if name not in known:
            if name in extra:
                look_here()
            target = _resolve(name) if name in _HELPERS or name in extra else _module_class(name)
            if target is not None:
                found.append((target, name))
    return found


def read_pickle(data: bytes, extra: frozenset[str] = frozenset()) -> Reading:
    """Follow a pickle with symbols.

    Args:
        data: The pickle.
        extra: Full names that the user lets through as well; they may be called.
    """
    return _Machine(extra).run(data)


class _Machine:
    """The stack machine of ``pickle``, restricted to the instructions that torch's weights-only reader knows."""

    def __init__(self, extra: frozenset[str]) -> None:
        self._extra = extra
        self._reading = Reading()
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Reading:
        try:
            for opcode, argument, _ in pickletools.genops(data):
                self._step(opcode.name, argument)
        except Exception as error:
            self._reading.refused["the pickle itself"] = f"it cannot be followed ({type(error).__name__}: {error})"
        return self._reading

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "GLOBAL":
            stack.append(self._global(_full_name(argument)))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "NEWOBJ":
            arguments, cls = stack.pop(), stack.pop()
            if not isinstance(cls, _Global) or (arguments != () and cls.name not in self._extra):
                self._refuse(getattr(cls, "name", "an object"), "it is made in a way that torch.save does not use")
            stack.append(_Made(getattr(cls, "name", "")))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Global):
                self._refuse(stack[-1].name, "the file would change it")
            elif isinstance(stack[-1], _Made) and stack[-1].of == "functools.partial":
                self._check_wrapped(state)
        elif name == "BINPERSID":
            stack[-1] = _Made("storage")
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "APPEND":
            stack.pop()
        elif name == "APPENDS":
            self._pop_mark()
        elif name == "SETITEM":
            self._check_items(stack[-2:])
            del stack[-2:]
        elif name == "SETITEMS":
            self._check_items(self._pop_mark())
        elif name == "BINUNICODE":
            stack.append(argument)
        elif name == "MARK":
            self._marks.append(self._stack)
            self._stack = []
        elif name == "TUPLE":
            items = tuple(self._pop_mark())
            self._stack.append(items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(stack[-count:])
            del stack[-count:]
            stack.append(items)
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in _PLAIN:
            stack.append(None)
        elif name not in ("PROTO", "STOP"):
            self._refuse(f"the pickle instruction {name}", "torch.save does not use it")
            raise ValueError(f"instruction {name}")

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _global(self, name: str) -> _Global:
        self._reading.names[name] = None
        if not self._is_allowed(name):
            script = name.startswith("__main__.")
            reason = "it was defined in the script that saved it" if script else "it is not known to be harmless"
            self._refuse(name, reason)
        return _Global(name)

    def _is_allowed(self, name: str) -> bool:
        return name in _torch_allows() or name in _HELPERS or name in self._extra or _module_class(name) is not None

    def _call(self, function: Any, arguments: Any) -> _Made:
        if not isinstance(function, _Global):
            self._refuse("a computed function", "the file would call something that it does not name")
            return _Made("")
        name = function.name
        if name == "functools.partial":
            self._check_wrapped(arguments)
        elif name not in _CALLABLE and name not in _torch_allows() and name not in self._extra:
            self._refuse(name, "the file would call it; saved modules are made without calling their class")
        elif not isinstance(arguments, tuple) or any(not self._may_be_passed(a) for a in arguments):
            # Some of torch's functions call what they are given.
            self._refuse(name, "it is called in a way that torch.save does not use")
        return _Made(name)

    def _may_be_passed(self, argument: Any) -> bool:
        """Whether a function may be given this: no class or function but those that torch gives its own."""
        return not isinstance(argument, _Global) or argument.name in _torch_allows() or argument.name in self._extra

    def _check_items(self, items: list[Any]) -> None:
        """A module's state may not put anything in the place of what Python or PyTorch call by name."""
        for key, value in zip(items[::2], items[1::2], strict=False):
            called = isinstance(key, str) and (key == "forward" or (key.startswith("__") and key.endswith("__")))
            if called and isinstance(value, (_Global, _Made)):
                self._refuse(str(key), "the file would put something of its own in its place")

    def _check_wrapped(self, arguments: Any) -> None:
        """A partial is a call that is kept for later: of a layer or an activation, and of nothing else."""
        wrapped = arguments[0] if isinstance(arguments, tuple) and arguments else None
        if not isinstance(wrapped, _Global) or not wrapped.name.startswith(("torch.nn.", "torchvision.", "timm.")):
            self._refuse("functools.partial", "it wraps something else than a layer")

    def _refuse(self, name: str, reason: str) -> None:
        self._reading.refused.setdefault(name, reason)


_PLAIN = frozenset(
    "NONE NEWTRUE NEWFALSE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT SHORT_BINSTRING "
    "LONG1".split()
)


def _full_name(argument: str) -> str:
    """The full name of a GLOBAL, which may carry Python 2's name of its module."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _torch_allows() -> frozenset[str]:
    """Names that PyTorch lets every weights-only file use."""
    return frozenset(torch._weights_only_unpickler._get_allowed_globals())


def _module_class(name: str) -> Any:
    """The ``nn.Module`` subclass of exactly this name, if it is defined in a library that is known; else ``None``."""
    module = name.rpartition(".")[0]
    known = any(module == home or module.startswith(home + ".") for home in _MODULE_HOMES)
    # ``__main__`` files run when they are imported.
    if not known or "__" in name or not all(p.isidentifier() for p in name.split(".")):
        return None
    target = _resolve(name)
    is_module = isinstance(target, type) and issubclass(target, nn.Module) and target.__module__ == module
    # These compile code that they carry along.
    return target if is_module and not issubclass(target, (torch.fx.GraphModule, torch.jit.ScriptModule)) else None


def look_here() -> None:
    """Find the user's own modules in the directory that they are in, behind everything that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _resolve(name: str) -> Any:
    """The object of that name, ``None`` where there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
