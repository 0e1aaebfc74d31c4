"""What becomes of every group, and what it costs, saves and gives up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


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


def _saved_for(group: GroupPlan) -> float:
    """MACs saved for every share of the scores that goes."""
    return group.macs_saved / group.score_removed if group.score_removed else 0.0


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "n/a"
