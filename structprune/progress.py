"""A progress bar on stderr, where somebody looks at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Takes what is done now, and how many steps more are done.
Advance = Callable[[str, int], None]


@contextmanager
def progress_bar(shown: bool | None, total: int) -> Iterator[Advance]:
    """A bar with a count and an estimate, or nothing.

    Args:
        shown: ``None``: where stderr is a terminal.
        total: How many steps there are.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda said, steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Names may hold brackets.
    columns = BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda said, steps: bar.update(task, description=said, advance=steps)
