"""Pieces of Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from structprune.transfer import Cut


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between(band: tuple[float, float], spec: str = ".0%") -> str:
    """An interval, or that there is none of one seed."""
    low, high = band
    return "one seed" if math.isnan(low) else f"{low:{spec}} to {high:{spec}}"


def in_words(cuts: Sequence[Cut]) -> str:
    """Cuts as one would list them in a sentence."""
    names = [str(cut) for cut in cuts]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def duration(seconds: float) -> str:
    """Seconds, in minutes or hours."""
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
