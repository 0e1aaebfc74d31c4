"""Which ratio is best at which budget: curves of all runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from structprune.errors import OptionError
from structprune.measure.quantities import scaled
from structprune.transfer.curve import LearningCurve
from structprune.transfer.scaling import ScalingLaw

Cut = tuple[float, str]
DENSE: Cut = (0.0, "dense")
_RESAMPLES = 2000
_BUDGETS = 12


@dataclass(frozen=True)
class Failure:
    """A run that did not succeed."""

    task: str
    ratio: float
    granularity: str
    seed: int
    error: str


@dataclass(frozen=True)
class Best:
    """The best cut at one budget.

    Attributes:
        budget_flops: FLOPs of training.
        ratio: The share of channels that goes; 0: the dense network.
        granularity: ``"filter"``, ``"channel"``, or ``"dense"``.
        metric: Its metric, the mean over tasks and seeds.
        interval: 95 % of it over seeds, by bootstrap.
        dense: The dense network's metric at that budget.
    """

    budget_flops: float
    ratio: float
    granularity: str
    metric: float
    interval: tuple[float, float]
    dense: float


class Frontier:
    """The curves of a sweep. Metrics are to be small, and means over tasks give every task the same weight.

    Attributes:
        curves: One for each run.
        failures: The runs that did not succeed.
    """

    def __init__(self, curves: Iterable[LearningCurve], failures: Iterable[Failure] = ()) -> None:
        self.curves = tuple(curves)
        self.failures = tuple(failures)
        if not self.curves:
            said = "; ".join(f"{f.task} {f.ratio:g} {f.granularity}: {f.error}" for f in self.failures[:3])
            raise OptionError(f"A frontier needs at least one curve; all runs failed: {said or 'there were none'}.")

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the runs."""
        return tuple(dict.fromkeys(curve.task for curve in self.curves))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(sorted({int(curve.about["seed"]) for curve in self.curves}))

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """Ratio and granularity of all networks, the dense one first."""
        return tuple(sorted({_cut(curve) for curve in self.curves}))

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """Budgets that all runs reach, log-spaced from the largest step to the least of all last points."""
        least = max(curve.step_flops for curve in self.curves)
        most = min(curve.points[-1].flops for curve in self.curves)
        return tuple(np.geomspace(least, max(most, least), _BUDGETS).tolist())

    def metric(self, cut: Cut, budget: float, *, tasks: Sequence[str] = (), seed: int | None = None) -> float:
        """The mean metric of a cut at a budget, over tasks (all, if not given) and seeds."""
        values = self._values(cut, budget, tasks or self.tasks)
        chosen = values if seed is None else values[:, [self.seeds.index(seed)]]
        return float(_mean(chosen))

    def best(self, budget: float, *, tasks: Sequence[str] = (), granularity: str | None = None) -> Best:
        """The cut of the least mean metric at a budget, with its interval over seeds."""
        tasks = tasks or self.tasks
        allowed = [c for c in self.cuts if granularity is None or c == DENSE or c[1] == granularity]
        means = {cut: self.metric(cut, budget, tasks=tasks) for cut in allowed}
        cut = min((c for c in allowed if not math.isnan(means[c])), key=means.__getitem__, default=DENSE)
        values = self._values(cut, budget, tasks)
        dense = means.get(DENSE, math.nan)
        return Best(budget, *cut, means.get(cut, math.nan), _interval(_mean(values, axis=0)), dense)

    def crossover(self, cut: Cut, *, tasks: Sequence[str] = ()) -> float:
        """The least budget from which the dense network is at least as good as a cut; infinite if it never is."""
        ahead = [b for b in self.budgets if self.metric(cut, b, tasks=tasks) < self.metric(DENSE, b, tasks=tasks)]
        if not ahead:
            return self.budgets[0]
        later = [b for b in self.budgets if b > ahead[-1]]
        return later[0] if later else math.inf

    def low_compute(self, task: str) -> float:
        """Where the low-compute regime of a task ends: where the dense network has made half of its final gain."""
        start = float(np.mean([c.points[0].metric for c in self._of(DENSE, task)]))
        end = self.metric(DENSE, self.budgets[-1], tasks=[task])
        half = (start + end) / 2
        reached = [b for b in self.budgets if self.metric(DENSE, b, tasks=[task]) <= half]
        return reached[0] if reached else self.budgets[-1]

    def improvement(
        self, granularity: str = "filter", *, tasks: Sequence[str] = (), cut: Cut | None = None
    ) -> tuple[float, tuple[float, float]]:
        """How much less the best pruned network errs than the dense one in the low-compute regime.

        At every budget of the regime the pruned network is the best of a granularity by its mean over
        seeds and tasks (or the one ``cut``), and its error is held against the dense one's: ``1 - pruned / dense``,
        averaged over budgets, then tasks.

        Returns:
            The mean, and its 95 % interval over seeds.
        """
        tasks = tasks or self.tasks
        by_seed = np.array([[self._task_improvement(t, s, granularity, cut, tasks) for t in tasks] for s in self.seeds])
        means = by_seed.mean(axis=1)
        return float(means.mean()), _interval(means)

    def _task_improvement(self, task: str, seed: int, granularity: str, cut: Cut | None, tasks: Sequence[str]) -> float:
        regime = [b for b in self.budgets if b <= self.low_compute(task)] or [self.budgets[0]]
        gains = []
        for budget in regime:
            chosen = cut or self._best_pruned(budget, granularity, tasks)
            dense = self.metric(DENSE, budget, tasks=[task], seed=seed)
            pruned = self.metric(chosen, budget, tasks=[task], seed=seed)
            gains.append(1 - pruned / dense if dense else 0.0)
        return float(np.mean(gains))

    def _best_pruned(self, budget: float, granularity: str, tasks: Sequence[str]) -> Cut:
        allowed = [c for c in self.cuts if c[1] == granularity]
        if not allowed:
            raise OptionError(f"No run has granularity {granularity!r}; there are {[c[1] for c in self.cuts]}.")
        return min(allowed, key=lambda cut: self.metric(cut, budget, tasks=tasks))

    def area(self, cut: Cut, *, tasks: Sequence[str] = ()) -> float:
        """The mean metric over the logarithm of the budget: the area under the curve, divided by its width."""
        return float(np.mean([self.metric(cut, b, tasks=tasks) for b in self.budgets]))

    def stream(self, cut: Cut, budget: float) -> tuple[list[float], list[float]]:
        """The stream of tasks as Nevis'22 draws it (arXiv 2211.11747): one after the other, each with a budget.

        Returns:
            Accumulated FLOPs after each task, and the mean error over the tasks so far.
        """
        errors = [self.metric(cut, budget, tasks=[task]) for task in self.tasks]
        flops = np.cumsum([budget] * len(errors))
        return flops.tolist(), (np.cumsum(errors) / np.arange(1, len(errors) + 1)).tolist()

    def law(self, granularity: str = "filter", *, tasks: Sequence[str] = (), upto: float = math.inf) -> ScalingLaw:
        """A scaling law of error over compute and density, fitted to budgets up to ``upto``."""
        tasks = tasks or self.tasks
        cuts = [c for c in self.cuts if c == DENSE or c[1] == granularity]
        budgets = [b for b in self.budgets if b <= upto]
        rows = [(b, 1 - cut[0], self.metric(cut, b, tasks=tasks)) for cut in cuts for b in budgets]
        return ScalingLaw.fit([row for row in rows if not math.isnan(row[2])])

    def recommend(self, budget_flops: float, granularity: str = "filter", *, tasks: Sequence[str] = ()) -> Best:
        """The cut to use for a budget: measured where runs reach it, by the scaling law beyond."""
        if self.budgets[0] <= budget_flops <= self.budgets[-1]:
            return self.best(budget_flops, tasks=tasks, granularity=granularity)
        law = self.law(granularity, tasks=tasks)
        cuts = [c for c in self.cuts if c == DENSE or c[1] == granularity]
        cut = min(cuts, key=lambda c: law(budget_flops, 1 - c[0]))
        metric, dense = law(budget_flops, 1 - cut[0]), law(budget_flops, 1.0)
        return Best(budget_flops, *cut, metric, (metric - law.residual, metric + law.residual), dense)

    def regret(self, held_out: str, granularity: str = "filter") -> float:
        """What the recommendation from all other tasks costs on a task: a share of the gap from best to worst."""
        others = [task for task in self.tasks if task != held_out]
        cuts = [c for c in self.cuts if c == DENSE or c[1] == granularity]
        lost, spread = 0.0, 0.0
        for budget in self.budgets:
            values = {cut: self.metric(cut, budget, tasks=[held_out]) for cut in cuts}
            taken = self.recommend(budget, granularity, tasks=others)
            lost += values[taken.ratio, taken.granularity] - min(values.values())
            spread += max(values.values()) - min(values.values())
        return lost / spread if spread else 0.0

    def to_json(self) -> str:
        """All curves and failures."""
        return json.dumps(
            {"curves": [c.to_dict() for c in self.curves], "failures": [asdict(f) for f in self.failures]}
        )

    @classmethod
    def from_json(cls, text: str) -> Frontier:
        """Read what ``to_json`` wrote."""
        document = json.loads(text)
        curves = [LearningCurve.from_dict(c) for c in document["curves"]]
        return cls(curves, [Failure(**f) for f in document["failures"]])

    def __str__(self) -> str:
        head = f"{'budget':>12}  {'best':<16} {'metric':>8} {'95 % interval':>17} {'dense':>8}"
        rows = []
        for budget in self.budgets:
            best = self.best(budget)
            name = "dense" if not best.ratio else f"{best.granularity} {best.ratio:g}"
            interval = f"{best.interval[0]:.4f} to {best.interval[1]:.4f}"
            rows.append(f"{scaled(budget):>12}  {name:<16} {best.metric:>8.4f} {interval:>17} {best.dense:>8.4f}")
        failed = [f"failed: {f.task}, {f.granularity} {f.ratio:g}, seed {f.seed}: {f.error}" for f in self.failures]
        return "\n".join([head, *rows, *failed])

    def plot(self, axes: Any, *, tasks: Sequence[str] = (), granularity: str | None = None) -> None:
        """Draw the metric over the budget for every cut, the dense network in black, on matplotlib axes."""
        shown = [c for c in self.cuts if granularity is None or c == DENSE or c[1] == granularity]
        for cut in shown:
            name = "dense" if cut == DENSE else f"{cut[1]} {cut[0]:g}"
            bands = [_interval(_mean(self._values(cut, b, tasks or self.tasks), axis=0)) for b in self.budgets]
            means = [self.metric(cut, b, tasks=tasks) for b in self.budgets]
            style: dict[str, Any] = {"color": "black", "linewidth": 2} if cut == DENSE else {}
            (line,) = axes.plot(self.budgets, means, label=name, **style)
            axes.fill_between(self.budgets, *zip(*bands, strict=True), color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xscale="log", xlabel="training FLOPs", ylabel="error")
        axes.legend()

    def _of(self, cut: Cut, task: str) -> list[LearningCurve]:
        return self._by_run.get((cut, task), [])

    @cached_property
    def _by_run(self) -> dict[tuple[Cut, str], list[LearningCurve]]:
        found: dict[tuple[Cut, str], list[LearningCurve]] = {}
        for curve in self.curves:
            found.setdefault((_cut(curve), curve.task), []).append(curve)
        return found

    def _values(self, cut: Cut, budget: float, tasks: Sequence[str]) -> npt.NDArray[np.float64]:
        """Metrics by task and seed; NaN where there is no run."""
        values = np.full((len(tasks), len(self.seeds)), np.nan)
        for row, task in enumerate(tasks):
            for curve in self._of(cut, task):
                values[row, self.seeds.index(int(curve.about["seed"]))] = curve.at(budget)
        return values


def _cut(curve: LearningCurve) -> Cut:
    return (float(curve.about["ratio"]), str(curve.about["granularity"]))


def _mean(values: npt.NDArray[np.float64], axis: int | None = None) -> Any:
    """The mean of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _interval(samples: npt.NDArray[np.float64]) -> tuple[float, float]:
    """A 95 % interval of the mean over seeds, by the percentile bootstrap (Efron 1979), from fixed random numbers."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return (math.nan, math.nan)
    drawn = np.random.default_rng(0).choice(samples, (_RESAMPLES, len(samples))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
