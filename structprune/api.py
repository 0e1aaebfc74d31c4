"""The public calls: the way of the data from a model to a smaller one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from structprune.ir.registry import Registry, read_rules
from structprune.ir.slices import Mask
from structprune.meta.forward import collection_paused
from structprune.meta.replica import Model, held_tensors
from structprune.meta.surroundings import ordinary_tensors
from structprune.plan.plan import Plan
from structprune.plan.planner import Planner
from structprune.plan.removal import read_channels, removal
from structprune.planning import make_plan
from structprune.resolve.resolution import resolve
from structprune.select.budget import select
from structprune.select.options import Granularity, PruningOptions, Ratio, Settings, read_settings
from structprune.surgery.optimizer_state import check_optimizer
from structprune.tracing.checks import check_model
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import Session
from structprune.verify.verification import Verify, read_verify


@ordinary_tensors()
def prune_model(
    model: Model,
    ratio: Ratio | None = None,
    granularity: Granularity = "filter",
    *,
    example_inputs: Any = None,
    inplace: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    verify: Verify = "auto",
    **options: Unpack[PruningOptions],
) -> Model:
    """Remove the weakest channels of a model for good: by weight magnitude and without data, unless told otherwise.

    Args:
        model: Any network of PyTorch operators. It is not changed unless ``inplace``.
        ratio: Share of channels to remove of every layer, in [0, 1), or a dict from module pattern
            to share; layers that no pattern names stay whole. In its place one of ``macs``, ``params``,
            ``latency`` and ``speedup`` says what is to be left.
        granularity: ``"filter"`` removes filters whose output stays inside a block, ``"channel"``
            also those that ride a residual stream, the same in every layer that shares the stream.
        example_inputs: What the model takes: a tensor, a tuple of arguments, a dict of keyword
            arguments, a list of such calls, or a callable ``model -> output``. Only shapes and
            integers matter. Inferred if it is not given.
        inplace: Cut ``model`` itself; its parameters stay the same objects.
        optimizer: With ``inplace``: the optimizer that trains the model; its state (momentum, moments) is cut
            along, so that training goes on.
        verify: Whether the pruned model has to give what the dense one gives with those channels masked, on numbers:
            ``"auto"`` where that costs little (a note of the plan says where it was not done), ``True`` or ``False``.
            See ``Plan.apply``.
        **options: In one line each; ``PruningOptions`` says more.

            - ``macs``, ``params``: what to keep in place of ``ratio``, as a share or a number.
            - ``latency``, ``speedup``: the same as a share or factor of the time, measured on the device.
            - ``measure``: how they are measured, as ``LatencyOptions`` has it.
            - ``importance``: ``"l2"``, ``"l1"``, ``"group"``, ``"error"``, ``"random"``, or a function of a group.
            - ``scope``: the ratio in every layer (``"local"``), over all (``"global"``), or over those that are alike.
            - ``max_ratio``: the largest share that any layer may lose, one for all or by pattern.
            - ``uniform``: whether layers that repeat keep one width.
            - ``compensate``: ``True``, ``"auto"``, or batches: biases make up for what is removed.
            - ``calibrate``: batches, by which channels are chosen and the weights that read them solved anew.
            - ``loadable``: whether a config of the model's class has to have the sizes that are left.
            - ``round_to``: what widths are a multiple of; ``"auto"`` is 8 from 64 on, 1 is off.
            - ``ignore``: modules or parameters that stay, by pattern or themselves.
            - ``keep_representation``: whether the input of the last layers stays whole.
            - ``allow_untraced``: whether parameters that no forward read are no matter.
            - ``progress``: whether ``calibrate`` shows a bar.
            - ``rules``: what you know of operators and modules, a ``structprune.rules.Registry``.

    Returns:
        The pruned model, an ordinary module of the same class. With ratio 0 an equal copy.

    Raises:
        VerificationError: The pruned model would give something else.
        StructPruneError: Another subclass says what was wrong; in any case the model is as it was.

    Examples:
        >>> import structprune
        >>> small = structprune.prune_model(structprune.demo.resnet50(), 0.5)
        >>> small.fc.in_features
        2048
    """
    check_optimizer(optimizer, inplace)  # planning takes a while
    read_verify(verify)
    plan = plan_pruning(model, ratio, granularity, example_inputs=example_inputs, **options)
    return plan.apply(model, inplace=inplace, optimizer=optimizer, verify=verify)


@ordinary_tensors()
def plan_pruning(
    model: nn.Module,
    ratio: Ratio | None = None,
    granularity: Granularity = "filter",
    *,
    example_inputs: Any = None,
    **options: Unpack[PruningOptions],
) -> Plan:
    """Decide what ``prune_model`` would remove, and change nothing.

    The arguments are those of ``prune_model``.

    Returns:
        An immutable plan that can be printed, stored as JSON and applied.

    Raises:
        StructPruneError: A subclass says what was wrong.

    Examples:
        >>> import structprune
        >>> plan = structprune.plan_pruning(structprune.demo.resnet50(), 0.5, round_to=1)
        >>> plan.params
        (25557032, 12367880)
    """
    check_model(model)
    weights = held_tensors(model)
    return make_plan(model, weights, read_settings(ratio, granularity, model, options), example_inputs)


@ordinary_tensors()
def plan_removal(
    model: nn.Module,
    channels: Mapping[Any, Iterable[int]],
    *,
    example_inputs: Any = None,
    allow_untraced: bool = False,
    rules: Registry | None = None,
) -> Plan:
    """Plan to remove exactly these channels, with all that leaves with them, and change nothing.

    Args:
        model: Any network of PyTorch operators.
        channels: From layer (its name, the module itself, its weight or the weight's name) to the indices of the
            channels that it produces.
        example_inputs: As for ``prune_model``.
        allow_untraced: As for ``prune_model``.
        rules: As for ``prune_model``.

    Returns:
        The plan. What else goes is in its notes: channels that are added to these, such as those of other layers of a
        residual stream, or that are computed with them, such as the other entries of a head.

    Raises:
        OptionError: Some of these channels must stay or cannot go without others; the message says which and why.
        StructPruneError: Another subclass says what was wrong.

    Examples:
        >>> import structprune
        >>> model = structprune.demo.resnet50()
        >>> plan = structprune.plan_removal(model, {"layer1.0.conv1": [1, 3, 5]})
        >>> plan.apply(model).layer1[0].conv2.in_channels
        61
    """
    check_model(model)
    with collection_paused():
        settings = replace(read_channels(model, channels), allow_untraced=allow_untraced, rules=read_rules(rules))
        return removal(Planner(model, held_tensors(model), settings, example_inputs), settings)


@ordinary_tensors()
def trace(model: nn.Module, example_inputs: Any = None, *, rules: Registry | None = None) -> DependencyGraph:
    """Find out which slices of a model's tensors can only leave together, and which must stay.

    Args:
        model: Any network of PyTorch operators; it is not changed.
        example_inputs: As for ``prune_model``.
        rules: As for ``prune_model``.

    Returns:
        The graph: ``.groups``, ``.frozen``, ``.unknown_operators``, ``.explain(name)``, and a summary as text.

    Raises:
        StructPruneError: A subclass says what was wrong.
    """
    check_model(model)
    settings = Settings(0.5, "channel", round_to=1, keep_representation=False)

    def choose(graph: DependencyGraph) -> Mask:
        # Any channels will do to find out what can go; regular ones would hide misalignments.
        scores = np.random.default_rng(0).random(graph.space.size)
        return select(graph, settings, scores).present

    with collection_paused():
        return resolve(Session(model, example_inputs, read_rules(rules)), choose).graph
