"""The report in a terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from structprune.report.study import RatioResult, Report

_MOST_FROZEN = 8


def scaled(number: float) -> str:
    """A number with an SI prefix: ``4.09 G``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:g}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{seconds * 1e3:.3g} ms"


def show(report: Report, console: Console) -> None:
    """Print all that the report holds."""
    if report.pruned:
        console.print(f"  {report.pruned}")
    if report.params:
        _show_costs(report, console)
    if report.ratios:
        _show_ratios(report, console)
    if report.groups or report.frozen:
        _show_groups(report, console)
    if report.uncounted:
        named = ", ".join(f"{name} ({n} times)" for name, n in report.uncounted.items())
        console.print(f"\nNot counted, because no formula is known: {named}.")
    for note in report.notes:
        console.print(f"\n{note}")
    if report.interrupted:
        console.print("\nInterrupted: the above is what was known.", style="yellow")
    if report.verdict:
        console.print(f"\n{report.verdict}", style="bold")
    _, _, details = report.nothing.partition("\n")
    if details:
        console.print(details)


def _show_costs(report: Report, console: Console) -> None:
    console.print(
        f"  {report.params:,} parameters, {scaled(report.macs)}MACs ({scaled(report.flops)}FLOPs) with {report.inputs}",
    )
    for timing in report.latency:
        batch = f", batch of {timing.batch_size}" if timing.batch_size else ""
        console.print(
            f"  {milliseconds(timing.median)} a forward{batch} "
            f"(p10 {milliseconds(timing.p10)}, p90 {milliseconds(timing.p90)})",
        )
        if timing.busy:
            console.print(f"  not to be trusted: {timing.busy}", style="yellow")
    if report.circumstances:
        console.print(f"  on {report.circumstances}")
    if any(module.macs for module in report.modules):
        table = Table("where", "kind", box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("parameters", "MACs", "share"):
            table.add_column(title, justify="right")
        for module in report.modules:
            share = module.macs / report.macs
            table.add_row(module.name, module.kind, f"{module.params:,}", scaled(module.macs), f"{share:.0%}")
        console.print(table)


def _show_ratios(report: Report, console: Console) -> None:
    several = len({r.batch_size for r in report.ratios}) > 1
    measured = any(r.speedup is not None for r in report.ratios)
    columns = ["ratio", *(["batch"] if several else []), "params", "MACs", "in theory"]
    columns += ["measured", "95 % interval", "latency"] if measured else []
    table = Table(title=f"\nPruned by {report.ratios[0].granularity}", title_justify="left", title_style="bold")
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    dense = ["dense", *([""] if several else []), scaled(report.params), scaled(report.macs), "1.00"]
    if measured:
        dense += ["1.00", "", "" if several or not report.latency else milliseconds(report.latency[0].median)]
    table.add_row(*dense, style="dim")
    for result in report.ratios:
        batch = [str(result.batch_size)] if several else []
        costs = [scaled(result.params), scaled(result.macs), f"{result.theoretical_speedup:.2f}"]
        table.add_row(f"{result.ratio:g}", *batch, *costs, *(_measured(result) if measured else ()))
    console.print(table)
    for result in report.ratios:
        if result.busy:
            console.print(f"{result.ratio:g}: {result.verdict}", style="yellow")
    last = next((r for r in reversed(report.ratios) if r.causes and not r.busy), None)
    if last is not None:
        console.print(f"Why {last.ratio:g} gives {last.speedup:.2f} and not {last.theoretical_speedup:.2f}:")
        for cause in last.causes:
            console.print(f"- {cause}")


def _measured(result: RatioResult) -> tuple[str, str, str]:
    if result.speedup is None or result.speedup_interval is None or result.latency is None:
        return "-", "-", "-"
    low, high = result.speedup_interval
    if result.busy:
        return "busy", "", milliseconds(result.latency)
    # An interval that holds 1 is no speed-up, whatever its middle.
    gained = "none" if low <= 1 <= high else f"{result.speedup:.2f}"
    return gained, f"{low:.2f} to {high:.2f}", milliseconds(result.latency)


def _show_groups(report: Report, console: Console) -> None:
    roles = Counter(group.role for group in report.groups)
    console.print("\nWhat can go", style="bold")
    for role, number in roles.most_common():
        console.print(f"  {number} group{'s' * (number != 1)} of channels: {role}")
    if not report.groups:
        console.print("  nothing")
    if report.frozen:
        console.print("What must stay, and why", style="bold")
        for reason, names in list(_by_reason(report.frozen).items())[:_MOST_FROZEN]:
            shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            console.print(f"  {shown}: {reason}")


def _by_reason(frozen: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in frozen.items():
        reasons.setdefault(reason, []).append(name)
    return dict(sorted(reasons.items(), key=lambda item: len(item[1]), reverse=True))
