"""Runs operators without computing: floats on the meta device, integers and booleans for real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from structprune.ir.schema import Signature, tensors_among
from structprune.ops.shapes import IN_PLACE_SHAPERS, SHAPERS

_FACTORIES = frozenset(
    f"aten::{name}"
    for name in (
        "arange empty empty_strided full ones zeros rand randn randint randperm linspace eye "
        "scalar_tensor tril_indices triu_indices _to_copy new_empty new_full new_ones new_zeros "
        "empty_like full_like ones_like zeros_like to"
    ).split()
)


_WITHOUT_VALUES = frozenset(("aten::empty", "aten::empty_strided", "aten::empty_permuted"))


def run_on_meta(op: Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operator without computing floats.

    Position ids, masks and counters are integers: they stay on the CPU, so that code which reads
    them (``.item()``, indexing, branches) works. Where they meet a meta tensor they become meta.
    """
    tensors = tensors_among((*args, *kwargs.values()))
    on_meta = [t.is_meta for t in tensors]
    if not any(on_meta):
        if op.name in _FACTORIES and _asks_for_meta(kwargs) and _is_integer(op, args, kwargs):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        elif op.name in _WITHOUT_VALUES and not _is_integer(op, args, kwargs):
            # What is written there later has no values either, and could not be written into memory that has some.
            kwargs = {**kwargs, "device": torch.device("meta")}
        return op.func(*args, **kwargs)
    by_numbers = _SHAPED_BY_NUMBERS.get(op.name)
    if by_numbers is not None and not all(on_meta):
        return by_numbers(*args, **kwargs)
    if not all(on_meta):
        args, kwargs = [_as_meta(a) for a in args], {k: _as_meta(v) for k, v in kwargs.items()}
        on_meta = [t.is_meta for t in tensors_among((*args, *kwargs.values()))]
    out = None
    if all(on_meta):
        shaper = (IN_PLACE_SHAPERS if op.in_place else SHAPERS).get(op.name)
        out = shaper(args, kwargs) if shaper is not None else None
    return op.func(*args, **kwargs) if out is None else out


def _packed(x: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> Any:
    """``_pack_padded_sequence``: the lengths say how many sequences each step has left."""
    counts = pack_padded_sequence(torch.empty(x.shape[:2]), lengths, batch_first).batch_sizes
    return torch.empty((int(lengths.sum()), *x.shape[2:]), dtype=x.dtype, device="meta"), counts


# Operators whose result has a shape that integers among their operands say.
_SHAPED_BY_NUMBERS: dict[str, Callable[..., Any]] = {"aten::_pack_padded_sequence": _packed}


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


def _is_integer(op: Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a factory makes integers or booleans."""
    dtype = kwargs.get("dtype")
    if dtype is None:
        if op.name in ("aten::randint", "aten::randperm", "aten::tril_indices", "aten::triu_indices"):
            return True
        source = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if source is not None:
            dtype = source.dtype
        elif op.name == "aten::arange":
            return all(isinstance(a, int) for a in args)
        elif op.name in ("aten::full", "aten::scalar_tensor"):
            return isinstance(args[-1], (bool, int))
        else:
            return False
    return not (dtype.is_floating_point or dtype.is_complex)
