"""The report as one self-contained page: no network, dark and light, wide and narrow."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from structprune import Stage
from structprune.report.printable import printable
from structprune.report.study import RatioResult, Report
from structprune.report.terminal import milliseconds, scaled

# The plots are drawn in these colours; the page puts its own in their place, so that they follow its mode.
_COLOURS = {"#010203": "ink", "#040506": "faint", "#070809": "first", "#0a0b0c": "second", "#0d0e0f": "page"}
_INK, _FAINT, _FIRST, _SECOND, _PAGE = _COLOURS
_SIZE = (4.6, 3.0)


def page(report: Report) -> str:
    """Render a report as HTML."""
    environment = Environment(
        loader=PackageLoader("structprune.report", ""),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        # What turns the direction of text would let a name stand for another one.
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(scaled=scaled, milliseconds=milliseconds)
    return environment.get_template("page.html.j2").render(
        report=report,
        plots=_plots(report),
        several=len({r.batch_size for r in report.ratios}) > 1,
        explained=next((r for r in reversed(report.ratios) if r.causes and not r.busy), None),
    )


def _plots(report: Report) -> list[tuple[str, Markup]]:
    """Caption and drawing of every plot that the report has numbers for."""
    plots = []
    batch_sizes = list(dict.fromkeys(r.batch_size for r in report.ratios))
    if report.ratios:
        plots.append(("What is left over the ratio, relative to the dense model", _over_ratio(report, batch_sizes)))
    staged = [r for r in report.ratios if r.stages and r.batch_size == batch_sizes[0]]
    if staged:
        shown = staged[len(staged) // 2]
        plots.append((f"Where the MACs are, dense against ratio {shown.ratio:g}", _stages(shown, seconds=False)))
        if all(stage.dense_seconds is not None for stage in shown.stages):
            plots.append((f"Where the time is, dense against ratio {shown.ratio:g}", _stages(shown, seconds=True)))
    return plots


def _over_ratio(report: Report, batch_sizes: Sequence[int | None]) -> Markup:
    figure, axes = _drawing()
    for number, batch_size in enumerate(batch_sizes):
        results = [r for r in report.ratios if r.batch_size == batch_size]
        ratios = [0.0, *(r.ratio for r in results)]
        if number == 0:
            axes.plot(ratios, [1.0, *(1 / r.theoretical_speedup for r in results)], "o--", color=_FIRST, label="MACs")
        if not all(r.speedup_interval for r in results):
            continue
        left = [1.0, *(1 / (r.speedup or 1) for r in results)]
        spans = [(1.0, 1.0), *(r.speedup_interval or (1.0, 1.0) for r in results)]
        name = "latency" + (f", batch of {batch_size}" if len(batch_sizes) > 1 else "")
        style = ("o-", "s-", "^-", "D-")[number % 4]
        axes.plot(ratios, left, style, color=_SECOND, label=name)
        axes.fill_between(
            ratios, [1 / high for _, high in spans], [1 / low for low, _ in spans], color=_SECOND, alpha=0.2
        )
    axes.set_xlabel("ratio of channels removed")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure)


def _stages(result: RatioResult, *, seconds: bool) -> Markup:
    stages: list[Stage] = result.stages
    figure, axes = _drawing(rows=len(stages))
    for offset, colour, name, values in (
        (-0.2, _FIRST, "dense", [(s.dense_seconds or 0) * 1e3 if seconds else s.dense_macs / 1e6 for s in stages]),
        (0.2, _SECOND, "pruned", [(s.pruned_seconds or 0) * 1e3 if seconds else s.pruned_macs / 1e6 for s in stages]),
    ):
        axes.barh([i + offset for i in range(len(stages))], values, 0.36, color=colour, label=name)
    axes.set_yticks(range(len(stages)), [stage.name.replace("$", r"\$") for stage in stages])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a forward" if seconds else "millions of MACs")
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure)


def _drawing(rows: int = 6) -> tuple[Figure, Axes]:
    # A font of its own colour and size whatever the user's matplotlib settings are.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(_SIZE[0], max(_SIZE[1], 0.36 * rows + 0.9)), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(_FAINT)
    return figure, axes


def _svg(figure: Figure) -> Markup:
    """The drawing as inline SVG in the page's colours."""
    out = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "structprune"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in _COLOURS.items():
        text = re.sub(colour, f"var(--{name})", text, flags=re.IGNORECASE)
    # The page scales the drawing; its own size in points would not.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    return Markup(re.sub(r"font: [^;\"]*", _font, text))


def _font(match: re.Match[str]) -> str:
    """Keep the size of a text, and take the page's font."""
    size = re.search(r"[\d.]+px", match[0])
    return f"font: {size[0] if size else '9px'} system-ui, sans-serif"
