"""How much pruned networks gain over the dense one, and one granularity over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from structprune.errors import OptionError
from structprune.transfer.cut import DENSE
from structprune.transfer.interval import Interval, jackknife, mean
from structprune.transfer.runs import Runs


class Gains(Runs):
    """Comparisons of the networks of a sweep, with their intervals over seeds."""

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
        errors, others = np.stack(ours), np.stack(theirs)
        alone = np.isnan(errors + others)
        errors[alone] = others[alone] = np.nan

        def ahead(seeds: npt.NDArray[np.int64]) -> float:
            error, reference = (float(mean(mean(x[..., seeds], axis=2))) for x in (errors, others))
            return 1 - error / reference

        there = np.flatnonzero(~alone.all(axis=(0, 1)))
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
