"""Which ratio is best at which budget, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from structprune.errors import OptionError
from structprune.measure.quantities import scaled
from structprune.transfer.cut import DENSE, Cut
from structprune.transfer.interval import Interval, jackknife, mean
from structprune.transfer.runs import Runs
from structprune.transfer.scaling import ScalingLaw


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


class Frontier(Runs):
    """What the curves of a sweep say: the best cut for a budget, how much it gains, and what it is worth elsewhere."""

    def best(self, budget: float, *, tasks: Sequence[str] = (), granularity: str | None = None) -> Best:
        """The cut of the least mean metric at a budget, with its interval over seeds."""
        cut = self._least(self.cuts_of(granularity), budget, tasks)
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

        Errors are means over seeds; the relative gain is averaged over tasks. The pruned network is, for every seed,
        the best of a granularity on all *others*, so that luck in choosing is not counted as gain; or the one ``cut``.
        A single seed chooses for itself.

        Returns:
            The gain, minus infinity where only the pruned network makes errors, and its 95 % interval over seeds, by
            the jackknife.
        """
        return self._gained({task: [budget] for task in tasks or self.tasks}, granularity, cut)

    def improvement(
        self, granularity: str = "filter", *, tasks: Sequence[str] = (), cut: tuple[float, str] | None = None
    ) -> tuple[float, Interval]:
        """``gain`` in the low-compute regime: averaged over the budgets up to each task's ``low_compute``, then tasks.

        Returns:
            The gain, and its 95 % interval over seeds, by the jackknife.
        """
        regimes = {t: [b for b in self.budgets if b <= self.low_compute(t)] for t in tasks or self.tasks}
        return self._gained(regimes, granularity, cut)

    def against(
        self, granularity: str, other: str, *, tasks: Sequence[str] = (), cut: tuple[float, str] | None = None
    ) -> tuple[float, Interval]:
        """How much less one granularity errs than another at equal FLOPs of a step, over all budgets.

        Errors are averaged over cuts, tasks and budgets. The other's error between the networks that were run is linear
        in the logarithm of their FLOPs; the dense network is one of them. Cuts of the first that are cheaper than all
        of the other are left out; with ``cut`` only this one is compared.

        Returns:
            ``1 - error / other's error`` of means over seeds, and its 95 % interval over seeds, by the jackknife.
        """
        tasks = tasks or self.tasks
        if cut and self._known(cut).granularity != granularity:
            raise OptionError(f"cut={cut!r} is not of granularity {granularity!r}, which is to be compared.")
        known = sorted((self.cost(c), c) for c in self.cuts_of(other))
        costs = np.log([cost for cost, _ in known])
        ours, theirs = [], []
        for own in [self._known(cut)] if cut else self.cuts_of(granularity):
            if own == DENSE or self.cost(own) < known[0][0]:
                continue
            for budget in self.budgets:
                values = np.stack([self._values(c, budget, tasks) for _, c in known])
                ours.append(self._values(own, budget, tasks))
                theirs.append(np.apply_along_axis(partial(np.interp, np.log(self.cost(own)), costs), 0, values))
        if not ours:
            raise OptionError(f"No {granularity} network costs as much as a {other} network or more: run more ratios.")
        errors, others = (mean(mean(np.stack(x), axis=0), axis=0) for x in (ours, theirs))

        def ahead(seeds: npt.NDArray[np.int64]) -> float:
            return 1 - float(errors[seeds].mean() / others[seeds].mean())

        there = np.flatnonzero(~np.isnan(errors + others))
        return ahead(there), jackknife(ahead, there)

    def _gained(
        self, budgets: Mapping[str, Sequence[float]], granularity: str, cut: tuple[float, str] | None
    ) -> tuple[float, Interval]:
        """What is gained, averaged over the budgets of each task and then over tasks, and its interval."""
        pruned = [self._known(cut)] if cut else [c for c in self.cuts_of(granularity) if c != DENSE]
        tasks = list(budgets)
        # By cut, task and seed.
        errors = {
            budget: np.stack([self._values(c, budget, tasks) for c in (*pruned, DENSE)])
            for budget in sorted({b for own in budgets.values() for b in own})
        }

        def gained(seeds: npt.NDArray[np.int64]) -> float:
            at = {budget: _gains(found[:, :, seeds]) for budget, found in errors.items()}
            own = [mean(np.array([at[b][tasks.index(task)] for b in some])) for task, some in budgets.items()]
            return float(mean(np.array(own)))

        paired = [~np.isnan(found[:-1]).all(axis=0) & ~np.isnan(found[-1]) for found in errors.values()]
        there = np.flatnonzero(np.concatenate(paired).any(axis=0))
        return gained(there), jackknife(gained, there)

    def _least(self, cuts: Sequence[Cut], budget: float, tasks: Sequence[str]) -> Cut:
        means = {cut: self.metric(cut, budget, tasks=tasks) for cut in cuts}
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
        cuts = self.cuts_of(granularity)
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
        cuts = [c for c in self.cuts_of(granularity) if c != DENSE]
        laws = {g: self.law(g, tasks=tasks) for _, g in cuts}
        first = next(iter(laws.values()))
        predicted = {c: laws[c[1]](budget_flops, 1 - c[0]) for c in cuts} | {DENSE: first(budget_flops, 1.0)}
        cut = min(predicted, key=predicted.__getitem__)
        metric, left = predicted[cut], laws.get(cut[1], first).residual
        return Best(budget_flops, *cut, metric, (metric - left, metric + left), predicted[DENSE])

    def regret(self, held_out: str | None = None, granularity: str | None = None) -> float:
        """What the recommendation from all other tasks costs on a task, as a share of the gap from best to worst.

        At every budget the metric of the recommended cut is held against the best by hindsight; both the losses and the
        gaps are added up over budgets, and over tasks where none is named: each is held out in turn then.
        """
        if len(self.tasks) < 2:
            raise OptionError("A recommendation for a task that was held out needs runs on another one.")
        if held_out is not None and held_out not in self.tasks:
            raise OptionError(f"No run is on a task {held_out!r}; there are {', '.join(self.tasks)}.")
        tasks = self.tasks if held_out is None else [held_out]
        costs = [self._cost_of_advice(task, granularity) for task in tasks]
        lost, gap = (sum(parts) for parts in zip(*costs, strict=True))
        return lost / gap if gap else 0.0

    def _cost_of_advice(self, held_out: str, granularity: str | None) -> tuple[float, float]:
        """What the advice of the other tasks loses over all budgets, and the gaps from best to worst."""
        others = [task for task in self.tasks if task != held_out]
        lost, gap = 0.0, 0.0
        for budget in self.budgets:
            values = {cut: self.metric(cut, budget, tasks=[held_out]) for cut in self.cuts_of(granularity)}
            taken = self.recommend(budget, granularity, tasks=others)
            lost += values[taken.cut] - min(values.values())
            gap += max(values.values()) - min(values.values())
        return lost, gap

    def __str__(self) -> str:
        head = f"{'budget':>12}  {'best':<16} {'metric':>8} {'95 % interval':>17} {'dense':>8}"
        rows = []
        for budget in self.budgets:
            best = self.best(budget)
            interval = f"{best.interval[0]:.4f} to {best.interval[1]:.4f}"
            rows.append(f"{scaled(budget):>12}  {best.cut:<16} {best.metric:>8.4f} {interval:>17} {best.dense:>8.4f}")
        failed = [f"failed: {f.task}, {f.granularity} {f.ratio:g}, seed {f.seed}: {f.error}" for f in self.failures]
        return "\n".join([head, *rows, *failed])


def _gains(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``1 - errors / dense errors`` of every task, both means over seeds; for each seed the cut that the others choose.

    A mean of the ratios of every seed would be ruled by the seed whose dense error happens to be next to nothing.

    Args:
        errors: By cut (the last is the dense network), task and seed. A single seed chooses for itself.
    """
    *_, tasks, seeds = errors.shape
    own = np.full((2, tasks, seeds), np.nan)
    for seed in range(seeds):
        others = np.delete(errors, seed, axis=2) if seeds > 1 else errors
        means = mean(mean(others[:-1], axis=2), axis=1)
        if not np.isnan(means).all():
            own[:, :, seed] = errors[int(np.nanargmin(means)), :, seed], errors[-1, :, seed]
    own[:, np.isnan(own).any(axis=0)] = np.nan
    error, reference = mean(own, axis=2)
    # Both zero: nothing is gained. The reference alone: infinitely more errors.
    shares = np.where(error == 0, 1.0, np.where(np.isnan(error), np.nan, np.inf))
    return np.asarray(1 - np.divide(error, reference, out=shares, where=reference > 0))
