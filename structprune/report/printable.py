r"""What goes to a terminal: text, and nothing that a terminal would obey.

A name, a path or another library's error may hold escape sequences, or characters that turn the
direction of the text. They are written out (``\x1b``) on the last step of the way, so that no message
has to think of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment


def printable(text: str, *, lines: bool = True) -> str:
    """The text with every character that cannot be seen written out, line ends apart unless ``lines`` is false."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else _written_out(c) for c in text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class PlainConsole(Console):
    """A console that controls the terminal itself, and lets no text do it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of something, their text without control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class PlainParser(argparse.ArgumentParser):
    """A parser that repeats arguments, names of files for example, without control characters."""

    def exit(self, status: int = 0, message: str | None = None) -> Any:
        """Print the message and leave."""
        return super().exit(status, None if message is None else printable(message))


def console_for(*, quiet: bool, stderr: bool = False) -> Console:
    """A console, silent if the user wants it so."""
    options: dict[str, Any] = {"stderr": stderr, "quiet": quiet, "highlight": False, "markup": False, "emoji": False}
    return PlainConsole(**options)
