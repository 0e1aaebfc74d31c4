"""How much each channel weighs: norms of filters, lots, and what a user's function returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from structprune.errors import ModelError, OptionError, described
from structprune.ir.record import PARAMETER, Node
from structprune.ir.slices import Ids
from structprune.select.options import Criterion, CriterionOverGraph, Importance
from structprune.tracing.groups import DependencyGraph, Group, Producer

Scores = npt.NDArray[np.float64]
NO_VALUES = (
    '{} is on the meta device and has no values to rank: load the weights first, take importance="random" or a '
    "function, or apply a plan that was made on another copy (Plan.apply)."
)
# Elements that norms are computed of at a time.
_STRETCH = 1 << 22


class Ranking(Protocol):
    """A way to score channels.

    Attributes:
        notes: What the user should know of the scores.
        comparable: Whether scores of two layers may be held against each other as they are.
    """

    notes: list[str]
    comparable: bool

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """Score the channels of groups.

        Returns:
            One score per slice id, filled in at the id that stands for the channel; the weakest go first.
        """
        ...


def name_of(importance: Importance) -> str:
    """What a plan calls the criterion that it was made with."""
    if isinstance(importance, str):
        return importance
    return getattr(importance, "__name__", type(importance).__name__)


class Norms:
    """The norms of a network's filters, each computed once.

    Args:
        weights: The values of its parameters and buffers by name; read one at a time.
        order: 2 for the L2 norm, squares summed over tied producers; 1 for the L1 norm.
    """

    comparable = False

    def __init__(self, weights: Mapping[str, torch.Tensor], order: int = 2) -> None:
        self.notes: list[str] = []
        self._tensors = weights
        self._order = order
        self._known: dict[tuple[bool, tuple[int, int], int], Scores] = {}

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """The norm of the producing filters of every channel.

        Raises:
            ModelError: The weights are on the meta device.
        """
        ids: list[Ids] = []
        powers: list[Scores] = []
        for group in groups:
            for producer in group.producers:
                ids.append(graph.roots[producer.ids])
                powers.append(self._of(producer) ** self._order)
        if not ids:
            return np.zeros(graph.space.size)
        total = np.bincount(np.concatenate(ids), weights=np.concatenate(powers), minlength=graph.space.size)
        return np.asarray(np.sqrt(total) if self._order == 2 else total, dtype=np.float64)

    def _of(self, producer: Producer) -> Scores:
        """The norms along the producing dimension of an operand, which every trace makes at the same node."""
        key = producer.record.training, producer.source, producer.dim
        if key not in self._known:
            # Before the weight is read: what is kept must not lie behind it on the heap, where it would hold
            # the room of one weight after the other.
            norms = np.empty(len(producer.ids))
            weight = _operand(producer, self._tensors)
            if weight.is_meta:
                raise ModelError(NO_VALUES.format(producer.name))
            norms[:] = _norms(weight, producer.dim, self._order)
            self._known[key] = norms
        return self._known[key]


class GroupNorms:
    """The L2 norm of all weights that leave with a channel: filters, scales and biases, and what reads it.

    Beside the mean of their layer, as scores are held against each other, this is the group magnitude of Fang et al.,
    "DepGraph: Towards Any Structural Pruning" (2023).

    Args:
        weights: The values of the network's parameters by name; read one at a time.
    """

    comparable = False

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.notes: list[str] = []
        self._tensors = weights
        self._known: dict[tuple[str, int], Scores] = {}

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """The norm of everything that leaves with every channel.

        Raises:
            ModelError: The weights are on the meta device.
        """
        asked = np.zeros(graph.space.size, dtype=bool)
        for group in groups:
            asked[group.channels] = True
        squares = np.zeros(graph.space.size)
        for axis in graph.space.axes:
            roots = graph.roots[axis.ids]
            if axis.tensor in self._tensors and asked[roots].any():
                np.add.at(squares, roots, self._of(axis.tensor, axis.dim) ** 2)
        return np.sqrt(squares)

    def _of(self, name: str, dim: int) -> Scores:
        if (name, dim) not in self._known:
            weight = self._tensors[name]
            if weight.is_meta:
                raise ModelError(NO_VALUES.format(name))
            self._known[name, dim] = _norms(weight, dim, 2)
        return self._known[name, dim]


class Random:
    """The same random score for a slice in every graph of a plan; ``torch.manual_seed`` decides which."""

    comparable = False

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._seed = int(torch.randint(2**31, (1,)))

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """Random scores."""
        return np.random.default_rng(self._seed).random(graph.space.size)


class Scored:
    """Scores by a function of a group, or of the graph."""

    comparable = False

    def __init__(self, criterion: Callable[[Any], Any]) -> None:
        self.notes: list[str] = []
        self._criterion = criterion

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """What the function returns for each group.

        Raises:
            OptionError: That is not a finite number for each channel.
        """
        scores = np.zeros(graph.space.size)
        given = self._of_graph(graph) if is_over_graph(self._criterion) else None
        for group in groups:
            own = self._criterion(group) if given is None else given[group.index]
            scores[group.channels] = read_scores(own, self._criterion, group)
        return scores

    def _of_graph(self, graph: DependencyGraph) -> Sequence[Any]:
        given = self._criterion(graph)
        if not isinstance(given, Sequence) or len(given) != len(graph.groups):
            what = f"{len(given)} entries" if isinstance(given, Sequence) else described(given)
            raise OptionError(
                f"importance={name_of(self._criterion)} returned {what}; expected a list with the scores of each of "
                f"the {len(graph.groups)} groups of the graph, in their order."
            )
        return given


_OVER_GRAPH = "_structprune_over_graph"


def over_graph(criterion: CriterionOverGraph) -> CriterionOverGraph:
    """Mark a criterion that looks at all groups together.

    Args:
        criterion: A function of a ``DependencyGraph`` that returns a list: for each of ``graph.groups``, in their
            order, a score for each of its channels.

    Returns:
        The function, to be given as ``importance=``.
    """
    if not callable(criterion):
        raise OptionError(f"over_graph marks a function of a graph, got {described(criterion)}.")

    # A function of its own: a method takes no mark.
    @wraps(criterion, updated=())
    def marked(graph: DependencyGraph) -> Sequence[Any]:
        return criterion(graph)

    setattr(marked, _OVER_GRAPH, True)
    return marked


def is_over_graph(criterion: Any) -> bool:
    """Whether a criterion is asked once for a whole graph."""
    return bool(getattr(criterion, _OVER_GRAPH, False))


def read_scores(given: Any, criterion: Criterion, group: Group) -> Scores:
    """Check what a criterion returned for a group.

    Raises:
        OptionError: It is not a finite number for each channel.
    """
    name = name_of(criterion)
    try:
        given = np.ascontiguousarray(given) if isinstance(given, np.ndarray) else given
        tensor = torch.zeros(0) if given is None else torch.as_tensor(given)
        if tensor.is_complex() or tensor.is_meta:
            raise TypeError("complex or without values")
        scores = tensor.detach().double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"importance={name} returned a {type(given).__name__} that is no row of numbers, for the group "
            f"{group.name} ({error}); expected a score for each of its {group.width} channels."
        ) from error
    if scores.shape != (group.width,):
        what = "None" if given is None else f"the shape {list(scores.shape)}"
        raise OptionError(
            f"importance={name} returned {what} for the group {group.name}; expected a score for each of its "
            f"{group.width} channels, in their order (group.channels)."
        )
    if not np.isfinite(scores).all():
        raise OptionError(f"importance={name} returned {scores[~np.isfinite(scores)][0]} for the group {group.name}.")
    return scores


def _norms(weight: torch.Tensor, dim: int, order: int) -> Scores:
    weight = weight.detach()
    others = [d for d in range(weight.ndim) if d != dim]
    if not others:
        return weight.abs().double().cpu().numpy()
    dtype = torch.float64 if weight.dtype in (torch.float64, torch.complex128) else torch.float32
    # Norms in another dtype copy what they read, as absolute values of complex numbers do: a stretch at a time.
    step = max(1, _STRETCH * weight.shape[dim] // max(1, weight.numel()))
    parts = [
        torch.linalg.vector_norm(part.abs() if part.is_complex() else part, order, dim=others, dtype=dtype)
        .double()
        .cpu()
        for part in torch.split(weight, step, dim)
    ]
    return torch.cat(parts).numpy()


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
            return self._tensors[node.op.removeprefix(PARAMETER)].detach()
        out = node.replay(self)
        return out[output] if isinstance(out, (list, tuple)) else out
