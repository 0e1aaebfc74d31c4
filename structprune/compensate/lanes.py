"""Many batches in one forward: the model's code runs once, for the first batch, and every operator for all of them.

So a layer can be fitted to all batches before the next one runs. Tensors of the first batch hold those of the others as
an attribute; they live as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from structprune.compat import tree_leaves, tree_map_only
from structprune.errors import InputError
from structprune.inputs import Invocation, describe, read_inputs
from structprune.ir.operators import Operator
from structprune.ir.tensors import tensors_among

_OTHERS = "_structprune_others"


@dataclass(frozen=True)
class ManyBatches(Invocation):
    """One call with several batches of the same shapes."""

    others: tuple[Invocation, ...] = ()

    def mapped(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> ManyBatches:
        """The same call with every tensor of every batch converted; the first batch's hold the others'."""
        first, others = super().mapped(convert), tuple(other.mapped(convert) for other in self.others)
        every = [_tensors(call) for call in (first, *others)]
        for own, *rest in zip(*every, strict=True):
            setattr(own, _OTHERS, rest)
        return ManyBatches(first.args, first.kwargs, first.function, others)


def together(batches: Sequence[Any]) -> ManyBatches:
    """One call with all batches.

    Raises:
        InputError: They are not of the same shapes, or are several calls, or a function.
    """
    calls = [call for batch in batches for call in read_inputs(batch)]
    if len(calls) != len(batches) or (len(calls) > 1 and any(call.function for call in calls)):
        raise InputError(
            "calibrate takes batches that are one call each: a tensor, a tuple of arguments or a dict of keyword "
            "arguments, without labels: [x for x, _ in loader], if a loader gives both."
        )
    if all(call.kwargs.keys() == calls[0].kwargs.keys() for call in calls):
        names = list(calls[0].kwargs)
        calls = [Invocation(call.args, {name: call.kwargs[name] for name in names}, call.function) for call in calls]
    shapes = [_outline(call) for call in calls]
    for number, own in enumerate(shapes, 1):
        if own != shapes[0]:
            raise InputError(
                f"calibrate: batch {number} is {calls[number - 1]}, and batch 1 {calls[0]}: all have to be alike, "
                "and of the same shapes (a DataLoader with drop_last=True leaves out what is short)."
            )
    return ManyBatches(calls[0].args, calls[0].kwargs, calls[0].function, tuple(calls[1:]))


def run_on_all(op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operator on every batch; return what it gives for the first.

    Raises:
        InputError: It writes what differs between batches into a tensor that all share, or gives the forward another
            number for each.
    """
    given = tensors_among((*args, *kwargs.values()))
    others = max((len(getattr(tensor, _OTHERS, ())) for tensor in given), default=0)
    written = [*given[:1]] if op.in_place else op.results(args, kwargs, None) if op.writes or op.out_variant else []
    if others and any(not hasattr(tensor, _OTHERS) for tensor in written):
        raise InputError(
            f"calibrate: {op.name} writes into a tensor that the model makes once for all batches: give one batch."
        )
    every = [of_batch(other, args, kwargs) for other in range(others)]
    out = op.func(*args, **kwargs)
    outs = [op.func(*own[0], **own[1]) for own in every]
    if not isinstance(out, (torch.Tensor, tuple, list)) and any(other != out for other in outs):
        raise InputError(
            f"calibrate: {op.name} gives the forward {out!r} for the first batch, and something else for another: its "
            "way may depend on that. Give one batch, or batches for which it is the same."
        )
    results = [op.results(*own, given) for own, given in zip(every, outs, strict=True)]
    if results:
        for number, tensor in enumerate(op.results(args, kwargs, out)):
            setattr(tensor, _OTHERS, [own[number] for own in results])
    return out


def of_batch(other: int, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of an operator for another batch than the first."""

    def own(tensor: torch.Tensor) -> torch.Tensor:
        others = getattr(tensor, _OTHERS, None)
        return tensor if others is None else others[other]

    mapped: tuple[list[Any], dict[str, Any]] = tree_map_only(torch.Tensor, own, (list(args), kwargs))
    return mapped


def for_all(args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[list[Any], dict[str, Any]]]:
    """The arguments of an operator, for every batch."""
    others = max((len(getattr(t, _OTHERS, ())) for t in tensors_among((*args, *kwargs.values()))), default=0)
    return [(list(args), dict(kwargs)), *(of_batch(other, args, kwargs) for other in range(others))]


def of_all(tensor: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of the first batch, and those of the others."""
    return [tensor, *getattr(tensor, _OTHERS, ())]


def _outline(call: Invocation) -> list[Any]:
    """What a call says besides the numbers of its tensors."""
    leaves = tree_leaves((call.args, call.kwargs))
    return [list(call.kwargs), *(describe(leaf) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves)]


def _tensors(call: Invocation) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, torch.Tensor)]
