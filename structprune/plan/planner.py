"""From a model and checked settings to a plan: the way of the data in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from structprune.errors import NothingToPruneError, UntracedParameterError
from structprune.inputs import Invocations
from structprune.ir.slices import Mask
from structprune.meta.costs import is_counted, is_free
from structprune.meta.replica import held_tensors, named_tensors
from structprune.plan.plan import Plan
from structprune.plan.sensitivity import GroupPlan
from structprune.resolve.ranking import Excess
from structprune.resolve.resolution import Resolved, resolve, resolve_again
from structprune.select.budget import Selection, select
from structprune.select.costs import costs_of
from structprune.select.importance import ranking_of
from structprune.select.options import Settings
from structprune.select.partitions import eligible_groups
from structprune.select.patterns import matches
from structprune.select.scores import Ranking, name_of
from structprune.surgery.attributes import stale_sizes
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import Session

# What to do about the reasons why a group was left whole.
_WAYS_ON = {
    "residual stream": 'granularity="channel"',
    "representation": "keep_representation=False",
    "too narrow": "a larger ratio or round_to=1",
    "ignored": "fewer patterns in ignore",
}
# Of the share of the scores that goes.
_DIGITS = 6


class Planner:
    """Plans cuts of one model, which is traced and resolved once."""

    def __init__(
        self, model: nn.Module, weights: Mapping[str, torch.Tensor], settings: Settings, example_inputs: Any
    ) -> None:
        self._model = model
        self._session = Session(model, example_inputs, settings.rules)
        self._ranking = ranking_of(settings, model, weights, lambda: self.examples)
        self._known: Resolved | None = None

    @property
    def examples(self) -> Invocations:
        """The calls that the model was traced with."""
        return self._session.examples

    def plan(self, settings: Settings) -> Plan:
        """A plan under these settings.

        Raises:
            NothingToPruneError: It would remove nothing, though the settings ask for it.
            UntracedParameterError: It would change sizes that an unread parameter shares.
        """
        return self.checked(*self.sketch(settings), settings)

    def checked(self, plan: Plan, graph: DependencyGraph, settings: Settings) -> Plan:
        """A sketch that may be carried out.

        Raises:
            NothingToPruneError: It would remove nothing, though the settings ask for it.
            UntracedParameterError: It would change sizes that an unread parameter shares.
        """
        if not plan.kept and _asks_for_something(settings):
            raise NothingToPruneError(_nothing(plan))
        if plan.kept and not settings.allow_untraced:
            _check_untraced(self._model, plan, graph)
        return plan

    def sketch(self, settings: Settings) -> tuple[Plan, DependencyGraph]:
        """A plan, which may remove nothing, and the graph that it was made on."""
        return self.sketch_of(settings, lambda graph: _select(self._ranking, graph, settings))

    def sketch_of(
        self, settings: Settings, selected: Callable[[DependencyGraph], Selection], excess: Excess | None = None
    ) -> tuple[Plan, DependencyGraph]:
        """A plan for what is selected on a graph, and the graph that it was made on; ``excess`` as for ``resolve``."""
        selections: dict[int, Selection] = {}

        def choose(graph: DependencyGraph) -> Mask:
            selections.clear()
            selections[id(graph)] = selected(graph)
            return selections[id(graph)].present

        known = self._known
        resolved = resolve_again(self._session, known, choose) if known else resolve(self._session, choose, excess)
        if resolved.cut.kept:
            self._known = known or resolved
        plan = _plan(self._model, resolved, selections[id(resolved.graph)], settings)
        notes = (*self._ranking.notes, *_idle(settings, resolved.graph), *_uncounted(resolved.graph))
        return replace(plan, notes=(*plan.notes, *notes), examples=tuple(self.examples)), resolved.graph


def _idle(settings: Settings, graph: DependencyGraph) -> list[str]:
    """Patterns that name no layer that produces channels, such as a batch norm's."""
    producers = [producer.name for group in graph.groups for producer in group.producers]
    by_pattern = [given for given in (settings.ratio, settings.max_ratio) if isinstance(given, Mapping)]
    patterns = dict.fromkeys([*settings.ignore, *(pattern for given in by_pattern for pattern in given)])
    idle = [pattern for pattern in patterns if not any(matches(pattern, name) for name in producers)]
    ran = {node.op for record in graph.records for node in record.nodes}
    unused = [name for name in (settings.rules.operators if settings.rules else ()) if name not in ran]
    return [
        *(f"{pattern!r} names no layer that produces channels, and changes nothing" for pattern in idle),
        *(f"the rules know {name}, which the model does not run" for name in unused),
    ]


