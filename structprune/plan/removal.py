"""Plans that remove the channels which are named, with all that leaves with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.errors import OptionError, described
from structprune.ir.slices import Axis, Ids, Mask
from structprune.plan.plan import Plan
from structprune.plan.planner import Planner
from structprune.select.budget import Selection
from structprune.select.options import Settings
from structprune.select.partitions import signatures
from structprune.select.patterns import Names
from structprune.tracing.groups import DependencyGraph

_SHOWN = 8


def read_channels(model: nn.Module, wanted: Any) -> Settings:
    """Check which channels are asked for, as far as that can be said before the model is traced.

    Raises:
        OptionError: A name, an object or an index is not one of the model.
    """
    if not isinstance(wanted, Mapping) or not wanted:
        raise OptionError(
            f"channels is {described(wanted)}; expected a dict from layer (its name, the module or its weight) to the "
            'indices of its channels, such as {"layer1.0.conv1": [1, 3, 5]}.'
        )
    names = Names(model)
    channels: dict[str, tuple[int, ...]] = {}
    for key, indices in wanted.items():
        name = names.weight("channels", key)
        channels[name] = tuple(sorted({*channels.get(name, ()), *_indices(name, indices)}))
    return Settings(0.0, "channel", round_to=1, keep_representation=False, channels=channels)


def removal(planner: Planner, settings: Settings) -> Plan:
    """A plan that removes the channels which the settings name.

    Raises:
        OptionError: Some of them must stay, or cannot go without others; the message says which and why.
    """

    def select(graph: DependencyGraph) -> Selection:
        gone = np.zeros(graph.space.size, dtype=bool)
        for tensor, channels in _channels(graph, settings).items():
            if not _emptied(graph, tensor, channels):  # else it is an error in the end, whatever the trial says
                gone[channels[~graph.stuck[channels]]] = True
        removed = {g.index: int(gone[g.channels].sum()) for g in graph.groups if gone[g.channels].any()}
        skipped = {g.index: "not asked for" for g in graph.groups if g.index not in removed}
        # Nothing was scored.
        return Selection(~gone[graph.roots], removed, skipped, scores=np.zeros(graph.space.size))

    def excess(graph: DependencyGraph, present: Mask) -> int:
        # What is asked for has to go; beside that the less the better.
        stay = sum(
            len(channels) if _emptied(graph, tensor, channels) else int(graph.stuck[channels].sum())
            for tensor, channels in _channels(graph, settings).items()
        )
        return stay * graph.space.size + int((~present).sum())

    plan, graph = planner.sketch_of(settings, select, excess)
    _check_possible(plan, graph, settings)
    plan = planner.checked(plan, graph, settings)
    return replace(plan, notes=(*_beside(plan, graph, settings), *plan.notes))


def _indices(name: str, given: Any) -> tuple[int, ...]:
    values = given.tolist() if isinstance(given, (torch.Tensor, np.ndarray)) else given
    if isinstance(values, int) and not isinstance(values, bool):
        values = [values]
    found: list[Any] = []
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping)):
        found = list(values)
    if not found or any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) for i in found):
        raise OptionError(
            f"channels[{name!r}] is {described(given)}; expected the indices of channels, such as [1, 3, 5]."
        )
    return tuple(int(i) for i in found)


def _produced(graph: DependencyGraph, tensor: str) -> Axis:
    """The dimension of a weight that its layer's channels lie along: the first, where no contraction says otherwise."""
    for group in graph.groups:
        for producer in group.producers:
            if producer.name == tensor:
                return graph.space.axes_of(producer.ids[:1])[0]
    return graph.space.by_tensor[tensor][0]


def _channels(graph: DependencyGraph, settings: Settings) -> dict[str, Ids]:
    """The ids that stand for the channels which are asked for, by weight.

    Raises:
        OptionError: An index is beyond the layer's channels, or all of them are asked for.
    """
    found = {}
    for tensor, indices in settings.channels.items():
        axis = _produced(graph, tensor)
        beyond = [i for i in indices if not 0 <= i < axis.size]
        if beyond:
            raise OptionError(
                f"channels[{tensor!r}] has {_listed(beyond)}; its layer has {axis.size} channels, 0 to {axis.size - 1}."
            )
        if len(indices) == axis.size:
            raise OptionError(f"channels[{tensor!r}] has all {axis.size} channels of its layer; one must stay.")
        found[tensor] = graph.roots[axis.ids[list(indices)]]
    return found


