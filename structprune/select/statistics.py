"""What a network's contractions read and give, measured: without data, or from a user's batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from structprune.errors import InputError, StructPruneError, brief
from structprune.inputs import Invocations, read_inputs
from structprune.ir.operators import Operator
from structprune.ir.record import Node, Record
from structprune.ir.registry import Registry
from structprune.ir.slices import Coupling, Labels, SliceSpace
from structprune.ir.tensors import memory_of, tensors_among
from structprune.meta.costs import is_counted
from structprune.meta.pseudo import QUANTILES, fill
from structprune.ops.rows import Rows
from structprune.progress import progress_bar
from structprune.tracing.discovery import Discovery
from structprune.tracing.session import follow, labels_of

# Runs of a network without batch norms, each with other random inputs.
_RUNS = 4
# The time that second moments take grows with the cube of a contraction's entries: half a minute for these, which are
# 512 channels under a kernel of nine taps.
MOST_ENTRIES = 4608
# What is wider is computed with in single precision: updates take half the time, and half the memory.
WIDE = 1024
# Rows of a contraction that are looked at: twice as many as entries tell a covariance, and no fewer than this.
_ROWS = 4096


@dataclass
class Power:
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


@dataclass
class Moments:
    """First and second moments of the rows that a matrix product reads, and its matrix, in each of its groups."""

    matrix: torch.Tensor
    count: int = 0
    about: torch.Tensor | float = 0.0
    first: torch.Tensor | float = 0.0
    second: torch.Tensor | float = 0.0

    def add(self, rows: torch.Tensor) -> None:
        """Add rows, ``(rows, groups, entries)``."""
        own = (rows if rows.dtype == torch.float64 else rows.float()).transpose(0, 1)
        if not self.count:
            # About the first rows' mean, products in the rows' own precision lose no digits.
            self.about = own.mean(1, keepdim=True)
        own = own - self.about
        self.count += len(rows)
        self.first = self.first + own.double().sum(1)
        more = own.transpose(1, 2) @ own
        # Those of wide ones are gigabytes as it is. Added in place: the heap stays whole.
        more = more if more.shape[1] > WIDE else more.double()
        self.second = self.second.add_(more) if isinstance(self.second, torch.Tensor) else more

    def covariance(self, group: int) -> torch.Tensor:
        """Of a group's inputs, ``(entries, entries)``."""
        mean = torch.as_tensor(self.first)[group] / self.count
        return torch.as_tensor(self.second)[group] / self.count - torch.outer(mean, mean)


@dataclass(frozen=True)
class Reader:
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
class Norm:
    """A batch norm with running statistics: what it multiplies powers with by channel, and the power that it gives."""

    scale: torch.Tensor
    power: float


@dataclass
class Statistics:
    """What several runs said of the nodes of one network, by node.

    Attributes:
        record: The last run.
        read: What contractions read, for every entry that they sum over.
        others: What they multiply it with, where that is an activation too.
        given: What contractions and sums of two give.
        norms: The batch norms.
        readers: The contractions.
        moments: Of those that are matrix products, if they were asked for. Nodes that read with the same weight, such
            as the steps of a recurrent layer, share them.
    """

    record: Record = field(default_factory=lambda: Record(False))
    read: dict[int, Power] = field(default_factory=dict)
    others: dict[int, Power] = field(default_factory=dict)
    given: dict[int, Power] = field(default_factory=dict)
    norms: dict[int, Norm] = field(default_factory=dict)
    readers: dict[int, Reader] = field(default_factory=dict)
    moments: dict[int, Moments] = field(default_factory=dict)


def without_data(model: nn.Module, examples: Invocations, rules: Registry | None, *, draws: bool = True) -> Statistics:
    """What a network gives, every batch norm giving what it gives in a trained network.

    Args:
        model: With its values; it is not changed.
        examples: What to call it with.
        rules: What is known of operators, if it is more than structprune knows.
        draws: Give it random numbers of the examples' shapes.
    """
    statistics = Statistics()
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        if not (draws and tensor.is_floating_point()):
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device, tensor.dtype)

    run, runs = 0, 1
    while run < runs:
        _observe(model, [call.mapped(drawn) for call in examples], rules, statistics, run)
        runs = QUANTILES if statistics.norms else _RUNS
        run += 1
    return statistics


