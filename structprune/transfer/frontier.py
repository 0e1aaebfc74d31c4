"""Which ratio is best at which budget: curves of all runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from structprune.errors import OptionError
from structprune.measure.quantities import scaled
from structprune.transfer.curve import LearningCurve
from structprune.transfer.cut import DENSE, Cut
from structprune.transfer.interval import Interval, interval, mean
from structprune.transfer.scaling import ScalingLaw

_BUDGETS = 16


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
        interval: 95 % of it over seeds, by Student's t; beyond the measured budgets what the scaling law leaves.
        dense: The dense network's metric at that budget.
    """

    budget_flops: float
    ratio: float
    granularity: str
    metric: float
    interval: Interval
    dense: float

    @property
    def cut(self) -> Cut:
        """Ratio and granularity together."""
        return Cut(self.ratio, self.granularity)


class Frontier:
    """The curves of a sweep. Metrics are to be small, and means over tasks give every task the same weight.

    A ``Cut`` is a ratio and a granularity, such as ``(0.5, "filter")``; ``(0.0, "dense")`` is the dense network.

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
        return tuple(sorted({curve.cut for curve in self.curves}))

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """Budgets that all runs reach, log-spaced from the largest step to the least of all last points."""
        least = max(curve.step_flops for curve in self.curves)
        most = min(curve.points[-1].flops for curve in self.curves)
        return tuple(np.geomspace(least, max(most, least), _BUDGETS).tolist())

    def metric(
        self, cut: tuple[float, str], budget: float, *, tasks: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> float:
        """The mean metric of a cut at a budget, over tasks and seeds (all, if not given)."""
        values = self._values(cut, budget, tasks)
        return float(mean(values[:, [self.seeds.index(s) for s in seeds]] if seeds else values))

    def interval(self, cut: tuple[float, str], budget: float, *, tasks: Sequence[str] = ()) -> Interval:
        """95 % of ``metric`` over seeds."""
        return interval(mean(self._values(cut, budget, tasks), axis=0))

    def cost(self, cut: tuple[float, str]) -> float:
        """FLOPs of a training step, as a share of the dense network's."""
        cut = self._known(cut)
        steps = {c: float(np.mean([x.step_flops for x in self.curves if x.cut == c])) for c in (cut, DENSE)}
        return steps[cut] / steps[DENSE]

    def best(self, budget: float, *, tasks: Sequence[str] = (), granularity: str | None = None) -> Best:
        """The cut of the least mean metric at a budget, with its interval over seeds."""
        cut = self._least(self._cuts_of(granularity), budget, tasks)
        metric, dense = (self.metric(c, budget, tasks=tasks) for c in (cut, DENSE))
        return Best(budget, *cut, metric, self.interval(cut, budget, tasks=tasks), dense)

    def crossover(self, cut: tuple[float, str], *, tasks: Sequence[str] = ()) -> float:
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

    def gain(
        self,
        budget: float,
        granularity: str = "filter",
        *,
        tasks: Sequence[str] = (),
        cut: tuple[float, str] | None = None,
    ) -> tuple[float, Interval]:
        """How much less the best pruned network errs than the dense one at a budget: ``1 - pruned / dense``.

        The pruned network is the best of a granularity on all *other* seeds, so that luck in choosing is not counted
        as gain; or the one ``cut``. The relative gain is averaged over tasks.

        Returns:
            The mean, and its 95 % interval over seeds.
        """
        tasks = tasks or self.tasks
        by_seed = mean(np.array([self._gains(t, [budget], granularity, cut, tasks) for t in tasks])[..., 0], axis=0)
        return float(mean(by_seed)), interval(by_seed)

    def improvement(
        self, granularity: str = "filter", *, tasks: Sequence[str] = (), cut: tuple[float, str] | None = None
    ) -> tuple[float, Interval]:
        """``gain`` in the low-compute regime: averaged over the budgets up to each task's ``low_compute``, then tasks.

        Returns:
            The mean, and its 95 % interval over seeds.
        """
        tasks = tasks or self.tasks
        regimes = {t: [b for b in self.budgets if b <= self.low_compute(t)] for t in tasks}
        by_seed = mean(
            np.array([mean(self._gains(t, regimes[t], granularity, cut, tasks), axis=1) for t in tasks]), axis=0
        )
        return float(mean(by_seed)), interval(by_seed)

    def against(
        self, granularity: str, other: str, *, tasks: Sequence[str] = (), cut: tuple[float, str] | None = None
    ) -> tuple[float, Interval]:
        """How much less one granularity errs than another at equal FLOPs of a step, over all budgets.

        Errors are averaged over cuts, tasks and budgets. The other's error between the networks that were run is linear
        in the logarithm of their FLOPs; the dense network is one of them. Cuts of the first that are cheaper than all
        of the other are left out; with ``cut`` only this one is compared.

        Returns:
            ``1 - error / other's error``, and its 95 % interval over seeds.
        """
        tasks = tasks or self.tasks
        if cut and self._known(cut).granularity != granularity:
            raise OptionError(f"cut={cut!r} is not of granularity {granularity!r}, which is to be compared.")
        known = sorted((self.cost(c), c) for c in self._cuts_of(other))
        costs = np.log([cost for cost, _ in known])
        ours, theirs = [], []
        for own in [self._known(cut)] if cut else self._cuts_of(granularity):
            if own == DENSE or self.cost(own) < known[0][0]:
                continue
            for budget in self.budgets:
                values = np.stack([self._values(c, budget, tasks) for _, c in known])
                ours.append(self._values(own, budget, tasks))
                theirs.append(_interpolated(np.log(self.cost(own)), costs, values))
        if not ours:
            raise OptionError(f"No {granularity} network costs as much as a {other} network or more: run more ratios.")
        errors, others = (mean(mean(np.stack(x), axis=0), axis=0) for x in (ours, theirs))
        by_seed = 1 - errors / others
        return float(mean(by_seed)), interval(by_seed)

    def _gains(
        self, task: str, budgets: Sequence[float], granularity: str, cut: tuple[float, str] | None, tasks: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """Relative gains on a task, by seed and budget."""
        pruned = [c for c in self._cuts_of(granularity) if c != DENSE]
        gains = np.full((len(self.seeds), len(budgets)), np.nan)
        for row, seed in enumerate(self.seeds):
            others = [s for s in self.seeds if s != seed]
            for column, budget in enumerate(budgets):
                chosen = cut or self._least(pruned, budget, tasks, others)
                error, dense = (self.metric(c, budget, tasks=[task], seeds=[seed]) for c in (chosen, DENSE))
                gains[row, column] = 1 - _share(np.array(error), np.array(dense))
        return gains

    def _cuts_of(self, granularity: str | None) -> list[Cut]:
        """The dense network, and the cuts of a granularity; all, if it is ``None``."""
        found = [c for c in self.cuts if granularity is None or c == DENSE or c[1] == granularity]
        if not any(c != DENSE for c in found) and granularity is not None:
            raise OptionError(f"No run has granularity {granularity!r}; there are {sorted({c[1] for c in self.cuts})}.")
        return found

    def _least(self, cuts: Sequence[Cut], budget: float, tasks: Sequence[str], seeds: Sequence[int] = ()) -> Cut:
        means = {cut: self.metric(cut, budget, tasks=tasks, seeds=seeds) for cut in cuts}
        reached = [cut for cut in cuts if not math.isnan(means[cut])]
        if not reached:
            raise OptionError(f"No run of these cuts reaches a budget of {scaled(budget)}FLOPs.")
        return min(reached, key=means.__getitem__)

    def area(self, cut: tuple[float, str], *, tasks: Sequence[str] = ()) -> float:
        """The mean metric over the logarithm of the budget: the area under the curve, divided by its width."""
        return float(np.mean([self.metric(cut, b, tasks=tasks) for b in self.budgets]))

    def stream(self, cut: tuple[float, str], budget: float) -> tuple[list[float], list[float]]:
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

    def recommend(self, budget_flops: float, granularity: str | None = None, *, tasks: Sequence[str] = ()) -> Best:
        """The cut to use for a budget: as measured where runs reach it, by the scaling law elsewhere.

        Args:
            budget_flops: FLOPs that training may spend.
            granularity: ``"filter"`` or ``"channel"``; ``None``: whatever was run.
            tasks: Those that are most like yours; all, if not given.
        """
        if self.budgets[0] <= budget_flops <= self.budgets[-1]:
            return self.best(budget_flops, tasks=tasks, granularity=granularity)
        cuts = [c for c in self._cuts_of(granularity) if c != DENSE]
        laws = {g: self.law(g, tasks=tasks) for _, g in cuts}
        first = next(iter(laws.values()))
        predicted = {c: laws[c[1]](budget_flops, 1 - c[0]) for c in cuts} | {DENSE: first(budget_flops, 1.0)}
        cut = min(predicted, key=predicted.__getitem__)
        metric, left = predicted[cut], laws.get(cut[1], first).residual
        return Best(budget_flops, *cut, metric, (metric - left, metric + left), predicted[DENSE])

    def regret(self, held_out: str, granularity: str | None = None) -> float:
        """What the recommendation from all other tasks costs on a task, as a share of the gap from best to worst.

        At every budget the metric of the recommended cut is held against the best by hindsight; both the losses and the
        gaps are added up over budgets.
        """
        others = [task for task in self.tasks if task != held_out]
        if not others:
            raise OptionError("A recommendation for a task that was held out needs runs on another one.")
        lost, spread = 0.0, 0.0
        for budget in self.budgets:
            values = {cut: self.metric(cut, budget, tasks=[held_out]) for cut in self._cuts_of(granularity)}
            taken = self.recommend(budget, granularity, tasks=others)
            lost += values[taken.cut] - min(values.values())
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
            interval = f"{best.interval[0]:.4f} to {best.interval[1]:.4f}"
            rows.append(f"{scaled(budget):>12}  {best.cut:<16} {best.metric:>8.4f} {interval:>17} {best.dense:>8.4f}")
        failed = [f"failed: {f.task}, {f.granularity} {f.ratio:g}, seed {f.seed}: {f.error}" for f in self.failures]
        return "\n".join([head, *rows, *failed])

    def _of(self, cut: tuple[float, str], task: str) -> list[LearningCurve]:
        return self._by_run.get((cut, task), [])

    @cached_property
    def _by_run(self) -> dict[tuple[tuple[float, str], str], list[LearningCurve]]:
        found: dict[tuple[tuple[float, str], str], list[LearningCurve]] = {}
        for curve in self.curves:
            found.setdefault((curve.cut, curve.task), []).append(curve)
        return found

    def _known(self, cut: tuple[float, str]) -> Cut:
        """The cut, if it was run."""
        if isinstance(cut, Sequence) and tuple(cut) in self.cuts:
            return Cut(*cut)
        raise OptionError(f"cut={cut!r} was not run; there are {', '.join(map(repr, map(tuple, self.cuts)))}.")

    def _values(self, cut: tuple[float, str], budget: float, tasks: Sequence[str]) -> npt.NDArray[np.float64]:
        """Metrics by task (all, if none is given) and seed; NaN where there is no run."""
        tasks, cut = tasks or self.tasks, self._known(cut)
        values = np.full((len(tasks), len(self.seeds)), np.nan)
        for row, task in enumerate(tasks):
            for curve in self._of(cut, task):
                values[row, self.seeds.index(int(curve.about["seed"]))] = curve.at(budget)
        return values


def _share(error: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One error as a share of another; 1 where both are zero, NaN where only the reference is."""
    shares = np.divide(error, reference, out=np.full(np.shape(error), np.nan), where=reference > 0)
    return np.where((reference == 0) & (error == 0), 1.0, shares)


def _interpolated(x: float, known: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values along their first axis, linear between the two places that are known beside ``x``."""
    right = min(int(np.searchsorted(known, x)), len(known) - 1)
    left = max(right - 1, 0)
    width = known[right] - known[left]
    weight = (x - known[left]) / width if width else 0.0
    between: npt.NDArray[np.float64] = values[left] * (1 - weight) + values[right] * weight
    return between
