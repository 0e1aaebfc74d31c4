"""The table of kinds, and what one file of a kind is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

REFUSED = frozenset({2})
# Opened, and nothing came of it: it can be studied, or nothing in it can be pruned, or it is refused after all.
HARMLESS = frozenset({0, 2, 3})


@dataclass(frozen=True)
class Sample:
    """One file.

    Attributes:
        path: Where it is.
        arguments: What the command is given besides.
        weights: Bytes of values that it really holds, which its reader may take too.
    """

    path: Path
    arguments: tuple[str, ...] = ()
    weights: int = 0


@dataclass(frozen=True)
class Place:
    """Where a generator writes: a folder of its own, and the file that must not appear."""

    folder: Path
    marker: Path

    @property
    def file(self) -> Path:
        """The usual name."""
        return self.folder / "model.pt"


@dataclass(frozen=True)
class Kind:
    """One way to attack.

    Attributes:
        name: The function's, with spaces.
        tries: What the file tries, for the table.
        make: Writes a file; the random numbers choose among variants.
        codes: Exit codes that are right.
    """

    name: str
    tries: str
    make: Callable[[Random, Place], Sample | Path]
    codes: frozenset[int]

    def sample(self, seed: int, place: Place) -> Sample:
        """The file of a seed."""
        made = self.make(Random(seed), place)
        return made if isinstance(made, Sample) else Sample(made)


KINDS: dict[str, Kind] = {}


def kind(
    tries: str, codes: frozenset[int] = REFUSED
) -> Callable[[Callable[[Random, Place], Sample | Path]], Callable[[Random, Place], Sample | Path]]:
    """Enter a generator into the table."""

    def enter(make: Callable[[Random, Place], Sample | Path]) -> Callable[[Random, Place], Sample | Path]:
        name = make.__name__.replace("_", " ")
        assert name not in KINDS, name
        KINDS[name] = Kind(name, tries, make, codes)
        return make

    return enter
