"""Whether one method's loss is really less than another's on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

_RESAMPLES = 2000


def interval(losses: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of ``others - losses``, resampled over samples in pairs."""
    difference = np.asarray(others) - np.asarray(losses)
    means = difference[_choices(len(difference))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@cache
def _choices(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, size, (_RESAMPLES, size))
