"""Which ratio is best at which budget, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from structprune.errors import OptionError
from structprune.measure.quantities import scaled
from structprune.transfer.advice import Advisor
from structprune.transfer.cut import DENSE, Cut
from structprune.transfer.gains import Gains
from structprune.transfer.interval import Interval
from structprune.transfer.probing import Probe
from structprune.transfer.scaling import ScalingLaw

Metric = Callable[[Cut, float], float]
Question = tuple[str, tuple[str, ...], str | None, tuple[float, ...]]


@dataclass(frozen=True)
class Best:
    """The best cut at one budget.

    Attributes:
        budget_flops: FLOPs of training.
        ratio: The share of channels that goes; 0: the dense network.
        granularity: ``"filter"``, ``"channel"``, or ``"dense"``.
        metric: Its metric, the mean over seeds and tasks, or what is predicted.
        interval: 95 % of it over seeds, by Student's t. Of a prediction, what it typically misses to either side:
            beyond the measured budgets the root mean square of what the law leaves, by a probe that of what such
            predictions were off on the tasks that were run, each held out.
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


class Frontier(Gains):
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
        return self._law(granularity, partial(self.metric, tasks=tasks), upto)

    def _law(self, granularity: str, metric: Metric, upto: float = math.inf) -> ScalingLaw:
        budgets = [b for b in self.budgets if b <= upto]
        rows = [(b, 1 - cut[0], metric(cut, b)) for cut in self.cuts_of(granularity) for b in budgets]
        return ScalingLaw.fit([row for row in rows if not math.isnan(row[2])])

    def recommend(
        self,
        budget_flops: float,
        granularity: str | None = None,
        *,
        tasks: Sequence[str] = (),
        probe: Probe | None = None,
    ) -> Best:
        """The cut to use for a budget: as measured where runs reach it, by the scaling law elsewhere.

        Args:
            budget_flops: FLOPs that training may spend.
            granularity: ``"filter"`` or ``"channel"``; ``None``: whatever was run.
            tasks: Those to go by, such as those that are most like yours; all, if not given.
            probe: What ``probe`` found of your task: the more a known task is like it, the more it counts.

        Raises:
            OptionError: A probe is given and fewer than three of the tasks have one, or the budget was not run; or it
                was not, and there are too few networks and budgets to fit a law to.
        """
        cuts = self.cuts_of(granularity)
        within = self.budgets[0] <= budget_flops <= self.budgets[-1]
        if probe is not None:
            if not within:
                raise OptionError(
                    f"By a probe there is advice for budgets that were run, {scaled(self.budgets[0])} to "
                    f"{scaled(self.budgets[-1])}FLOPs, not for {scaled(budget_flops)}FLOPs: run more, or leave it out."
                )
            advisor = self._advisor(cuts, tasks or self.tasks)
            expected = advisor.expected(probe, budget_flops)
            cut = min(expected, key=expected.__getitem__)
            metrics = advisor.within(expected, budget_flops)
            return _predicted(cut, budget_flops, metrics, advisor.missed(budget_flops)[cut])
        if within:
            return self.best(budget_flops, tasks=tasks, granularity=granularity)
        metric = partial(self.metric, tasks=tasks)
        laws = {g: self._law(g, metric) for _, g in cuts if g != DENSE.granularity}
        if not laws:
            raise OptionError(
                "A law for budgets that were not run needs runs of pruned networks, not of the dense alone."
            )
        first = next(iter(laws.values()))
        own = {c: laws.get(c.granularity, first) for c in cuts}
        predicted = {c: law(budget_flops, 1 - c.ratio) for c, law in own.items()}
        cut = min(predicted, key=predicted.__getitem__)
        return _predicted(cut, budget_flops, predicted, own[cut].residual)

    def likeness(self, probe: Probe) -> dict[str, float]:
        """The share of every task that was run in what is expected of another one, by its probe; together they are 1.

        A share may be negative: of a task that differs from the others in the opposite way.

        Args:
            probe: What ``probe`` found of the other task.

        Raises:
            OptionError: Fewer than three of the tasks have probes and all runs, or this one has other cuts.
        """
        return self._advisor(self.cuts, self.tasks).weights(probe)

    def regret(
        self,
        held_out: str | Sequence[str] | None = None,
        granularity: str | None = None,
        *,
        tasks: Sequence[str] = (),
        budgets: Sequence[float] = (),
    ) -> float:
        """What the recommendation from other tasks costs on a task, as a share of the gap from best to worst.

        At every budget the metric of the recommended cut is held against the best by hindsight; both the losses and the
        gaps are added up over budgets, and over tasks if several are held out, one at a time. If three or more of the
        others have probes and all runs, the recommendation goes by the probe of the one that is held out, at budgets
        that are not less than what the probe took.

        Args:
            held_out: A task, or several, each held out in turn; all, if not given.
            granularity: ``"filter"`` or ``"channel"``; ``None``: whatever was run.
            tasks: Those that advise, without the one that is held out; all, if not given.
            budgets: FLOPs; those of the frontier, if not given.

        Raises:
            OptionError: No run is on a task that is named, or on one that could advise.
        """
        held = [held_out] if isinstance(held_out, str) else list(held_out or self.tasks)
        for task in (*held, *tasks):
            if task not in self.tasks:
                raise OptionError(f"No run is on a task {task!r}; there are {', '.join(self.tasks)}.")
        costs = []
        for task in held:
            others = tuple(other for other in tasks or self.tasks if other != task)
            if not others:
                raise OptionError("A recommendation for a task that was held out needs runs on another one.")
            question = (task, others, granularity, tuple(budgets or self.budgets))
            if question not in self._costs:
                self._costs[question] = self._cost_of_advice(*question)
            costs.append(self._costs[question])
        lost, gap = (sum(parts) for parts in zip(*costs, strict=True))
        return lost / gap if gap else 0.0

    @cached_property
    def _costs(self) -> dict[Question, tuple[float, float]]:
        """What was found by ``_cost_of_advice``: the same hold-outs are asked for one by one and together."""
        return {}

    @cached_property
    def _advisors(self) -> dict[tuple[tuple[Cut, ...], tuple[str, ...]], Advisor]:
        """Those that were made: each is asked at many budgets."""
        return {}

    def _advisor(self, cuts: Sequence[Cut], tasks: Sequence[str]) -> Advisor:
        asked = (tuple(cuts), tuple(tasks))
        if asked not in self._advisors:
            self._advisors[asked] = Advisor(self, cuts, tasks)
        return self._advisors[asked]

    def _cost_of_advice(
        self, held_out: str, others: tuple[str, ...], granularity: str | None, budgets: tuple[float, ...]
    ) -> tuple[float, float]:
        """What the advice of other tasks loses over budgets, and the gaps from best to worst."""
        cuts, probe = self.cuts_of(granularity), self.probe_of.get(held_out)
        advisor = None
        if probe is not None and Advisor.can_advise(probe, self, cuts, others):
            advisor = self._advisor(cuts, others)
        lost, gap = 0.0, 0.0
        for budget in budgets:
            values = {cut: self.metric(cut, budget, tasks=[held_out]) for cut in cuts}
            values = {cut: value for cut, value in values.items() if not math.isnan(value)}
            taken = self._least(list(values), budget, others)
            if advisor is not None and probe is not None and budget >= probe.flops:
                taken = min(values, key=advisor.expected(probe, budget).__getitem__)
            lost += values[taken] - min(values.values())
            gap += max(values.values()) - min(values.values())
        return lost, gap

    def _least(self, cuts: Sequence[Cut], budget: float, tasks: Sequence[str]) -> Cut:
        means = {cut: self.metric(cut, budget, tasks=tasks) for cut in cuts}
        reached = [cut for cut in cuts if not math.isnan(means[cut])]
        if not reached:
            raise OptionError(f"No run of these cuts reaches a budget of {scaled(budget)}FLOPs.")
        return min(reached, key=means.__getitem__)

    def __str__(self) -> str:
        head = f"{'budget':>12}  {'best':<16} {'metric':>8} {'95 % interval':>17} {'dense':>8}"
        rows = []
        for budget in self.budgets:
            best = self.best(budget)
            interval = f"{best.interval[0]:.4f} to {best.interval[1]:.4f}"
            rows.append(f"{scaled(budget):>12}  {best.cut:<16} {best.metric:>8.4f} {interval:>17} {best.dense:>8.4f}")
        failed = [f"failed: {f.task}, {f.granularity} {f.ratio:g}, seed {f.seed}: {f.error}" for f in self.failures]
        return "\n".join([head, *rows, *failed])


def _predicted(cut: Cut, budget: float, metrics: Mapping[Cut, float], off: float) -> Best:
    metric = metrics[cut]
    return Best(budget, *cut, metric, (metric - off, metric + off), metrics[DENSE])
