"""Structured pruning for PyTorch: whole filters and channels out of any network, proved right."""

from structprune import demo
from structprune.api import plan_pruning, prune_model, trace
from structprune.errors import (
    InputError,
    ModelError,
    NothingToPruneError,
    OptionError,
    PlanError,
    StructPruneError,
    TraceError,
    UntracedParameterError,
)
from structprune.graph.groups import DependencyGraph, Group
from structprune.plan.options import PruningOptions
from structprune.plan.plan import Plan, plan_of
from structprune.proof import Proof, prove

__all__ = [
    "DependencyGraph",
    "Group",
    "InputError",
    "ModelError",
    "NothingToPruneError",
    "OptionError",
    "Plan",
    "PlanError",
    "Proof",
    "PruningOptions",
    "StructPruneError",
    "TraceError",
    "UntracedParameterError",
    "demo",
    "plan_of",
    "plan_pruning",
    "prove",
    "prune_model",
    "trace",
]

__version__ = "0.1.0"
