"""Intervals against Student's t, and the jackknife against the delta method."""

from __future__ import annotations

import math

import numpy as np
import pytest

from structprune.transfer.interval import interval, jackknife


@pytest.mark.parametrize("count", [2, 3, 5, 9, 12, 40, 200])
def test_intervals_are_student_s(count: int) -> None:
    from scipy import stats

    samples = np.random.default_rng(count).normal(3, 1, count)
    low, high = interval(samples)
    expected = stats.t.interval(0.95, count - 1, loc=samples.mean(), scale=stats.sem(samples))
    assert low <= expected[0] + 1e-3 and high >= expected[1] - 1e-3
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.03)
    assert all(map(math.isnan, interval(np.array([1.0, math.nan]))))
    assert jackknife(lambda own: float(samples[own].mean()), np.arange(count)) == pytest.approx((low, high))


def test_the_jackknife_of_a_ratio() -> None:
    """Against the delta method, which it agrees with where there are many samples."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(1, 0.3, 4000), generator.normal(2, 0.3, 4000)
    ratio = a.mean() / b.mean()
    deviation = float(np.std(a - ratio * b, ddof=1)) / b.mean() / math.sqrt(len(a))
    low, high = jackknife(lambda own: float(a[own].mean() / b[own].mean()), np.arange(len(a)))
    assert (low + high) / 2 == pytest.approx(ratio) and (high - low) / 2 == pytest.approx(1.98 * deviation, rel=0.02)
