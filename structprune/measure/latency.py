"""Seconds a forward, of several models in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.benchmark import Timer

_WARM_UP = 2


def forward_seconds(models: Sequence[nn.Module], example: torch.Tensor, rounds: int = 9) -> list[list[float]]:
    """Time one forward of every model, in turn, so that all see the same machine.

    Args:
        models: In evaluation mode, on one device.
        example: The input.
        rounds: How often each is timed.

    Returns:
        Seconds a forward, by model and round. Threads are PyTorch's own setting.
    """
    timers = [
        Timer("model(example)", globals={"model": model, "example": example}, num_threads=torch.get_num_threads())
        for model in models
    ]
    with torch.inference_mode():
        for timer in timers:
            timer.timeit(_WARM_UP)
        seconds: list[list[float]] = [[] for _ in timers]
        for _ in range(rounds):
            for timer, own in zip(timers, seconds, strict=True):
                own.append(timer.timeit(1).mean)
    return seconds


def paired_speedup(before: Sequence[float], after: Sequence[float]) -> float:
    """The median of the ratios of runs that followed each other."""
    return statistics.median(b / a for b, a in zip(before, after, strict=True))
