"""What a call of an operator costs: its FLOPs, and the bytes that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from structprune.compat import overloads_of, storage_key
from structprune.ir.operators import Operator, nothing
from structprune.ir.tensors import tensors_of
from structprune.ops import OPERATORS

_ATEN = torch.ops.aten
_FREE_TAGS = frozenset((torch.Tag.pointwise, torch.Tag.view_copy))
_FREE_BY_NAME: dict[str, bool] = {}


def operator_flops(op: Operator, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int | None:
    """FLOPs of one call, two for a multiply and add; ``None`` where no formula is known."""
    own = op.spec.flops
    if own is not None:
        return own(args, kwargs, out)
    formula = flop_registry.get(overloads_of(op.func))
    if formula is not None:
        return _by_torch(formula, args, kwargs, out)
    return 0 if is_free(op) else None


def _by_torch(formula: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """One of torch's formulas, which are of shapes: its own wrapper walks trees for them, ten times as long."""
    of_shapes = getattr(formula, "__wrapped__", None)
    if of_shapes is None or not isinstance(out, torch.Tensor):
        return int(formula(*args, **kwargs, out_val=out))
    named = {name: _shape(value) for name, value in kwargs.items()}
    return int(of_shapes(*map(_shape, args), **named, out_shape=out.shape))


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else value


def is_counted(op: Operator) -> bool:
    """Whether an operator has a formula: all others cost nothing, or are not known."""
    own = op.spec.flops
    return own is not nothing if own is not None else overloads_of(op.func) in flop_registry


def is_free(op: Operator) -> bool:
    """Whether an operator contracts nothing: its spec says so, or PyTorch's tags, of views and functions of entries."""
    if op.spec.flops is not None:
        return op.spec.flops is nothing
    known = _FREE_BY_NAME.get(op.name)
    if known is None:
        known = op.func.is_view or not _FREE_TAGS.isdisjoint(op.func.tags) or _is_free_backward(op.name)
        _FREE_BY_NAME[op.name] = known
    return known


def _is_free_backward(name: str) -> bool:
    """The gradient of an operator without contraction has none either."""
    namespace, _, name = name.partition("::")
    forward = name.removesuffix("_backward")
    if forward == name or namespace != "aten":
        return False
    packet = getattr(_ATEN, forward, None)
    overloads = [] if packet is None else [getattr(packet, o) for o in packet.overloads()]
    return any(OPERATORS.of(o).spec.flops is nothing or not _FREE_TAGS.isdisjoint(o.tags) for o in overloads)


def written_bytes(args: Sequence[Any], kwargs: dict[str, Any], results: list[torch.Tensor]) -> int:
    """Bytes of the results that are new memory, not a view of an operand or the operand itself."""
    operands = {storage_key(t) for a in (*args, *kwargs.values()) for t in tensors_of(a)}
    return sum(nbytes(t) for t in results if storage_key(t) not in operands)


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's entries."""
    return tensor.numel() * tensor.element_size()
