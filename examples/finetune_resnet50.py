"""Prune a ResNet-50 by half, prove the cut, and fine-tune it for a few steps.

Run it from the repository root::

    python examples/finetune_resnet50.py --steps 3 --image-size 64

The images and labels are random numbers that stand in for yours, so the loss means nothing. What the script shows is
the order of things: plan, apply, prove, then make the optimizer and train. Weights are random too unless you give a
``--checkpoint``: a state dict with torchvision's parameter names.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import structprune


def main() -> None:
    """Prune, prove, fine-tune."""
    options = read_options()
    torch.manual_seed(0)
    dense = resnet50(options.checkpoint)
    image = torch.zeros(1, 3, options.image_size, options.image_size)

    plan = structprune.plan_pruning(dense, options.ratio, options.granularity, example_inputs=image)
    print(f"parameters {plan.params[0]:,} -> {plan.params[1]:,}")
    print(f"MACs       {plan.macs[0]:,} -> {plan.macs[1]:,} at {options.image_size} x {options.image_size}")

    pruned = plan.apply(dense)
    print(structprune.prove(dense, pruned, image))

    fine_tune(pruned, random_batches(options.steps, options.image_size))


def resnet50(checkpoint: Path | None) -> nn.Module:
    """Torchvision's ResNet-50, or the built-in one, which has the same parameter names."""
    try:
        from torchvision.models import resnet50 as build
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
        build = structprune.demo.resnet50
    model: nn.Module = build()
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return model


def random_batches(steps: int, image_size: int, batch_size: int = 4) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images ``(n, 3, h, w)`` and labels ``(n,)``: put your data loader here."""
    for _ in range(steps):
        yield torch.randn(batch_size, 3, image_size, image_size), torch.randint(1000, (batch_size,))


def fine_tune(model: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Plain SGD. The optimizer is made after pruning: it keeps state in the parameters' shapes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step, (images, labels) in enumerate(batches, start=1):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f} (random data)")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="SGD steps (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="side of the square images (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of filters to remove (default: %(default)s)")
    parser.add_argument("--granularity", choices=("filter", "channel"), default="filter", help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, help="state dict with torchvision's parameter names")
    return parser.parse_args()


if __name__ == "__main__":
    main()
