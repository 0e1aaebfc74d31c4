"""A plan as people read it: in one line at the prompt, in full with ``print``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structprune.plan.plan import Plan


def in_one_line(plan: Plan) -> str:
    """What it is for, what it saves, and in how many groups."""
    cut = sum(1 for group in plan.groups if group.removed)
    return f"<Plan for {plan.model}: {_saved(plan)}, {cut} of {len(plan.groups)} groups cut>"


def in_full(plan: Plan) -> str:
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
    if plan.gains:
        sections += ["rows that make up for a number which code computes from their width", *_gains(plan)]
    return "\n".join([*sections, *(f"  note: {note}" for note in plan.notes)])


def _saved(plan: Plan) -> str:
    return (
        f"parameters {plan.params[0]:,} -> {plan.params[1]:,} ({_percent(plan.params)}), "
        f"MACs {plan.macs[0]:,} -> {plan.macs[1]:,} ({_percent(plan.macs)})"
    )


def _gains(plan: Plan) -> list[str]:
    """How many rows are multiplied with what."""
    said = []
    for name, gain in plan.gains.items():
        counts = {factor: gain.count(factor) for factor in dict.fromkeys(gain) if factor != 1}
        said.append(f"  {name}: {', '.join(f'{count} rows times {f:.4g}' for f, count in counts.items())}")
    return said


def _percent(pair: tuple[int, int]) -> str:
    return f"{100 * (pair[1] - pair[0]) / pair[0]:+.1f} %" if pair[0] else "n/a"
