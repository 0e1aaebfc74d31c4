"""How often ``compare`` is right: on itself, with a known pause, and on a busy machine. Part of ``make bench``."""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import structprune
from structprune import Comparison, compare, measure_latency
from tests.bench import publish

IMAGES = torch.randn(2, 3, 112, 112)
LOAD = "import torch\na = torch.randn(1500, 1500)\nwhile True: a @ a"


class Sleeps(nn.Module):
    """A model and a pause before it."""

    def __init__(self, model: nn.Module, seconds: float) -> None:
        super().__init__()
        self.model, self.seconds = model, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.model(x)


def main() -> None:
    """Run all and print, or write, the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--identical", type=int, default=100, help="comparisons of a model with a copy of itself")
    parser.add_argument("--paused", type=int, default=20, help="comparisons with a pause, idle and loaded each")
    parser.add_argument("--min-seconds", type=float, default=1.0)
    parser.add_argument("--markdown", type=Path, help="write the section here")
    arguments = parser.parse_args()
    model = network()
    same = [
        say(compare(model, copy.deepcopy(model), IMAGES, min_seconds=arguments.min_seconds))
        for _ in range(arguments.identical)
    ]
    idle = [paused(model, arguments.min_seconds) for _ in range(arguments.paused)]
    with loaded():
        busy = [paused(model, arguments.min_seconds) for _ in range(arguments.paused)]
    text = section(same, idle, busy, arguments.min_seconds, report_seconds())
    print(text)
    publish(text, arguments.markdown)


def network() -> nn.Module:
    """Some 15 milliseconds a forward on two cores."""
    width = 48
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def paused(model: nn.Module, min_seconds: float) -> Comparison:
    """The model with a pause of a fifth of its own time against the model."""
    own = measure_latency(model, IMAGES, min_seconds=min_seconds).median
    return say(compare(Sleeps(model, 0.2 * own), model, IMAGES, min_seconds=min_seconds))


def say(comparison: Comparison) -> Comparison:
    """Show a result as it comes."""
    low, high = comparison.speedup_interval
    print(f"{comparison.speedup:.3f} ({low:.3f} to {high:.3f}) {comparison.busy}", file=sys.stderr, flush=True)
    return comparison


@contextmanager
def loaded() -> Iterator[None]:
    """Another process that multiplies matrices on every core."""
    process = subprocess.Popen([sys.executable, "-c", LOAD])
    try:
        time.sleep(4)
        yield
    finally:
        process.kill()
        process.wait()


def report_seconds() -> tuple[float, float]:
    """Seconds to the first line of ``structprune-report --demo``, and to its end."""
    start = time.perf_counter()
    command = [sys.executable, "-u", "-m", "structprune", "--demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - start
        process.stdout.read()
    return first, time.perf_counter() - start


def holds(comparison: Comparison, value: float) -> bool:
    """Whether the interval holds a number."""
    low, high = comparison.speedup_interval
    return low <= value <= high


def section(
    same: list[Comparison], idle: list[Comparison], busy: list[Comparison], seconds: float, report: tuple[float, float]
) -> str:
    """Part of ``docs/benchmarks.md``."""
    half = statistics.median((c.speedup_interval[1] - c.speedup_interval[0]) / 2 for c in same)
    right = sum(holds(c, 1.2) and not holds(c, 1) for c in idle)
    wrong = sum(not c.busy and (not holds(c, 1.2) or holds(c, 1)) for c in busy)
    noticed = sum(bool(c.busy) for c in busy)
    said = sum(bool(c.busy) for c in same + idle)
    latency = same[0].dense.latency
    return f"""## Whether a comparison can be believed

`compare` on a network of {latency.median * 1e3:.0f} ms a forward, {latency.threads} threads of a {latency.device_name},
`min_seconds={seconds:g}`, PyTorch {torch.__version__.split("+")[0]}, structprune {structprune.__version__}.

| | |
|---|---:|
| a model against a copy of itself, interval holds 1 | {sum(holds(c, 1) for c in same)} of {len(same)} |
| the same, median half-width of the interval | {half:.1%} |
| with a pause of a fifth of its time, interval holds 1.2 and not 1 | {right} of {len(idle)} |
| the same, median speed-up | {statistics.median(c.speedup for c in idle):.3f} |
| idle, called too busy | {said} of {len(same) + len(idle)} |
| with a pause, every core loaded by another process: called too busy | {noticed} of {len(busy)} |
| the same: a wrong claim | {wrong} of {len(busy)} |
| `structprune-report --demo`, first line | {report[0]:.1f} s |
| `structprune-report --demo`, done | {report[1]:.0f} s |
"""


if __name__ == "__main__":
    main()
