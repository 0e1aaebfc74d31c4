"""How near plans come to a target, and how long the search takes: ``make bench``.

Every target is asked of a plan with granularity ``"channel"`` and ``keep_representation=False``, so that all of them
can be reached; what is left is counted on the cut network, not read off the plan. The speed-up is measured again after
the search, from nothing, by ``compare``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import structprune
from tests.bench import publish
from tests.support import vision

NETWORKS = "resnet50 mobilenet_v2 efficientnet_b0 convnext_tiny regnet_y_400mf".split()
SHARES = (0.3, 0.5, 0.7)
EXAMPLE = torch.zeros(1, 3, 224, 224)


def met(name: str, quantity: str, share: float, round_to: Any) -> tuple[float, float]:
    """The share that is left, and the seconds of the search."""
    model = getattr(vision.torchvision().models, name)().eval()
    options: dict[str, Any] = {quantity: share, "round_to": round_to, "keep_representation": False}
    start = time.perf_counter()
    plan = structprune.plan_pruning(model, granularity="channel", example_inputs=EXAMPLE, **options)
    seconds = time.perf_counter() - start
    before, after = (structprune.count_flops(m, EXAMPLE) for m in (model, plan.apply(model)))
    return getattr(after, quantity) / getattr(before, quantity), seconds


def table(networks: list[str]) -> str:
    """The page's part on counted targets."""
    lines = [
        "## Budgets",
        "",
        "What is left at targets of 0.3, 0.5 and 0.7, in percent of the dense network, and the longest of the three "
        "searches, one thread.",
        "",
        '| network | target | `round_to=1` | s | `round_to="auto"` | s |',
        "|---|---|---:|---:|---:|---:|",
    ]
    worst: dict[Any, float] = {1: 0.0, "auto": 0.0}
    for name in networks:
        for quantity in ("macs", "params"):
            cells = []
            for round_to in (1, "auto"):
                found = [met(name, quantity, share, round_to) for share in SHARES]
                off = max((share - left) / share for share, (left, _) in zip(SHARES, found, strict=True))
                assert all(left <= share for share, (left, _) in zip(SHARES, found, strict=True))
                worst[round_to] = max(worst[round_to], off)
                cells += [", ".join(f"{100 * left:.1f}" for left, _ in found), f"{max(s for _, s in found):.1f}"]
            lines.append(f"| {name} | {quantity} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    lines += [
        "",
        f"All on the safe side. Farthest from the target, in percent of it: {100 * worst[1]:.1f} with `round_to=1`, "
        f'{100 * worst["auto"]:.1f} with `"auto"`.',
        "",
    ]
    return "\n".join(lines)


def faster(speedup: float, threads: int) -> str:
    """The page's part on a measured target."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, images = structprune.demo.resnet50().eval(), torch.randn(4, 3, 224, 224)
    start = time.perf_counter()
    small = structprune.prune_model(model, speedup=speedup, example_inputs=images, measure={"device": "cpu"})
    seconds = time.perf_counter() - start
    comparison = structprune.compare(model, small, images, device="cpu", min_seconds=10)
    low, high = comparison.speedup_interval
    text = (
        f"`speedup={speedup}` on the built-in ResNet-50, CPU, {threads} thread{'s' * (threads > 1)}, batch of 4: the "
        f"search took {seconds:.0f} s; measured again afterwards, it is {comparison.speedup:.2f} times as fast "
        f"(95 % interval {low:.2f} to {high:.2f}), where its MACs promise {comparison.theoretical_speedup:.2f}."
    )
    return f"{text} The machine was busy: {comparison.busy}." if comparison.busy else text


def main() -> None:
    """Search, count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=NETWORKS)
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = table(arguments.models) if arguments.models else ""
    text += "\n" + faster(arguments.speedup, threads) + "\n"
    print(text)
    publish(text, arguments.markdown)


if __name__ == "__main__":
    main()
