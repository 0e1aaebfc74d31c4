"""What an ATen overload is called and whether it writes its first argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from structprune.compat import schema_of, storage_key

_KNOWN: dict[Any, Signature] = {}


@dataclass(frozen=True)
class Signature:
    """An overload's base name (``aten::add`` for ``add_`` too) and how it treats memory."""

    func: Any
    name: str
    in_place: bool
    out_variant: bool


def signature(func: Any) -> Signature:
    """Read an overload's schema, once."""
    known = _KNOWN.get(func)
    if known is None:
        schema = schema_of(func)
        base = schema.name
        mutated = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        in_place = mutated and base.endswith("_") and not base.endswith("__")
        known = _KNOWN[func] = Signature(
            func, base.removesuffix("_") if in_place else base, in_place, any(a.is_out for a in schema.arguments)
        )
    return known


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
