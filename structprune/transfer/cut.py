"""What tells the networks of a sweep apart."""

from __future__ import annotations

from typing import NamedTuple


class Cut(NamedTuple):
    """The ratio and the granularity that a network was pruned with; ``(0.0, "dense")``: it was not.

    A plain tuple of both will do wherever one is asked for.
    """

    ratio: float
    granularity: str

    def __str__(self) -> str:
        """What tables and figures call it."""
        return "dense" if self == DENSE else f"{self.granularity} {self.ratio:g}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


DENSE = Cut(0.0, "dense")
