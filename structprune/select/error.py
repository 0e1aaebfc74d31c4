"""How much a network's activations change if a channel goes: its predicted output error, without data.

A channel ``j`` that a contraction ``y = W x`` reads adds ``W[:, j] x[j]`` to what it gives. Without the channel, and
with its mean made up for, ``y`` is wrong by ``W[:, j] (x[j] - mean)``, whose power is ``var(x[j]) * sum_o W[o, j]^2``.
It is held against the power of what ``y`` becomes a part of: of the batch norm's output behind it, and of the residual
stream that it is added to. So what layers lose can be compared. All that reads a channel is added up.

The variances are those of runs with the network's own weights on random inputs, in which every batch norm gives what
it gives in a trained network, see ``structprune.meta.pseudo``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.errors import ModelError
from structprune.inputs import Invocations
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Record
from structprune.ir.registry import Registry
from structprune.ir.slices import Coupling, Labels, SliceSpace, Vector
from structprune.ir.tensors import tensors_among
from structprune.meta.costs import is_counted
from structprune.meta.pseudo import QUANTILES, fill
from structprune.select.scores import NO_VALUES, Norms, Scores
from structprune.tracing.discovery import Discovery
from structprune.tracing.groups import DependencyGraph, Group
from structprune.tracing.session import follow, has_values, labels_of

# Runs of a network without batch norms, each with other random inputs.
_RUNS = 4


class PredictedError:
    """Ranks channels by the error that their removal makes, as a share of what is there.

    Args:
        model: The user's model, with its values; it is not changed.
        examples: Gives the calls that it is traced with.
        rules: What is known of operators, if it is more than structprune knows.
        otherwise: Ranks groups that no operator reads of which an error can be told.
    """

    comparable = True

    def __init__(
        self, model: nn.Module, examples: Callable[[], Invocations], rules: Registry | None, otherwise: Norms
    ) -> None:
        self.notes: list[str] = []
        self._otherwise = otherwise
        self._model = model
        self._examples = examples
        self._rules = rules
        self._known: dict[int, _Measured] | None = None

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """The predicted error of every channel.

        Raises:
            ModelError: The weights are on the meta device.
        """
        if self._known is None:
            if not has_values(self._model):
                raise ModelError(NO_VALUES.format("The model"))
            self._known = _measured(self._model, self._examples(), self._rules)
        total = np.zeros(graph.space.size)
        told = np.zeros(graph.space.size, dtype=bool)
        # Every trace of a network has the same nodes.
        for node in graph.records[0].nodes:
            measured = self._known.get(node.index)
            if measured is not None and measured.op == node.op:
                for operand in node.operands:
                    if operand.position == measured.position and len(operand.ids) == len(measured.errors):
                        np.add.at(total, graph.roots[operand.ids], measured.errors)
                        told[graph.roots[operand.ids]] = True
        # What is not known to be cheap is dear: these groups come after all others, by norm.
        others = [group for group in groups if not told[group.channels].all()]
        self.notes = [f"{group.name}: what reads it tells no error, ranked by norm and cut last" for group in others]
        norms, most = self._otherwise.scores(graph, others), float(total.max(initial=0.0))
        for group in others:
            own = norms[group.channels]
            total[group.channels] = (most or 1.0) * (1 + own / (own.max(initial=0.0) or 1.0))
        return total


@dataclass(frozen=True)
class _Measured:
    """The errors that a contraction's entries would make, along the dimension of an operand that it sums over."""

    op: str
    position: int
    errors: Vector


@dataclass
class _Power:
    """Sums over runs and positions, for every entry along a dimension."""

    count: int
    first: torch.Tensor
    second: torch.Tensor

    @property
    def variance(self) -> torch.Tensor:
        """The variance of every entry."""
        return (self.second / self.count - (self.first / self.count).square()).clamp(min=0)

    @property
    def mean_square(self) -> torch.Tensor:
        """The mean square of every entry."""
        return self.second / self.count


