"""What a cut really gives on an accelerator, beside what its MACs promise.

Run by hand where there is one::

    python -m tests.bench.accelerator --json docs/figures/accelerator.json

Three networks with random weights, a ratio of 0.5 in both granularities, in half precision. Eager mode and a
captured graph stand side by side, since the difference is what launching kernels costs. ``make bench`` makes the page's
part of the stored results, as not every machine has such a device.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

import torch

import structprune
from structprune.compat import accelerator
from tests.bench import publish
from tests.support import vision

STORED = Path(__file__).parents[2] / "docs" / "figures" / "accelerator.json"
NETWORKS = {"resnet50": (1, 256), "convnext_tiny": (256,), "vit_b_16": (256,)}
EXAMPLE = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def main() -> None:
    """Measure and store, or write the page's part of what is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--min-seconds", type=float, default=1.5)
    parser.add_argument("--json", type=Path, help="measure, and store the results here")
    parser.add_argument("--markdown", type=Path, help="write the section on the stored results here")
    arguments = parser.parse_args()
    if arguments.json is None:
        text = section(json.loads(STORED.read_text()))
        print(text)
        publish(text, arguments.markdown)
        return
    if accelerator() is None:
        raise SystemExit("PyTorch finds no accelerator here.")
    torch.manual_seed(0)
    rows = []
    for name in arguments.networks:
        for batch in NETWORKS[name]:
            rows += measured(name, batch, arguments.min_seconds)
            # As they come: a run that is stopped has stored what it measured.
            stored = {"torch": torch.__version__, "rows": rows}
            publish(json.dumps(stored, indent=1), arguments.json)
    print(section(stored))


def measured(name: str, batch: int, min_seconds: float) -> list[dict[str, Any]]:
    """One network with one batch: both cuts, eager and captured."""
    model = getattr(vision.torchvision().models, name)().eval()
    found = []
    granularities: tuple[Literal["filter", "channel"], ...] = ("filter", "channel")
    for granularity in granularities:
        small = structprune.prune_model(model, 0.5, granularity, example_inputs=EXAMPLE)
        for captured in (False, True):
            comparison = structprune.compare(
                model,
                small,
                EXAMPLE,
                dtype=torch.bfloat16,
                batch_size=batch,
                channels_last=name != "vit_b_16",
                cuda_graph=captured,
                min_seconds=min_seconds,
            )
            print(f"{name}, batch of {batch}, {granularity}, graph {captured}: {comparison.verdict}", flush=True)
            found.append(
                {
                    "network": name, "batch": batch, "granularity": granularity, "captured": captured,
                    "device": comparison.dense.latency.device_name,
                    "dense_ms": 1e3 * comparison.dense.latency.median, "promised": comparison.theoretical_speedup,
                    "speedup": comparison.speedup, "interval": comparison.speedup_interval, "busy": comparison.busy,
                    "params": comparison.pruned.params / comparison.dense.params,
                }
            )  # fmt: skip
    return found


def section(stored: dict[str, Any]) -> str:
    """The page's part."""
    lines = [
        "## On an accelerator",
        "",
        f"`compare` on one {stored['rows'][0]['device']}, PyTorch {stored['torch']}, bfloat16, a ratio of 0.5, from "
        "`tests/bench/accelerator.py`. *Captured* is a CUDA graph: no time goes into launching kernels.",
        "",
        "| network | batch | granularity | dense, ms | MACs promise | eager | captured |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    pairs: dict[tuple[str, int, str], dict[bool, dict[str, Any]]] = {}
    for row in stored["rows"]:
        pairs.setdefault((row["network"], row["batch"], row["granularity"]), {})[row["captured"]] = row
    for (name, batch, granularity), by_mode in pairs.items():
        eager = by_mode[False]
        gains = " | ".join(_gain(by_mode[mode]) for mode in (False, True))
        lines.append(
            f"| {name} | {batch} | {granularity} | {eager['dense_ms']:.2f} | {eager['promised']:.2f} | {gains} |"
        )
    lines += ["", "Intervals are those of one comparison; another run of the same may lie outside of them."]
    for name in dict.fromkeys(name for name, *_ in pairs):
        own = [by_mode[False] for (network, *_), by_mode in pairs.items() if network == name]
        if len(own) == 2 and own[0]["params"] == own[1]["params"]:
            lines.append(
                f"Both granularities leave the same {name}, whose residual stream is its representation: its two rows "
                "are two measurements of one network."
            )
    lines.append("[Measuring](measuring.md) says how `compare` finds out on your device why it is less than the MACs.")
    return "\n".join(lines) + "\n"


def _gain(row: dict[str, Any]) -> str:
    if row["busy"]:
        return "too busy to tell"
    low, high = row["interval"]
    return f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
