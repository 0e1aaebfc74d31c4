"""Runs operators without computing: floats on the meta device, integers and booleans for real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from structprune.ir.operators import Operator
from structprune.ir.tensors import tensors_among


def run_on_meta(op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operator without computing floats.

    Position ids, masks and counters are integers: they stay on the CPU, so that code which reads
    them (``.item()``, indexing, branches) works. Where they meet a meta tensor they become meta.
    """
    tensors = tensors_among((*args, *kwargs.values()))
    on_meta = [t.is_meta for t in tensors]
    if not any(on_meta):
        if op.spec.values and _asks_for_meta(kwargs) and _is_integer(op, args, kwargs):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        elif op.spec.values == "none" and not tensors and not _is_integer(op, args, kwargs):
            # What is written there later has no values either, and could not be written into memory that has some.
            kwargs = {**kwargs, "device": torch.device("meta")}
        return op.func(*args, **kwargs)
    if op.spec.by_numbers is not None and not all(on_meta):
        return op.spec.by_numbers(*args, **kwargs)
    if not all(on_meta):
        args, kwargs = [_as_meta(a) for a in args], {k: _as_meta(v) for k, v in kwargs.items()}
        on_meta = [t.is_meta for t in tensors_among((*args, *kwargs.values()))]
    out = None
    if all(on_meta):
        shape = op.spec.on_meta_in_place if op.in_place else op.spec.on_meta
        out = shape(args, kwargs) if shape is not None else None
    return op.func(*args, **kwargs) if out is None else out


def _as_meta(value: Any) -> Any:
    """Tensors without their values; a scalar stays where it is, as operators take one from any device."""
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, torch.Tensor) and not value.is_meta and value.ndim:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_as_meta(v) for v in value)
    return value


def _asks_for_meta(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "meta"


def _is_integer(op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a factory makes integers or booleans."""
    dtype = kwargs.get("dtype")
    if dtype is None:
        if op.spec.values == "integers":
            return True
        source = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if source is not None:
            dtype = source.dtype
        elif op.spec.values == "as given":
            return all(isinstance(a, int) for a in args if not isinstance(a, (list, tuple)))
        else:
            return False
    return not (dtype.is_floating_point or dtype.is_complex)
