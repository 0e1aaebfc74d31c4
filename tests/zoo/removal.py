"""Named channels of random layers of torchvision's classification networks: ``python -m tests.zoo.removal``.

Right is a plan that removes what was named and is proved, or an error that says what stays and why.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections import Counter

import torch
from torch import nn

import structprune
from tests.support import vision

LAYERS = 3
TOLERANCE = 1e-9


def main() -> int:
    """Print a line for every network; 0 if all are right."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo.removal", description=__doc__)
    parser.add_argument("--only", nargs="*", help="names of networks (default: all)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    for name in options.only or vision.models():
        found = judged(name)
        total += found
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in found.items())}", flush=True)
    print(f"in all: {', '.join(f'{count} {what}' for what, count in total.items())}")
    return 1 if total["wrong"] else 0


def judged(name: str) -> Counter[str]:
    """What came of random channels of random layers of one network."""
    draw = random.Random(name)
    side = 299 if name == "inception_v3" else 224
    model = vision.build(name).eval()
    inputs = torch.zeros(1, 3, side, side)
    layers = [path for path, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    found: Counter[str] = Counter()
    for path in draw.sample(layers, LAYERS):
        layer = model.get_submodule(path)
        width = layer.weight.shape[0]
        indices = sorted(draw.sample(range(width), draw.randint(1, max(1, width // 4))))
        try:
            plan = structprune.plan_removal(model, {path: indices}, example_inputs=inputs, allow_untraced=True)
        except structprune.OptionError as error:
            found["refused with a reason" if path in str(error) else "wrong"] += 1
            print(f"  {path}: {str(error).splitlines()[-1][:160]}")
            continue
        weight = f"{path}.weight"
        gone = set(range(width)) - set(plan.kept.get(weight, {}).get(0, range(width)))
        exact = gone == set(indices) and not any(note.startswith("with them") for note in plan.notes)
        proof = structprune.prove(model, plan.apply(model, verify=False), inputs)
        # So few channels of so many may show too little to be called a proof.
        right = set(indices) <= gone and (proof or proof.max_error <= TOLERANCE)
        found[("exactly" if exact else "with others") if right else "wrong"] += 1
        if not right:
            print(f"  {path} {indices}: wrong")
    return found


if __name__ == "__main__":
    sys.exit(main())
