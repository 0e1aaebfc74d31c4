"""Prune a ResNet-50 until it is half again as fast on this machine, and measure what came of it.

Run it from the repository root, and leave the machine alone meanwhile::

    python examples/latency_target.py
    python examples/latency_target.py --speedup 2 --device cuda --batch-size 32

Every step of the search is printed: the ratio, and how fast the network that it leaves is.
"""

from __future__ import annotations

import argparse
import logging

import torch

import structprune


def main() -> None:
    """Search, prune, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--granularity", choices=["filter", "channel"], default="filter")
    parser.add_argument("--min-seconds", type=float, default=3.0, help="time for each measurement")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    dense = structprune.demo.resnet50().eval()
    images = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    measure: structprune.LatencyOptions = {"device": arguments.device, "min_seconds": arguments.min_seconds}
    pruned = structprune.prune_model(
        dense, granularity=arguments.granularity, speedup=arguments.speedup, example_inputs=images, measure=measure
    )
    print(structprune.plan_of(pruned).notes[0], end="\n\n")
    # Once more, from nothing: the search has picked a plan by its timings, and a pick is a little lucky.
    print(structprune.compare(dense, pruned, images, **measure))


if __name__ == "__main__":
    main()
