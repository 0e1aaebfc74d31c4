"""Groups of channels: what each layer produces, the role it plays, and why some of it must stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from structprune.errors import OptionError, nearest
from structprune.ir.record import PARAMETER, Place, Record, Stretch, Tie
from structprune.ir.slices import Axis, Coupling, Ids, Mask, SliceSpace, merged
from structprune.tracing.flow import residual_additions, walk_back

RESIDUAL = "residual stream"
REPRESENTATION = "representation"
BLOCK = "inside a block"
FROZEN = "frozen"


@dataclass(frozen=True, eq=False)
class Producer:
    """A weight operand whose dimension ``dim`` gives a contraction's output its channels.

    ``record`` and ``source`` say where the operand was made, so that its values can be computed
    where it is not a parameter itself (weight normalisation).
    """

    name: str
    ids: Ids
    record: Record
    source: tuple[int, int]
    dim: int


@dataclass(frozen=True, eq=False)
class Group:
    """The channels that one layer, or several tied ones, produce.

    Attributes:
        index: Place in ``DependencyGraph.groups``.
        producers: The weights that produce them.
        channels: One id per channel, in the order of the first producer.
        role: ``"inside a block"``, ``"residual stream"``, ``"representation"`` or ``"frozen"``.
        reasons: Why channels of it are frozen, each reason once.
    """

    index: int
    producers: tuple[Producer, ...]
    channels: Ids
    role: str
    reasons: tuple[str, ...]
    _space: SliceSpace
    _roots: Ids

    def slices(self) -> dict[str, dict[int, Ids]]:
        """Where the channels lie: for a criterion that computes scores from weights, gradients or the like.

        Returns:
            By tensor and dimension, for every index along it the place of its channel in ``channels``, or -1.
            Only dimensions that have any are listed.

        Examples:
            >>> import structprune, torch
            >>> model = structprune.demo.resnet50()
            >>> def absolute_sum(group):
            ...     weights, scores = dict(model.named_parameters()), torch.zeros(group.width)
            ...     for producer in group.producers:
            ...         where = torch.from_numpy(group.slices()[producer.name][0])
            ...         scores.index_add_(0, where[where >= 0], weights[producer.name].abs().sum((1, 2, 3))[where >= 0])
            ...     return scores
            >>> plan = structprune.plan_pruning(model, 0.5, importance=absolute_sum)
        """
        place = np.full(self._space.size, -1)
        place[self.channels] = np.arange(self.width)
        found: dict[str, dict[int, Ids]] = {}
        for axis in self._space.axes:
            channels = place[self._roots[axis.ids]]
            if (channels >= 0).any():
                found.setdefault(axis.tensor, {})[axis.dim] = channels
        return found

    @property
    def name(self) -> str:
        """The first producing weight."""
        return self.producers[0].name

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.channels)

    def __repr__(self) -> str:
        return f"<Group {self}>"

    def __str__(self) -> str:
        more = f" and {len(self.producers) - 1} more" if len(self.producers) > 1 else ""
        why = f": {self.reasons[0]}" if self.role == FROZEN and self.reasons else ""
        return f"{self.name}{more}: {self.width} channels, {self.role}{why}"


class DependencyGraph:
    """Which slices of which tensors can only leave together, and the groups that they form.

    Attributes:
        notes: What the user should know about the trace.
    """

    def __init__(
        self,
        model: str,
        space: SliceSpace,
        coupling: Coupling,
        records: Sequence[Record],
        notes: Sequence[str],
        ties: Sequence[Tie] = (),
        at_least_two: Sequence[Place] = (),
    ) -> None:
        self.model = model
        self.space = space
        self.records = tuple(records)
        self.notes = tuple(notes)
        self._coupling = coupling
        self._ties = tuple(ties)
        self._at_least_two = tuple(at_least_two)
        self._freeze_lost_channels()

    @cached_property
    def roots(self) -> Ids:
        """For every slice id the id that stands for its channel."""
        return self._coupling.roots()

    @cached_property
    def _reasons(self) -> tuple[Ids, list[str]]:
        return self._coupling.reasons()

    @cached_property
    def stuck(self) -> Mask:
        """For every slice id whether it must stay."""
        return self._reasons[0] >= 0

    @cached_property
    def residual(self) -> Mask:
        """For every slice id whether its channel rides a residual addition."""
        additions = (node for record in self.records for node in residual_additions(record))
        return self._spread(ids for node in additions for ids in node.outputs[0].labels if ids is not None)

    @cached_property
    def representation(self) -> Mask:
        """For every slice id whether the last contractions before the outputs read its channel."""
        return self._spread(ids for ids, _ in walk_back(self.records[0], reductions=False))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups, in the order in which their layers ran."""
        return tuple(self._groups())

    @cached_property
    def ties(self) -> list[tuple[Ids, Ids]]:
        """Pairs of dimensions, as channels, that must lose the same share."""
        found = []
        for tie in self._ties:
            left, right = self._ids_at(tie.left), self._ids_at(tie.right)
            if left is not None and right is not None:
                found.append((np.unique(self.roots[left]), np.unique(self.roots[right])))
        return found

    @cached_property
    def at_least_two(self) -> Mask:
        """For every slice id whether its channel must not be the only one left along its dimension."""
        return self._spread(ids for place in self._at_least_two if (ids := self._ids_at(place)) is not None)

    def record(self, training: bool) -> Record:
        """The trace of one mode."""
        return next(r for r in self.records if r.training == training)

    def _ids_at(self, place: Place | Stretch) -> Ids | None:
        if isinstance(place, Stretch):
            return self.space.by_tensor[place.tensor][place.dim].ids[: place.length]
        return self.record(place.training).labels_at(place)

    @property
    def frozen(self) -> dict[str, str]:
        """The groups of which no channel may go, by producing weight, with the reason."""
        return {g.name: g.reasons[0] for g in self.groups if g.role == FROZEN}

    @property
    def unknown_operators(self) -> dict[str, int]:
        """Operators without a rule that labelled tensors met, with the number of calls."""
        total: dict[str, int] = {}
        for record in self.records:
            for name, count in record.unknown.items():
                total[name] = total.get(name, 0) + count
        return total

    @cached_property
    def untouched(self) -> tuple[str, ...]:
        """Parameters and buffers that no traced forward read."""
        touched = set().union(*(record.touched for record in self.records))
        return tuple(name for name in self.space.by_tensor if f"{PARAMETER}{name}" not in touched)

    def reason(self, ids: Ids) -> str:
        """Why the first frozen slice among ``ids`` must stay, or an empty string."""
        index, texts = self._reasons
        found = index[ids]
        found = found[found >= 0]
        return texts[int(found[0])] if len(found) else ""

    def explain(self, name: str) -> str:
        """Tell what is coupled to what along every axis of a parameter, buffer or module.

        Args:
            name: A parameter's or buffer's name such as ``"layer1.0.conv1.weight"``, or a module's.

        Raises:
            OptionError: There is no such name.
        """
        tensors = self.space.by_tensor
        chosen = [n for n in tensors if n == name or n.startswith(f"{name}.")]
        if not chosen:
            raise OptionError(f"The model has no parameter, buffer or module {name!r}{nearest(name, tensors)}")
        lines = []
        for tensor in chosen:
            lines.append(f"{tensor} {[a.size for a in tensors[tensor]]}")
            lines += [f"  dim {axis.dim}: {self._explain_axis(axis)}" for axis in tensors[tensor]]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<DependencyGraph of {self.model}: {len(self.groups)} groups, {len(self.frozen)} of them frozen>"

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.groups)} groups"]
        lines += [f"  {group}" for group in self.groups]
        lines += [f"  no rule for {name} ({count} times)" for name, count in self.unknown_operators.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _explain_axis(self, axis: Axis) -> str:
        ids = axis.ids
        member = np.isin(self.roots, self.roots[ids])
        others = [str(a) for a in self.space.axes_of(np.flatnonzero(member)) if a is not axis]
        what = f"{axis.size} slice{'s' if axis.size != 1 else ''}"
        makers = [
            f"{', '.join(p.name for p in group.producers)} ({group.role})"
            for group in self.groups
            if np.isin(self.roots[ids], group.channels).any()
        ]
        if makers:
            what += f", produced by {' and '.join(makers)}"
        reason = self.reason(ids)
        if reason:
            count = int(self.stuck[ids].sum())
            what += f"; {'all' if count == axis.size else count} must stay: {reason}"
        if others:
            what += f"; leaves together with {', '.join(others)}"
        return what

    def _freeze_lost_channels(self) -> None:
        """A reduction over channels that reaches an output unweighted would change with their number."""
        for record in self.records:
            for ids, where in walk_back(record, reductions=True):
                self._coupling.freeze(ids, f"is reduced on the way to an output ({where})")

    def _spread(self, found: Iterator[Ids]) -> Mask:
        """Mark whole channels: every slice whose channel has a slice in ``found``."""
        marked = np.zeros(self.space.size, dtype=bool)
        for ids in found:
            marked[self.roots[ids]] = True
        spread: Mask = marked[self.roots]
        return spread

    def _groups(self) -> Iterator[Group]:
        producers = self._producers()
        owner = np.full(self.space.size, -1)
        pairs: list[tuple[int, int]] = []
        for i, producer in enumerate(producers):
            roots = self.roots[producer.ids]
            pairs += [(i, j) for j in np.unique(owner[roots]).tolist() if j >= 0]
            owner[roots] = i
        joined = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        member_of = merged(np.arange(len(producers)), joined[:, 0], joined[:, 1]).tolist()
        members: dict[int, list[Producer]] = {}
        for i, producer in enumerate(producers):
            members.setdefault(member_of[i], []).append(producer)
        for index, own in enumerate(members.values()):
            roots = np.concatenate([self.roots[p.ids] for p in own])
            channels = roots[np.sort(np.unique(roots, return_index=True)[1])]
            role, reasons = self._role(channels), self._reasons_of(channels)
            # Not the graph itself: in a circle it would outlive its plan, with all that was traced.
            yield Group(index, tuple(own), channels, role, reasons, self.space, self.roots)

    def _producers(self) -> list[Producer]:
        """Every produced dimension once, though several calls and modes may produce it."""
        found: dict[bytes, Producer] = {}
        for record in self.records:
            for node in record.nodes:
                for position, dim, ids in node.produced:
                    axes = self.space.axes_of(ids[:1])
                    if axes:
                        source = node.sources[position]
                        found.setdefault(ids.tobytes(), Producer(axes[0].tensor, ids, record, source, dim))
        return list(found.values())

    def _role(self, channels: Ids) -> str:
        if self.stuck[channels].all():
            return FROZEN
        if self.representation[channels].any():
            return REPRESENTATION
        return RESIDUAL if self.residual[channels].any() else BLOCK

    def _reasons_of(self, channels: Ids) -> tuple[str, ...]:
        index, texts = self._reasons
        return tuple(dict.fromkeys(texts[i] for i in index[channels] if i >= 0))
