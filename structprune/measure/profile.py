"""Where the time of a forward goes: by stage of the network and by operator."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from structprune.compat import TorchDispatchMode
from structprune.measure.flops import FlopCount, ModuleCost
from structprune.measure.runner import Runner
from structprune.ops import OPERATORS

_ROUNDS = 5
_MOST_STAGES = 12
# A part that holds more than this of all MACs is opened, to see what is in it.
_OPENED = 0.8


@dataclass(frozen=True)
class Stage:
    """One part of both networks.

    Attributes:
        name: The module's path.
        dense_macs: Its MACs in the dense model.
        pruned_macs: Its MACs in the pruned model.
        dense_seconds: Its time in a forward of the dense model, ``None`` where it cannot be timed by itself
            (compiled code, replayed graphs).
        pruned_seconds: Its time in the pruned model.
    """

    name: str
    dense_macs: int
    pruned_macs: int
    dense_seconds: float | None
    pruned_seconds: float | None


def stages_of(runners: Sequence[Runner], counts: Sequence[FlopCount]) -> tuple[Stage, ...]:
    """The parts that the dense model's MACs divide into, with MACs and seconds in both."""
    macs = [{cost.name: cost.macs for cost in count.by_module.walk()} for count in counts]
    names = [name for name in stage_names(counts[0].by_module) if name in macs[1]]
    setting = runners[0].setting
    timed = names and not (setting.compile or setting.cuda_graph)
    seconds = [stage_seconds(runner, names) if timed else {} for runner in runners]
    return tuple(
        Stage(name, macs[0][name], macs[1][name], seconds[0].get(name), seconds[1].get(name)) for name in names
    )


def stage_names(root: ModuleCost) -> list[str]:
    """The model's parts, in order: its children, and the children of one that holds nearly everything."""
    stages = list(root.children)
    while stages:
        largest = max(stages, key=lambda stage: stage.macs)
        opened = len(stages) - 1 + len(largest.children)
        if not largest.children or largest.macs < _OPENED * max(root.macs, 1) or opened > 3 * _MOST_STAGES:
            break
        at = stages.index(largest)
        stages[at : at + 1] = largest.children
    kept = sorted(stages, key=lambda stage: stage.macs, reverse=True)[:_MOST_STAGES]
    return [stage.name for stage in stages if stage in kept and stage.macs]


def stage_seconds(runner: Runner, names: Sequence[str]) -> dict[str, float]:
    """Seconds that each module takes in a forward: the medians of a few, each waited for."""
    modules = dict(runner.model.named_modules())
    rounds: dict[str, list[float]] = {name: [] for name in names}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        started: list[float] = []

        def enter(_module: nn.Module, _args: Any) -> None:
            runner.synchronize()
            started.append(time.perf_counter())

        def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
            runner.synchronize()
            current[name] = current.get(name, 0.0) + time.perf_counter() - started.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))

    current: dict[str, float] = {}
    for name in names:
        if not isinstance(modules[name], torch.jit.ScriptModule):
            watch(name, modules[name])
    try:
        for _ in range(_ROUNDS):
            current.clear()
            runner.once()
            for name, seconds in current.items():
                rounds[name].append(seconds)
    finally:
        for handle in handles:
            handle.remove()
    return {name: statistics.median(own) for name, own in rounds.items() if own}


def operator_seconds(runner: Runner) -> dict[str, float]:
    """Seconds by operator in one forward, on the device that computes."""
    runner.once()
    return _on_cuda(runner) if runner.setting.device.type == "cuda" else _by_clock(runner)


def _by_clock(runner: Runner) -> dict[str, float]:
    rounds = []
    for _ in range(_ROUNDS):
        with _OperatorClock(runner) as clock:
            runner.once()
        rounds.append(clock.seconds)
    return {name: statistics.median(own.get(name, 0.0) for own in rounds) for name in rounds[0]}


def _on_cuda(runner: Runner) -> dict[str, float]:
    """The kernels' own time, by PyTorch's profiler: launches run ahead of the device."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(_ROUNDS):
            runner.once()
    return of_operators(profiler.key_averages(), _ROUNDS)


def of_operators(events: Iterable[Any], rounds: int) -> dict[str, float]:
    """Seconds a round of the operators among a profiler's averaged events.

    The profiler lists a kernel's time twice: with the operator that launched it, which ran on the CPU, and by itself.
    """
    found = {e.key: e.self_device_time_total / 1e6 / rounds for e in events if e.device_type.name == "CPU"}
    return {name: seconds for name, seconds in found.items() if seconds > 0 and "::" in name}


class _OperatorClock(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operator of a forward and waits for it."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, float] = {}
        self._runner = runner

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self._runner.synchronize()
        name = OPERATORS.of(func).name
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return out