def _emptied(graph: DependencyGraph, tensor: str, channels: Ids) -> bool:
    """Whether a layer's channels would all go, with those that leave together with the ones asked for."""
    return bool(np.isin(graph.roots[_produced(graph, tensor).ids], channels).all())


def _check_possible(plan: Plan, graph: DependencyGraph, settings: Settings) -> None:
    wrong = []
    wanted = _channels(graph, settings)
    for tensor, channels in wanted.items():
        stuck = np.flatnonzero(graph.stuck[channels])
        if _emptied(graph, tensor, channels):
            wrong.append(f"{tensor} {_listed(settings.channels[tensor])}: all others of the layer leave with them")
        elif len(stuck):
            reason = graph.reason(channels[stuck])
            which = [settings.channels[tensor][i] for i in stuck]
            wrong.append(f"{tensor} {_listed(which)}: {reason}{_pieces(graph, settings, tensor)}")
    for name, dims in plan.kept.items():
        if not all(dims.values()):
            wrong.append(f"{name}: not one channel would be left of it")
    if wrong:
        wrong += _unequal(graph, np.concatenate(list(wanted.values())))
        shown = "\n  ".join(wrong[:_SHOWN])
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise OptionError(f"These channels of this {plan.model} cannot be removed:\n  {shown}{more}")


def _unequal(graph: DependencyGraph, channels: Ids) -> list[str]:
    """Layers of which the model takes one's width for the other's, and that would not lose the same share."""
    gone = np.zeros(graph.space.size, dtype=bool)
    gone[channels] = True
    found = []
    for sides in graph.ties:
        counts = [int(gone[side].sum()) for side in sides]
        if counts[0] * len(sides[1]) != counts[1] * len(sides[0]):
            names = [
                next((g.name for g in graph.groups if np.isin(g.channels, side).any()), "a size") for side in sides
            ]
            said = [f"{n} ({c} of {len(s)} asked for)" for c, s, n in zip(counts, sides, names, strict=True)]
            found.append(f"must lose the same share: {' and '.join(said)}")
    return list(dict.fromkeys(found))


def _pieces(graph: DependencyGraph, settings: Settings, tensor: str) -> str:
    """Where a layer's channels lie in several pieces, as of a chunk: how many of each are asked for."""
    axis = _produced(graph, tensor)
    marks = signatures(graph)[graph.roots[axis.ids]]
    asked = np.zeros(axis.size, dtype=bool)
    asked[list(settings.channels[tensor])] = True
    pieces = [np.flatnonzero(marks == mark) for mark in dict.fromkeys(marks.tolist())]
    if not 1 < len(pieces) <= _SHOWN:
        return ""
    counts = ", ".join(f"{int(asked[piece].sum())} of {_listed(piece.tolist())}" for piece in pieces)
    return f". Its channels lie in {len(pieces)} pieces, and asked for are {counts}: ask for as many of each"


def _beside(plan: Plan, graph: DependencyGraph, settings: Settings) -> list[str]:
    """What goes beside what was asked for, by the layer that produces it."""
    notes = []
    for group in graph.groups:
        for producer in group.producers:
            axis = graph.space.axes_of(producer.ids[:1])[0]
            kept = plan.kept.get(axis.tensor, {}).get(axis.dim)
            if kept is None:
                continue
            asked = settings.channels.get(axis.tensor, ())
            others = sorted(set(range(axis.size)) - set(kept) - set(asked))
            if others:
                notes.append(f"with them go {axis.tensor} {_listed(others)}")
    return list(dict.fromkeys(notes))


def _listed(indices: Iterable[int]) -> str:
    """Indices as people write them, runs of three and more as a range."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    texts = [f"{p[0]}-{p[-1]}" if len(p) > 2 else ", ".join(map(str, p)) for p in parts]
    more = f" and {len(texts) - 20} more" if len(texts) > 20 else ""
    return f"[{', '.join(texts[:20])}{more}]"
