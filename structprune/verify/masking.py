"""Runs a network with channels masked at the operators, and mixing operators made elementwise.

A channel is masked where it is read: one operand of every contraction is zeroed along it. An
operator that takes a statistic over channels has no exact counterpart among the masked ones (a
mean over half of the channels is another mean), so in both networks a surrogate takes its place
that keeps channels apart, or that sums over what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from structprune.compat import tree_map_only
from structprune.ir.record import Node, Operand
from structprune.ir.schema import tensors_of
from structprune.ir.slices import Mask
from structprune.ops.call import dims_of
from structprune.ops.registry import Operator


@dataclass(frozen=True)
class Surrogate:
    """What stands in for a mixing operator.

    Attributes:
        fill: What masked entries are set to before.
        function: Called with the operator's arguments by name; ``None``: the operator itself.
    """

    fill: float = 0.0
    function: Callable[[dict[str, Any]], Any] | None = None


class UnprovableError(Exception):
    """A mixing operator has no surrogate."""


def double_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the same kind in double precision; integers and booleans as they are."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def in_double(arguments: Any) -> Any:
    """The arguments of an operator that is to compute in float64 though the forward asks for less (norms often do)."""
    if isinstance(arguments, dict):
        return {name: in_double(value) for name, value in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(in_double(value) for value in arguments)
    if isinstance(arguments, torch.dtype):
        return double_of(arguments)
    if isinstance(arguments, torch.Tensor) and arguments.dtype != double_of(arguments.dtype):
        return arguments.to(double_of(arguments.dtype))  # an input that a callable makes
    return arguments


def run_in_double(op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operator in float64, whatever it was asked for, and where PyTorch has no kernel for that too."""
    args, kwargs = in_double(args), in_double(kwargs)
    function = _WITHOUT_DOUBLE.get(op.name, op.func)
    return function(*args, **kwargs)


