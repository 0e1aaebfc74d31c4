"""The curves of a sweep by network, task and seed, and their means."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from structprune.errors import OptionError
from structprune.transfer.curve import LearningCurve
from structprune.transfer.cut import DENSE, Cut
from structprune.transfer.interval import Interval, jackknife, mean
from structprune.transfer.probing import Probe

_BUDGETS = 16


@dataclass(frozen=True)
class Failure:
    """A run that did not succeed."""

    task: str
    ratio: float
    granularity: str
    seed: int
    error: str


class Runs:
    """All runs of a sweep. Metrics are to be small, and means over tasks give every task the same weight.

    A ``Cut`` is a ratio and a granularity, such as ``(0.5, "filter")``; ``(0.0, "dense")`` is the dense network.

    Attributes:
        curves: One for each run.
        failures: The runs that did not succeed.
        probes: What ``probe`` found of tasks, for advice on others that are like them.
        probe_of: The same by task.
    """

    def __init__(
        self, curves: Iterable[LearningCurve], failures: Iterable[Failure] = (), probes: Iterable[Probe] = ()
    ) -> None:
        self.curves = tuple(curves)
        self.failures = tuple(failures)
        self.probes = tuple(probes)
        self.probe_of = {probe.task: probe for probe in self.probes}
        if len(self.probe_of) < len(self.probes):
            raise OptionError(f"Each task has one probe; there are {[probe.task for probe in self.probes]}.")
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
        """The mean metric of a cut at a budget, over seeds and then tasks (all, if not given)."""
        values = self._values(cut, budget, tasks)
        return float(mean(mean(values[:, [self.seeds.index(s) for s in seeds]] if seeds else values, axis=1)))

    def interval(self, cut: tuple[float, str], budget: float, *, tasks: Sequence[str] = ()) -> Interval:
        """95 % of ``metric`` over seeds, by Student's t: the jackknife of a mean, tasks with other seeds included."""
        values = self._values(cut, budget, tasks)
        values = values[~np.isnan(values).all(axis=1)]

        def metric(seeds: npt.NDArray[np.int64]) -> float:
            by_task = mean(values[:, seeds], axis=1)
            # Without the only seed of a task it would be the mean of the others.
            return math.nan if np.isnan(by_task).any() else float(mean(by_task))

        return jackknife(metric, np.flatnonzero(~np.isnan(values).all(axis=0)))

    def cost(self, cut: tuple[float, str]) -> float:
        """FLOPs of a training step, as a share of the dense network's."""
        cut = self._known(cut)
        steps = {c: float(np.mean([x.step_flops for x in self.curves if x.cut == c])) for c in (cut, DENSE)}
        return steps[cut] / steps[DENSE]

    def cuts_of(self, granularity: str | None) -> list[Cut]:
        """The dense network, and the cuts of a granularity; all, if it is ``None``."""
        found = [c for c in self.cuts if granularity is None or c == DENSE or c[1] == granularity]
        if not any(c != DENSE for c in found) and granularity is not None:
            raise OptionError(f"No run has granularity {granularity!r}; there are {sorted({c[1] for c in self.cuts})}.")
        return found

    def to_json(self) -> str:
        """All curves, failures and probes."""
        return json.dumps(
            {
                "curves": [c.to_dict() for c in self.curves],
                "failures": [asdict(f) for f in self.failures],
                "probes": [p.to_dict() for p in self.probes],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        document = json.loads(text)
        curves = [LearningCurve.from_dict(c) for c in document["curves"]]
        probes = [Probe.from_dict(p) for p in document.get("probes", [])]
        return cls(curves, [Failure(**f) for f in document["failures"]], probes)

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
        cut = self._known(cut)
        return np.array([self._row(cut, budget, task) for task in tasks or self.tasks])

    def _row(self, cut: Cut, budget: float, task: str) -> npt.NDArray[np.float64]:
        """Metrics by seed, found once: intervals and advice ask for the same ones again and again."""
        asked = (cut, budget, task)
        if asked not in self._rows:
            row = self._rows[asked] = np.full(len(self.seeds), np.nan)
            for curve in self._of(cut, task):
                row[self.seeds.index(int(curve.about["seed"]))] = curve.at(budget)
        return self._rows[asked]

    @cached_property
    def _rows(self) -> dict[tuple[Cut, float, str], npt.NDArray[np.float64]]:
        """What was found by ``_row``."""
        return {}
