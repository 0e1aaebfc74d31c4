"""Benchmarks: run by hand, results in ``docs/benchmarks.md``."""

from __future__ import annotations

from pathlib import Path


def publish(text: str, path: Path | None) -> None:
    """Write a section of the page, or what it is made of, if it is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.strip() + "\n")
