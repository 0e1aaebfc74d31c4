"""Measurements that are given: what follows from timings must not hang on how fast or busy a machine is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from structprune import count_flops
from structprune.measure import latency
from structprune.measure.machine import Watch
from structprune.measure.runner import Runner

Seconds = Callable[[Runner], float]


def by_macs(runner: Runner) -> float:
    """Seconds of a device that makes 40 GMACs a second, whatever the operators."""
    if not hasattr(runner, "_macs"):
        runner._macs = count_flops(runner.model, runner.calls).macs  # type: ignore[attr-defined]
    return max(1e-6, runner._macs / 40e9)  # type: ignore[attr-defined]


def given(patch: Callable[[Any, str, Any], None], seconds: Seconds = by_macs, busy: str = "") -> None:
    """Let a forward take as long as a function of its runner says, on a machine that is as busy as one says.

    Every model still runs once, where it would be warmed up.

    Args:
        patch: ``monkeypatch.setattr``, or ``setattr`` in a process of its own.
        seconds: Asked for every block.
        busy: What a watch says of the machine.
    """

    def warm_up(runner: Runner) -> float:
        runner.once()
        return seconds(runner)

    patch(Runner, "warm_up", warm_up)
    patch(Runner, "block", lambda runner, forwards: seconds(runner))
    patch(Watch, "verdict", lambda watch, samples: busy)
    # Ages pass between two looks at the clock: there are as many blocks as there must be, and no more.
    patch(latency, "time", SimpleNamespace(perf_counter=itertools.count(step=10**6).__next__))
