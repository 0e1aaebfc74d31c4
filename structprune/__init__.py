"""Structured pruning for PyTorch: whole filters and channels out of any network, proved right."""

from typing import TYPE_CHECKING, Any

from structprune import demo, rules
from structprune.api import plan_pruning, plan_removal, prune_model, trace
from structprune.checkpoint.loading import load
from structprune.checkpoint.saving import save
from structprune.checkpoint.shards import prune_checkpoint
from structprune.compensate.recalibration import recalibrate
from structprune.errors import (
    CheckpointError,
    InputError,
    ModelError,
    NothingToPruneError,
    OptionError,
    PlanError,
    RuleError,
    StructPruneError,
    TraceError,
    UntracedParameterError,
    VerificationError,
)
from structprune.hub.fit import ConfigChange, fit_config
from structprune.measure.comparison import Comparison, Measured, compare
from structprune.measure.flops import FlopCount, ModuleCost, count_flops
from structprune.measure.latency import Latency, measure_latency
from structprune.measure.profile import Stage
from structprune.measure.runner import LatencyOptions
from structprune.plan.plan import Plan, plan_of
from structprune.plan.sensitivity import GroupPlan, MeasuredSensitivity, Sensitivity
from structprune.select.options import PruningOptions
from structprune.tracing.groups import DependencyGraph, Group
from structprune.verify.proof import Proof, prove

if TYPE_CHECKING:
    from structprune import transfer

__all__ = [
    "CheckpointError",
    "Comparison",
    "ConfigChange",
    "DependencyGraph",
    "FlopCount",
    "Group",
    "GroupPlan",
    "InputError",
    "Latency",
    "LatencyOptions",
    "Measured",
    "MeasuredSensitivity",
    "ModelError",
    "ModuleCost",
    "NothingToPruneError",
    "OptionError",
    "Plan",
    "PlanError",
    "Proof",
    "PruningOptions",
    "RuleError",
    "Sensitivity",
    "Stage",
    "StructPruneError",
    "TraceError",
    "UntracedParameterError",
    "VerificationError",
    "compare",
    "count_flops",
    "demo",
    "fit_config",
    "load",
    "measure_latency",
    "plan_of",
    "plan_pruning",
    "plan_removal",
    "prove",
    "prune_checkpoint",
    "prune_model",
    "recalibrate",
    "rules",
    "save",
    "trace",
    "transfer",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``structprune.transfer`` is imported when it is first used: most users never do."""
    if name == "transfer":
        from importlib import import_module

        return import_module("structprune.transfer")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
