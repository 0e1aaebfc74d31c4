"""What becomes of every group, and what it costs, saves and gives up."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, SupportsFloat

from typing_extensions import TypedDict

from structprune.errors import OptionError, described
from structprune.ir.registry import Registry
from structprune.select.options import Importance


class TrialOptions(TypedDict, total=False):
    """Keyword options of ``Plan.sensitivity`` with a model; see there."""

    score: Callable[[Any], SupportsFloat]
    ratios: Iterable[float]
    path: str | os.PathLike[str] | None
    progress: bool | None
    example_inputs: Any
    importance: Importance
    rules: Registry


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What becomes of one group: ``removed`` of ``width`` channels, or the reason why none.

    Attributes:
        params: Parameters that its channels hold, in all layers that have slices of them.
        macs: Multiply-accumulates that its channels take part in.
        score_removed: The share of the group's scores that the removed channels have.
    """

    name: str
    producers: tuple[str, ...]
    role: str
    width: int
    removed: int
    reason: str = ""
    params: int = 0
    macs: int = 0
    score_removed: float = 0.0

    def then(self, second: GroupPlan | None) -> GroupPlan:
        """The group after another cut, if it was there."""
        if second is None or not second.removed:
            return self
        lost = 1 - (1 - self.score_removed) * (1 - second.score_removed)
        return replace(self, removed=self.removed + second.removed, reason="", score_removed=lost)

    def after(self, first: GroupPlan | None) -> GroupPlan:
        """What another cut, which came first, leaves to do of this one."""
        if first is None or not first.removed:
            return self
        left = (first.width - first.removed) / first.width
        kept = (1 - self.score_removed) / (1 - first.score_removed) if first.score_removed < 1 else 1.0
        return replace(
            self,
            width=first.width - first.removed,
            removed=self.removed - first.removed,
            params=round(self.params * left),
            macs=round(self.macs * left),
            score_removed=1 - kept,
        )

    @property
    def params_saved(self) -> int:
        """Parameters that go with the removed channels, to first order."""
        return round(self.params * self.removed / self.width)

    @property
    def macs_saved(self) -> int:
        """Multiply-accumulates that go with them, to first order."""
        return round(self.macs * self.removed / self.width)

    @property
    def title(self) -> str:
        """The first producing weight, and how many more there are."""
        more = len(self.producers) - 1
        return f"{self.name} (+{more})" if more else self.name


class Sensitivity:
    """A table of groups: what each costs, saves and gives up.

    Savings are to first order, each group cut alone: where two groups meet in one weight, what both
    save together is less than the sum.

    Args:
        groups: The groups of a plan.
        params: Parameters of the whole dense model.
        macs: Its multiply-accumulates.

    Attributes:
        groups: The groups, those that save the most MACs for what they give up first.
    """

    def __init__(self, groups: Iterable[GroupPlan], params: int, macs: int) -> None:
        self._params, self._macs = params, macs
        self.groups: tuple[GroupPlan, ...] = tuple(
            sorted(groups, key=lambda g: (not g.removed, -_saved_for(g), g.name))
        )

    def __repr__(self) -> str:
        return f"<Sensitivity of {len(self.groups)} groups>"

    def __str__(self) -> str:
        params, macs = self._params, self._macs
        width = min(max((len(g.title) for g in self.groups), default=0), 44)
        head = f"{'':{width}} {'channels':>14} {'params':>8} {'saved':>8} {'MACs':>8} {'saved':>8} {'score lost':>10}"
        rows = [
            f"{g.title:{width}} {g.width:>5} -> {g.width - g.removed:<5} {_share(g.params, params):>8} "
            f"{_share(g.params_saved, params):>8} {_share(g.macs, macs):>8} {_share(g.macs_saved, macs):>8} "
            f"{100 * g.score_removed:>8.1f} %"
            for g in self.groups
        ]
        return "\n".join([head, *rows])


class MeasuredSensitivity:
    """A table of groups: what a measure of your own says when each is cut alone.

    Args:
        dense: The score of the dense model.
        scores: The scores by group and ratio.
        tried: The ratios, ascending.
        groups: The groups of the model; those without scores are left out of the table.

    Attributes:
        dense: The score of the dense model.
        scores: From group name to ratio to the score of the model of which that share of this group was cut. Groups
            that must be cut together have the same scores; a ratio at which no whole channel goes has none.
    """

    def __init__(
        self,
        dense: float,
        scores: Mapping[str, Mapping[float, float]],
        tried: Iterable[float],
        groups: Iterable[GroupPlan],
    ) -> None:
        self.dense = dense
        self.scores = scores
        self._tried = tuple(tried)
        self._groups = {group.name: group for group in groups}

    def ratios(self, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, float]:
        """For each group the largest ratio at which the score is still good enough, to be given as ``ratio=``.

        The groups were cut one at a time: a model of which all are cut loses more.

        Args:
            at_least: The worst score to accept, where more is better, as for an accuracy.
            at_most: The worst score to accept, where less is better, as for a loss.

        Returns:
            From the name of the group, as a pattern, to the ratio. Groups that are to stay whole are left out; if all
            are, the dict is empty, and no plan can be made of it.

        Raises:
            OptionError: Not exactly one of the two is given, or it is no finite number.
        """
        if (at_least is None) == (at_most is None):
            raise OptionError("Give one of at_least (more is better) and at_most (less is better).")
        name, limit = ("at_least", at_least) if at_most is None else ("at_most", at_most)
        if isinstance(limit, bool) or not isinstance(limit, Real) or not math.isfinite(limit):
            raise OptionError(f"{name} is {described(limit)}; expected a finite number, a score.")
        sign = 1 if at_most is None else -1
        most = {
            group: max((ratio for ratio, score in scores.items() if sign * score >= sign * limit), default=0.0)
            for group, scores in self.scores.items()
        }
        return {glob.escape(group): ratio for group, ratio in most.items() if ratio}

    def __repr__(self) -> str:
        count, tried = len(self.scores), len(self._tried)
        return f"<MeasuredSensitivity of {count} groups at {tried} ratios, dense {self.dense:.4g}>"

    def __str__(self) -> str:
        # Those that matter least come first.
        rows = sorted(self.scores, key=lambda name: (self._most_moved(name), name))
        width = min(max((len(self._groups[name].title) for name in rows), default=5), 44)
        head = f"{'':{width}} {'channels':>8} {''.join(f'{100 * ratio:>9.4g} %' for ratio in self._tried)}"
        lines = [
            f"{self._groups[name].title:{width}} {self._groups[name].width:>8} "
            + "".join(_number(self.scores[name].get(ratio)) for ratio in self._tried)
            for name in rows
        ]
        return "\n".join([head, f"{'dense':{width}} {'':>8} {_number(self.dense)}", *lines])

    def _most_moved(self, name: str) -> float:
        return max((abs(score - self.dense) for score in self.scores[name].values()), default=0.0)


def _number(score: float | None) -> str:
    return f"{'-' if score is None else f'{score:.5g}':>11}"


def _saved_for(group: GroupPlan) -> float:
    """MACs saved for every share of the scores that goes."""
    return group.macs_saved / group.score_removed if group.score_removed else 0.0


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "n/a"
