"""The scaling law finds what it was made of."""

from __future__ import annotations

import pytest

from structprune import OptionError
from structprune.transfer import ScalingLaw


def test_a_scaling_law_finds_what_it_was_made_of() -> None:
    def error(flops: float, density: float) -> float:
        return 0.05 + 0.3 * (flops / 1e9 / density) ** -0.5 + 0.2 * (1 - density) ** 2

    rows = [(c, d, error(c, d)) for c in (1e8, 1e9, 1e10) for d in (0.25, 0.5, 1.0)]
    law = ScalingLaw.fit(rows)
    assert law.residual < 1e-6 and law(1e11, 0.75) == pytest.approx(error(1e11, 0.75), rel=1e-3)
    with pytest.raises(OptionError, match="six parameters; 3 measurements are too few"):
        ScalingLaw.fit(rows[:3])