def from_batches(
    model: nn.Module,
    batches: Sequence[Any],
    rules: Registry | None,
    wanted: Callable[[int], bool],
    progress: bool | None = False,
) -> Statistics:
    """What a network gives for batches, with the second moments of what the wanted contractions read, by their number.

    Raises:
        InputError: It does not run with a batch, or what it computes is not finite.
    """
    statistics = Statistics()
    with progress_bar(progress, len(batches)) as advance:
        for number, batch in enumerate(batches, 1):
            advance("calibrate: batches", 0)
            calls = read_inputs(batch)
            try:
                _observe(model, calls, rules, statistics, None, wanted, len(batches))
            except StructPruneError:
                raise
            except Exception as error:
                raise InputError(
                    f"calibrate: {type(model).__name__} does not run with batch {number}, "
                    f"{', '.join(map(str, calls))}: {brief(error)}. Batches hold what the model takes, without labels."
                ) from error
            advance("calibrate: batches", 1)
    for index, moments in statistics.moments.items():
        if not torch.isfinite(torch.as_tensor(moments.second)).all():
            node = statistics.record.nodes[index]
            raise InputError(f"calibrate: what {node.where} reads is not finite with these batches.")
    return statistics


def _observe(
    model: nn.Module,
    calls: Invocations,
    rules: Registry | None,
    statistics: Statistics,
    quantile: int | None,
    wanted: Callable[[int], bool] = lambda _: False,
    runs: int = 1,
) -> None:
    space = SliceSpace()
    labels = labels_of(model, space)
    watcher = _Watcher(space, rules, statistics, quantile, wanted, runs)
    statistics.record = follow(model, calls, watcher, labels)


