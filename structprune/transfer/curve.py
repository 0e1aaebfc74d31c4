"""What a run measured: the metric over the FLOPs that were spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from structprune.errors import OptionError
from structprune.transfer.cut import Cut


@dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        flops: Spent on training so far.
        metric: The mean of the task's metric over its test data.
        loss: The mean training loss since the evaluation before; NaN before the first step.
        step: Training steps so far.
        evaluation_flops: Spent on evaluation so far, this one included.
    """

    flops: int
    metric: float
    loss: float
    step: int
    evaluation_flops: int


@dataclass(frozen=True)
class LearningCurve:
    """The metric over accumulated training FLOPs; small is good.

    Attributes:
        task: The task's name.
        points: The evaluations, the first one before any training.
        step_flops: FLOPs of a training step.
        params: Parameters of the network that was trained.
        about: What else identifies the run: ratio, granularity, seed, settings.
    """

    task: str
    points: tuple[Point, ...]
    step_flops: int
    params: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cut(self) -> Cut:
        """The cut whose run this is, as a sweep writes it into ``about``.

        Raises:
            OptionError: The curve is of no sweep.
        """
        if "ratio" not in self.about or "granularity" not in self.about:
            raise OptionError("The curve does not say how its network was pruned: sweep writes that into about.")
        return Cut(float(self.about["ratio"]), str(self.about["granularity"]))

    @property
    def final(self) -> float:
        """The last metric."""
        return self.points[-1].metric

    def at(self, flops: float) -> float:
        """The metric at a budget: linear in the logarithm of FLOPs between two evaluations.

        NaN beyond the last evaluation: a run says nothing of more compute than it had.
        """
        spent = np.array([p.flops for p in self.points], dtype=np.float64)
        metrics = np.array([p.metric for p in self.points])
        if flops > spent[-1] * (1 + 1e-9):
            return float("nan")
        # The evaluation before training has no logarithm: it counts as one step's tenth.
        spent[0] = max(spent[0], 0.1 * self.step_flops)
        return float(np.interp(np.log(max(flops, spent[0])), np.log(spent), metrics))

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it: the points by column."""
        columns = {f.name: [getattr(p, f.name) for p in self.points] for f in fields(Point)}
        # JSON knows no NaN, which is the loss before the first step.
        columns["loss"] = [None if math.isnan(loss) else loss for loss in columns["loss"]]
        about = dict(self.about)
        return {"task": self.task, "step_flops": self.step_flops, "params": self.params, "about": about, **columns}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LearningCurve:
        """Read what ``to_dict`` gave."""
        columns = {f.name: document[f.name] for f in fields(Point)}
        columns["loss"] = [math.nan if loss is None else loss for loss in columns["loss"]]
        points = tuple(Point(*row) for row in zip(*columns.values(), strict=True))
        return cls(document["task"], points, document["step_flops"], document["params"], dict(document["about"]))
