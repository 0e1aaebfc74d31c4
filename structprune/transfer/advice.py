"""Advice for a task that was not run, from its probe and from the tasks that were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from structprune.errors import OptionError
from structprune.transfer.cut import Cut
from structprune.transfer.likeness import Array, Likeness
from structprune.transfer.probing import Probe
from structprune.transfer.runs import Runs

# Of fewer tasks none could be held out and still leave some to tell likeness by.
FEWEST = 3


class Advisor:
    """What to expect of cuts on a task, by what its probe has in common with those of the tasks that were run.

    Args:
        runs: The curves, and the probes of their tasks.
        cuts: Those to choose from.
        tasks: Those to learn from.

    Raises:
        OptionError: Too few of the tasks have a probe, and a run of every cut.
    """

    def __init__(self, runs: Runs, cuts: Sequence[Cut], tasks: Sequence[str]) -> None:
        self._runs, self._cuts = runs, list(cuts)
        self._tasks = _advising(runs, cuts, tasks)
        if len(self._tasks) < FEWEST:
            raise OptionError(
                f"Advice by a probe needs {FEWEST} tasks that were probed, by the same cuts, and run with every cut; "
                f"of {len(tasks)} tasks {len(self._tasks)} are. Give Frontier the probes of its tasks, "
                "probe(model, tasks, cuts), and see its failures for runs that lack."
            )
        self._probed = sorted(runs.probe_of[self._tasks[0]].errors)
        self._likeness = Likeness(
            np.stack([self._vector(runs.probe_of[task]) for task in self._tasks]),
            np.stack([self._errors(task, runs.budgets) for task in self._tasks], axis=1),
        )

    @staticmethod
    def can_advise(probe: Probe, runs: Runs, cuts: Sequence[Cut], tasks: Sequence[str]) -> bool:
        """Whether enough of the tasks were probed by the cuts of a probe, and run."""
        known = _advising(runs, cuts, tasks)
        return len(known) >= FEWEST and probe.errors.keys() >= runs.probe_of[known[0]].errors.keys()

    def weights(self, probe: Probe) -> dict[str, float]:
        """The share of every known task in what is expected of a new one; together they are 1."""
        return dict(zip(self._tasks, self._likeness.weights(self._vector(probe)).tolist(), strict=True))

    def expected(self, probe: Probe, budget: float) -> dict[Cut, float]:
        """What to compare cuts by at a budget: the weighted sum of the known tasks' metrics.

        For a task beyond the known ones it may be no metric, such as a negative error rate.
        """
        weights = self._likeness.weights(self._vector(probe))
        return dict(zip(self._cuts, (weights @ self._at(budget)).tolist(), strict=True))

    def within(self, metrics: Mapping[Cut, float], budget: float) -> dict[Cut, float]:
        """Metrics no better nor worse than those of any known task."""
        errors = self._at(budget)
        low, high = errors.min(axis=0), errors.max(axis=0)
        return {cut: float(np.clip(metrics[cut], low[row], high[row])) for row, cut in enumerate(self._cuts)}

    def missed(self, budget: float) -> dict[Cut, float]:
        """What ``expected`` was off for the known tasks, each held out: the root mean square.

        The length and the noise of the regression were chosen on the same tasks: it is on the hopeful side.
        """
        errors = self._at(budget)
        off = self._likeness.held_out @ errors - errors
        return dict(zip(self._cuts, np.sqrt((off**2).mean(axis=0)).tolist(), strict=True))

    def _at(self, budget: float) -> Array:
        return np.stack([self._errors(task, [budget])[0] for task in self._tasks])

    def _errors(self, task: str, budgets: Sequence[float]) -> Array:
        return np.array([[self._runs.metric(cut, b, tasks=[task]) for cut in self._cuts] for b in budgets])

    def _vector(self, probe: Probe) -> Array:
        missing = [cut for cut in self._probed if cut not in probe.errors]
        if missing:
            raise OptionError(
                f"The probe of {probe.task!r} lacks {missing[0]}, which the probes of the tasks that were run have: "
                "make it with the same cuts."
            )
        return np.array([probe.errors[cut] for cut in self._probed])


def _advising(runs: Runs, cuts: Sequence[Cut], tasks: Sequence[str]) -> list[str]:
    """Those of the tasks that have a probe, by the cuts that most of them are probed by, and a run of every cut."""
    probes = runs.probe_of
    by = Counter(frozenset(probes[task].errors) for task in tasks if task in probes)
    usual = max(by, key=by.__getitem__) if by else frozenset()
    found = [task for task in tasks if task in probes and usual and usual == probes[task].errors.keys()]
    return [t for t in found if not np.isnan([runs.metric(c, b, tasks=[t]) for c in cuts for b in runs.budgets]).any()]