@dataclass(frozen=True)
class _Reader:
    """A contraction that reads channels.

    Attributes:
        position: Of the activation among its tensors.
        other: What it multiplies the activation with: a weight, if ``weighs``, or another activation.
        other_dim: The dimension of ``other`` that it sums over.
        out_dim: The dimension of ``other`` that goes to the output.
    """

    position: int
    other: torch.Tensor
    other_dim: int
    out_dim: int | None
    weighs: bool


@dataclass(frozen=True)
class _Norm:
    """A batch norm with running statistics: what it multiplies powers with by channel, and the power that it gives."""

    scale: torch.Tensor
    power: float


@dataclass
class _Statistics:
    """What several runs said of the nodes of one network, by node."""

    read: dict[int, _Power] = field(default_factory=dict)
    others: dict[int, _Power] = field(default_factory=dict)
    given: dict[int, _Power] = field(default_factory=dict)
    norms: dict[int, _Norm] = field(default_factory=dict)
    readers: dict[int, _Reader] = field(default_factory=dict)


class _Watcher(Discovery):
    """Runs a network and adds up what contractions read, and what they and additions give."""

    def __init__(self, space: SliceSpace, rules: Registry | None, statistics: _Statistics, quantile: int) -> None:
        super().__init__(space, Coupling(space), {}, Operator.run, training=False, rules=rules)
        self._statistics = statistics
        self._quantile = quantile
        self._call: tuple[Operator, Sequence[Any], dict[str, Any]]

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operator; a batch norm gives a quantile of what it gives in a trained network."""
        self._call = op, args, kwargs
        out = op.func(*args, **kwargs)
        if op.spec.normalises:
            given = {**op.defaults, **op.arguments(args, kwargs)}
            variance = given.get("running_var")
            if isinstance(variance, torch.Tensor) and not given.get("training"):
                weight = given.get("weight")
                power = torch.ones_like(variance) if weight is None else weight.detach().square()
                scale = power.double() / (variance.detach().double() + float(given.get("eps") or 0.0))
                self._statistics.norms[node.index] = _Norm(scale.cpu(), float(power.sum()))
                fill(out, given, node.index, self._quantile)
        return out

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Add up what was read and given."""
        op, args, kwargs = self._call
        if node.parametric or op.in_place or op.out_variant or not isinstance(out, torch.Tensor):
            return labels
        if not out.is_floating_point():
            return labels
        statistics = self._statistics
        reader = self._reader(node, tensors_among((*args, *kwargs.values()))) if is_counted(op) else None
        if reader is not None:
            activation = node.operands[0] if node.operands[0].position == reader.position else node.operands[1]
            statistics.readers[node.index] = reader
            _add(statistics.read, node.index, tensors_among((*args, *kwargs.values()))[reader.position], activation.dim)
            if not reader.weighs:
                _add(statistics.others, node.index, reader.other, reader.other_dim)
        if node.contracts or len(node.sources) == 2:
            along = self._channels(node, out.shape, labels[0])
            if along is not None:
                _add(statistics.given, node.index, out, along)
        return labels

    def _channels(self, node: Node, shape: Sequence[int], labels: Labels) -> int | None:
        """The dimension of the channels, of the output or of what it is computed from: a sum may have none itself."""
        operands = [self.record.nodes[source].outputs[output] for source, output in node.sources if self._made(source)]
        for own in (labels, *(operand.labels for operand in operands if tuple(operand.shape) == tuple(shape))):
            found = next((dim for dim, ids in enumerate(own) if ids is not None), None)
            if found is not None:
                return found
        return None

    def _made(self, source: int) -> bool:
        return not self.record.nodes[source].is_leaf

    def _reader(self, node: Node, tensors: list[torch.Tensor]) -> _Reader | None:
        weighs = {o.position: self.record.nodes[node.sources[o.position][0]].parametric for o in node.operands[:2]}
        if len(weighs) != 2 or all(weighs.values()):
            return None
        first, second = sorted(node.operands[:2], key=lambda operand: weighs[operand.position])
        out_dim = next((dim for position, dim, _ in node.produced if position == second.position), None)
        other = tensors[second.position]
        return _Reader(first.position, other, second.dim, out_dim, weighs[second.position])


