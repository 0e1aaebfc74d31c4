"""The tensors in whatever a model returns, or is handed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

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
    return _Search(refuses=True).through(value, "output")


def tensors_within(value: Any) -> list[torch.Tensor]:
    """All tensors that can be found in anything, with those of modules; what cannot be searched is passed over."""
    found = _Search(refuses=False).through(value, "")
    return [*found.tensors, *found.held]


class _Search:
    """Goes through nested values; ``refuses``: an object that it cannot look into is an error."""

    def __init__(self, *, refuses: bool) -> None:
        self._refuses = refuses
        self._found = Outputs()
        self._seen: set[int] = set()

    def through(self, value: Any, path: str) -> Outputs:
        """What is found in a value."""
        self._collect(value, path, self._found.tensors)
        return self._found

    def _collect(self, value: Any, path: str, into: list[torch.Tensor]) -> None:
        if isinstance(value, torch.Tensor):
            into.append(value)
        elif value is None or isinstance(value, _PLAIN):
            return
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._collect(item, f"{path}[{key!r}]", into)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for index, item in enumerate(value):
                self._collect(item, f"{path}[{index}]", into)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                self._collect(getattr(value, field.name), f"{path}.{field.name}", into)
        elif getattr(value, "__dict__", None) and not callable(value):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                for name, item in vars(value).items():
                    if not _is_code(item):
                        self._collect(item, f"{path}.{name}", self._found.held)
        elif isinstance(value, nn.Module) and not self._refuses:
            into += [*value.parameters(), *value.buffers()]
        elif self._refuses:
            raise TraceError(
                f"The model returns a {type(value).__module__}.{type(value).__qualname__} at {path}, which structprune "
                "cannot read for tensors. Return tensors, tuples, lists, dicts or dataclasses, or give example_inputs "
                "as a callable that calls the model and returns the tensors."
            )


def _is_code(value: Any) -> bool:
    """What an object may hold besides state: devices, types, functions, streams."""
    return callable(value) or isinstance(value, (torch.dtype, torch.device, ModuleType))


_PLAIN = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
