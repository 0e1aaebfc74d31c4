"""The plans of torchvision's classification networks, as JSON: the same on every version of PyTorch.

``python -m tests.versions.plans --out build/plans/2.13.0`` in one environment and the same in another;
``python -m tests.versions.plans --compare build/plans/2.13.0 build/plans/2.6.0`` says where they differ.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path


def main() -> int:
    """Write plans, or compare two folders of them; 0 if they are equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions.plans", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the plans of all networks here")
    parser.add_argument("--compare", type=Path, nargs=2, help="two folders")
    options = parser.parse_args()
    if options.out:
        write(options.out)
    return compared(*options.compare) if options.compare else 0


def write(folder: Path) -> None:
    """A file for every network and granularity; goes on where it was stopped."""
    import torch

    import structprune
    from tests.support import vision

    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in vision.models():
        wanted = [g for g in ("filter", "channel") if not (folder / f"{name}-{g}.json").exists()]
        if not wanted:
            continue
        torch.manual_seed(0)
        model = vision.build(name).eval()
        side = 299 if name == "inception_v3" else 224
        for granularity in wanted:
            plan = structprune.plan_pruning(model, 0.5, granularity, example_inputs=torch.zeros(1, 3, side, side))
            (folder / f"{name}-{granularity}.json").write_text(plan.to_json())
        print(name, flush=True)


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
