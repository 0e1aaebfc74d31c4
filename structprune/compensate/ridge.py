"""Ridge regression towards a matrix that is there, its strength chosen by rows that it has not seen.

The fit is held near to what the matrix was, as strongly as serves a fifth of the rows best that it was not fitted to:
few rows never make it worse than the matrix that it started from, there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

# The strengths that are tried, in units of the inputs' mean variance.
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_HELD_OUT = 5  # one row in so many
# The share of a variance that is rounding.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Fit:
    """A matrix that was solved anew.

    Attributes:
        matrix: ``(groups, outputs, entries)``.
        offset: What is added to its outputs, ``(groups * outputs,)``.
        strength: How strongly it was held near to the matrix before, in units of the inputs' mean variance; 0 where it
            is the matrix before.
        before: The error of the matrix before, on rows that were held out, as a share of the outputs' variance; the
            mean of the outputs is met.
        after: The same of the new one.
    """

    matrix: torch.Tensor
    offset: torch.Tensor
    strength: float
    before: float
    after: float

    @property
    def nothing_wrong(self) -> bool:
        """Whether the matrix before gives what is wanted: it reads what it always read."""
        return self.before < _NOTHING


def fitted(inputs: torch.Tensor, outputs: torch.Tensor, matrix: torch.Tensor, *, centred: bool = True) -> Fit | None:
    """Fit a matrix to inputs and outputs by ridge regression towards what it was.

    Args:
        inputs: ``(rows, groups, entries)``.
        outputs: ``(rows, groups, outputs)``.
        matrix: ``(groups, outputs, entries)``.
        centred: Whether an offset can be added.

    Returns:
        The fit, or ``None`` where something is not finite, or there are too few rows to hold any out.
    """
    x, y = (t.transpose(0, 1) for t in (inputs, outputs))
    start = matrix.double()
    if x.shape[1] < _HELD_OUT or not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        return None
    # The last rows: those of other samples.
    train = x.shape[1] - x.shape[1] // _HELD_OUT
    seen = _Sums(x[:, :train], y[:, :train], centred)
    rest_x, rest_y = x[:, train:], y[:, train:]
    spread = float((rest_y - rest_y.mean(1, keepdim=True)).square().mean()) or 1.0

    def error(of: torch.Tensor) -> float:
        wrong = rest_y - rest_x @ of.transpose(1, 2).to(rest_x) - seen.offset(of).to(rest_y)
        return float(wrong.square().mean()) / spread

    before = error(start)
    unchanged = Fit(start, seen.offset(start).flatten(), 0.0, before, before)
    if unchanged.nothing_wrong:
        return unchanged
    errors = {strength: error(seen.solved(start, strength)) for strength in _STRENGTHS}
    best = min(errors, key=errors.__getitem__)
    after = errors[best]
    whole = seen.with_rows(rest_x, rest_y)
    if not after < before:
        return Fit(start, whole.offset(start).flatten(), 0.0, before, before)
    solved = whole.solved(start, best)
    return Fit(solved, whole.offset(solved).flatten(), best, before, after)


class _Sums:
    """Moments of rows, and what solves them."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, centred: bool) -> None:
        self._count, self._centred = max(1, x.shape[1]), centred
        # About the means, products in single precision lose no digits.
        self._mean_x, self._mean_y = ((t.mean(1, keepdim=True) if centred else t[:, :1] * 0).double() for t in (x, y))
        x, y = x - self._mean_x.to(x), y - self._mean_y.to(y)
        self._xx, self._xy = ((x.transpose(1, 2) @ t).double() / self._count for t in (x, y))

    def with_rows(self, x: torch.Tensor, y: torch.Tensor) -> _Sums:
        """The moments of these rows and of others together."""
        if not x.shape[1]:
            return self
        more, whole = _Sums(x, y, self._centred), copy.copy(self)
        whole._count = self._count + more._count
        share = more._count / whole._count
        dx, dy = more._mean_x - self._mean_x, more._mean_y - self._mean_y
        whole._mean_x, whole._mean_y = self._mean_x + share * dx, self._mean_y + share * dy
        whole._xx = torch.lerp(self._xx, more._xx, share) + share * (1 - share) * dx.transpose(1, 2) * dx
        whole._xy = torch.lerp(self._xy, more._xy, share) + share * (1 - share) * dx.transpose(1, 2) * dy
        return whole

    def solved(self, start: torch.Tensor, strength: float) -> torch.Tensor:
        """The matrix of least error that is held near to ``start``."""
        entries = self._xx.shape[1]
        size = self._xx.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-12
        system = self._xx + strength * size * torch.eye(entries, dtype=self._xx.dtype, device=self._xx.device)
        step = torch.cholesky_solve(self._xy - self._xx @ start.transpose(1, 2), torch.linalg.cholesky(system))
        return start + step.transpose(1, 2)

    def offset(self, matrix: torch.Tensor) -> torch.Tensor:
        """What is to be added to the outputs, ``(groups, 1, outputs)``."""
        offset: torch.Tensor = self._mean_y - self._mean_x @ matrix.transpose(1, 2)
        return offset
