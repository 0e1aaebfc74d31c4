"""Prune a network of your own: a residual addition, a concatenation, and a bare parameter.

Run it from the repository root::

    python examples/prune_your_own.py

No layer of this network needs to be registered or described: structprune follows the tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import structprune


class TwoBranches(nn.Module):
    """Two branches, joined by a concatenation and mixed by a bare parameter, on a residual stream."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        """Make the layers of a stream of ``width`` channels."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.near = nn.Conv2d(width, 16, 1)
        self.wide = nn.Conv2d(width, 24, 3, padding=1)
        self.mix = nn.Parameter(0.1 * torch.randn(width, 16 + 24, 1, 1))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, h, w)`` to logits ``(n, classes)``."""
        stream = self.stem(x)
        both = F.relu(torch.cat([self.near(stream), self.wide(stream)], dim=1))
        stream = stream + F.conv2d(both, self.mix)
        return self.head(stream.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def main() -> None:
    """Plan, explain, prune, prove, train a step."""
    torch.manual_seed(0)
    dense = TwoBranches()
    images = torch.randn(4, 3, 32, 32)

    print("What the filters of `wide` are coupled to:")
    print(structprune.trace(dense, images).explain("wide.weight"), end="\n\n")

    plan = structprune.plan_pruning(dense, 0.5, example_inputs=images)
    print(plan, end="\n\n")

    pruned = plan.apply(dense)
    print(structprune.prove(dense, pruned, images))
    print(f"mix {list(dense.mix.shape)} -> {list(pruned.get_parameter('mix').shape)}")

    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    loss = F.cross_entropy(pruned(images), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    optimizer.step()
    print(f"one training step on random images: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
