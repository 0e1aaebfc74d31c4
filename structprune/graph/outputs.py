"""The tensors in whatever a model returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from structprune.errors import TraceError


def output_tensors(value: Any, path: str = "output") -> list[torch.Tensor]:
    """All tensors of a nested output of tensors, sequences, mappings and dataclasses.

    Raises:
        TraceError: Something else is in it: a tensor hidden in there could be cut unseen.
    """
    if isinstance(value, torch.Tensor):
        return [value]
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.Size)):
        return []
    if isinstance(value, Mapping):
        return [t for k, v in value.items() for t in output_tensors(v, f"{path}[{k!r}]")]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [t for i, v in enumerate(value) for t in output_tensors(v, f"{path}[{i}]")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            t for f in dataclasses.fields(value) for t in output_tensors(getattr(value, f.name), f"{path}.{f.name}")
        ]
    raise TraceError(
        f"The model returns a {type(value).__module__}.{type(value).__qualname__} at {path}, which structprune cannot "
        "read for tensors. Return tensors, tuples, lists, dicts or dataclasses, or give example_inputs as a callable "
        "that calls the model and returns the tensors."
    )
