"""The tensors among arguments and results, and the memory that they lie in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from structprune.compat import storage_key


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors among an operator's arguments or results, lists of tensors included, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return tensors_among(value)
    return []


def tensors_among(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors of several arguments, in order."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_among(value)
    return found


def memory_of(tensor: torch.Tensor) -> int:
    """A number for the memory that a tensor lies in, shared by its views while it lives; 0 for a sparse one."""
    where: int = storage_key(tensor) if tensor.layout == torch.strided else 0
    return where