class _Watcher(Discovery):
    """Runs a network and adds up what contractions read, and what they and additions give."""

    def __init__(
        self,
        space: SliceSpace,
        rules: Registry | None,
        statistics: Statistics,
        quantile: int | None,
        wanted: Callable[[int], bool],
        runs: int,
    ) -> None:
        super().__init__(space, Coupling(space), {}, Operator.run, training=False, rules=rules)
        self._statistics = statistics
        self._quantile = quantile
        self._wanted = wanted
        self._runs = runs
        self._by_weight: dict[Any, Moments] = {}
        self._contractions = 0
        self._call: tuple[Operator, Sequence[Any], dict[str, Any]]

    def run(self, node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operator; without data, a batch norm gives a quantile of what it gives in a trained network."""
        self._call = op, args, kwargs
        out = op.func(*args, **kwargs)
        if op.spec.normalises:
            given = {**op.defaults, **op.arguments(args, kwargs)}
            variance = given.get("running_var")
            if isinstance(variance, torch.Tensor) and not given.get("training"):
                weight = given.get("weight")
                power = torch.ones_like(variance) if weight is None else weight.detach().square()
                scale = power.double() / (variance.detach().double() + float(given.get("eps") or 0.0))
                self._statistics.norms[node.index] = Norm(scale.cpu(), float(power.sum()))
                if self._quantile is not None:
                    fill(out, given, node.index, self._quantile)
        return out

    def finish(self, node: Node, out: Any, labels: list[Labels]) -> list[Labels]:
        """Add up what was read and given."""
        op, args, kwargs = self._call
        number = self._contractions
        self._contractions += node.contracts
        if node.parametric or op.in_place or op.out_variant or not isinstance(out, torch.Tensor):
            return labels
        if not out.is_floating_point():
            return labels
        statistics, tensors = self._statistics, tensors_among((*args, *kwargs.values()))
        reader = self._reader(node, tensors) if is_counted(op) else None
        if reader is not None:
            activation = node.operands[0] if node.operands[0].position == reader.position else node.operands[1]
            statistics.readers[node.index] = reader
            _add(statistics.read, node.index, tensors[reader.position], activation.dim)
            if not reader.weighs:
                _add(statistics.others, node.index, reader.other, reader.other_dim)
            elif op.spec.rows is not None and self._wanted(number):
                self._add_moments(node, op.spec.rows, op.arguments(args, kwargs), tensors[reader.position])
        if node.contracts or len(node.sources) == 2:
            along = self._channels(node, out.shape, labels[0])
            if along is not None:
                _add(statistics.given, node.index, out, along)
        return labels

    def _add_moments(self, node: Node, rows: Rows, arguments: dict[str, Any], activation: torch.Tensor) -> None:
        if arguments[rows.activation] is not activation:
            return
        count = rows.count(arguments)
        entries = rows.matrix(arguments).shape[2] if count else 0
        if not 0 < entries <= MOST_ENTRIES:
            return
        weight = arguments[rows.weight]
        key = memory_of(weight), weight.storage_offset(), tuple(weight.shape)
        moments = self._by_weight.get(key)
        if moments is None:
            # Every run has the same nodes: the first that reads with a weight holds the moments of all its runs.
            fresh = Moments(rows.matrix(arguments).detach().double().cpu())
            moments = self._by_weight[key] = self._statistics.moments.setdefault(node.index, fresh)
        most = max(_ROWS, 2 * entries) // self._runs + 1
        moments.add(rows.inputs(arguments, picked(count, most, node.index).to(weight.device)).detach().cpu())

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

    def _reader(self, node: Node, tensors: list[torch.Tensor]) -> Reader | None:
        weighs = {o.position: self.record.nodes[node.sources[o.position][0]].parametric for o in node.operands[:2]}
        if len(weighs) != 2 or all(weighs.values()):
            return None
        first, second = sorted(node.operands[:2], key=lambda operand: weighs[operand.position])
        out_dim = next((dim for position, dim, _ in node.produced if position == second.position), None)
        other = tensors[second.position]
        return Reader(first.position, other, second.dim, out_dim, weighs[second.position])


def picked(count: int, most: int, seed: int) -> torch.Tensor:
    """At most so many of ``count`` rows, in their order: the same for the same seed."""
    if count <= most:
        return torch.arange(count)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
    return drawn.sort().values


def _add(powers: dict[int, Power], node: int, tensor: torch.Tensor, dim: int) -> None:
    length, rest = tensor.shape[dim], [d for d in range(tensor.ndim) if d != dim % tensor.ndim]
    values = tensor.detach().double()
    # One number for each is summed over no dimension, where PyTorch takes none for all.
    first = (values.sum(rest) if rest else values).cpu()
    second = (torch.linalg.vector_norm(values, dim=rest) if rest else values).square().cpu()
    count, known = values.numel() // max(1, length), powers.get(node)
    if known is None:
        powers[node] = Power(count, first, second)
    elif len(known.first) == length:
        powers[node] = Power(known.count + count, known.first + first, known.second + second)


def behind(record: Record) -> dict[int, list[Node]]:
    """By node: those that read what it gives."""
    found: dict[int, list[Node]] = {}
    for node in record.nodes:
        for source in dict.fromkeys(source for source, _ in node.sources):
            found.setdefault(source, []).append(node)
    return found


def by_output(reader: Reader) -> tuple[torch.Tensor, torch.Tensor]:
    """By output (rows) and by entry that it reads: the squares of a weight, and the square of their sum, over taps.

    The first is what a kernel makes of values that are independent of each other, the second of values that are the
    same at all its taps.
    """
    weight = reader.other.detach().double().cpu()
    if reader.out_dim is None:
        squares = weight.square().movedim(reader.other_dim, 0).flatten(1).sum(1)[None]
        return squares, squares
    ends = reader.out_dim, reader.other_dim
    taps = weight.permute(*ends, *(d for d in range(weight.ndim) if d not in ends))
    taps = taps.reshape(*taps.shape[:2], -1)
    return taps.square().sum(2), taps.sum(2).square()
