"""Plans: made for a ratio, searched for a target, or to try how much each group matters."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from structprune.compensate.compensation import check_compensable, compensated
from structprune.compensate.lanes import together
from structprune.compensate.reconstruction import reconstructed
from structprune.hub.loadable import loadable
from structprune.meta.forward import collection_paused
from structprune.meta.replica import held_tensors
from structprune.plan.plan import Plan
from structprune.plan.planner import Planner, plain_settings
from structprune.plan.search import cost_of, search
from structprune.plan.sensitivity import MeasuredSensitivity, TrialOptions
from structprune.plan.trials import Asked, alone, cut_together, read_asked, run_trials, settings_of
from structprune.plan.trials_file import TrialsFile
from structprune.select.importance import check_values
from structprune.select.options import Settings
from structprune.tracing.checks import check_model


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
    if settings.uniform if settings.loadable is None else settings.loadable:
        plan = loadable(plan, model, None if settings.target else partial(_with_shares, planner, settings))
    examples = planner.examples
    del planner  # and what it measured
    if settings.calibrate:
        gc.collect()  # of circles too: second moments are large
        return reconstructed(plan, model, examples, settings.calibrate, settings.progress)
    return compensated(plan, model, examples, settings.compensate) if settings.compensate else plan


def _with_shares(planner: Planner, settings: Settings, shares: Mapping[str, float]) -> Plan:
    """A plan in which these layers lose other shares."""
    given = settings.ratio if isinstance(settings.ratio, Mapping) else {"*": settings.ratio}
    otherwise = {pattern: ratio for pattern, ratio in given.items() if pattern not in shares}
    return planner.plan(replace(settings, ratio={**shares, **otherwise}))


def measured(plan: Plan, model: nn.Module, options: TrialOptions) -> MeasuredSensitivity:
    """Score a model with every group cut alone, by several ratios; see ``Plan.sensitivity``.

    The model is traced and resolved once; the plan of each trial is made from that.

    Args:
        plan: The plan whose settings say what may be cut, and by what channels are ranked.
        model: The dense model; it is not changed.
        options: Of the call.

    Raises:
        StructPruneError: A subclass says what was wrong.
    """
    # Before the trace, which takes a while.
    asked = read_asked(options)
    check_model(model)
    plan.check_fits(model)
    settings = settings_of(plan, model, asked.ratios[-1], options)
    weights = held_tensors(model)
    check_values(settings.importance, model, weights)
    if settings.compensate:
        check_compensable(model)
    file = _trials_file(plan, settings, asked)
    examples = options.get("example_inputs")
    with collection_paused():
        planner = Planner(model, weights, settings, list(plan.examples) or None if examples is None else examples)
        most, graph = planner.sketch(settings)
        planner.checked(most, graph, settings)

    def cut(names: tuple[str, ...], ratio: float) -> Plan | None:
        asked_for = alone(settings, names, ratio)
        with collection_paused():
            made, on = planner.sketch(asked_for)
            if not made.kept:
                return None
            made = planner.checked(made, on, asked_for)
            return compensated(made, model, planner.examples, True) if settings.compensate else made

    dense, _ = planner.sketch(replace(settings, ratio=0.0))
    return run_trials(asked, file, model, dense, cut_together(most, graph, settings), cut)


def _trials_file(plan: Plan, settings: Settings, asked: Asked) -> TrialsFile:
    plain = {name: value for name, value in plain_settings(settings).items() if name != "ratio"}
    return TrialsFile(asked.path, plan.model, plan.shapes, plain, asked.ratios)


Plan.measures = staticmethod(measured)
