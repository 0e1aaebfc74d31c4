"""Seconds for plan and cut, against torch-pruning doing the same cut in the same run: ``make bench``.

Both get a ResNet-style example input, remove half of the channels of everything that may go, and
run in turn on one thread. The dense copy that torch-pruning cuts in place is made outside the
clock; ours includes the copy that it returns.
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import structprune
from structprune.verify.verification import MOST_MACS
from tests.bench import publish
from tests.support import vision

NETWORKS = (
    "resnet18 resnet50 resnet152 densenet121 densenet201 efficientnet_b0 efficientnet_b4 regnet_y_3_2gf "
    "convnext_tiny resnext50_32x4d"
).split()
EXAMPLE = torch.zeros(1, 3, 224, 224)


def main() -> None:
    """Time every network, measure the memory of one, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(*memory(arguments.memory_of))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "| network | structprune, s | torch-pruning, s | ratio | verification, s | GMACs of both forwards |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    ratios, checks = [], []
    for name in arguments.models:
        ours, theirs, checked, macs = compare(name, arguments.rounds)
        ratios.append(statistics.median(o / t for o, t in zip(ours, theirs, strict=True)))
        checks.append(statistics.median(checked))
        took = f"{checks[-1]:.3f}" if macs <= MOST_MACS else "too costly"
        row = (
            f"| {name} | {statistics.median(ours):.3f} | {statistics.median(theirs):.3f} | {ratios[-1]:.2f} "
            f"| {took} | {macs / 1e9:.1f} |"
        )
        lines.append(row)
        print(row, flush=True)
    lines.append(f"| **median** | | | **{statistics.median(ratios):.2f}** | {statistics.median(checks):.3f} | |")
    print(lines[-1])
    grown, cut = in_process("vgg16")
    print(f"memory: vgg16 plan and cut grew the process by {grown:.0f} MB; the pruned copy has {cut:.0f} MB")
    publish(page(lines, arguments.rounds, grown, cut), arguments.markdown)


def compare(name: str, rounds: int) -> tuple[list[float], list[float], list[float], int]:
    """Seconds of both, in turn, the slow ones fewer times; those that ``verify="auto"`` adds, and the MACs it costs."""
    import torch_pruning

    model = vision.build(name).eval()
    plan = structprune.plan_pruning(
        model, 0.5, "channel", example_inputs=EXAMPLE, round_to=1, keep_representation=False
    )

    def ours() -> None:
        structprune.prune_model(
            model, 0.5, "channel", example_inputs=EXAMPLE, round_to=1, keep_representation=False, verify=False
        )

    def theirs(target: nn.Module) -> None:
        head = [m for m in target.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and 1000 in m.weight.shape[:1]]
        pruner = torch_pruning.pruner.MagnitudePruner(
            target, EXAMPLE, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=head,
        )  # fmt: skip
        pruner.step()

    seconds: tuple[list[float], list[float]] = ([], [])
    checked: list[float] = []
    ours()
    for _ in range(rounds):
        seconds[0].append(clock(ours))
        target = copy.deepcopy(model)
        seconds[1].append(clock(lambda target=target: theirs(target)))  # type: ignore[misc]
        cut = clock(lambda: plan.apply(model, verify=False))
        checked.append(clock(lambda: plan.apply(model)) - cut)
        if seconds[1][-1] > 10:
            break
    return *seconds, checked, sum(plan.macs)


def clock(function: Callable[[], object]) -> float:
    """Seconds of one call, after a garbage collection."""
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def memory(name: str) -> tuple[float, float]:
    """By how many megabytes the process grew at its peak, and what the pruned copy takes."""
    structprune.prune_model(vision.build("resnet18"), 0.5, example_inputs=EXAMPLE)  # what is loaded once
    model = vision.build(name)
    before = peak_kilobytes()
    small = structprune.prune_model(model, 0.5, "channel", example_inputs=EXAMPLE)
    grown = peak_kilobytes() - before
    return grown / 1024, sum(p.numel() * p.element_size() for p in small.parameters()) / 2**20


def peak_kilobytes() -> int:
    """The process's largest resident set so far. Linux's getrusage would count the parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_process(name: str) -> tuple[float, float]:
    """Memory in a process of its own: a peak never falls."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.planning", "--memory-of", name]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(out[-2]), float(out[-1])


def page(table: list[str], rounds: int, grown: float, cut: float) -> str:
    """The first part of ``docs/benchmarks.md``."""
    newline = "\n"
    return f"""# Benchmarks

Generated by `make bench`; no number here is typed by hand.

## Plan and cut

Half of the channels of everything that may go, in one run, in turn, on one thread of a
{platform.machine()} CPU: structprune {structprune.__version__} and torch-pruning {version("torch-pruning")}, with
PyTorch {torch.__version__.split("+")[0]}. Medians of up to {rounds} rounds; the ratio is the median of the paired
ratios, and below 1 structprune is faster. structprune traces in evaluation and in training mode, runs the identity
trial, and returns a copy, with `verify=False`; torch-pruning traces once and cuts in place. "Verification" is what the
default, `verify="auto"`, adds: a run of the dense network, masked, and one of the cut. Above
{MOST_MACS / 1e9:.0f} GMACs for both it is left out, with a note in the plan.

{newline.join(table)}

## Memory

Planning and cutting a VGG-16 at 0.5 grew the process by {grown:.0f} MB at its peak; the pruned copy it returned has
{cut:.0f} MB of parameters, the dense model 528 MB.

## Network by network

Which networks of torchvision, timm and transformers each of the two prunes right, in one run with one process a
network: [the zoo](zoo.md).

"""


if __name__ == "__main__":
    main()
