"""What few seeds say of a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

# Student's t for two-sided 95 %, by degrees of freedom; between two of them the smaller one is on the safe side.
_STUDENT = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980,
}  # fmt: skip

Interval = tuple[float, float]


def interval(samples: npt.NDArray[np.float64]) -> Interval:
    """A 95 % interval of the mean, by Student's t: a bootstrap of five seeds would be too narrow.

    Args:
        samples: One number for each seed; NaN where a seed has none.

    Returns:
        Low and high; NaN with fewer than two seeds, which say nothing of their scatter.
    """
    samples = samples[~np.isnan(samples)]
    if len(samples) < 2:
        return (math.nan, math.nan)
    student = _STUDENT[max(df for df in _STUDENT if df < len(samples))]
    half = student * float(samples.std(ddof=1)) / math.sqrt(len(samples))
    mean = float(samples.mean())
    return (mean - half, mean + half)


def jackknife(statistic: Callable[[npt.NDArray[np.int64]], float], seeds: npt.NDArray[np.int64]) -> Interval:
    """A 95 % interval of what a function makes of the seeds, such as a ratio of means: Tukey's jackknife.

    Leaving out one seed after the other gives pseudo-values, whose scatter is that of the estimate; for a mean they are
    the samples themselves.

    Args:
        statistic: A function of positions of seeds.
        seeds: The positions of those that have something to say: one without runs would pass for one without scatter.

    Returns:
        Low and high, around the statistic of all seeds; NaN where there are fewer than two, or where leaving out one
        leaves nothing to say.
    """
    count = len(seeds)
    if count < 2:
        return (math.nan, math.nan)
    whole = statistic(seeds)
    without = np.array([statistic(np.delete(seeds, row)) for row in range(count)])
    if not np.isfinite([whole, *without]).all():
        return (math.nan, math.nan)
    low, high = interval(count * whole - (count - 1) * without)
    half = (high - low) / 2
    return (whole - half, whole + half)


def mean(values: npt.NDArray[np.float64], axis: int | None = None) -> Any:
    """The mean of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
