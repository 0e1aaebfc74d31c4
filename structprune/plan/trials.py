"""Trials of a plan: every group cut alone, by several ratios, and what a user's own measure says of each."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.errors import OptionError, described, nearest
from structprune.ir.registry import read_rules
from structprune.ir.slices import merged
from structprune.plan.plan import Plan
from structprune.plan.sensitivity import MeasuredSensitivity, TrialOptions
from structprune.plan.trials_file import TrialsFile
from structprune.progress import progress_bar
from structprune.select.options import IMPORTANCES, PruningOptions, Settings, read_settings
from structprune.select.partitions import partitions_of, tied_partitions
from structprune.tracing.groups import DependencyGraph

RATIOS = (0.125, 0.25, 0.5, 0.75)
# Groups that are cut together, by name, and the ratio; ``None`` if nothing goes.
Cutter = Callable[[tuple[str, ...], float], Plan | None]


@dataclass(frozen=True)
class Asked:
    """What a call asks for, checked.

    Attributes:
        score: The user's measure of a model.
        ratios: The shares to cut every group by, ascending.
        path: Where finished trials are kept.
        progress: Whether a bar is shown; ``None``: where stderr is a terminal.
    """

    score: Callable[[Any], Any]
    ratios: tuple[float, ...]
    path: Path | None
    progress: bool | None


def read_asked(options: Mapping[str, Any]) -> Asked:
    """Check the options of a call, but for those that say how to plan.

    Raises:
        OptionError: Naming the option, its value and what was expected.
    """
    known = TrialOptions.__annotations__
    for name in options:
        if name not in known:
            raise OptionError(f"sensitivity has no option {name!r}{nearest(name, known)} It has {', '.join(known)}.")
    score = options.get("score")
    if not callable(score):
        given = f"is {described(score)}" if "score" in options else "is missing"
        raise OptionError(f"score {given}; expected a function that takes a pruned model and returns a number.")
    path, progress = options.get("path"), options.get("progress")
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise OptionError(f"path is {described(path)}; expected the name of a JSON file.")
    return Asked(
        score=score,
        ratios=_read_ratios(options.get("ratios", RATIOS)),
        path=None if path is None else Path(path),
        progress=None if progress is None else bool(progress),
    )


def _read_ratios(ratios: Any) -> tuple[float, ...]:
    given = list(ratios) if isinstance(ratios, Iterable) and not isinstance(ratios, (str, bytes, Mapping)) else []
    if not given or not all(isinstance(r, Real) and not isinstance(r, bool) and 0 < float(r) < 1 for r in given):
        raise OptionError(f"ratios is {described(ratios)}; expected shares in (0, 1), such as (0.25, 0.5).")
    return tuple(sorted({float(ratio) for ratio in given}))


def settings_of(plan: Plan, model: nn.Module, ratio: float, options: Mapping[str, Any]) -> Settings:
    """The settings that a plan was made with, for trials: with this ratio in every layer, whatever the plan's was.

    Args:
        plan: The plan, which keeps plain settings only.
        model: The model that is cut.
        ratio: The share to remove.
        options: Of the call: ``importance`` and ``rules`` stand for what a plan cannot keep.

    Raises:
        OptionError: Something that the plan was made with is neither kept nor given.
    """
    kept = {n: v for n, v in plan.settings.items() if n in PruningOptions.__annotations__ and v is not None}
    for name in ("compensate", "calibrate"):
        if not isinstance(kept.get(name) or False, bool):
            raise OptionError(
                f"The plan was made with batches ({name}=...), which it does not keep: make one without them, and take "
                "its sensitivity."
            )
    kept.pop("calibrate", None)
    rules = read_rules(plan.rules if options.get("rules") is None else options["rules"])
    if kept.pop("rules", []) and rules is None:
        names = ", ".join(map(str, plan.settings["rules"]))
        raise OptionError(f"The plan was made with rules ({names}), which its JSON leaves out: give them, rules=...")
    kept["importance"] = options.get("importance", kept.get("importance", "l2"))
    if "importance" not in options and kept["importance"] not in IMPORTANCES:
        raise OptionError(
            f"The plan was made with importance={kept['importance']}, an object or a function, which a plan does not "
            "keep: give it again, importance=..."
        )
    granularity = plan.settings.get("granularity", "filter")
    with_rules = {} if rules is None else {"rules": rules}
    return read_settings(ratio, granularity, model, {**kept, **with_rules, "scope": "local"})


def alone(settings: Settings, names: Iterable[str], ratio: float) -> Settings:
    """Settings under which these groups are cut, and no others."""
    return replace(settings, ratio={glob.escape(name): ratio for name in names})


def cut_together(plan: Plan, graph: DependencyGraph, settings: Settings) -> list[tuple[str, ...]]:
    """The groups that lose channels, by name; together those that are tied, or that no name tells apart.

    Args:
        plan: What becomes of the groups of the graph under the settings.
        graph: The graph that the plan was made on.
        settings: With one ratio for all layers.
    """
    partitions, _ = partitions_of(graph, settings)
    _, ties = tied_partitions(graph, partitions, settings)
    pairs = [(partitions[tied[0]].group.index, partitions[i].group.index) for tied in ties for i in tied]
    of_name: dict[str, list[int]] = {}
    for group in graph.groups:
        for name in dict.fromkeys(producer.name for producer in group.producers):
            of_name.setdefault(name, []).append(group.index)
    # A ratio is given by the name of the group, and holds for all groups with a producer of that name.
    pairs += [(group.index, other) for group in graph.groups for other in of_name[group.name]]
    joined = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    set_of = merged(np.arange(len(graph.groups)), joined[:, 0], joined[:, 1]).tolist()
    together: dict[int, list[str]] = {}
    for index, group_plan in enumerate(plan.groups):
        if group_plan.removed:
            together.setdefault(set_of[index], []).append(group_plan.name)
    return [tuple(dict.fromkeys(names)) for names in together.values()]


def run_trials(
    asked: Asked, file: TrialsFile, model: nn.Module, dense: Plan, together: list[tuple[str, ...]], cut: Cutter
) -> MeasuredSensitivity:
    """Score the dense model, and every group cut alone by every ratio.

    Args:
        asked: What the call asks for.
        file: What was tried before; it gets every trial as soon as that is finished.
        model: The dense model; it is not changed.
        dense: A plan that cuts nothing.
        together: The groups, those together that can only be cut together.
        cut: Plans a trial.

    Raises:
        OptionError: The score is no finite number, or the file cannot be written.
    """
    with progress_bar(asked.progress, 1 + len(together) * len(asked.ratios)) as advance:
        advance("the dense model", 0)
        if file.dense is None:
            file.keep_dense(_scored(asked, dense, model, "the dense model"))
        advance("the dense model", 1)
        for names in together:
            before: Plan | None = None
            for ratio in asked.ratios:
                said = f"{names[0]} at {ratio:g}"
                advance(said, 0)
                if (names, ratio) not in file.scores and (plan := cut(names, ratio)) is not None:
                    # Widths are whole numbers, so that two ratios may cut the same.
                    same = before is not None and before.kept == plan.kept
                    scored = file.last if same else _scored(asked, plan, model, f"the group {said}")
                    file.keep(names, ratio, scored)
                    before = plan
                advance(said, 1)
    return _table(asked, file, dense, together)


def _table(asked: Asked, file: TrialsFile, dense: Plan, together: list[tuple[str, ...]]) -> MeasuredSensitivity:
    assert file.dense is not None
    scores = {
        name: {ratio: file.scores[names, ratio] for ratio in asked.ratios if (names, ratio) in file.scores}
        for names in together
        for name in names
    }
    return MeasuredSensitivity(file.dense, scores, asked.ratios, dense.groups)


def _scored(asked: Asked, plan: Plan, model: nn.Module, what: str) -> float:
    """The user's score of a cut copy.

    Raises:
        OptionError: It is no finite number.
    """
    # What is kept of it is a number: the plan that is made by these numbers is verified when it is applied.
    given = asked.score(plan.apply(model, verify=False))
    given = given.detach() if isinstance(given, torch.Tensor) else given  # to read a loss with gradients warns
    try:
        score = math.nan if isinstance(given, (str, bytes)) else float(given)
    except (TypeError, ValueError, RuntimeError):
        score = math.nan
    if not math.isfinite(score):
        raise OptionError(
            f"score returned {described(given)} for {what}; expected a finite number, such as the accuracy on "
            "validation data."
        )
    return score
