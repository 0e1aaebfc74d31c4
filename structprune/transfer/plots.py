"""What a sweep measured, drawn on matplotlib axes (``pip install structprune[html]``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from structprune.transfer.cut import DENSE, Cut
from structprune.transfer.frontier import Frontier

# Dark for little, bright for much that was removed.
_PALETTE = "viridis"


def plot_errors(
    frontier: Frontier,
    axes: Any,
    *,
    tasks: Sequence[str] = (),
    granularity: str | None = None,
    mark_regime: bool = True,
) -> None:
    """Draw the error over the training FLOPs of every cut, with 95 % over seeds; the dense network in black.

    Args:
        frontier: The curves.
        axes: Of matplotlib.
        tasks: Whose mean is drawn; all, if not given.
        granularity: Draw these cuts and the dense network alone.
        mark_regime: Whether to shade the low-compute regime, up to the mean over the tasks.
    """
    budgets = frontier.budgets
    for cut in frontier.cuts_of(granularity):
        style = _style(frontier, cut)
        bands = np.array([frontier.interval(cut, b, tasks=tasks) for b in budgets])
        axes.plot(budgets, [frontier.metric(cut, b, tasks=tasks) for b in budgets], label=str(cut), **style)
        axes.fill_between(budgets, bands[:, 0], bands[:, 1], color=style["color"], alpha=0.15, linewidth=0)
    if mark_regime:
        ends = [frontier.low_compute(task) for task in tasks or frontier.tasks]
        axes.axvspan(budgets[0], float(np.exp(np.mean(np.log(ends)))), color="black", alpha=0.06, linewidth=0)
    axes.set(xlabel="training FLOPs", ylabel="error", xlim=(budgets[0], budgets[-1]), ylim=(0, None))
    _logarithmic(axes)


def plot_stream(
    frontier: Frontier, axes: Any, *, budgets: Sequence[float] = (), granularity: str | None = None
) -> None:
    """Draw the error over a stream of tasks against all FLOPs that it takes, as Nevis'22 does (arXiv 2211.11747).

    Every point is one budget for each task: the mean error over all tasks, and the FLOPs of all of them together.

    Args:
        frontier: The curves.
        axes: Of matplotlib.
        budgets: FLOPs for each task; log-spaced, if not given.
        granularity: Draw these cuts and the dense network alone.
    """
    for cut in frontier.cuts_of(granularity):
        ends = [frontier.stream(cut, budget) for budget in budgets or frontier.budgets]
        x, y = [flops[-1] for flops, _ in ends], [errors[-1] for _, errors in ends]
        axes.plot(x, y, marker="o", markersize=3, label=str(cut), **_style(frontier, cut))
    axes.set(xlabel="FLOPs of the whole stream", ylabel="mean error over the stream", ylim=(0, None))
    _logarithmic(axes)


def _logarithmic(axes: Any) -> None:
    """FLOPs as in 2 G, 5 G, 10 G."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _style(frontier: Frontier, cut: Cut) -> dict[str, Any]:
    from matplotlib import colormaps

    if cut == DENSE:
        return {"color": "black", "linewidth": 2}
    granularities = sorted({g for _, g in frontier.cuts} - {DENSE[1]}, reverse=True)
    solid = cut[1] == granularities[0]
    return {"color": colormaps[_PALETTE](0.1 + 0.8 * cut[0]), "linestyle": "-" if solid else "--", "linewidth": 1.5}
