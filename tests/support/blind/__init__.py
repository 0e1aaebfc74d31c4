"""Networks that a trace cannot see through, each with what hides from it."""

from tests.support.blind import branches, hidden, leaving, widths  # noqa: F401  (each registers its middles)
from tests.support.blind.network import BLIND, build, example

__all__ = ["BLIND", "build", "example"]
