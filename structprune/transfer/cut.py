"""What tells the networks of a sweep apart."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from structprune.api import prune_model
from structprune.select.options import PruningOptions


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


def network_of(cut: Cut, model: nn.Module, example_inputs: Any, pruning: PruningOptions | None) -> nn.Module:
    """A model as a cut leaves it; the model itself where it is dense."""
    if not cut.ratio:
        return model
    granularity: Any = cut.granularity
    return prune_model(model, cut.ratio, granularity, example_inputs=example_inputs, **(pruning or {}))
