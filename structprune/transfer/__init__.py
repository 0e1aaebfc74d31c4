"""Compute-optimal transfer: which ratio for which compute budget.

The method of arXiv 2304.13164 prunes a pretrained network without data, then fine-tunes it. At a small budget of
compute the pruned network is ahead, in the end the dense one is. This package measures where they cross.
"""

from structprune.transfer.curve import LearningCurve, Point
from structprune.transfer.cut import Cut
from structprune.transfer.finetuning import finetune
from structprune.transfer.frontier import Best, Frontier
from structprune.transfer.meter import ComputeMeter
from structprune.transfer.plots import plot_errors, plot_stream
from structprune.transfer.probing import Probe, probe
from structprune.transfer.runs import Failure
from structprune.transfer.scaling import ScalingLaw
from structprune.transfer.sweep import sweep
from structprune.transfer.task import Task, new_head

__all__ = [
    "Best",
    "ComputeMeter",
    "Cut",
    "Failure",
    "Frontier",
    "LearningCurve",
    "Point",
    "Probe",
    "ScalingLaw",
    "Task",
    "finetune",
    "new_head",
    "plot_errors",
    "plot_stream",
    "probe",
    "sweep",
]
