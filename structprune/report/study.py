"""What the report says, as plain data, gathered step by step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import nn

import structprune
from structprune import (
    Comparison,
    FlopCount,
    Latency,
    LatencyOptions,
    NothingToPruneError,
    Plan,
    Stage,
    StructPruneError,
)
from structprune.compat import accelerator
from structprune.report.limits import bounded_forward

SCHEMA = 1
_TOP_MODULES = 8
# Where a pruned model carries its plan, in every file of one.
_CARRIED = "_structprune_plan"
_ASKED = ("ratio", "macs", "params", "latency", "speedup", "granularity")


@dataclass
class ModuleShare:
    """One part of the dense model."""

    name: str
    kind: str
    params: int
    macs: int


@dataclass
class Timing:
    """Seconds a forward of the dense model with one batch size."""

    batch_size: int | None
    median: float
    p10: float
    p90: float
    busy: str

    @classmethod
    def of(cls, latency: Latency) -> Timing:
        """The numbers that a report keeps."""
        return cls(latency.batch_size, latency.median, latency.p10, latency.p90, latency.busy)


@dataclass
class RatioResult:
    """What one ratio gives, for one batch size.

    ``latency`` is in seconds a forward of the pruned model; it and what is measured with it are
    ``None`` where no latency was measured.
    """

    ratio: float
    granularity: str
    params: int
    macs: int
    theoretical_speedup: float
    batch_size: int | None = None
    latency: float | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    verdict: str = ""
    busy: str = ""
    causes: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)


@dataclass
class Prunable:
    """Channels that leave together, as the plan of the middle ratio has them."""

    name: str
    width: int
    kept: int
    role: str


@dataclass
class Pruned:
    """What was taken away already, as the plan that the model carries says.

    ``params`` and ``macs`` are before and after.
    """

    asked: str
    params: tuple[int, int]
    macs: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, model: nn.Module) -> Pruned | None:
        """What the model's plan says, ``None`` for one that was not pruned."""
        if not hasattr(model, _CARRIED):
            return None
        plan = structprune.plan_of(model)
        asked = [
            ", ".join(f"{key} {step[key]}" for key in _ASKED if step.get(key) is not None)
            for step in plan.settings.get("steps", [plan.settings])
        ]
        cut = sum(group.removed > 0 for group in plan.groups)
        return cls(", then ".join(asked), plan.params, plan.macs, cut)

    def __str__(self) -> str:
        share = " and ".join(
            f"{after / max(before, 1):.0%} of {before:,} {what}"
            for what, (before, after) in (("parameters", self.params), ("MACs", self.macs))
        )
        return f"already pruned by structprune ({self.asked}): {self.groups} groups lost channels; {share} are left"


@dataclass
class Report:
    """All that is known of a model so far; every key of the JSON."""

    model: str
    source: str
    pruned: Pruned | None = None
    inputs: str = ""
    params: int = 0
    param_bytes: int = 0
    macs: int = 0
    flops: int = 0
    device: str = ""
    circumstances: str = ""
    latency: list[Timing] = field(default_factory=list)
    modules: list[ModuleShare] = field(default_factory=list)
    ratios: list[RatioResult] = field(default_factory=list)
    groups: list[Prunable] = field(default_factory=list)
    frozen: dict[str, str] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    nothing: str = ""
    interrupted: bool = False
    verdict: str = ""
    schema: int = SCHEMA
    structprune: str = structprune.__version__

    def to_json(self) -> str:
        """The documented JSON."""
        return json.dumps(asdict(self), indent=1)


class Progress(Protocol):
    """Where the user sees how far it is."""

    def step(self, text: str) -> None:
        """A step begins."""


@dataclass(frozen=True)
class Wishes:
    """What the user asks for."""

    ratios: Sequence[float]
    granularity: str
    batch_sizes: Sequence[int | None]
    measures: bool
    options: LatencyOptions

    @property
    def steps(self) -> int:
        """How many steps ``study`` announces."""
        measured = len(self.batch_sizes) * (1 + len(self.ratios)) if self.measures else 0
        return 1 + len(self.ratios) + measured


def study(report: Report, model: nn.Module, example_inputs: Any, wishes: Wishes, progress: Progress) -> None:
    """Fill a report; what is in it stays true if this is interrupted."""
    progress.step("counting")
    report.pruned = Pruned.of(model)
    count = count_bounded(model, example_inputs)
    report.inputs, report.params, report.param_bytes = count.inputs, count.params, count.param_bytes
    report.macs, report.flops, report.uncounted = count.macs, count.flops, count.uncounted
    report.modules = _top_modules(count.by_module)
    if wishes.measures:
        for batch_size in wishes.batch_sizes:
            progress.step(f"timing the dense model{_with(batch_size)}")
            latency = structprune.measure_latency(model, example_inputs, **_options(wishes, batch_size))
            report.latency.append(Timing.of(latency))
            report.device, report.circumstances = latency.device, report.circumstances or latency.circumstances
    else:
        report.device = device_of(wishes.options)
    plans = _plans(report, model, example_inputs, wishes, progress)
    for ratio, plan in plans:
        for batch_size in wishes.batch_sizes if wishes.measures else [None]:
            result = RatioResult(
                ratio, wishes.granularity, plan.params[1], plan.macs[1], plan.macs[0] / max(plan.macs[1], 1), batch_size
            )
            if wishes.measures:
                progress.step(f"measuring ratio {ratio:g}{_with(batch_size)}")
                pruned = plan.apply(model)
                add(result, structprune.compare(model, pruned, example_inputs, **_options(wishes, batch_size)))
            report.ratios.append(result)
    report.verdict = verdict(report)


