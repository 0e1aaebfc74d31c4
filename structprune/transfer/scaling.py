"""A simple scaling law: error over compute and density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from structprune.errors import OptionError

# The exponents are searched on a grid; given them, the rest is linear.
_ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
_KAPPAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
_BETAS = (1.0, 2.0, 3.0, 4.0)
Row = tuple[float, float, float]


@dataclass(frozen=True)
class ScalingLaw:
    """``error = floor + learnt * (compute / density ** kappa) ** -alpha + lost * (1 - density) ** beta``.

    The second term is what training has not learnt yet: a network of less density takes less compute for the same
    number of steps. The third is what the pruned network can never learn. Fitted by least squares; in the
    form of the additive laws of Kaplan et al. (arXiv 2001.08361), with density for size.

    Attributes:
        unit: FLOPs that compute is counted in.
        residual: Root mean square of what the fit leaves.
    """

    floor: float
    learnt: float
    alpha: float
    kappa: float
    lost: float
    beta: float
    unit: float
    residual: float

    def __call__(self, flops: float, density: float) -> float:
        """The error that it predicts for a budget and a density (1: the dense network)."""
        features = _features(np.array([flops / self.unit]), np.array([density]), self.alpha, self.kappa, self.beta)
        return float((features @ np.array([self.floor, self.learnt, self.lost]))[0])

    @classmethod
    def fit(cls, rows: Sequence[Row]) -> ScalingLaw:
        """Fit to rows of FLOPs, density and error.

        Raises:
            OptionError: There are fewer rows than it has parameters.
        """
        if len(rows) < 6:
            raise OptionError(f"A scaling law has six parameters; {len(rows)} measurements are too few.")
        flops, density, error = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
        unit = float(np.exp(np.log(flops).mean()))
        best: ScalingLaw | None = None
        for alpha, kappa, beta in product(_ALPHAS, _KAPPAS, _BETAS):
            features = _features(flops / unit, density, alpha, kappa, beta)
            floor, learnt, lost = _non_negative(features, error)
            left = error - features @ np.array([floor, learnt, lost])
            residual = float(np.sqrt(np.mean(left**2)))
            if best is None or residual < best.residual:
                best = cls(floor, learnt, alpha, kappa, lost, beta, unit, residual)
        assert best is not None
        return best


def _features(
    compute: npt.NDArray[np.float64], density: npt.NDArray[np.float64], alpha: float, kappa: float, beta: float
) -> npt.NDArray[np.float64]:
    learning = (compute / density**kappa) ** -alpha
    return np.stack([np.ones_like(compute), learning, (1 - density) ** beta], axis=1)


def _non_negative(features: npt.NDArray[np.float64], error: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Least squares with coefficients of at least 0: a column whose coefficient is negative is left out."""
    columns = list(range(features.shape[1]))
    coefficients = np.zeros(features.shape[1])
    while columns:
        solved = np.linalg.lstsq(features[:, columns], error, rcond=None)[0]
        if (solved >= 0).all():
            coefficients[columns] = solved
            break
        columns.pop(int(np.argmin(solved)))
    floor, learnt, lost = coefficients.tolist()
    return floor, learnt, lost
