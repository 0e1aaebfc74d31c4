"""How much a network's activations change if a channel goes: its predicted output error.

A channel ``j`` that a contraction ``y = W x`` reads adds ``W[:, j] x[j]`` to what it gives. Without the channel ``y``
is wrong by that, whose power is ``mean(x[j]^2) * sum_o W[o, j]^2``. In a convolution ``W[o, j]`` are several taps:
the mean of ``x[j]`` is multiplied with their sum, and so is what varies, as far as neighbouring positions are alike.
The error is held against the power of what ``y`` becomes a part of: of the batch norm's output behind it, and of the
residual stream that it is added to. So what layers lose can be compared. All that reads a channel is added up.

Means count, though compensation makes up for them: without data they are known roughly, and to count them keeps more of
trained networks than to leave them out (``docs/quality.md``).

Without data the variances are those of runs with the network's own weights on random inputs, in which every batch norm
gives what it gives in a trained network, see ``structprune.meta.pseudo``. With batches they are those of the batches;
what channels have in common is known too, and the weights are fitted anew (``structprune.compensate.reconstruction``),
so that the error is what such a fit leaves, see ``structprune.select.elimination``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.errors import ModelError, StructPruneError, brief
from structprune.inputs import Invocations
from structprune.ir.record import Node, Record
from structprune.ir.registry import Registry
from structprune.ir.slices import Ids, Vector
from structprune.select.elimination import Reading, eliminated
from structprune.select.scores import NO_VALUES, Norms, Scores
from structprune.select.statistics import (
    Norm,
    Power,
    Reader,
    Statistics,
    behind,
    by_output,
    from_batches,
    without_data,
)
from structprune.tracing.groups import DependencyGraph, Group
from structprune.tracing.session import has_values

# How alike a channel's values are at neighbouring positions: how much that is differs from layer to layer and is not
# known without data. Audio and images are smooth: weights that cancel out over a kernel's taps read little.
_ALIKE = 0.5


class PredictedError:
    """Ranks channels by the error that their removal makes, as a share of what is there.

    Args:
        model: The user's model, with its values; it is not changed.
        examples: Gives the calls that it is traced with.
        rules: What is known of operators, if it is more than structprune knows.
        otherwise: Ranks groups that no operator reads of which an error can be told.
        batches: What to measure with; none: without data.
        progress: Whether bars are shown; ``None``: where stderr is a terminal.
    """

    comparable = True

    def __init__(
        self,
        model: nn.Module,
        examples: Callable[[], Invocations],
        rules: Registry | None,
        otherwise: Norms,
        batches: Sequence[Any] = (),
        progress: bool | None = False,
    ) -> None:
        self.notes: list[str] = []
        self._otherwise = otherwise
        self._model = model
        self._examples = examples
        self._rules = rules
        self._batches = batches
        self._progress = progress
        self._noted: list[str] = []
        self._known: _Known | None = None
        # Of the last graph: those of other ratios are read in the same way, as a rule.
        self._order: tuple[tuple[bytes, ...], Scores] | None = None

    def scores(self, graph: DependencyGraph, groups: Iterable[Group]) -> Scores:
        """The predicted error of every channel.

        Raises:
            ModelError: The weights are on the meta device.
            InputError: The model does not run with a batch.
        """
        groups = list(groups)
        candidates = np.unique(np.concatenate([group.channels for group in groups] or [np.zeros(0, dtype=np.int64)]))
        known = self._measured(graph, candidates)
        total = np.zeros(graph.space.size)
        told = np.zeros(graph.space.size, dtype=bool)
        readings: list[Reading] = []
        # Every trace of a network has the same contractions; what lies between depends on strides.
        for number, node in _contractions(graph.records[0]):
            measured = known.nodes.get(number)
            if measured is None or measured.op != node.op:
                continue
            for operand in node.operands:
                if operand.position != measured.position or len(operand.ids) != len(measured.errors):
                    continue
                roots = graph.roots[operand.ids]
                told[roots] = True
                own = list(known.readings(measured.index, roots))
                if own and not _reads_what_it_gives(graph, node, roots):
                    readings += own
                elif not own:
                    np.add.at(total, roots, measured.errors)
        if known.statistics.moments:
            total = self._eliminated(readings, candidates[told[candidates]], total)
        # What is not known to be cheap is dear: these groups come after all others, by norm.
        others = [group for group in groups if not told[group.channels].all()]
        self.notes = [*self._noted]
        self.notes += [f"{group.name}: what reads it tells no error, ranked by norm and cut last" for group in others]
        norms, most = self._otherwise.scores(graph, others), float(total.max(initial=0.0))
        for group in others:
            own_norms = norms[group.channels]
            total[group.channels] = (most or 1.0) * (1 + own_norms / (own_norms.max(initial=0.0) or 1.0))
        return total

    def _eliminated(self, readings: list[Reading], candidates: Ids, fixed: Scores) -> Scores:
        same = candidates.tobytes(), fixed.tobytes(), *(reading.roots.tobytes() for reading in readings)
        if self._order is None or self._order[0] != same:
            self._order = same, eliminated(readings, candidates, fixed, self._progress)
        scores: Scores = self._order[1].copy()
        return scores

    def _measured(self, graph: DependencyGraph, candidates: Ids) -> _Known:
        """What runs of the model said; of batches, all that reads these channels."""
        of = np.zeros(graph.space.size, dtype=bool)
        of[candidates] = True
        readers = frozenset(
            number
            for number, node in _contractions(graph.records[0])
            if any(of[graph.roots[o.ids]].any() for o in node.operands)
        )
        if self._known is None or (self._batches and not readers <= self._known.looked_at):
            if not has_values(self._model):
                raise ModelError(NO_VALUES.format("The model"))
            statistics = (
                from_batches(self._model, self._batches, self._rules, readers.__contains__, self._progress)
                if self._batches
                else self._without_data()
            )
            self._known = _Known(statistics, readers)
        return self._known

    def _without_data(self) -> Statistics:
        """What random inputs say; where the model does not run with those, its examples as they are."""
        why = ""
        for draws in (True, False):
            try:
                return without_data(self._model, self._examples(), self._rules, draws=draws)
            except StructPruneError:
                raise
            except Exception as error:  # a forward may raise anything
                why = brief(error)
        self._noted.append(f"no errors are predicted: the model does not run with its example inputs ({why})")
        return Statistics()


def _contractions(record: Record) -> Iterator[tuple[int, Node]]:
    """The contractions of a record, numbered."""
    return enumerate(node for node in record.nodes if node.contracts)


def _reads_what_it_gives(graph: DependencyGraph, node: Node, roots: Ids) -> bool:
    """Whether a contraction's output loses what its input loses, as a depthwise one's: nothing is left to be wrong."""
    return any(np.array_equal(graph.roots[ids], roots) for _, _, ids in node.produced)


@dataclass(frozen=True)
class _Measured:
    """The errors that a contraction's entries would make, along the dimension of an operand that it sums over."""

    index: int
    op: str
    position: int
    errors: Vector


