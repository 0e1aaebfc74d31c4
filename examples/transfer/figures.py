"""The figures of the page, from the results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from structprune.transfer import Frontier, plot_errors, plot_stream


def draw(frontier: Frontier, near: Sequence[str], folder: Path) -> None:
    """Errors over FLOPs, task by task too, both granularities on the near tasks, and the stream."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same file from the same numbers.
    matplotlib.rcParams.update({"svg.hashsalt": "structprune", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "svg.fonttype": "none", "figure.facecolor": "white"})

    def save(figure: Any, name: str) -> None:
        figure.savefig(folder / f"transfer-{name}.svg", metadata={"Date": None})
        plt.close(figure)

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    plot_errors(frontier, axes, granularity="filter")
    axes.legend(frameon=False)
    save(figure, "errors")

    columns = min(4, len(frontier.tasks))
    rows = math.ceil(len(frontier.tasks) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.3 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(frontier.tasks) :]:
        axes.remove()
    for axes, task in zip(grid.flat, frontier.tasks, strict=False):
        plot_errors(frontier, axes, tasks=[task], granularity="filter")
        axes.set(title=task, xlabel="", ylabel="")
    figure.supxlabel("training FLOPs")
    figure.supylabel("error")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=4, frameon=False)
    save(figure, "tasks")

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    plot_errors(frontier, axes, tasks=near)
    axes.legend(frameon=False)
    save(figure, "granularities")

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    plot_stream(frontier, axes, granularity="filter")
    axes.legend(frameon=False)
    save(figure, "stream")
