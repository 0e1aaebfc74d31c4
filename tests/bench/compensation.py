"""What compensation does to zero-shot accuracy: ResNets trained on scikit-learn's digits, pruned without fine-tuning.

``make bench`` writes the table. Plain magnitude pruning is compared with compensation from batch-norm statistics
(no data), from 64 training images, with batch norms re-estimated on those, and with channels chosen and weights solved
by them (``calibrate``).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from structprune.demo import Bottleneck
from tests.bench import publish

RATIOS = (0.125, 0.1875, 0.25, 0.375, 0.5)
SEEDS = range(5)
Tensor = torch.Tensor


class DigitsResNet(nn.Module):
    """Four bottlenecks for images of 8 x 8."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        blocks = [Bottleneck(width, width), Bottleneck(4 * width, width), Bottleneck(4 * width, width, 2)]
        self.blocks = nn.Sequential(*blocks, Bottleneck(4 * width, width))
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, then those to test with: a third, chosen once."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    train, test = order[600:], order[:600]
    return images[train], labels[train], images[test], labels[test]


def trained(seed: int, images: Tensor, labels: Tensor, epochs: int = 12) -> DigitsResNet:
    """A ResNet trained with SGD, a one-cycle schedule and shifts by a pixel."""
    torch.manual_seed(seed)
    model = DigitsResNet()
    steps = epochs * (len(labels) // 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64)[: len(labels) // 64]:
            shift = tuple(int(s) for s in torch.randint(-1, 2, (2,)))
            loss = F.cross_entropy(model(images[batch].roll(shift, (2, 3))), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def ways(model: nn.Module, ratio: float, images: Tensor) -> dict[str, nn.Module]:
    """The model pruned in every way that is compared."""

    def pruned(**options: Any) -> nn.Module:
        return structprune.prune_model(model, ratio, example_inputs=images[:1], round_to=1, **options)

    batches = [images[:64]]
    return {
        "plain": pruned(),
        "compensated": pruned(compensate=True),
        "compensated, 64 images": pruned(compensate=batches),
        "recalibrated, 64 images": structprune.recalibrate(pruned(), batches),
        "calibrated, 64 images": pruned(calibrate=batches),
    }


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that are named right."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def error(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    """The distance of the outputs from the dense model's, beside their size."""
    with torch.no_grad():
        wanted = dense(images)
        return float((model(images) - wanted).norm() / wanted.norm())


def measured(seeds: Any, ratios: Any) -> list[dict[str, Any]]:
    """A row for every seed and ratio."""
    images, labels, test_images, test_labels = digits()
    rows = []
    for seed in seeds:
        dense = trained(seed, images, labels)
        for ratio in ratios:
            small = ways(copy.deepcopy(dense), ratio, images)
            row = {"seed": seed, "ratio": ratio, "dense": accuracy(dense, test_images, test_labels)}
            row["accuracy"] = {name: accuracy(m, test_images, test_labels) for name, m in small.items()}
            row["error"] = {name: error(m, dense, test_images) for name, m in small.items()}
            rows.append(row)
            print(seed, ratio, f"{row['dense']:.3f}", {n: f"{a:.3f}" for n, a in row["accuracy"].items()}, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The page's part: means over seeds, and how often compensation was ahead."""
    names = list(rows[0]["accuracy"])
    lines = [
        "## Compensation",
        "",
        f"ResNets on scikit-learn's digits, {len({r['seed'] for r in rows})} seeds, filters removed, no fine-tuning. "
        "Mean accuracy on 600 test images; in parentheses the distance of the outputs from the dense network's.",
        "",
        "| ratio | dense | " + " | ".join(names) + " |",
        "|---:|" + "---:|" * (len(names) + 1),
    ]

    def mean(chosen: list[dict[str, Any]], get: Callable[[dict[str, Any]], float]) -> float:
        return float(np.mean([get(r) for r in chosen]))

    for ratio in sorted({r["ratio"] for r in rows}):
        chosen = [r for r in rows if r["ratio"] == ratio]
        cells = [
            f"{mean(chosen, lambda r, n=n: r['accuracy'][n]):.3f} ({mean(chosen, lambda r, n=n: r['error'][n]):.2f})"  # type: ignore[misc]
            for n in names
        ]
        lines.append(f"| {ratio} | {mean(chosen, lambda r: r['dense']):.3f} | " + " | ".join(cells) + " |")
    gains = [r["accuracy"]["compensated"] - r["accuracy"]["plain"] for r in rows]
    lines += [
        "",
        f"Compensation from batch-norm statistics is ahead of plain magnitude pruning in "
        f"{sum(g > 0 for g in gains)} of {len(gains)} runs; the least gain is {100 * min(gains):.1f} points, the mean "
        f"{100 * float(np.mean(gains)):.1f}.",
        "",
    ]
    ahead = [r["accuracy"]["calibrated, 64 images"] - r["accuracy"]["recalibrated, 64 images"] for r in rows]
    lines += [
        f"Calibration is ahead of recalibration with the same 64 images in {sum(a > 0 for a in ahead)} of {len(ahead)} "
        f"runs, behind it in {sum(a < 0 for a in ahead)}; the least gain is {100 * min(ahead):.1f} points, the mean "
        f"{100 * float(np.mean(ahead)):.1f}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train, prune in every way, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    arguments = parser.parse_args()
    text = table(measured(range(arguments.seeds), arguments.ratios))
    print(text)
    publish(text, arguments.markdown)


if __name__ == "__main__":
    main()
