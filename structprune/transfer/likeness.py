"""What tasks that were run say of another one, by how alike they are."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Lengths in error rates, noise in units of the errors' own scatter over tasks.
_LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
_NOISES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Likeness:
    """Gaussian process regression of errors over the probes of tasks.

    Tasks are as far apart as the root mean square of what their probes differ by.

    Errors of a new task are expected to be a weighted sum of those of the known ones (Rasmussen and Williams, Gaussian
    Processes for Machine Learning, equation 2.25, around the mean of all tasks). A task that is many lengths from all
    of them gets their mean; one that lies just beyond them gets weights beyond 0 and 1. The length over which tasks are
    alike, and how much of an error is a task's own, are those with which the others tell most of each known task that
    is held out: of the least squared difference.

    Args:
        probes: By task and cut.
        errors: By budget, task and cut.

    Attributes:
        held_out: Weights by task and task: what each would have got of the others.
    """

    def __init__(self, probes: Array, errors: Array) -> None:
        self._probes = probes
        tried = {own: self._held_out(*own) for own in product(_LENGTHS, _NOISES)}
        self._length, self._noise = min(tried, key=lambda own: _off(tried[own], errors))
        self.held_out = tried[self._length, self._noise]

    def weights(self, probe: Array) -> Array:
        """The share of every known task in a new one, by the new one's probe; together they are 1.

        A share may be negative: of a task that differs from the others in the opposite way.
        """
        return _weights(self._probes, probe, self._length, self._noise)

    def _held_out(self, length: float, noise: float) -> Array:
        count = len(self._probes)
        weights = np.zeros((count, count))
        for row in range(count):
            others = np.arange(count) != row
            weights[row, others] = _weights(self._probes[others], self._probes[row], length, noise)
        return weights


def _off(weights: Array, errors: Array) -> float:
    """The sum of squares of what weighted sums of other tasks' errors are off."""
    expected = np.einsum("nt,btc->bnc", weights, errors)
    return float(((expected - errors) ** 2).sum())


def _weights(known: Array, new: Array, length: float, noise: float) -> Array:
    gram = _kernel(known, known, length) + noise * np.eye(len(known))
    share = np.linalg.solve(gram, _kernel(known, new[None], length)[:, 0])
    return np.asarray(share + (1 - share.sum()) / len(known))


def _kernel(one: Array, other: Array, length: float) -> Array:
    squared = ((one[:, None] - other[None]) ** 2).mean(axis=2)
    return np.asarray(np.exp(-squared / (2 * length**2)))
