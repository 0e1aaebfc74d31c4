"""A plan as people read it: in one line at the prompt, in full with ``print``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from structprune.plan.sensitivity import GroupPlan
from structprune.surgery.cut import AttributeChange


class Printed(Protocol):
    """What is printed of a plan."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def params(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def macs(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def groups(self) -> Sequence[GroupPlan]: ...  # noqa: D102
    @property
    def attributes(self) -> Sequence[AttributeChange]: ...  # noqa: D102
    @property
    def row_scales(self) -> Mapping[str, tuple[float, ...]]: ...  # noqa: D102
    @property
    def notes(self) -> Sequence[str]: ...  # noqa: D102


def in_one_line(plan: Printed) -> str:
    """What it is for, what it saves, and in how many groups."""
    cut = sum(1 for group in plan.groups if group.removed)
    return f"<Plan for {plan.model}: {_saved(plan)}, {cut} of {len(plan.groups)} groups cut>"


def in_full(plan: Printed) -> str:
    """What becomes of every group, the sizes that follow, and the notes."""
    steps = plan.settings.get("steps", [plan.settings])
    asked = [
        "channels that are named"
        if s.get("channels")
        else f"ratio {s.get('ratio')}, granularity {s.get('granularity')!r}"
        for s in steps
    ]
    width = min(max((len(g.title) for g in plan.groups), default=0), 44)
    rows = [
        f"  {g.title:{width}} {g.width:5} -> {g.width - g.removed:<5} {g.role if g.removed else g.reason}"
        for g in plan.groups
    ]
    sections = [f"Plan for {plan.model}: {', then '.join(asked)}", f"  {_saved(plan)}", "channels", *rows]
    held = [f"  {change}" for change in plan.attributes]
    if held:
        sections += ["sizes held by modules", *held]
    if plan.row_scales:
        sections += ["rows that make up for a number which code computes from their width", *_row_scales(plan)]
    return "\n".join([*sections, *(f"  note: {note}" for note in plan.notes)])


def _saved(plan: Printed) -> str:
    return (
        f"parameters {plan.params[0]:,} -> {plan.params[1]:,} ({_percent(plan.params)}), "
        f"MACs {plan.macs[0]:,} -> {plan.macs[1]:,} ({_percent(plan.macs)})"
    )


def _row_scales(plan: Printed) -> list[str]:
    """How many rows are multiplied with what."""
    said = []
    for name, row_scale in plan.row_scales.items():
        counts = {factor: row_scale.count(factor) for factor in dict.fromkeys(row_scale) if factor != 1}
        said.append(f"  {name}: {', '.join(f'{count} rows times {f:.4g}' for f, count in counts.items())}")
    return said


def _percent(pair: tuple[int, int]) -> str:
    return f"{100 * (pair[1] - pair[0]) / pair[0]:+.1f} %" if pair[0] else "n/a"
