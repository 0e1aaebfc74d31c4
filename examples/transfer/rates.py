"""A learning rate for every network and budget, and the curves that come of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from structprune.transfer import Cut, Frontier, LearningCurve, Point

# What a network errs with a rate, by the rate; and the rates of a network, one for each budget.
Tried = Mapping[float, Frontier]
Rates = dict[Cut, list[float]]


def budgets_up_to(steps: int, step_flops: float) -> list[float]:
    """Budgets of 1, 2, 4 … training steps and of ``steps``, with a tenth of a step to spare for the updates."""
    counts = [2**k for k in range(steps.bit_length()) if 2**k < steps]
    return [(count + 0.1) * step_flops for count in (*counts, steps)]


def chosen(tried: Tried, cuts: Sequence[Cut], budgets: Sequence[float]) -> Rates:
    """For every network and budget the rate of the least error, the mean over the tasks and seeds that were tried.

    A rate that is the best for few steps makes a pretrained network forget in many: one rate for all budgets would be
    wrong at most of them, and the more so the more steps a network makes for its budget.
    """
    rates: Rates = {}
    for cut in cuts:
        curves = {rate: [c for c in frontier.curves if c.cut == cut] for rate, frontier in tried.items()}
        # Of a rate whose runs failed, as those that diverge may, the others are no fair mean.
        whole = max(map(len, curves.values()))
        curves = {rate: own for rate, own in curves.items() if len(own) == whole}
        rates[cut] = [min(curves, key=lambda rate, b=b: error(curves[rate], b)) for b in budgets]
    return rates


def error(curves: Iterable[LearningCurve], budget: float) -> float:
    """The mean over runs of what each reaches within a budget; NaN of none."""
    found = [reached(curve, budget).metric for curve in curves]
    return sum(found) / len(found) if found else math.nan


def needed(rates: Rates, budgets: Sequence[float]) -> list[tuple[Cut, float, list[float]]]:
    """The runs that a stream takes: a network, a rate, and the budgets that it is the rate of."""
    found: dict[tuple[Cut, float], list[float]] = {}
    for cut, own in rates.items():
        for budget, rate in zip(budgets, own, strict=True):
            found.setdefault((cut, rate), []).append(budget)
    return [(cut, rate, of_rate) for (cut, rate), of_rate in found.items()]


def composed(runs: Mapping[float, LearningCurve], rates: Sequence[float], budgets: Sequence[float]) -> LearningCurve:
    """The curve of runs of one network, task and seed: at every budget the point of the run with the budget's rate.

    The rate of a run is constant: a point of it is what a run of that budget alone would have ended with.

    Raises:
        ValueError: A run was not tested at a budget that it is meant for.
    """
    first = runs[rates[0]]
    points = [first.points[0]]
    for low, high, rate in zip([0.0, *budgets], budgets, rates, strict=False):
        for point in runs[rate].points:
            if max(low, points[-1].flops) < point.flops <= high:
                points.append(point)
        last = reached(runs[rate], high)
        if last.flops + 1.01 * runs[rate].step_flops < high:
            raise ValueError(f"the run with rate {rate:g} was not tested at {high:.3g} FLOPs")
        if last.flops > points[-1].flops:
            points.append(last)
    used = [rate for rate, _ in itertools.groupby(rates)]
    return replace(first, points=tuple(points), about={**first.about, "rates": used})


def reached(curve: LearningCurve, budget: float) -> Point:
    """The last evaluation within a budget."""
    return [point for point in curve.points if point.flops <= budget * (1 + 1e-9)][-1]