def _uncounted(graph: DependencyGraph) -> list[str]:
    """Operators that the MACs of the plan leave out."""
    ran = [node.asked.operator for node in graph.records[0].nodes if node.asked]
    names = dict.fromkeys(op.name.removeprefix("aten::") for op in ran if not is_counted(op) and not is_free(op))
    return [f"the MACs leave out what has no formula for them: {', '.join(names)}"] if names else []


def _select(ranking: Ranking, graph: DependencyGraph, settings: Settings) -> Selection:
    eligible = eligible_groups(graph, settings)
    scores = ranking.scores(graph, (graph.groups[i] for i in eligible))
    return select(graph, settings, scores, comparable=ranking.comparable)


def _plan(model: nn.Module, resolved: Resolved, selection: Selection, settings: Settings) -> Plan:
    graph, cut = resolved.graph, resolved.cut
    tensors = held_tensors(model)
    registered = named_tensors(model)
    parameters = {n: t for n, t in tensors.items() if isinstance(t, nn.Parameter)}
    left = 0
    for name, parameter in parameters.items():
        size = 1
        for dim, extent in enumerate(parameter.shape):
            size *= len(cut.kept.get(name, {}).get(dim, range(extent)))
        left += size
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if name in registered or name in cut.kept}
    costs = costs_of(graph, {n: t.numel() for n, t in parameters.items()})
    return Plan(
        model=type(model).__name__,
        settings=plain_settings(settings),
        shapes=shapes,
        kept={n: {d: tuple(i.tolist()) for d, i in dims.items()} for n, dims in cut.kept.items()},
        row_scales={name: tuple(row_scale.tolist()) for name, row_scale in cut.row_scales.items()},
        plain=tuple(name for name in shapes if name not in registered),
        attributes=cut.attributes,
        groups=tuple(
            GroupPlan(
                group.name,
                tuple(p.name for p in group.producers),
                group.role,
                group.width,
                selection.removed.get(group.index, 0),
                selection.skipped.get(group.index, ""),
                params=round(costs.params[group.channels].sum()),
                macs=round(costs.macs[group.channels].sum()),
                # Other versions of PyTorch add up norms in another order.
                score_removed=round(selection.score_removed(group), _DIGITS),
            )
            for group in graph.groups
        ),
        notes=(*graph.notes, *selection.notes, *stale_sizes(model, cut, shapes)),
        params=(sum(p.numel() for p in parameters.values()), left),
        macs=(graph.records[0].macs, resolved.macs),
        rules=settings.rules,
    )


def plain_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON has them."""
    plain = {f.name: getattr(settings, f.name) for f in fields(settings)}
    for name in ("ratio", "max_ratio"):
        plain[name] = dict(plain[name]) if isinstance(plain[name], Mapping) else plain[name]
    plain["importance"] = name_of(settings.importance)
    plain["compensate"] = settings.compensate if isinstance(settings.compensate, bool) else "batches"
    plain["calibrate"] = len(settings.calibrate)
    plain["target"] = settings.target.asked if settings.target else None
    plain["finer"] = list(settings.finer) if settings.finer else None
    channels = {name: list(indices) for name, indices in plain.pop("channels").items()}
    for name in ("progress", "loadable"):  # what comes of them is in the plan
        plain.pop(name)
    plain["rules"] = settings.rules.added if settings.rules else []
    return {**plain, "ignore": list(settings.ignore), **({"channels": channels} if channels else {})}


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
