"""How much each channel weighs: the norm of the filters that produce it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from structprune.errors import ModelError
from structprune.graph.groups import DependencyGraph, Group, Producer
from structprune.graph.record import Node
from structprune.graph.slices import Ids

Scores = npt.NDArray[np.float64]


class Norms:
    """The L2 norms of a network's filters, each computed once.

    Args:
        weights: The values of its parameters and buffers by name; read one at a time.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._tensors = weights
        self._known: dict[tuple[bool, tuple[int, int], int], Scores] = {}

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """The L2 norm of the producing filters of every channel, squares summed over tied producers.

        Returns:
            One score per slice id, filled in at the id that stands for the channel.

        Raises:
            ModelError: The weights are on the meta device.
        """
        ids: list[Ids] = []
        squares: list[Scores] = []
        for group in groups:
            for producer in group.producers:
                ids.append(graph.roots[producer.ids])
                squares.append(self._of(producer) ** 2)
        if not ids:
            return np.zeros(graph.space.size)
        total = np.bincount(np.concatenate(ids), weights=np.concatenate(squares), minlength=graph.space.size)
        scores: Scores = np.sqrt(total)
        return scores

    def _of(self, producer: Producer) -> Scores:
        """The norms along the producing dimension of an operand, which every trace makes at the same node."""
        key = producer.record.training, producer.source, producer.dim
        if key not in self._known:
            weight = _operand(producer, self._tensors)
            if weight.is_meta:
                raise ModelError(
                    f"{producer.name} is on the meta device and has no values to rank: load the weights first, or "
                    "apply a plan that was made on another copy (Plan.apply)."
                )
            self._known[key] = _norms(weight, producer.dim)
        return self._known[key]


def _norms(weight: torch.Tensor, dim: int) -> Scores:
    others = [d for d in range(weight.ndim) if d != dim]
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    norms = torch.linalg.vector_norm(weight.detach(), dim=others, dtype=dtype) if others else weight.detach().abs()
    return norms.double().cpu().numpy()


def _operand(producer: Producer, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The value of a weight operand: a parameter, or what the traced operators make of parameters."""
    with torch.no_grad():
        weight: torch.Tensor = _Values(producer.record.nodes, tensors)(*producer.source)
    return weight


class _Values:
    """The values of traced nodes that derive from parameters alone, by node and output."""

    def __init__(self, nodes: list[Node], tensors: Mapping[str, torch.Tensor]) -> None:
        self._nodes = nodes
        self._tensors = tensors

    def __call__(self, index: int, output: int) -> Any:
        node = self._nodes[index]
        if node.replay is None:
            return self._tensors[node.op.removeprefix("parameter::")].detach()
        out = node.replay(self)
        return out[output] if isinstance(out, (list, tuple)) else out
