"""Structured pruning for PyTorch: whole filters and channels out of any network, proved right."""

from structprune import demo
from structprune.api import plan_pruning, prune_model, trace
from structprune.plan.plan import Plan, plan_of
from structprune.proof import Proof, prove
