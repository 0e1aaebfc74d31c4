"""The public calls: the way of the data from a model to a smaller one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn
from typing_extensions import Unpack

from structprune.errors import NothingToPruneError, UntracedParameterError
from structprune.graph.checks import check_model
from structprune.graph.groups import DependencyGraph
from structprune.graph.session import Session
from structprune.graph.slices import Mask
from structprune.meta.forward import collection_paused
from structprune.meta.replica import named_tensors
from structprune.plan.budget import Selection, eligible_groups, select
from structprune.plan.importance import Norms
from structprune.plan.options import Granularity, PruningOptions, Ratio, Settings, read_settings
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


def prune_model(
    model: nn.Module,
    ratio: Ratio,
    granularity: Granularity = "filter",
    *,
    example_inputs: Any = None,
    inplace: bool = False,
    **options: Unpack[PruningOptions],
) -> nn.Module:
    """Remove the weakest channels of a model for good, by weight magnitude, without data.

    Args:
        model: Any network of PyTorch operators. It is not changed unless ``inplace``.
        ratio: Share of channels to remove of every layer, in [0, 1), or a dict from module pattern
            to share; layers that no pattern names stay whole.
        granularity: ``"filter"`` removes filters whose output stays inside a block, ``"channel"``
            also those that ride a residual stream, the same in every layer that shares the stream.
        example_inputs: What the model takes: a tensor, a tuple of arguments, a dict of keyword
            arguments, a list of such calls, or a callable ``model -> output``. Only shapes and
            integers matter. Inferred if it is not given.
        inplace: Cut ``model`` itself; its parameters stay the same objects.
        **options: See ``PruningOptions``.

    Returns:
        The pruned model, an ordinary module of the same class. With ratio 0 an equal copy.

    Raises:
        StructPruneError: A subclass says what was wrong; the model is as it was.

    Examples:
        >>> import structprune
        >>> small = structprune.prune_model(structprune.demo.resnet50(), 0.5)
        >>> small.fc.in_features
        2048
    """
    plan = plan_pruning(model, ratio, granularity, example_inputs=example_inputs, **options)
    return plan.apply(model, inplace=inplace)


def plan_pruning(
    model: nn.Module,
    ratio: Ratio,
    granularity: Granularity = "filter",
    *,
    example_inputs: Any = None,
    **options: Unpack[PruningOptions],
) -> Plan:
    """Decide what ``prune_model`` would remove, and change nothing.

    The arguments are those of ``prune_model``.

    Returns:
        An immutable plan that can be printed, stored as JSON and applied.

    Raises:
        StructPruneError: A subclass says what was wrong.

    Examples:
        >>> import structprune
        >>> plan = structprune.plan_pruning(structprune.demo.resnet50(), 0.5, round_to=1)
        >>> plan.params
        (25557032, 12367880)
    """
    check_model(model)
    settings = read_settings(ratio, granularity, list(named_tensors(model)), options)
    with collection_paused():
        session, norms = Session(model, example_inputs), Norms(model)
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


def trace(model: nn.Module, example_inputs: Any = None) -> DependencyGraph:
    """Find out which slices of a model's tensors can only leave together, and which must stay.

    Args:
        model: Any network of PyTorch operators; it is not changed.
        example_inputs: As for ``prune_model``.

    Returns:
        The graph: ``.groups``, ``.frozen``, ``.unknown_operators``, ``.explain(name)``, and a summary as text.

    Raises:
        StructPruneError: A subclass says what was wrong.
    """
    check_model(model)
    settings = Settings(0.5, "channel", round_to=1, keep_representation=False)

    def choose(graph: DependencyGraph) -> Mask:
        # Any channels will do to find out what can go; regular ones would hide misalignments.
        scores = np.random.default_rng(0).random(graph.space.size)
        return select(graph, settings, scores).present

    with collection_paused():
        return resolve(Session(model, example_inputs), choose).graph


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
