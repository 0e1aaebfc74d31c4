"""The figures on top of the page, computed from the results."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.zoo.store import Pair
from tests.zoo.structprune_judge import GRANULARITIES
from tests.zoo.verdict import cannot_be_judged, is_proved, is_right, theirs_is_right


def figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Counts, shares and seconds of a family or of all networks."""
    found: dict[str, Any] = {"networks": len(pairs)}
    for granularity in GRANULARITIES:
        entries = [pair.ours.get(granularity, {}) for pair in pairs]
        # A network that is not pruned right counts as one that lost nothing.
        removed = [e["removed"] if is_right(e) else 0.0 for e in entries]
        seconds = [e["seconds"] for e in entries if "seconds" in e]
        trained = [e["trains"] for e in entries if e.get("trains") in (True, False)]
        found[granularity] = {
            "right": sum(map(is_right, entries)),
            "refused": sum("refused" in e for e in entries),
            "proved": sum(map(is_proved, entries)),
            "oracle_agrees": sum(e.get("oracle") == "right" for e in entries),
            "trains": sum(trained),
            "dense_trains": len(trained),
            "removed_median": statistics.median(removed) if removed else None,
            "removed_tenth_percentile": tenth_percentile(removed),
            "seconds_median": statistics.median(seconds) if seconds else None,
            "seconds_largest": max(seconds, default=None),
            "networks_left_whole": sum(e.get("left_whole", 0) > 0 for e in entries),
            "groups_left_whole": sum(e.get("left_whole", 0) for e in entries),
        }
    found["unknown_operators"] = dict(Counter(op for p in pairs for op in p.ours.get("unknown_operators", {})))
    return {**found, "torch_pruning": _theirs(pairs)}


def _theirs(pairs: Sequence[Pair]) -> dict[str, Any]:
    ratios = [
        pair.ours["channel"]["seconds"] / pair.theirs["seconds"]
        for pair in pairs
        if theirs_is_right(pair.theirs) and pair.theirs.get("seconds") and is_right(pair.ours.get("channel", {}))
    ]
    return {
        "run": sum(bool(pair.theirs) for pair in pairs),
        "runs": sum(pair.theirs.get("removed", 0) > 0 and pair.theirs.get("runs") is True for pair in pairs),
        "right": sum(theirs_is_right(pair.theirs) for pair in pairs),
        "cannot_be_judged": sum(map(cannot_be_judged, pairs)),
        "timed_pairs": len(ratios),
        "seconds_ratio_median": statistics.median(ratios) if ratios else None,
    }


def tenth_percentile(values: Sequence[float]) -> float | None:
    """The smallest value that at least a tenth of all do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(len(values) / 10) - 1] if values else None