def _add(powers: dict[int, _Power], node: int, tensor: torch.Tensor, dim: int) -> None:
    rows = tensor.detach().double().movedim(dim, 0).reshape(tensor.shape[dim], -1)
    first, second = rows.sum(1).cpu(), rows.square().sum(1).cpu()
    known = powers.get(node)
    if known is None:
        powers[node] = _Power(rows.shape[1], first, second)
    elif len(known.first) == len(first):
        powers[node] = _Power(known.count + rows.shape[1], known.first + first, known.second + second)


def _measured(model: nn.Module, examples: Invocations, rules: Registry | None) -> dict[int, _Measured]:
    """By node: the errors that the entries which it reads would make."""
    statistics = _Statistics()
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device, tensor.dtype)

    run, runs = 0, 1
    while run < runs:
        space = SliceSpace()
        labels = labels_of(model, space)
        record = follow(
            model, [call.mapped(drawn) for call in examples], _Watcher(space, rules, statistics, run), labels
        )
        runs = QUANTILES if statistics.norms else _RUNS
        run += 1
    behind: dict[int, list[Node]] = {}
    for node in record.nodes:
        for source in dict.fromkeys(source for source, _ in node.sources):
            behind.setdefault(source, []).append(node)
    found = {}
    for index, reader in statistics.readers.items():
        errors = _errors(record, record.nodes[index], reader, statistics, behind)
        if errors is not None:
            found[index] = _Measured(record.nodes[index].op, reader.position, errors)
    return found


def _errors(
    record: Record, node: Node, reader: _Reader, statistics: _Statistics, behind: dict[int, list[Node]]
) -> Vector | None:
    """The share of what is there that is wrong without an entry, for every entry that a contraction reads."""
    variance = statistics.read[node.index].variance
    after = behind.get(node.index, [])
    norm = statistics.norms.get(after[0].index) if len(after) == 1 else None
    if reader.weighs:
        squares = _by_output(reader)
        if norm is not None and len(norm.scale) == len(squares):
            squares = squares * norm.scale[:, None]
        else:
            norm = None
        groups, rest = divmod(len(variance), squares.shape[1])
        if rest or len(squares) % max(groups, 1):
            return None
        # In a grouped convolution a channel is read by the outputs of its group.
        noise = variance * squares.reshape(groups, -1, squares.shape[1]).sum(1).flatten()
    else:
        other = statistics.others[node.index]
        if len(other.second) != len(variance):
            return None
        # Of two activations the other's power stands for the weights. Every output is a sum over these entries.
        noise, norm = variance * other.mean_square, None
    if norm is not None:
        whole, at = norm.power, after[0]
    else:
        whole, at = float(noise.sum()), node
    if whole <= 0:
        return None
    return np.asarray((noise / whole / _dilution(record, at, statistics, behind)).numpy(), dtype=np.float64)


def _by_output(reader: _Reader) -> torch.Tensor:
    """The squares of a weight, by output (rows) and by entry that it reads; summed over a kernel's taps."""
    squares = reader.other.detach().double().cpu().square()
    if reader.out_dim is None:
        return squares.movedim(reader.other_dim, 0).flatten(1).sum(1)[None]
    order = (
        reader.out_dim,
        reader.other_dim,
        *(d for d in range(squares.ndim) if d not in (reader.out_dim, reader.other_dim)),
    )
    return squares.permute(order).flatten(2).sum(2) if squares.ndim > 2 else squares.permute(order)


def _dilution(record: Record, at: Node, statistics: _Statistics, behind: dict[int, list[Node]]) -> float:
    """By how much more power the sum has that a branch is added to, at least 1; 1 where it is added to nothing."""
    branch = at
    while True:
        after = behind.get(at.index, [])
        if len(after) != 1:
            return 1.0
        (following,) = after
        others = [s for s, _ in following.sources if s != at.index and not record.nodes[s].parametric]
        if others:
            summed = statistics.given.get(following.index)
            norm = statistics.norms.get(branch.index)
            own = norm.power if norm else _power(statistics.given.get(branch.index))
            return max(1.0, _power(summed) / own) if following.op == "aten::add" and own > 0 else 1.0
        if following.contracts:
            return 1.0
        at = following


def _power(power: _Power | None) -> float:
    return 0.0 if power is None else float(power.variance.sum())