def count_bounded(model: nn.Module, example_inputs: Any) -> FlopCount:
    """Count a model whose sizes may ask for more than any memory holds: this forward, on no numbers, is the first."""
    with bounded_forward(example_inputs):
        return structprune.count_flops(model, example_inputs)


def add(result: RatioResult, comparison: Comparison) -> None:
    """Put what was measured into a result."""
    result.batch_size = comparison.pruned.latency.batch_size
    result.latency = comparison.pruned.latency.median
    result.theoretical_speedup = comparison.theoretical_speedup
    result.speedup, result.speedup_interval = comparison.speedup, comparison.speedup_interval
    result.verdict, result.busy, result.causes = comparison.verdict, comparison.busy, list(comparison.causes)
    result.stages = list(comparison.stages)


def _plans(
    report: Report, model: nn.Module, example_inputs: Any, wishes: Wishes, progress: Progress
) -> list[tuple[float, Plan]]:
    """A plan for every ratio that has one."""
    plans: list[tuple[float, Plan]] = []
    refused: list[str] = []
    for ratio in wishes.ratios:
        progress.step(f"planning ratio {ratio:g}")
        try:
            plans.append((ratio, _plan(model, ratio, wishes.granularity, example_inputs)))
        except NothingToPruneError as error:
            refused.append(str(error))
        except StructPruneError as error:
            refused.append(f"The model cannot be pruned: {error}")
            break
    if not plans:
        report.nothing = refused[0] if refused else "No ratio was asked for."
        return plans
    report.notes = [text.split("\n")[0] for text in refused]
    shown = plans[len(plans) // 2][1]
    for group in shown.groups:
        name = group.producers[0] if group.producers else group.name
        if group.removed:
            report.groups.append(Prunable(name, group.width, group.width - group.removed, group.role))
        else:
            report.frozen[name] = group.reason
    return plans


def _plan(model: nn.Module, ratio: float, granularity: Any, example_inputs: Any) -> Plan:
    return structprune.plan_pruning(model, ratio, granularity, example_inputs=example_inputs)


def _top_modules(tree: structprune.ModuleCost) -> list[ModuleShare]:
    """The modules that hold the MACs: the model's parts, opened where one holds nearly everything."""
    parts: list[structprune.ModuleCost] = list(tree.children)
    while parts:
        largest = max(parts, key=lambda part: part.macs)
        if not largest.children or largest.macs < 0.6 * max(tree.macs, 1) or len(parts) >= _TOP_MODULES:
            break
        at = parts.index(largest)
        parts[at : at + 1] = largest.children
    kept = sorted(parts, key=lambda part: part.macs, reverse=True)[:_TOP_MODULES]
    return [ModuleShare(p.name, p.kind, p.params, p.macs) for p in parts if p in kept and (p.macs or p.params)]


def _options(wishes: Wishes, batch_size: int | None) -> LatencyOptions:
    return {**wishes.options, "batch_size": batch_size}


def _with(batch_size: int | None) -> str:
    return "" if batch_size is None else f", batch of {batch_size}"


def verdict(report: Report) -> str:
    """The report in one sentence."""
    if report.nothing:
        return report.nothing.split("\n")[0]
    if not report.ratios:
        return ""
    best = max(report.ratios, key=lambda r: (r.speedup_interval or (r.theoretical_speedup,))[0])
    size = f"{best.params / report.params:.0%} of the parameters and {best.macs / max(report.macs, 1):.0%} of the MACs"
    kept = f"Pruned at {best.ratio:g} by {best.granularity} it has {size}"
    if best.speedup is None or best.speedup_interval is None:
        return f"{kept}; what that gains in time was not measured."
    if any(r.busy for r in report.ratios):
        return f"{kept}; the machine was too busy to tell what that gains in time."
    low, high = best.speedup_interval
    if low <= 1:
        return f"{kept}, and no ratio is measurably faster on this device."
    batch = f" with a batch of {best.batch_size}" if best.batch_size else ""
    return (
        f"{kept}, and runs {best.speedup:.2f} times as fast{batch} (95 % interval {low:.2f} to {high:.2f}; the MACs "
        f"promise {best.theoretical_speedup:.2f})."
    )


def device_of(options: LatencyOptions) -> str:
    """The device that a measurement would take, without one."""
    wanted = options.get("device", "auto")
    if wanted != "auto":
        return str(wanted)
    return str(accelerator() or "cpu")
