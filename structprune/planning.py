"""From a model and checked options to a plan: the way of the data in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from structprune.errors import NothingToPruneError, UntracedParameterError
from structprune.graph.groups import DependencyGraph
from structprune.graph.session import Session
from structprune.graph.slices import Mask
from structprune.meta.forward import collection_paused
from structprune.meta.replica import named_tensors
from structprune.plan.budget import Selection, eligible_groups, select
from structprune.plan.importance import Norms
from structprune.plan.options import Settings
from structprune.plan.plan import GroupPlan, Plan
from structprune.resolve.resolution import Resolved, resolve
from structprune.surgery.attributes import stale_sizes

# What to do about the reasons why a group was left whole.
_WAYS_ON = {
    "residual stream": 'granularity="channel"',
    "representation": "keep_representation=False",
    "too narrow": "a larger ratio or round_to=1",
    "ignored": "fewer patterns in ignore",
}


def make_plan(
    model: nn.Module, weights: Mapping[str, torch.Tensor], settings: Settings, example_inputs: Any = None
) -> Plan:
    """Plan a cut of a model.

    Args:
        model: The model, checked (``check_model``); it may be on the meta device.
        weights: The values of its parameters and buffers by name, to rank channels by. They are read one
            at a time, so that they may lie in files.
        settings: What is asked for.
        example_inputs: As for ``structprune.prune_model``.

    Raises:
        StructPruneError: A subclass says what was wrong.
    """
    with collection_paused():
        session, norms = Session(model, example_inputs), Norms(weights)
        selections: dict[int, Selection] = {}

        def choose(graph: DependencyGraph) -> Mask:
            selections.clear()
            selections[id(graph)] = _select(norms, graph, settings)
            return selections[id(graph)].present

        resolved = resolve(session, choose)
    plan = _plan(model, resolved, selections[id(resolved.graph)], settings)
    if not plan.kept and _asks_for_something(settings):
        raise NothingToPruneError(_nothing(plan))
    if plan.kept and not settings.allow_untraced:
        _check_untraced(model, plan, resolved.graph)
    return plan


def _select(norms: Norms, graph: DependencyGraph, settings: Settings) -> Selection:
    eligible = eligible_groups(graph, settings)
    scores = norms.scores(graph, (graph.groups[i] for i in eligible))
    return select(graph, settings, scores)


def _plan(model: nn.Module, resolved: Resolved, selection: Selection, settings: Settings) -> Plan:
    graph, cut = resolved.graph, resolved.cut
    tensors = named_tensors(model)
    parameters = {n: t for n, t in tensors.items() if isinstance(t, nn.Parameter)}
    left = 0
    for name, parameter in parameters.items():
        size = 1
        for dim, extent in enumerate(parameter.shape):
            size *= len(cut.kept.get(name, {}).get(dim, range(extent)))
        left += size
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    floored = [f"{name}: the ratio would empty it, it keeps its last channels" for name in selection.floored]
    return Plan(
        model=type(model).__name__,
        settings=_plain(settings),
        shapes=shapes,
        kept={n: {d: tuple(i.tolist()) for d, i in dims.items()} for n, dims in cut.kept.items()},
        attributes=cut.attributes,
        groups=tuple(
            GroupPlan(
                group.name,
                tuple(p.name for p in group.producers),
                group.role,
                group.width,
                selection.removed.get(group.index, 0),
                selection.skipped.get(group.index, ""),
            )
            for group in graph.groups
        ),
        notes=(*graph.notes, *floored, *stale_sizes(model, cut, shapes)),
        params=(sum(p.numel() for p in parameters.values()), left),
        macs=(graph.records[0].macs, resolved.macs),
    )


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON has them."""
    plain = asdict(settings)
    plain["ratio"] = dict(settings.ratio) if isinstance(settings.ratio, Mapping) else settings.ratio
    return {**plain, "ignore": list(settings.ignore)}


def _asks_for_something(settings: Settings) -> bool:
    shares = settings.ratio.values() if isinstance(settings.ratio, Mapping) else [settings.ratio]
    return any(share > 0 for share in shares)


def _nothing(plan: Plan) -> str:
    reasons = [f"{g.name}: {g.reason}" for g in plan.groups]
    shown = "\n  ".join(reasons[:8]) or "no layer produces channels"
    more = f"\n  and {len(reasons) - 8} more" if len(reasons) > 8 else ""
    ways = [way for sign, way in _WAYS_ON.items() if any(sign in g.reason for g in plan.groups)]
    advice = f"\nOptions that allow more: {', '.join(ways)}." if ways else "\nNo option allows more."
    return f"Not one channel of this {plan.model} can be removed with these options:\n  {shown}{more}{advice}"


def _check_untraced(model: nn.Module, plan: Plan, graph: DependencyGraph) -> None:
    """An unread parameter of a size that changes beside it may belong to code that the examples did not reach."""
    parameters = {name for name, _ in model.named_parameters()}
    read = set(plan.shapes).difference(graph.untouched)
    lost = [n for n in graph.untouched if n in parameters and n not in plan.kept and _meets_cut(plan, n, read)]
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise UntracedParameterError(
            f"No traced forward read {shown}, whose sizes occur among those that would be cut: code that reads them "
            "later could break. Give example_inputs that reach them (a list of calls takes several), or "
            "allow_untraced=True if nothing reads them."
        )


def _meets_cut(plan: Plan, name: str, read: set[str]) -> bool:
    """Whether the nearest tensors that were read and that share a size with this one lose channels of that size."""
    sizes = {size for size in plan.shapes[name] if size > 1}
    around = name
    while around:
        around = around.rpartition(".")[0]
        beside = [n for n in read if (not around or n.startswith(f"{around}.")) and sizes & set(plan.shapes[n])]
        if beside:
            return any(plan.shapes[n][dim] in sizes for n in beside for dim in plan.kept.get(n, {}))
    return False
