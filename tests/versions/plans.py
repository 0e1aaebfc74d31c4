"""The plans of the zoo's networks, as JSON: the same on every version of PyTorch, and before and after a change.

``python -m tests.versions.plans --out build/plans/2.13.0`` in one environment and the same in another;
``python -m tests.versions.plans --compare build/plans/2.13.0 build/plans/2.6.0`` says where they differ.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path


def main() -> int:
    """Write plans, or compare two folders of them; 0 if they are equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions.plans", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the plans of all networks here")
    parser.add_argument("--families", nargs="*", default=["torchvision"], help="of the zoo (default: torchvision)")
    parser.add_argument("--compare", type=Path, nargs=2, help="two folders")
    options = parser.parse_args()
    if options.out:
        write(options.out, options.families)
    return compared(*options.compare) if options.compare else 0


def write(folder: Path, families: Sequence[str]) -> None:
    """A file for every network and granularity; goes on where it was stopped."""
    import torch

    import structprune
    from tests.zoo.families import build, networks

    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for network in networks():
        files = {g: folder / f"{network.key.replace(':', '-')}-{g}.json" for g in ("filter", "channel")}
        if network.family not in families or all(file.exists() for file in files.values()):
            continue
        model, call = build(network)
        for granularity, file in files.items():
            torch.manual_seed(0)
            try:
                plan = structprune.plan_pruning(
                    model, 0.5, granularity, example_inputs=call.example_inputs, allow_untraced=True
                )
                file.write_text(plan.to_json())
            except structprune.StructPruneError as error:
                file.write_text(f"{type(error).__name__}: {error}")
        print(network.key, flush=True)


def compared(one: Path, other: Path) -> int:
    """Say which plans of two folders are not the same to the byte."""
    names = sorted({file.name for folder in (one, other) for file in folder.glob("*.json")})
    different = [
        n for n in names if not all((f / n).exists() for f in (one, other)) or _bytes(one, n) != _bytes(other, n)
    ]
    print(f"{len(names) - len(different)} of {len(names)} plans are the same", *different, sep="\n  ")
    return 1 if different else 0


def _bytes(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


if __name__ == "__main__":
    sys.exit(main())