def _grouped_product(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """``_grouped_mm``, which has no kernel for float64: one product for each stretch between offsets."""
    if bias is not None:
        raise UnprovableError("aten::_grouped_mm with a bias has no form in float64")
    if offs is None:
        return torch.bmm(a, b)
    stretches = list(pairwise([0, *offs.tolist()]))
    if a.ndim == b.ndim == 2:
        return torch.stack([a[:, start:end] @ b[start:end] for start, end in stretches])
    if a.ndim == 2:
        out = a.new_zeros(a.shape[0], b.shape[2])
        for matrix, (start, end) in zip(b, stretches, strict=True):
            out[start:end] = a[start:end] @ matrix
        return out
    out = a.new_zeros(a.shape[1], b.shape[1])
    for matrix, (start, end) in zip(a, stretches, strict=True):
        out[:, start:end] = matrix @ b[:, start:end]
    return out


_WITHOUT_DOUBLE: dict[str, Callable[..., Any]] = {"aten::_grouped_mm": _grouped_product}


def filled(
    args: Sequence[Any], kwargs: dict[str, Any], operand: Operand, gone: Mask, fill: float
) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of an operator with entries of one operand replaced, along its dimension."""
    original = [t for a in (*args, *kwargs.values()) for t in tensors_of(a)][operand.position]
    index = torch.from_numpy(gone.nonzero()[0]).to(original.device)
    replaced = original.index_fill(operand.dim, index, fill)
    args, kwargs = tree_map_only(
        torch.Tensor, lambda tensor: replaced if tensor is original else tensor, (list(args), kwargs)
    )
    return args, kwargs


class MaskedRun:
    """Runs operators for a replay, with the channels outside ``present`` masked.

    Args:
        present: The slices that are there.
        keeps: Keep all that operators return.
        widens: Compute in float64, whatever was asked for, and let surrogates stand in for what mixes channels; else
            run the operators as they are.
    """

    def __init__(self, present: Mask, *, keeps: bool = False, widens: bool = True) -> None:
        self._present = present
        self._widens = widens
        self._keeps = keeps
        self.mixed: list[str] = []
        self.kept: dict[int, Any] = {}

    def __call__(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one operator; ``node`` is the dense network's run of it."""
        out = self._run(node, op, args, kwargs)
        if self._keeps:
            self.kept[node.index] = [t.clone() for t in tensors_of(out)]
        return out

    def _run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self._widens:
            args, kwargs = in_double(args), in_double(kwargs)
        if node.operands:
            # One operand is enough: what is multiplied with zero is gone.
            args, kwargs = self._masked(node.operands[:1], 0.0, args, kwargs)
        if node.mixed and self._widens:
            self.mixed.append(node.where)
            surrogate = SURROGATES.get(op.name.removeprefix("aten::"))
            if surrogate is None:
                raise UnprovableError(f"{node.where} mixes channels and has no surrogate")
            args, kwargs = self._masked(node.mixed, surrogate.fill, args, kwargs)
            if surrogate.function is not None:
                arguments = {**op.defaults, **dict(zip(op.parameters, args, strict=False)), **kwargs}
                out = op.func(*args, **kwargs)
                first, *rest = out if isinstance(out, tuple) else (out,)
                # Into the operator's own result, whose strides decide which kernels come next. The
                # statistics that a normalisation saves besides are read by nothing.
                first.copy_(surrogate.function(arguments))
                if op.name in ("aten::var_mean", "aten::std_mean"):
                    rest = [_over(_sum)(arguments)]
                return (first, *rest) if isinstance(out, tuple) else first
        return run_in_double(op, args, kwargs) if self._widens else op.func(*args, **kwargs)

    def _masked(
        self, operands: Sequence[Operand], fill: float, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        for operand in operands:
            gone = ~self._present[operand.ids]
            if gone.any():
                args, kwargs = filled(args, kwargs, operand, gone, fill)
        return args, kwargs


def _affine(first: int) -> Callable[[dict[str, Any]], Any]:
    """``x * weight + bias`` with the weight along the dimensions from ``first`` on."""

    def normalise(a: dict[str, Any]) -> Any:
        x = a["input"]
        scaled = x.clone()
        rank = len(a["normalized_shape"]) if "normalized_shape" in a else 1
        begin = x.ndim - rank if first < 0 else first
        shape = [1] * begin + list(x.shape[begin : begin + rank]) + [1] * (x.ndim - begin - rank)
        if a.get("weight") is not None:
            scaled = scaled * a["weight"].reshape(shape)
        if a.get("bias") is not None:
            scaled = scaled + a["bias"].reshape(shape)
        return scaled

    return normalise


def _over(function: Callable[..., torch.Tensor]) -> Callable[[dict[str, Any]], Any]:
    """A reduction over the operator's dimensions, kept or not as it keeps them."""

    def reduce(a: dict[str, Any]) -> Any:
        x = a["self"]
        return function(x, dims_of(a.get("dim"), x.ndim), bool(a.get("keepdim", False)))

    return reduce


def _sum(x: torch.Tensor, dims: list[int], keepdim: bool) -> torch.Tensor:
    return x.sum(dims, keepdim)


def _squares(x: torch.Tensor, dims: list[int], keepdim: bool) -> torch.Tensor:
    return (x * x.conj()).real.sum(dims, keepdim) if x.is_complex() else (x * x).sum(dims, keepdim)


_SOFT = Surrogate(function=lambda a: torch.tanh(a["self"]))
_LOWEST, _HIGHEST = Surrogate(float("-inf")), Surrogate(float("inf"))
_SUM, _SQUARES = Surrogate(function=_over(_sum)), Surrogate(function=_over(_squares))
SURROGATES: dict[str, Surrogate] = {
    "native_layer_norm": Surrogate(function=_affine(-1)),
    "native_group_norm": Surrogate(function=_affine(1)),
    "native_batch_norm": Surrogate(function=_affine(1)),
    "_native_batch_norm_legit": Surrogate(function=_affine(1)),
    "_fused_rms_norm": Surrogate(function=_affine(-1)),
    "_softmax": _SOFT,
    "_safe_softmax": _SOFT,
    "_log_softmax": _SOFT,
    "mean": _SUM,
    "sum": Surrogate(),
    "nansum": Surrogate(),
    "var": _SQUARES,
    "std": _SQUARES,
    "var_mean": _SQUARES,
    "std_mean": _SQUARES,
    "linalg_vector_norm": Surrogate(),
    "norm": Surrogate(),
    "_batch_norm_with_update": Surrogate(function=_affine(1)),
    "prod": Surrogate(1.0),
    "any": Surrogate(),
    "all": Surrogate(1.0),
    "count_nonzero": Surrogate(),
    "logsumexp": _LOWEST,
    "amax": _LOWEST,
    "max": _LOWEST,
    "amin": _HIGHEST,
    "min": _HIGHEST,
    "_weight_norm_interface": Surrogate(),
    "renorm": Surrogate(),
}
