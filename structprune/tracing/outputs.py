"""The tensors in whatever a model returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from structprune.errors import TraceError


@dataclasses.dataclass
class Outputs:
    """The tensors that a model returned, and those that objects among its outputs hold (key/value caches)."""

    tensors: list[torch.Tensor] = dataclasses.field(default_factory=list)
    held: list[torch.Tensor] = dataclasses.field(default_factory=list)


def output_tensors(value: Any) -> Outputs:
    """All tensors of a nested output of tensors, sequences, mappings and dataclasses.

    An object of another kind is searched through its attributes; what it holds may be no more than
    the state of the model.

    Raises:
        TraceError: Something is in it that cannot be searched: a tensor hidden in there could be cut unseen.
    """
    found = Outputs()
    _collect(value, "output", found.tensors, found, set())
    return found


def _collect(value: Any, path: str, into: list[torch.Tensor], found: Outputs, seen: set[int]) -> None:
    if isinstance(value, torch.Tensor):
        into.append(value)
    elif value is None or isinstance(value, _PLAIN):
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, f"{path}[{key!r}]", into, found, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            _collect(item, f"{path}[{index}]", into, found, seen)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _collect(getattr(value, field.name), f"{path}.{field.name}", into, found, seen)
    elif getattr(value, "__dict__", None) and not callable(value):
        if id(value) not in seen:
            seen.add(id(value))
            for name, item in vars(value).items():
                if not _is_code(item):
                    _collect(item, f"{path}.{name}", found.held, found, seen)
    else:
        raise TraceError(
            f"The model returns a {type(value).__module__}.{type(value).__qualname__} at {path}, which structprune "
            "cannot read for tensors. Return tensors, tuples, lists, dicts or dataclasses, or give example_inputs as "
            "a callable that calls the model and returns the tensors."
        )


def _is_code(value: Any) -> bool:
    """What an object may hold besides state: devices, types, functions, streams."""
    return callable(value) or isinstance(value, (torch.dtype, torch.device, ModuleType))


_PLAIN = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
