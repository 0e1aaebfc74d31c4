"""Autograd's graphs of earlier forwards, which know the tensors that are about to be cut.

A graph holds the accumulator of every parameter that it reaches, which expects gradients of the shape that the
parameter had, and until it ran backward also the parameters that its operators saved, whose values it would take as
they are by then. After ``backward()`` those are let go of, and the accumulators stay for as long as a loss is in scope:
they are put aside, so that the next forward makes new ones. What an old one would be asked to add is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.autograd.graph import Node

from structprune.errors import ModelError

_STALE = (
    "The graph of an earlier forward is still alive (an output or a loss of this model), and its backward would expect "
    "the old shapes: run its backward (without retain_graph) or delete those tensors first, or prune a copy "
    "(inplace=False)."
)


def check_unused(tensors: Iterable[torch.Tensor]) -> None:
    """Refuse tensors that a graph still needs, and part those that it only leads to from it.

    Nothing changes for graphs that are there where the cut then fails.

    Raises:
        ModelError: A graph that is alive could still run backward through one of them.
    """
    known: list[tuple[torch.Tensor, Node]] = []
    _, in_graphs_alone = _accumulator(nn.Parameter(torch.zeros(())))
    for tensor in tensors:
        # One owner is Python itself.
        if not tensor.is_leaf or _owners(tensor) == 1:
            continue
        if not tensor.requires_grad:
            raise ModelError(_STALE)
        accumulator, references = _accumulator(tensor)
        # Whoever holds it in Python has hooks on it, which a new one would not have.
        if _owners(tensor) > 2 or references > in_graphs_alone:
            raise ModelError(_STALE)
        known.append((tensor, accumulator))
    for tensor, accumulator in known:
        put_aside = _PutAside(tensor)
        accumulator.register_prehook(put_aside)
        _ASIDE.add(put_aside)
        _forget_accumulator(tensor)


def _owners(tensor: torch.Tensor) -> int:
    """How many owners in C++ a tensor has: Python, its accumulator, and every operator that saved it."""
    aside = sum(old.tensor is tensor for old in _ASIDE)
    return int(tensor._use_count()) - aside  # type: ignore[attr-defined]


def _accumulator(tensor: torch.Tensor) -> tuple[Node, int]:
    """What adds to the gradient of a leaf, and its reference count while a graph holds it."""
    with torch.enable_grad():
        graph = tensor.view_as(tensor)
    accumulator: Node = graph.grad_fn.next_functions[0][0]  # type: ignore[union-attr, assignment]
    return accumulator, sys.getrefcount(accumulator)


def _forget_accumulator(tensor: torch.Tensor) -> None:
    """Autograd lets go of an accumulator where the dtype changes, and makes another one when it needs one."""
    data = tensor.data
    other = torch.empty(0, dtype=torch.float32 if data.dtype == torch.float64 else torch.float64, device=data.device)
    # One line: an interrupt must not come between.
    tensor.data, tensor.data = other, data


class _PutAside:
    """A hook before an old accumulator: to a tensor that was cut it would add what has the dense one's shape."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self._shape = tensor, tensor.shape

    def __call__(self, gradients: Any) -> None:
        if self.tensor.shape != self._shape:
            raise ModelError(
                "This graph is of a forward before the model was pruned in place, and its gradients have the old "
                "shapes: run the model again, and backward from what that gives."
            )


# Those whose graph is still there: each owns its tensor.
_ASIDE: WeakSet[_PutAside] = WeakSet()
