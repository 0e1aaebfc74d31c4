"""``make demo``: the built-in ResNet-50, pruned in both granularities, proved and measured."""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

import structprune
from structprune.select.options import Granularity


def main() -> None:
    """Prune, prove, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m structprune.report.demo", description=__doc__)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of channels to remove (default 0.5)")
    parser.add_argument("--batch-size", type=int, default=4, help="images a forward (default 4)")
    parser.add_argument("--min-seconds", type=float, default=4, help="seconds that each is timed (default 4)")
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
    with console.status("timing each against the dense network, in turn"):
        compared = [structprune.compare(dense, p, images, min_seconds=arguments.min_seconds) for p in pruned]

    table = Table(title=f"ResNet-50, ratio {arguments.ratio}", title_justify="left")
    table.add_column("")
    for title in ("dense", *granularities):
        table.add_column(title, justify="right")
    (params, macs) = plans[0].params[0], plans[0].macs[0]
    table.add_row("parameters", f"{params:,}", *(f"{p.params[1]:,}" for p in plans))
    table.add_row("MACs an image", f"{macs / 1e9:.3f} G", *(f"{p.macs[1] / 1e9:.3f} G" for p in plans))
    latencies = [compared[0].dense.latency, *(c.pruned.latency for c in compared)]
    table.add_row(
        f"seconds a forward, {arguments.batch_size} images", *(f"{latency.median:.3f}" for latency in latencies)
    )
    table.add_row("speed-up in theory (MACs)", "1.00", *(f"{c.theoretical_speedup:.2f}" for c in compared))
    table.add_row("speed-up measured", "1.00", *(f"{c.speedup:.2f}" for c in compared))
    table.add_row(
        "its 95 % interval", "", *(f"{low:.2f} to {high:.2f}" for low, high in (c.speedup_interval for c in compared))
    )
    table.add_row("largest error against masked", "", *(f"{p.max_error:.1e}" for p in proofs))
    table.add_row("proved", "", *("yes" if p.proved else "NO" for p in proofs))
    console.print(table)
    console.print(
        f"On {latencies[0].circumstances}; medians, each against the dense network in turn.\n"
        "The error is relative to the largest output, in float64, with random weights."
    )
    for granularity, comparison in zip(granularities, compared, strict=True):
        console.print(f"{granularity}: {comparison.verdict}")
        for cause in comparison.causes:
            console.print(f"- {cause}")
    for proof in proofs:
        if not proof.proved:
            raise SystemExit(f"not proved: {proof.reason}")


if __name__ == "__main__":
    main()
