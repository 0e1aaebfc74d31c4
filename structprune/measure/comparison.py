"""A dense and a pruned model side by side: what was promised and what the device gives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from structprune.measure.causes import likely_causes
from structprune.measure.flops import FlopCount, count_flops
from structprune.measure.latency import Latency, in_turn, latency_of, timed_calls
from structprune.measure.profile import Stage, stages_of
from structprune.measure.quantities import scaled, seconds_text
from structprune.measure.runner import LatencyOptions, Runner, read_setting
from structprune.meta.surroundings import ordinary_tensors

if TYPE_CHECKING:
    from rich.table import Table

# Causes are looked for where the measured speed-up is certainly below this share of the theoretical one.
_FALLS_SHORT = 0.95
_RESAMPLES = 4000


@dataclass(frozen=True)
class Measured:
    """What one of the two models costs.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates of a forward, the batch included.
        param_bytes: Bytes of the parameters, in the dtype that was measured.
        peak_bytes: The most memory in use during a forward: measured on CUDA, elsewhere counted (weights
            and the activations that are alive at one time).
        latency: Seconds a forward.
    """

    params: int
    macs: int
    param_bytes: int
    peak_bytes: int
    latency: Latency


@dataclass(frozen=True)
class Comparison:
    """A dense and a pruned model, measured in turn.

    Attributes:
        dense: The first model's costs.
        pruned: The second model's costs.
        ratios: Seconds of the dense over those of the pruned model, by round.
        speedup: The median of the ratios.
        speedup_interval: A 95 % interval of it, by bootstrap.
        theoretical_speedup: The ratio of the MACs, NaN (``null`` in JSON) where one of the models has none.
        causes: Why the measured speed-up falls short of the theoretical one, the likeliest first; empty
            where it does not.
        stages: Where MACs and time are, part by part.
        busy: Why nothing can be said about time; ``""`` on a quiet machine.
        doubt: Why the two do not look like a dense network and what was made of it (swapped, or two others); ``""``
            where they do.
    """

    dense: Measured
    pruned: Measured
    ratios: tuple[float, ...]
    speedup: float
    speedup_interval: tuple[float, float]
    theoretical_speedup: float
    causes: tuple[str, ...]
    stages: tuple[Stage, ...]
    busy: str
    doubt: str = ""

    @property
    def verdict(self) -> str:
        """What can be said about the speed, in one sentence."""
        low, high = self.speedup_interval
        if self.busy:
            return f"The machine is too busy to tell: {self.busy}."
        if low <= 1 <= high:
            return f"No measurable difference in latency ({self.speedup:.2f}, 95 % interval {low:.2f} to {high:.2f})."
        change = f"{self.speedup:.2f} times as fast" if self.speedup > 1 else f"{1 / self.speedup:.2f} times slower"
        promised = (
            "" if math.isnan(self.theoretical_speedup) else f", where the MACs promise {self.theoretical_speedup:.2f}"
        )
        return f"{change[0].upper()}{change[1:]} (95 % interval of the speed-up {low:.2f} to {high:.2f}){promised}."

    def to_json(self) -> str:
        """All numbers as JSON; seconds and bytes."""
        theoretical = None if math.isnan(self.theoretical_speedup) else self.theoretical_speedup
        document = {**asdict(self), "theoretical_speedup": theoretical, "verdict": self.verdict}
        return json.dumps(document, indent=1)

    def table(self) -> Table:
        """The comparison as a rich table."""
        from rich.table import Table

        table = Table("", title=None)
        for title in ("dense", "pruned", "dense / pruned"):
            table.add_column(title, justify="right")
        a, b = self.dense, self.pruned
        table.add_row("parameters", f"{a.params:,}", f"{b.params:,}", _ratio(a.params, b.params))
        table.add_row("MACs", scaled(a.macs), scaled(b.macs), _ratio(a.macs, b.macs))
        table.add_row(
            "peak memory", scaled(a.peak_bytes, "B"), scaled(b.peak_bytes, "B"), _ratio(a.peak_bytes, b.peak_bytes)
        )
        low, high = self.speedup_interval
        table.add_row(
            "seconds a forward", seconds_text(a.latency.median), seconds_text(b.latency.median), f"{self.speedup:.2f}"
        )
        table.add_row("95 % interval", "", "", f"{low:.2f} to {high:.2f}")
        return table

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        return Group(self.table(), *(Text(line) for line in self._lines()))

    def _lines(self) -> list[str]:
        return [
            f"On {self.pruned.latency.circumstances}; {len(self.ratios)} rounds in turn.",
            *([self.doubt] if self.doubt else []),
            self.verdict,
            *(f"- {cause}" for cause in self.causes),
        ]

    def __repr__(self) -> str:
        return f"<Comparison: {self.verdict}>"

    def __str__(self) -> str:
        return _rendered(self).rstrip()

    def _repr_html_(self) -> str:
        """For notebooks."""
        from rich.console import Console

        console = Console(record=True, file=_Discard(), width=100, force_jupyter=False)  # type: ignore[arg-type]
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


class _Discard:
    """A file that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _rendered(value: Any) -> str:
    from rich.console import Console

    console = Console(width=100, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as capture:
        console.print(value)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b else "-"


@ordinary_tensors()
def compare(
    dense: nn.Module, pruned: nn.Module, example_inputs: Any = None, **options: Unpack[LatencyOptions]
) -> Comparison:
    """Measure two models in turn, and say what the smaller one gains and why it is not more.

    Both run on the same inputs, block by block, one after the other, so that both see the same
    machine; the speed-up is the median of the ratios of neighbouring blocks.

    Args:
        dense: The model as it was. It is not changed.
        pruned: The model that was made of it. It is not changed.
        example_inputs: As for ``prune_model``; inferred from the dense model if not given.
        **options: See ``LatencyOptions``.

    Returns:
        Parameters, MACs, memory and latency of both, and the speed-up with its interval.

    Raises:
        OptionError: An option cannot be used here.
        InputError: A model does not run with the inputs, or none could be inferred.
    """
    setting = read_setting(options)
    calls = timed_calls(dense, example_inputs)
    runners = [Runner(model, calls, setting) for model in (dense, pruned)]
    counts = [count_flops(runner.model, runner.calls) for runner in runners]
    samples, busy = in_turn(runners)
    ratios, speedup, interval = speedup_of(samples)
    countable = bool(counts[0].macs and counts[1].macs)
    theoretical = counts[0].macs / counts[1].macs if countable else math.nan
    short = not busy and interval[1] < _FALLS_SHORT * theoretical
    return Comparison(
        dense=_measured(runners[0], counts[0], samples[0], busy),
        pruned=_measured(runners[1], counts[1], samples[1], busy),
        ratios=tuple(map(float, ratios)),
        speedup=speedup,
        speedup_interval=interval,
        theoretical_speedup=theoretical,
        causes=likely_causes(dense, pruned, calls, runners, counts) if short else (),
        stages=stages_of(runners, counts),
        busy=busy,
        doubt=_doubt(dense, pruned),
    )


def _doubt(dense: nn.Module, pruned: nn.Module) -> str:
    """Why the second model does not look like what is left of the first."""
    before, after = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (dense, pruned))
    shared = [name for name in after if name in before and len(before[name]) == len(after[name])]
    if not before or not after:
        return ""
    if 2 * len(shared) < len(after):
        return (
            f"The models share {len(shared)} of {len(after)} names of parameters: they do not look like a network and "
            "what was pruned of it."
        )
    wider = [n for n in shared if any(b > a for a, b in zip(before[n], after[n], strict=True))]
    if wider:
        return f"The second model is wider than the first ({wider[0]}): compare takes the dense one first."
    return ""


