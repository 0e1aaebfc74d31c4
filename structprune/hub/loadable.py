"""Plans that a config can express: where a class refuses the number of heads that is left, the nearest it accepts."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import nn

from structprune.errors import StructPruneError
from structprune.hub.fields import changed, is_config
from structprune.hub.fit import MOST_TRIED, saved_and_read
from structprune.hub.search import Search, build_sizes
from structprune.meta.replica import meta_replica
from structprune.plan.plan import Plan
from structprune.plan.sensitivity import GroupPlan
from structprune.surgery.slicing import cut_copy

# Makes a plan in which these layers lose these shares.
Again = Callable[[Mapping[str, float]], Plan]


def loadable(plan: Plan, model: nn.Module, again: Again | None) -> Plan:
    """The plan if a config of the model's class has its sizes, else the nearest of which that is so.

    Classes check heads, as a rule: that they divide the hidden size, or are divided by those of keys. So all layers
    whose channels are whole heads lose another number of them.

    Args:
        plan: The plan.
        model: The dense model; it may be on the meta device. One without a config needs none.
        again: Makes another plan; ``None``: only a note says that there is no such config.

    Returns:
        A plan, with a note if it is another one, or if none was found.
    """
    refused = refusal(plan, model) if is_config(getattr(model, "config", None)) else ""
    if not refused:
        return plan
    heads = [group for group in plan.groups if group.removed and _is_whole(group, plan)]
    if heads and again is not None:
        width, asked = heads[0].width, heads[0].removed
        alike = [group for group in heads if (group.width, group.removed) == (width, asked)]
        # The nearest first; of two the one that keeps more, but rather a cut than none: one was asked for.
        for other in sorted(set(range(width)) - {asked}, key=lambda number: (abs(number - asked), not number, number)):
            shares = {glob.escape(name): other / width for group in alike for name in group.producers}
            try:
                found = again(shares)
            except StructPruneError:
                continue
            if not refusal(found, model):
                more = f" and {len(alike) - 1} more" if alike[1:] else ""
                note = (
                    f"loadable: {other} of {width} heads go in place of {asked} ({alike[0].name}{more}): without "
                    f"{asked}, {refused}"
                )
                return replace(found, notes=(*found.notes, note))
    return replace(plan, notes=(*plan.notes, f"loadable: no config has these sizes: {refused}"))


def refusal(plan: Plan, model: nn.Module) -> str:
    """Why no config of the model's class builds the pruned sizes; empty if one does, or the class needs none."""
    small: Any = cut_copy(meta_replica(model), plan.cut)
    search = Search(small)
    if search.gaps({}) is None:
        return ""  # it is not built from its config alone
    found = list(islice(search.solutions(), MOST_TRIED))
    # Narrower heads have the shapes of fewer ones, and other numbers in the modules.
    least = min((search.differing(values) for values in found), default=0)
    refused = ""
    for values in (values for values in found if search.differing(values) == least):
        try:
            config = changed(small.config, values)
            again = saved_and_read(config)
        except Exception as error:  # a config may check itself in any way
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            refused = refused or f"its config cannot be read again ({said})"
            continue
        if build_sizes(type(small), again) == build_sizes(type(small), config) is not None:
            return ""
        refused = refused or "its config changes as it is saved and read"
    return refused or "no field of its config has them"


def _is_whole(group: GroupPlan, plan: Plan) -> bool:
    """Whether a channel of a group is a head: several entries of the weight that produces it."""
    return plan.shapes[group.producers[0]][0] > group.width
