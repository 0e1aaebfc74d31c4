"""torch-kirigami by its own planner, where it is installed."""

from __future__ import annotations

import copy
import importlib
from typing import Any

from torch import nn

from tests.real.bisection import Refused, nearest
from tests.real.methods import Method, every
from tests.real.peers import give_gradients
from tests.real.subject import Subject, Unavailable

_METRICS = ("Magnitude", "GroupMagnitude", "WeightTaylor")
_WITH_DATA = ("WeightTaylor",)
_SCOPES = ("local", "global")


def kirigami_methods() -> list[Method]:
    """Every metric in both scopes."""
    return every("torch-kirigami", _METRICS, _WITH_DATA, _SCOPES, _prune)


def _prune(key: str, metric: str, scope: str, subject: Subject, share: float) -> nn.Module:
    try:
        library = importlib.import_module("torch_kirigami"), importlib.import_module("torch_kirigami.pruning")
    except ImportError as error:
        raise Unavailable("torch-kirigami is not installed") from error
    return nearest(key, subject, share, lambda ratio: _cut(library, subject, metric, scope, ratio))


def _cut(library: tuple[Any, Any], subject: Subject, metric: str, scope: str, ratio: float) -> nn.Module:
    graphs, pruning = library
    model = copy.deepcopy(subject.model)
    if metric in _WITH_DATA:
        give_gradients(model, subject)
    example = subject.example if isinstance(subject.example, tuple) else (subject.example,)
    pruner = pruning.Pruner(model, graph=graphs.DependencyGraph.build(model, args=example))
    pruned, _ = pruner.prune(
        _allowed(pruning, pruner.discover_candidates(), subject),
        budget=pruning.ChannelRatio(ratio, scope=scope),
        strategy=pruning.Greedy(getattr(pruning, metric)()),
    )
    assert isinstance(pruned, nn.Module)
    pruned.zero_grad()
    return pruned


def _allowed(pruning: Any, space: Any, subject: Subject) -> Any:
    """The candidates that it finds, without those that structprune would not cut."""

    def allows(axis: Any) -> bool:
        return any(path.rpartition(".")[0] in subject.allowed for path in axis.tensor.paths)

    axes = tuple(axis for axis in space.channel_axes if allows(axis))
    if not axes:
        raise Refused("it finds no channels that can be cut")
    return pruning.CandidateSpace(tuple(c for c in space.candidates if allows(c.axis)), axes)
