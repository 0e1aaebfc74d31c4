"""The dense network, read as a plan read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from structprune.ir.operators import Operator
from structprune.ir.record import Choice, Node
from structprune.ir.slices import Axis, Coupling, Ids, Mask, SliceSpace
from structprune.ops.call import Effect
from structprune.plan.plan import Plan
from structprune.tracing.discovery import Discovery

Run = Callable[[Operator, Sequence[Any], dict[str, Any]], Any]


class Planned(Discovery):
    """A run of the dense network that reads ambiguous operators as the plan must have: so that it tears no channel."""

    def __init__(self, space: SliceSpace, coupling: Coupling, plan: Plan, run: Run, *, training: bool = False) -> None:
        super().__init__(space, coupling, {}, run, training=training, rules=plan.rules)
        self._gone = np.zeros(space.size, dtype=bool)
        for axis in space.axes:
            self._gone[axis.ids] = ~kept_along(plan, axis)

    def choose(self, node: Node, question: str, interpretations: tuple[str, ...], effect: Effect) -> str:
        """The first interpretation that couples none that goes with one that stays."""
        taken = next((r for r in interpretations if self._fits(effect(r))), interpretations[-1])
        node.choices[question] = Choice(interpretations, taken)
        return taken

    def gone(self, ids: Ids) -> Mask:
        """Which of these slices the plan removes; of those that lie on no axis it says nothing."""
        known = ids < len(self._gone)
        gone: Mask = np.zeros(len(ids), dtype=bool)
        gone[known] = self._gone[ids[known]]
        return gone

    def _fits(self, effect: tuple[Ids, Ids | None] | None) -> bool:
        if effect is None:
            return True
        left, right = effect
        if right is None:
            return not self.gone(left).any()
        known = len(self._gone)
        both = (left < known) & (right < known)
        return bool((self._gone[left[both]] == self._gone[right[both]]).all())


def kept_along(plan: Plan, axis: Axis) -> Mask:
    """The slices of an axis that stay."""
    kept = plan.kept.get(axis.tensor, {}).get(axis.dim)
    mask = np.ones(axis.size, dtype=bool)
    if kept is not None:
        mask[:] = False
        mask[list(kept)] = True
    return mask
