"""The pruning ratio of another library that leaves a share of the MACs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from torch import nn

from tests.real.subject import Subject, count

# Near enough to the share that is asked for, and the most cuts that are tried.
_NEAR = 0.002
_TRIALS = 12
_LARGEST = 0.95
# The ratios that were tried, and the shares they left, by subject and method: they narrow the next search.
_KNOWN: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)


class Refused(Exception):
    """The library cannot do it; the text is its reason."""


def nearest(key: str, subject: Subject, share: float, cut: Callable[[float], nn.Module]) -> nn.Module:
    """The cut that leaves at most a share of the MACs, and as nearly as possible that.

    Args:
        key: The method's.
        subject: Whose model is cut.
        share: Of the dense model's MACs.
        cut: Takes a ratio in (0, 1) and gives a pruned copy.

    Returns:
        The pruned copy.

    Raises:
        Refused: No ratio that was tried leaves so few MACs.
    """
    known = _KNOWN[subject.name, key]
    models: dict[float, nn.Module] = {}
    for _ in range(_TRIALS):
        low = max((ratio for ratio, left in known.items() if left > share), default=0.0)
        high = min((ratio for ratio, left in known.items() if left <= share and ratio > low), default=_LARGEST)
        ratio = (low + high) / 2 if known else (1 - share) * 0.7
        model = cut(ratio)
        known[ratio] = left = count(model, subject.example) / subject.macs
        if left <= share:
            models = {ratio: model}
        if share - _NEAR <= left <= share or high - low < 1e-4:
            break
    fitting = [ratio for ratio, left in known.items() if left <= share]
    if not fitting:
        raise Refused(f"no ratio leaves {share:g} of the MACs; the least left was {min(known.values()):.3f}")
    best = max(fitting, key=known.__getitem__)
    return models[best] if best in models else cut(best)
