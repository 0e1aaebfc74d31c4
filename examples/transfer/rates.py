"""A learning rate for every network and budget, and the curves that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from structprune.transfer import Cut, Frontier, LearningCurve, Point

# What a network errs with a rate, by the rate; and the rates of a network, one for each budget.
Tried = Mapping[float, Frontier]
Rates = dict[Cut, list[float]]


def chosen(tried: Tried, cuts: Sequence[Cut], budgets: Sequence[float]) -> Rates:
    """For every network and budget the rate of the least error, the mean over the tasks and seeds that were tried.

    A rate that is the best for few steps makes a pretrained network forget in many: one rate for all budgets would be
    wrong at most of them, and the more so the more steps a network makes for its budget.
    """
    rates: Rates = {}
    for cut in cuts:
        curves = {rate: [c for c in frontier.curves if c.cut == cut] for rate, frontier in tried.items()}
        rates[cut] = [min(curves, key=lambda rate, b=b: error(curves[rate], b)) for b in budgets]
    return rates


def error(curves: Iterable[LearningCurve], budget: float) -> float:
    """The mean over runs of what each reaches within a budget."""
    found = [reached(curve, budget).metric for curve in curves]
    return sum(found) / len(found)


def needed(rates: Rates, budgets: Sequence[float]) -> list[tuple[Cut, float, float]]:
    """The runs that a stream takes: a network, a rate, and the largest budget that it is the rate of."""
    most: dict[tuple[Cut, float], float] = {}
    for cut, own in rates.items():
        for budget, rate in zip(budgets, own, strict=True):
            most[cut, rate] = budget
    return [(cut, rate, budget) for (cut, rate), budget in most.items()]


def composed(runs: Mapping[float, LearningCurve], rates: Sequence[float], budgets: Sequence[float]) -> LearningCurve:
    """The curve of runs of one network, task and seed: at every budget the point of the run with the budget's rate.

    The rate of a run is constant: a point of it is what a run of that budget alone would have ended with.
    """
    first = runs[rates[0]]
    points = [first.points[0]]
    for low, high, rate in zip([0.0, *budgets], budgets, rates, strict=False):
        for point in runs[rate].points:
            if max(low, points[-1].flops) < point.flops <= high:
                points.append(point)
        last = reached(runs[rate], high)
        if last.flops > points[-1].flops:
            points.append(last)
    used = [rate for rate, _ in itertools.groupby(rates)]
    return replace(first, points=tuple(points), about={**first.about, "rates": used})


def reached(curve: LearningCurve, budget: float) -> Point:
    """The last evaluation within a budget."""
    return [point for point in curve.points if point.flops <= budget * (1 + 1e-9)][-1]
