"""Likeness of tasks, against a Gaussian process of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune.transfer.likeness import Likeness


@given(seed=st.integers(0, 10**6), tasks=st.integers(3, 7), cuts=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_weights_are_those_of_a_gaussian_process(seed: int, tasks: int, cuts: int) -> None:
    """Held against scikit-learn's, for the length and the noise that were chosen, around the mean of all tasks."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    random = np.random.default_rng(seed)
    probes, errors, new = random.random((tasks, cuts)), random.random((2, tasks, cuts)), random.random(cuts)
    likeness = Likeness(probes, errors)
    weights = likeness.weights(new)
    assert weights.sum() == pytest.approx(1)
    # Apart by the root mean square over cuts.
    kernel = RBF(likeness._length * cuts**0.5, "fixed")
    values = errors.transpose(1, 0, 2).reshape(tasks, -1)
    fitted = GaussianProcessRegressor(kernel, alpha=likeness._noise, optimizer=None)
    fitted.fit(probes, values - values.mean(axis=0))
    assert weights @ values == pytest.approx(fitted.predict(new[None])[0] + values.mean(axis=0), abs=1e-8)
    assert np.diag(likeness.held_out) == pytest.approx(0) and likeness.held_out.sum(axis=1) == pytest.approx(1)
    # A task that is like none gets the mean of all.
    assert likeness.weights(new + 100) == pytest.approx(np.full(tasks, 1 / tasks))


def test_length_and_noise_are_those_that_tell_most() -> None:
    random = np.random.default_rng(0)
    probes = random.random((30, 2))
    told = np.stack([np.sin(9 * probes), np.cos(9 * probes)])  # by budget, task and cut
    local, idle = Likeness(probes, told), Likeness(probes, random.random((2, 30, 2)))
    new = probes[3] + 0.01
    assert local._length <= 0.4 and local._noise <= 0.03 and idle._noise >= 1
    assert local.weights(new) @ told[0] == pytest.approx(np.sin(9 * new), abs=0.1)
    assert idle.weights(new) == pytest.approx(np.full(30, 1 / 30), abs=0.05)
