"""The ratio at which a target is met: fewest channels removed, on the safe side."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from structprune.errors import ModelError, OptionError
from structprune.measure.comparison import speedup_of
from structprune.measure.latency import in_turn, timed_calls
from structprune.measure.runner import Runner, read_setting
from structprune.plan.plan import Plan
from structprune.plan.planner import Planner
from structprune.select.options import Settings, Target
from structprune.surgery.slicing import cut_copy
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import has_values

_log = logging.getLogger("structprune")
# No layer keeps less than one channel, so that there is a ratio beyond which nothing changes.
_HIGHEST = 0.99
# Where one ratio for all is not fine enough, layers are told apart after a few steps.
_STEPS, _STEPS_ALIKE = 6, 14
_NEAR = 0.002
# Timings scatter, and the plan that is taken is one that they favoured: its time must be certainly this much below
# the target, and need not be farther below than that.
_SPARE_IN_TIME, _NEAR_IN_TIME = 0.03, 0.075
_STEPS_IN_TIME = 10


@dataclass(frozen=True)
class Cost:
    """What a plan leaves of the dense network's cost: a share, and for measured ones the surest upper end of it."""

    share: float
    surely: float
    said: str


Measure = Callable[[Plan], Cost]


def cost_of(target: Target, model: nn.Module, example_inputs: Any) -> Measure:
    """How a plan is held against the target."""
    if target.quantity == "latency":
        return _Timing(model, example_inputs, target)

    def counted(plan: Plan) -> Cost:
        before, after = getattr(plan, target.quantity)
        share = after / before if before else 1.0
        return Cost(share, share, f"{100 * share:.1f} % of the {_UNITS[target.quantity]} are left")

    return counted


_UNITS = {"macs": "MACs", "params": "parameters"}


class _Timing:
    """Times the dense and the cut network in turn, as ``compare`` does."""

    def __init__(self, model: nn.Module, example_inputs: Any, target: Target) -> None:
        if not has_values(model):
            raise ModelError(f"{target.asked} is measured, and the model is on the meta device: load its weights.")
        self._model = model
        self._setting = read_setting(target.measure)
        self._calls = timed_calls(model, example_inputs)
        self._dense = Runner(model, self._calls, self._setting)

    def __call__(self, plan: Plan) -> Cost:
        pruned = Runner(cut_copy(self._model, plan.cut), self._calls, self._setting)
        samples, busy = in_turn([self._dense, pruned])
        _, speedup, (low, high) = speedup_of(samples)
        said = (
            f"it is {speedup:.2f} times as fast (95 % interval {low:.2f} to {high:.2f}, on {self._setting.device_name})"
        )
        return Cost(1 / speedup, 1 / low, f"{said}; not to be trusted: {busy}" if busy else said)


def search(planner: Planner, settings: Settings, target: Target, measure: Measure) -> Plan:
    """Find the plan nearest to the target on the safe side.

    Raises:
        OptionError: It cannot be reached; the message says what can.
    """
    trials = _Trials(planner, settings, measure)
    # The first plan decides how the network is read: at a moderate ratio.
    middle = trials.at(0.5)
    target = _as_share(target, trials.plans[_key(replace(settings, ratio=0.5))][0])
    timed = target.quantity == "latency"
    goal = target.share * (1 - _SPARE_IN_TIME) if timed else target.share
    low, high = 0.0, _HIGHEST
    if middle.surely <= goal:
        high = 0.5
    else:
        low = 0.5
        most = trials.at(_HIGHEST)
        if most.surely > target.share:
            raise OptionError(
                f"{target.asked} cannot be reached: with {_HIGHEST:.0%} of the channels removed that may go, "
                f"{most.said}. {_ways_on(settings)}"
            )
    told_apart = not timed and settings.scope == "local"
    steps = _STEPS_IN_TIME if timed else _STEPS if told_apart else _STEPS_ALIKE
    enough = target.share * (1 - _NEAR_IN_TIME) if timed else target.share - _NEAR
    for _ in range(steps):
        if trials.at(high).share >= enough:
            break
        ratio = (low + high) / 2
        if trials.at(ratio).surely <= goal:
            high = ratio
        else:
            low = ratio
    best = replace(settings, ratio=high)
    if told_apart and trials.at(high).share < enough:
        best = _finer(trials, best, low, target)
    plan = planner.checked(*trials.plans[_key(best)], best)
    note = f"{target.asked}: met at ratio {trials.number(best)}, {trials.costs[_key(best)].said}"
    return replace(plan, notes=(note, *plan.notes))


def _as_share(target: Target, plan: Plan) -> Target:
    """The target as a share of what the dense network has.

    Raises:
        OptionError: It is a number that the dense network does not exceed.
    """
    if target.share < 1:
        return target
    there = getattr(plan, target.quantity)[0]
    if target.share >= there:
        raise OptionError(
            f"{target.asked} is no less than the {there:,} {_UNITS[target.quantity]} that the dense network has: give "
            "fewer, or a share in (0, 1) of them."
        )
    return replace(target, share=target.share / there)


def _finer(trials: _Trials, settings: Settings, low: float, target: Target) -> Settings:
    """Layers of one width shrink at the same ratio: let only the first of them, as many as it takes."""
    enough, few, many = settings, 0, len(trials.names)
    while many - few > 1:
        middle = (few + many) // 2
        tried = replace(settings, finer=(middle, low))
        if trials.of(tried).surely <= target.share:
            enough, many = tried, middle
        else:
            few = middle
    return enough


_Key = tuple[Any, tuple[int, float] | None]


def _key(settings: Settings) -> _Key:
    return settings.ratio, settings.finer


class _Trials:
    """Plans made on the way, with the graphs that they were made on, and what they leave."""

    def __init__(self, planner: Planner, settings: Settings, measure: Measure) -> None:
        self._planner, self._settings, self._measure = planner, settings, measure
        self.plans: dict[_Key, tuple[Plan, DependencyGraph]] = {}
        self.costs: dict[_Key, Cost] = {}
        self.names: list[str] = []

    def at(self, ratio: float) -> Cost:
        """What one ratio for all layers leaves."""
        return self.of(replace(self._settings, ratio=ratio))

    def of(self, settings: Settings) -> Cost:
        """What settings leave."""
        key = _key(settings)
        if key not in self.costs:
            plan, graph = self.plans[key] = self._planner.sketch(settings)
            self.names = [group.name for group in graph.groups]
            self.costs[key] = self._measure(plan)
            _log.info("ratio %s: %s", self.number(settings), self.costs[key].said)
        return self.costs[key]

    def number(self, settings: Settings) -> str:
        """The ratio as people read it."""
        ratio = f"{settings.ratio:.4f}"
        return (
            f"{ratio} before {self.names[settings.finer[0]]}, a little less from there on" if settings.finer else ratio
        )


def _ways_on(settings: Settings) -> str:
    ways = [
        *(['granularity="channel"'] if settings.granularity == "filter" else []),
        *(["keep_representation=False"] if settings.keep_representation else []),
        *(["round_to=1"] if settings.round_to != 1 else []),
        *(["fewer patterns in ignore"] if settings.ignore else []),
        *(["a larger max_ratio"] if settings.max_ratio not in (None, 1) else []),
    ]
    return f"Options that allow more: {', '.join(ways)}." if ways else "No option allows more."
