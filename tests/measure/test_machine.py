"""A busy machine is noticed, and said to be."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from structprune import compare, measure_latency
from structprune.measure import machine
from tests.support import timing
from tests.support.timed import X, net

STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]
WATCHED = [
    # seconds that threads waited and that were stolen, in ten; load of others; timings; what is said
    (0.5, 0.1, 9.0, STEADY, ""),
    (6.0, 0.1, 0.0, STEADY, "its threads waited for a core 0.60 s in every second: other programs use the CPU"),
    (0.5, 8.0, 0.0, STEADY, "the hypervisor took 40% of the CPU time away"),
    (None, None, 0.4, STEADY, ""),
    (None, None, 1.4, STEADY, "the load of other programs is 1.4 cores"),
    (0.5, 0.1, 0.0, [1.0, 1.0, 1.5, 1.5], "the timings spread by 40% between their quartiles"),
    (0.5, 0.1, 0.0, [1.0, 2.0, 3.0], ""),  # too few to tell
]


@pytest.mark.parametrize(("waited", "stolen", "load", "samples", "said"), WATCHED)
def test_a_busy_machine_is_noticed(
    waited: Any, stolen: Any, load: float, samples: list[float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passing(*readings: Any) -> Callable[[], Any]:
        left = iter(readings)
        return lambda: next(left)

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=passing(5.0, 15.0)))
    monkeypatch.setattr(machine, "_waited", passing(*((None, None) if waited is None else (2.0, 2.0 + waited))))
    monkeypatch.setattr(machine, "_stolen", passing(*((None, None) if stolen is None else (3.0, 3.0 + stolen))))
    monkeypatch.setattr(machine, "_foreign_load", lambda: load)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    verdict = machine.Watch().verdict(samples)
    assert verdict.startswith(said) if said else verdict == ""


def test_what_the_machine_says_of_itself() -> None:
    """Counters that only grow, where the system has them."""
    for read in (machine._waited, machine._stolen):
        before, after = read(), read()
        assert (before is None) == (after is None) and (before is None or 0 <= before <= after)
    assert isinstance(machine._foreign_load(), float)


def test_timings_of_a_busy_machine_are_not_to_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    timing.given(monkeypatch.setattr, busy="the load of other programs is 1.4 cores")
    measured = measure_latency(net(), X, device="cpu")
    assert "\n  not to be trusted: the load of other programs is 1.4 cores" in str(measured)
    comparison = compare(net(), net(24), X, device="cpu")
    assert comparison.verdict == "The machine is too busy to tell: the load of other programs is 1.4 cores."
    assert comparison.busy in str(comparison).replace("\n", " ") and comparison.causes == ()
