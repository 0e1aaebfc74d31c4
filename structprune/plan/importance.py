"""How much each channel weighs: the norm of the filters that produce it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from structprune.errors import ModelError
from structprune.graph.groups import DependencyGraph, Group, Producer
from structprune.meta.replica import named_tensors

Scores = npt.NDArray[np.float64]


def l2_scores(model: nn.Module, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
    """The L2 norm of the producing filters of every channel, squares summed over tied producers.

    Returns:
        One score per slice id, filled in at the id that stands for the channel.

    Raises:
        ModelError: The weights are on the meta device.
    """
    squares = np.zeros(graph.space.size)
    tensors = named_tensors(model)
    for group in groups:
        for producer in group.producers:
            weight = _operand(producer, tensors)
            if weight.is_meta:
                raise ModelError(
                    f"{producer.name} is on the meta device and has no values to rank: load the weights first, or "
                    "apply a plan that was made on another copy (Plan.apply)."
                )
            norms = _norms(weight, producer.dim)
            squares += np.bincount(graph.roots[producer.ids], weights=norms**2, minlength=graph.space.size)
    scores: Scores = np.sqrt(squares)
    return scores


def _norms(weight: torch.Tensor, dim: int) -> Scores:
    others = [d for d in range(weight.ndim) if d != dim]
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    norms = torch.linalg.vector_norm(weight.detach(), dim=others, dtype=dtype) if others else weight.detach().abs()
    return norms.double().cpu().numpy()


def _operand(producer: Producer, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The value of a weight operand: a parameter, or what the traced operators make of parameters."""
    nodes = producer.record.nodes

    def value(index: int, output: int) -> Any:
        node = nodes[index]
        if node.replay is None:
            return tensors[node.op.removeprefix("parameter::")].detach()
        out = node.replay(value)
        return out[output] if isinstance(out, (list, tuple)) else out

    with torch.no_grad():
        weight: torch.Tensor = value(*producer.source)
    return weight
