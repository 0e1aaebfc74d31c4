"""How long a forward takes, with its spread and the circumstances."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from structprune.compat import tree_leaves
from structprune.inputs import Invocation, Invocations, read_inputs
from structprune.measure.flops import counted
from structprune.measure.machine import Watch
from structprune.measure.quantities import seconds_text
from structprune.measure.runner import LatencyOptions, Runner, Setting, read_setting
from structprune.meta.surroundings import ordinary_tensors

# A block shorter than this is measured through the clock's own jitter.
_BLOCK_SECONDS = 0.02
_FEWEST_BLOCKS = 8


@dataclass(frozen=True)
class Latency:
    """Seconds that a forward takes.

    Attributes:
        samples: Seconds a forward, the mean over a block each, in the order in which they were taken.
        device: The device, such as ``cuda:0``.
        device_name: Its name.
        threads: Threads that PyTorch uses on the CPU.
        dtype: Dtype of the floating-point weights.
        batch_size: Entries in a batch, ``None`` where no argument shows it.
        inputs: What the model was called with, as text.
        how: The options that were on: ``channels_last``, ``compile``, ``cuda_graph``.
        busy: Why the timings cannot be trusted; ``""`` on a quiet machine.
    """

    samples: tuple[float, ...]
    device: str
    device_name: str
    threads: int
    dtype: str
    batch_size: int | None
    inputs: str
    how: tuple[str, ...] = ()
    busy: str = ""

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return self._quantile(0.5)

    @property
    def p10(self) -> float:
        """The tenth percentile, in seconds."""
        return self._quantile(0.1)

    @property
    def p90(self) -> float:
        """The ninetieth percentile, in seconds."""
        return self._quantile(0.9)

    @property
    def iqr(self) -> float:
        """The distance between the quartiles, in seconds."""
        return self._quantile(0.75) - self._quantile(0.25)

    @property
    def circumstances(self) -> str:
        """Device, threads, dtype, inputs and options in one line."""
        where = f"{self.device} ({self.device_name})"
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else ""
        return f"{where}{threads}, {self.dtype}, {self.inputs}{''.join(f', {option}' for option in self.how)}"

    def _quantile(self, share: float) -> float:
        return float(np.quantile(self.samples, share))

    def __repr__(self) -> str:
        return f"<Latency: {self}>"

    def __str__(self) -> str:
        text = (
            f"{seconds_text(self.median)} a forward (p10 {seconds_text(self.p10)}, p90 {seconds_text(self.p90)}, "
            f"{len(self.samples)} blocks)\n  on {self.circumstances}"
        )
        return f"{text}\n  not to be trusted: {self.busy}" if self.busy else text


@ordinary_tensors()
def measure_latency(model: nn.Module, example_inputs: Any = None, **options: Unpack[LatencyOptions]) -> Latency:
    """Measure how long a forward takes, in evaluation and inference mode.

    A copy of the model is moved to the device, warmed up and timed in blocks of forwards with
    ``torch.utils.benchmark.Timer``. The number of threads is PyTorch's own setting
    (``torch.set_num_threads``), and is stated.

    Args:
        model: Any module. It is not changed.
        example_inputs: As for ``prune_model``; inferred if not given, and then filled with random numbers.
        **options: See ``LatencyOptions``.

    Returns:
        The timings with their spread and circumstances. ``busy`` says so where the machine was.

    Raises:
        OptionError: An option cannot be used here.
        InputError: The model does not run with the inputs, or none could be inferred.
    """
    setting = read_setting(options)
    runner = Runner(model, timed_calls(model, example_inputs), setting)
    (samples,), busy = in_turn([runner])
    return latency_of(runner, samples, busy)


def timed_calls(model: nn.Module, example_inputs: Any) -> Invocations:
    """The calls to be timed: those given, or inferred ones with random numbers in place of zeros."""
    if example_inputs is not None:
        return read_inputs(example_inputs)
    generator = torch.Generator().manual_seed(0)

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        # Arithmetic on zeros is cheaper than on data for some devices: fewer bits change.
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return [call.mapped(filled) for call in counted(model)[1]]


def in_turn(runners: Sequence[Runner]) -> tuple[list[list[float]], str]:
    """Time models in turn, block by block, every second round backwards.

    Returns:
        Seconds a forward by model and round, and why they cannot be trusted (``""`` if they can).
    """
    setting = runners[0].setting
    forwards = [max(1, round(_BLOCK_SECONDS / runner.warm_up())) for runner in runners]
    watch = Watch()
    samples: list[list[float]] = [[] for _ in runners]
    end = time.perf_counter() + setting.min_seconds * len(runners)
    order = list(range(len(runners)))
    while time.perf_counter() < end or len(samples[0]) < _FEWEST_BLOCKS:
        for i in order:
            samples[i].append(runners[i].block(forwards[i]))
        order.reverse()
    return samples, next(filter(None, (watch.verdict(own) for own in samples)), "")


def latency_of(runner: Runner, samples: Sequence[float], busy: str) -> Latency:
    """The samples with their circumstances."""
    setting: Setting = runner.setting
    floats = {str(p.dtype).removeprefix("torch.") for p in runner.model.parameters() if p.is_floating_point()}
    how = ("channels_last", "compile", "cuda_graph")
    return Latency(
        samples=tuple(samples),
        device=str(setting.device),
        device_name=setting.device_name,
        threads=torch.get_num_threads(),
        dtype="/".join(sorted(floats)) or _input_dtype(runner.calls),
        batch_size=runner.batch_size,
        inputs=", ".join(map(str, runner.calls)),
        how=tuple(name for name in how if getattr(setting, name)),
        busy=busy,
    )


def _input_dtype(calls: list[Invocation]) -> str:
    tensors = [t for call in calls for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, torch.Tensor)]
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else "no tensors"
