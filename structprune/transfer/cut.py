"""What tells the networks of a sweep apart: the ratio and the granularity that they were pruned with."""

from __future__ import annotations

from structprune.transfer.curve import LearningCurve

Cut = tuple[float, str]
DENSE: Cut = (0.0, "dense")


def cut_of(curve: LearningCurve) -> Cut:
    """The cut whose run a curve is."""
    return (float(curve.about["ratio"]), str(curve.about["granularity"]))


def name_of(cut: Cut) -> str:
    """How tables and figures call a cut."""
    return "dense" if cut == DENSE else f"{cut[1]} {cut[0]:g}"
