"""Criteria of torch-pruning, which score our groups as their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch_pruning import ops
from torch_pruning.dependency import Dependency, Node
from torch_pruning.dependency import Group as TheirGroup
from torch_pruning.pruner.function import PrunerBox
from torch_pruning.pruner.importance import Importance as TheirImportance
from torch_pruning.pruner.importance import RandomImportance

from structprune.errors import OptionError
from structprune.ir.slices import Ids
from structprune.select.partitions import signatures
from structprune.select.scores import Norms, Scores
from structprune.tracing.groups import DependencyGraph, Group

# The layers whose weights its criteria read, and which dimension of the weight lies along which side.
_OUT_FIRST = (ops.OPTYPE.CONV, ops.OPTYPE.LINEAR)
_ONE_SIDED = (ops.OPTYPE.DEPTHWISE_CONV, ops.OPTYPE.BN, ops.OPTYPE.LN, ops.OPTYPE.GN, ops.OPTYPE.IN, ops.OPTYPE.PRELU)


def is_of_torch_pruning(importance: Any) -> bool:
    """Whether a criterion expects a group of torch-pruning."""
    return isinstance(importance, TheirImportance)


def draws_lots(importance: Any) -> bool:
    """Whether a criterion of torch-pruning reads no values."""
    return isinstance(importance, RandomImportance)


class TorchPruning:
    """Scores by an object of ``torch_pruning.importance``.

    Args:
        importance: The object, with what it has gathered (gradients, activations).
        model: The user's own model, whose modules it knows.
        otherwise: Ranks groups that it has no score for: those of raw parameters.
    """

    comparable = False

    def __init__(self, importance: Any, model: nn.Module, otherwise: Norms) -> None:
        self.notes: list[str] = []
        self._importance = importance
        self._model = model
        self._otherwise = otherwise
        # Planning asks for the same group again, and some criteria compare every filter with every other.
        self._known: dict[tuple[Any, ...], Scores | None] = {}

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """Score the channels of every group; those that other layers produce as well are scored apart."""
        layers = list(_layers(graph, self._model))
        marks = signatures(graph)
        scores = np.zeros(graph.space.size)
        for group in groups:
            for mark in np.unique(marks[group.channels]):
                channels = group.channels[marks[group.channels] == mark]
                found = self._score(graph, group, channels, layers)
                if found is None:
                    self._note(group)
                    scores[channels] = self._otherwise.scores(graph, [group])[channels]
                else:
                    scores[channels] = found
        return scores

    def _note(self, group: Group) -> None:
        name = type(self._importance).__name__
        said = f"{group.name}: {name} has no score for it, ranked by the L2 norm"
        if said not in self.notes:
            self.notes.append(said)

    def _score(self, graph: DependencyGraph, group: Group, channels: Ids, layers: list[_Layer]) -> Scores | None:
        position = np.full(graph.space.size, -1)
        position[channels] = np.arange(len(channels))
        parts = _parts(group, position[graph.roots], layers)
        key = tuple((part.layer.name, part.indices.tobytes(), part.channels.tobytes()) for part in parts)
        if key not in self._known:
            try:
                given = self._importance(_their_group(parts))
            except Exception as error:
                raise OptionError(
                    f"importance={type(self._importance).__name__} failed for the group {group.name} "
                    f"({type(error).__name__}: {error}): has it what it needs, gradients or activations of this model?"
                ) from error
            self._known[key] = self._checked(given, group, channels)
        return self._known[key]

    def _checked(self, given: Any, group: Group, channels: Ids) -> Scores | None:
        name = type(self._importance).__name__
        if given is None:
            return None
        scores = torch.as_tensor(given).detach().double().cpu().numpy()
        # It has an entry for every slice of the first layer: the channels come first.
        if scores.ndim != 1 or len(scores) < len(channels):
            raise OptionError(
                f"importance={name} returned the shape {list(scores.shape)} for the group {group.name} of "
                f"{len(channels)} channels; expected a score for each (its group_reduction must not be None)."
            )
        own: Scores = scores[: len(channels)]
        if not np.isfinite(own).all():
            raise OptionError(
                f"importance={name} returned {own[~np.isfinite(own)][0]} for the group {group.name}: has it seen "
                "gradients or activations of this model?"
            )
        return own


class _Layer:
    """One side of a layer as torch-pruning knows it: the slices along it, and the function that would cut it."""

    def __init__(self, name: str, module: nn.Module, ids: Ids, prune: Any, repeats: int = 1) -> None:
        self.name, self.ids, self.repeats = name, ids, repeats
        node = Node(module, None, name)
        self.dependency = Dependency(prune, prune, node, node)


def _layers(graph: DependencyGraph, model: nn.Module) -> Iterator[_Layer]:
    """The sides of all layers that torch-pruning knows, in the order of the model's modules."""
    axes = graph.space.by_tensor
    for name, module in model.named_modules():
        weight = axes.get(f"{name}.weight" if name else "weight")
        kind = ops.module2type(module)
        if weight is None or kind not in PrunerBox:
            continue
        pruner = PrunerBox[kind]
        if kind in _OUT_FIRST:
            transposed = getattr(module, "transposed", False)
            groups = getattr(module, "groups", 1)
            yield _Layer(name, module, weight[int(transposed)].ids, pruner.prune_out_channels)
            yield _Layer(name, module, weight[1 - int(transposed)].ids, pruner.prune_in_channels, groups)
        elif kind in _ONE_SIDED:
            yield _Layer(name, module, weight[0].ids, pruner.prune_out_channels)


class _Part(NamedTuple):
    """The indices along one side of a layer that belong to a group, and the channel of each."""

    layer: _Layer
    indices: Ids
    channels: Ids


def _parts(group: Group, position: Ids, layers: list[_Layer]) -> list[_Part]:
    """The producing layers first, then all others that have slices of the channels."""
    producers = [producer.name for producer in group.producers]

    def rank(layer: _Layer) -> int:
        weight = f"{layer.name}.weight"
        return producers.index(weight) if weight in producers and _produces(layer, group) else len(producers)

    parts = []
    for layer in sorted(layers, key=rank):
        channels = np.tile(position[layer.ids], layer.repeats)
        indices = np.flatnonzero(channels >= 0)
        if len(indices):
            parts.append(_Part(layer, indices, channels[indices]))
    return parts


def _their_group(parts: list[_Part]) -> Any:
    """A group of torch-pruning."""
    theirs = TheirGroup()
    for i, part in enumerate(parts):
        theirs.add_dep(part.layer.dependency, part.indices.tolist())
        theirs[i].root_idxs = part.channels.tolist()
    return theirs


def _produces(layer: _Layer, group: Group) -> bool:
    return any(len(p.ids) and p.ids[0] in layer.ids for p in group.producers if p.name == f"{layer.name}.weight")
