"""Plans: made for a ratio, or searched for a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from structprune.compensate.compensation import check_compensable, compensated
from structprune.compensate.lanes import together
from structprune.compensate.reconstruction import reconstructed
from structprune.meta.forward import collection_paused
from structprune.plan.plan import Plan
from structprune.plan.planner import Planner
from structprune.plan.search import cost_of, search
from structprune.select.importance import check_values
from structprune.select.options import Settings


def make_plan(
    model: nn.Module, weights: Mapping[str, torch.Tensor], settings: Settings, example_inputs: Any = None
) -> Plan:
    """Plan a cut of a model.

    Args:
        model: The model, checked (``check_model``); it may be on the meta device.
        weights: The values of its parameters and buffers by name, to rank channels by. They are read one
            at a time, so that they may lie in files.
        settings: What is asked for.
        example_inputs: As for ``structprune.prune_model``.

    Raises:
        StructPruneError: A subclass says what was wrong.
    """
    with collection_paused():
        # In a call of its own, so that all that was traced is gone before the collector looks through what is left.
        return _made(model, weights, settings, example_inputs)


def _made(model: nn.Module, weights: Mapping[str, torch.Tensor], settings: Settings, example_inputs: Any) -> Plan:
    # Before the trace, which takes a while.
    check_values(settings.importance, model, weights)
    if settings.compensate or settings.calibrate:
        check_compensable(model, "calibrate" if settings.calibrate else "compensate")
    if settings.calibrate:
        together(settings.calibrate)  # planning takes a while
        example_inputs = settings.calibrate[0] if example_inputs is None else example_inputs
    cost = cost_of(settings.target, model, example_inputs) if settings.target else None
    planner = Planner(model, weights, settings, example_inputs)
    if settings.target is None or cost is None:
        plan = planner.plan(settings)
    else:
        plan = search(planner, settings, settings.target, cost)
    examples = planner.examples
    del planner  # and what it measured
    if settings.calibrate:
        return reconstructed(plan, model, examples, settings.calibrate)
    return compensated(plan, model, examples, settings.compensate) if settings.compensate else plan