def speedup_of(
    samples: Sequence[Sequence[float]],
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float, tuple[float, float]]:
    """The ratios of two models' seconds by round, dense over pruned, their median, and its 95 % interval."""
    ratios = np.asarray(samples[0]) / np.asarray(samples[1])
    return ratios, float(np.median(ratios)), bootstrap_interval(ratios)


def bootstrap_interval(ratios: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """A 95 % interval of the median, by the percentile bootstrap (Efron 1979), from fixed random numbers."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def _measured(runner: Runner, count: FlopCount, samples: Sequence[float], busy: str) -> Measured:
    return Measured(
        params=count.params,
        macs=count.macs,
        param_bytes=count.param_bytes,
        peak_bytes=_peak_bytes(runner, count),
        latency=latency_of(runner, samples, busy),
    )


def _peak_bytes(runner: Runner, count: FlopCount) -> int:
    """Bytes in use at the worst moment: the allocator's own number on CUDA, else counted."""
    device = runner.setting.device
    if device.type != "cuda":
        return count.param_bytes + count.peak_activation_bytes
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner.once()
    # The other model's weights are in memory too, and are not this one's.
    inputs = sum(
        t.numel() * t.element_size() for call in runner.calls for t in call.args if isinstance(t, torch.Tensor)
    )
    return torch.cuda.max_memory_allocated(device) - before + count.param_bytes + inputs
