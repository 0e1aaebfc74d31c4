"""Runs a network with channels masked at the operators, and mixing operators made elementwise.

A channel is masked where it is read: one operand of every contraction is zeroed along it. An
operator that takes a statistic over channels has no exact counterpart among the masked ones (a
mean over half of the channels is another mean), so in both networks a surrogate takes its place
that keeps channels apart, or that sums over what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from structprune.compat import tree_map_only
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Operand
from structprune.ir.slices import Mask
from structprune.ir.tensors import tensors_of


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
    out = (op.spec.in_double or op.func)(*args, **kwargs)
    # What is made in another dtype would be copied where something is written into it, and the write be lost.
    return out if op.in_place or op.writes or op.out_variant or op.func.is_view else in_double(out)


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
            surrogate = op.spec.surrogate
            if surrogate is None:
                raise UnprovableError(f"{node.where} mixes channels and has no surrogate, see structprune.rules")
            args, kwargs = self._masked(node.mixed, surrogate.fill, args, kwargs)
            if surrogate.function is not None:
                arguments = {**op.defaults, **op.arguments(args, kwargs)}
                out = op.func(*args, **kwargs)
                first, *rest = out if isinstance(out, tuple) else (out,)
                # Into the operator's own result, whose strides decide which kernels come next. The
                # statistics that a normalisation saves besides are read by nothing.
                first.copy_(surrogate.function(arguments))
                if surrogate.also is not None:
                    rest = [surrogate.also(arguments)]
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
