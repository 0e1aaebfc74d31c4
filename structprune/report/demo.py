"""``make demo``: the built-in ResNet-50, pruned in both granularities, proved and measured."""

from __future__ import annotations

import argparse
import statistics

import torch
from rich.console import Console
from rich.table import Table

import structprune
from structprune.measure.latency import forward_seconds, paired_speedup
from structprune.plan.options import Granularity


def main() -> None:
    """Prune, prove, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m structprune.report.demo", description=__doc__)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of channels to remove (default 0.5)")
    parser.add_argument("--batch-size", type=int, default=4, help="images a forward (default 4)")
    parser.add_argument("--rounds", type=int, default=9, help="timings of each model (default 9)")
    arguments = parser.parse_args()

    console = Console()
    torch.manual_seed(0)
    granularities: tuple[Granularity, Granularity] = ("filter", "channel")
    dense = structprune.demo.resnet50().eval()
    plans, pruned, proofs = [], [], []
    for granularity in granularities:
        with console.status(f"pruning a ResNet-50 at {arguments.ratio} by {granularity}, and proving it"):
            plans.append(structprune.plan_pruning(dense, arguments.ratio, granularity))
            pruned.append(plans[-1].apply(dense))
            proofs.append(structprune.prove(dense, pruned[-1]))
    images = torch.randn(arguments.batch_size, 3, 224, 224)
    with console.status("timing the three in turn"):
        seconds = forward_seconds([dense, *pruned], images, arguments.rounds)

    table = Table(title=f"ResNet-50, ratio {arguments.ratio}", title_justify="left")
    table.add_column("")
    for title in ("dense", *granularities):
        table.add_column(title, justify="right")
    (params, macs) = plans[0].params[0], plans[0].macs[0]
    table.add_row("parameters", f"{params:,}", *(f"{p.params[1]:,}" for p in plans))
    table.add_row("MACs an image", f"{macs / 1e9:.3f} G", *(f"{p.macs[1] / 1e9:.3f} G" for p in plans))
    table.add_row(
        f"seconds a forward, {arguments.batch_size} images", *(f"{statistics.median(own):.3f}" for own in seconds)
    )
    table.add_row("speed-up in theory (MACs)", "1.00", *(f"{macs / p.macs[1]:.2f}" for p in plans))
    table.add_row("speed-up measured", "1.00", *(f"{paired_speedup(seconds[0], own):.2f}" for own in seconds[1:]))
    table.add_row("largest error against masked", "", *(f"{p.max_error:.1e}" for p in proofs))
    table.add_row("proved", "", *("yes" if p.proved else "NO" for p in proofs))
    console.print(table)
    console.print(
        f"Float32 on the CPU with {torch.get_num_threads()} threads; medians of {arguments.rounds} rounds, in turn.\n"
        "The error is relative to the largest output, in float64, with random weights."
    )
    for proof in proofs:
        if not proof.proved:
            raise SystemExit(f"not proved: {proof.reason}")


if __name__ == "__main__":
    main()
