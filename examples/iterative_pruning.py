"""Prune a network in steps while it trains: a little goes, training goes on, a little more goes.

Run it from the repository root; it needs scikit-learn for its digits::

    python examples/iterative_pruning.py

The optimizer stays the same one throughout: its momentum is cut along with the weights. At the end the network is
compared with one that was cut at once to the same size and trained as long.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import structprune
from structprune.demo import Bottleneck


def network() -> nn.Module:
    """Bottlenecks for images of 8 x 8."""
    stem = [nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    blocks = [Bottleneck(32, 32), Bottleneck(128, 32), Bottleneck(128, 32, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels, to train on and to test with."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order[400:]], labels[order[400:]], images[order[:400]], labels[order[:400]]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One pass over the data."""
    model.train()
    for batch in torch.randperm(len(labels)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that are named right."""
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Train, then prune in steps, then at once, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="how many times something is cut")
    parser.add_argument("--ratio", type=float, default=0.3, help="the share that goes each time, of what is there")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the data before, and after every cut")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()

    dense = network()
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(arguments.epochs):
        train(dense, optimizer, images, labels)
    print(f"dense: {accuracy(dense, test_images, test_labels):.3f}")

    model = copy.deepcopy(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for step in range(arguments.steps):
        structprune.prune_model(
            model, arguments.ratio, example_inputs=images[:1], round_to=1, inplace=True, optimizer=optimizer
        )
        before = accuracy(model, test_images, test_labels)
        for _ in range(arguments.epochs):
            train(model, optimizer, images, labels)
        after = accuracy(model, test_images, test_labels)
        print(f"cut {step + 1}: {before:.3f} before training, {after:.3f} after")
    plan = structprune.plan_of(model)
    print(f"parameters {plan.params[0]:,} -> {plan.params[1]:,} in {len(plan.settings['steps'])} steps")

    at_once = structprune.prune_model(
        dense, params=plan.params[1] / plan.params[0], example_inputs=images[:1], round_to=1
    )
    optimizer = torch.optim.SGD(at_once.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(arguments.epochs * arguments.steps):
        train(at_once, optimizer, images, labels)
    print(f"in steps: {accuracy(model, test_images, test_labels):.3f}")
    print(f"at once:  {accuracy(at_once, test_images, test_labels):.3f}")


if __name__ == "__main__":
    main()
