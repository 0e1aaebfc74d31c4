"""What counts as right, on either side."""

from __future__ import annotations

from typing import Any

from tests.zoo.store import Pair
from tests.zoo.structprune_judge import GRANULARITIES

TOLERANCE = 1e-9
LEAST_POWER = 1e-3


def is_proved(entry: dict[str, Any]) -> bool:
    """Whether pruned equals masked, and the masking mattered."""
    return bool(entry.get("proved")) and entry["error"] <= TOLERANCE and entry["power"] > LEAST_POWER


def is_right(entry: dict[str, Any]) -> bool:
    """Whether one granularity pruned the network, runs in both modes and is proved."""
    pruned = entry.get("removed", 0) > 0 and entry.get("runs") is True
    return pruned and is_proved(entry) and entry.get("trains") in (True, "n/a")


def is_accepted(ours: dict[str, Any]) -> bool:
    """Whether both granularities are right; a network without anything inside a block may refuse ``"filter"``."""
    filters, channels = (ours.get(granularity, {}) for granularity in GRANULARITIES)
    return is_right(channels) and (is_right(filters) or "refused" in filters)


def trouble(ours: dict[str, Any], granularity: str) -> str:
    """Why a granularity is not right; empty if it is."""
    entry = ours.get(granularity, {})
    if is_right(entry):
        return ""
    if "refused" in entry:
        return f"refused: {entry['refused']}"
    if "failed" in entry:
        return str(entry["failed"])
    if entry.get("runs") is False:
        return str(entry.get("run_failed", "the outputs have other shapes"))
    if entry.get("reason"):
        return f"not proved: {entry['reason']}"
    if "proved" in entry and not is_proved(entry):
        return f"not proved: error {entry['error']}, power {entry['power']}"
    if entry.get("trains") is False:
        return "does not run in training mode as the dense network does"
    return str(ours.get("error", "no result"))


def theirs_is_right(theirs: dict[str, Any]) -> bool:
    """Whether torch-pruning removed something, and the oracle agrees with what is left."""
    return theirs.get("removed", 0) > 0 and theirs.get("runs") is True and theirs.get("oracle") == "right"


def cannot_be_judged(pair: Pair) -> bool:
    """Whether torch-pruning's network runs, but the oracle is no judge of it.

    It does not know every norm: where it rejects structprune's network as well, although that is proved, its word on
    torch-pruning's counts for nothing.
    """
    ours, theirs = pair.ours.get("channel", {}), pair.theirs
    runs = theirs.get("removed", 0) > 0 and theirs.get("runs") is True and not theirs_is_right(theirs)
    return runs and is_proved(ours) and ours.get("oracle") != "right"


def their_trouble(pair: Pair) -> str:
    """Why torch-pruning's result is not right; empty if it is."""
    theirs = pair.theirs
    if theirs_is_right(theirs):
        return ""
    if not theirs:
        return "not run"
    if cannot_be_judged(pair):
        return "runs; the oracle cannot judge it"
    if "failed" in theirs:
        return str(theirs["failed"])
    if theirs.get("runs") is False:
        return str(theirs["run_failed"])
    if theirs.get("removed") == 0:
        return "nothing removed"
    return str(theirs.get("oracle") or theirs.get("error", "no result"))