class _Known:
    """What runs of a network say of its contractions."""

    def __init__(self, statistics: Statistics, looked_at: frozenset[int]) -> None:
        self.statistics = statistics
        self.looked_at = looked_at
        self._behind = behind(statistics.record)
        # By number among the contractions.
        self.nodes: dict[int, _Measured] = {}
        numbers = {node.index: number for number, node in _contractions(statistics.record)}
        for index, reader in statistics.readers.items():
            norm, _, dilution = self._whole(index)
            errors = _errors(statistics, index, reader, norm, dilution)
            if errors is not None:
                op = statistics.record.nodes[index].op
                self.nodes[numbers[index]] = _Measured(index, op, reader.position, errors)

    def readings(self, index: int, roots: Ids) -> Iterator[Reading]:
        """A contraction as matrix products of which second moments are known, one for each of its groups."""
        moments = self.statistics.moments.get(index)
        if moments is None:
            return
        groups, outputs, entries = moments.matrix.shape
        taps, rest = divmod(groups * entries, len(roots))
        if rest:
            return
        norm, power, dilution = self._whole(index)
        if power <= 0:
            return
        matrix = moments.matrix
        if norm is not None:
            matrix = matrix * norm.scale.sqrt().reshape(groups, outputs, 1)
        share = (1 / (power * dilution)) ** 0.5
        by_entry = np.repeat(roots, taps).reshape(groups, entries)
        for group in range(groups):
            yield Reading(by_entry[group], partial(moments.covariance, group), matrix[group] * share)

    def _whole(self, index: int) -> tuple[Norm | None, float, float]:
        """The batch norm behind a contraction, the power of its outputs, and by how much more that is added to has."""
        statistics, record = self.statistics, self.statistics.record
        after, reader = self._behind.get(index, []), statistics.readers[index]
        norm = statistics.norms.get(after[0].index) if len(after) == 1 and reader.weighs else None
        given = statistics.given.get(index)
        if norm is not None and (given is None or len(norm.scale) != len(given.first)):
            norm = None
        at, power = (after[0], norm.power) if norm is not None else (record.nodes[index], _power(given))
        return norm, power, _dilution(record, at, statistics, self._behind)


def _errors(statistics: Statistics, index: int, reader: Reader, norm: Norm | None, dilution: float) -> Vector | None:
    """The share of what is there that is wrong without an entry, for every entry that a contraction reads."""
    read = statistics.read[index]
    if reader.weighs:
        alone, together = by_output(reader)
        if norm is not None:
            alone, together = alone * norm.scale[:, None], together * norm.scale[:, None]
        groups, rest = divmod(len(read.first), alone.shape[1])
        if rest or len(alone) % max(groups, 1):
            return None
        # In a grouped convolution a channel is read by the outputs of its group.
        alone, together = (of.reshape(groups, -1, of.shape[1]).sum(1).flatten() for of in (alone, together))
        # What goes is a mean, which is the same at all taps, and what varies about it.
        noise = read.variance * torch.lerp(alone, together, _ALIKE) + (read.mean_square - read.variance) * together
    else:
        other = statistics.others[index]
        if len(other.second) != len(read.first):
            return None
        # Of two activations the other's power stands for the weights. Every output is a sum over these entries.
        noise = read.mean_square * other.mean_square
    whole = float(noise.sum()) if norm is None else norm.power
    if not (whole > 0 and torch.isfinite(noise).all()):
        return None
    return np.asarray((noise / whole / dilution).numpy(), dtype=np.float64)


def _dilution(record: Record, at: Node, statistics: Statistics, after: dict[int, list[Node]]) -> float:
    """By how much more power the sum has that a branch is added to, at least 1; 1 where it is added to nothing."""
    branch = at
    while True:
        following = after.get(at.index, [])
        if len(following) != 1:
            return 1.0
        (node,) = following
        others = [s for s, _ in node.sources if s != at.index and not record.nodes[s].parametric]
        if others:
            summed = statistics.given.get(node.index)
            norm = statistics.norms.get(branch.index)
            own = norm.power if norm else _power(statistics.given.get(branch.index))
            return max(1.0, _power(summed) / own) if node.op == "aten::add" and own > 0 else 1.0
        if node.contracts:
            return 1.0
        at = node


def _power(power: Power | None) -> float:
    return 0.0 if power is None else float(power.variance.sum())
