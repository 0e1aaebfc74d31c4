"""Which pruning ratio for which compute budget: a pretrained network on a stream of tasks.

Work in progress: it runs and stores its results, but no evidence has been gathered with it yet::

    python -m tests.bench.transfer --quick
    python -m tests.bench.transfer             # more samples, larger budgets

A small ResNet of bottlenecks is pretrained on half of the digits that ship with scikit-learn and on images that this
script draws. It is then pruned without data, dense and at three ratios in both granularities, and fine-tuned on tasks
near to and far from what it has seen, each with the same budget of FLOPs. Every network has its learning
rate chosen on two tasks that are not in the stream, from the same list. All results are stored as they
come: a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import structprune
from structprune.demo import Bottleneck
from structprune.transfer import Frontier, Task, finetune, sweep

SIDE = 16
RATIOS = (0.0, 0.25, 0.5, 0.75)
GRANULARITIES = ("filter", "channel")
RATES = (0.02, 0.06, 0.2)
Tensor = torch.Tensor


class SmallResNet(nn.Module):
    """Three stages of bottlenecks for images of 16 x 16 in one channel."""

    def __init__(self, classes: int = 10, width: int = 16, blocks: int = 2) -> None:
        """Make the layers; the last stage has ``16 * width`` channels."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inputs = 2 * width
        for stage in range(3):
            for block in range(blocks):
                stages.append(Bottleneck(inputs, width * 2**stage, 2 if stage and not block else 1))
                inputs = 4 * width * 2**stage
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, 1, 16, 16)`` to logits."""
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits, enlarged to 16 x 16, in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return F.interpolate(images, SIDE, mode="bilinear", align_corners=False), torch.tensor(data.target)


def grid(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Coordinates in [-1, 1] of every pixel, shifted at random: ``(count, 16, 16)`` each."""
    line = torch.linspace(-1, 1, SIDE)
    shift = (torch.rand(2, count, 1, 1, generator=generator) - 0.5) * 0.6
    return line[None, :, None] + shift[0], line[None, None, :] + shift[1]


def shapes(kinds: tuple[str, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Drawn shapes of random place, size and brightness, with noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = grid(generator, count)
    size = 0.45 + 0.35 * torch.rand(count, 1, 1, generator=generator)
    distance, square = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs())
    thin = 0.18
    drawn = {
        "disc": distance < size,
        "ring": (distance - size).abs() < thin,
        "square": square < 0.8 * size,
        "frame": (square - size).abs() < thin,
        "plus": (torch.minimum(x.abs(), y.abs()) < thin) & (square < size),
        "cross": (torch.minimum((x - y).abs(), (x + y).abs()) < 1.4 * thin) & (square < size),
        "triangle": (y > -size) & (y < 2 * x.abs().neg() + size),
        "bar": (y.abs() < thin) & (x.abs() < size),
        "half": (distance < size) & (y > 0),
        "corner": ((x + size).abs() < thin) & (y.abs() < size) | ((y - size).abs() < thin) & (x.abs() < size),
    }
    labels = torch.randint(len(kinds), (count,), generator=generator)
    images = torch.stack([drawn[kind].float() for kind in kinds])[labels, torch.arange(count)]
    images = images * (0.5 + 0.5 * torch.rand(count, 1, 1, generator=generator))
    return (images + 0.15 * torch.randn(images.shape, generator=generator))[:, None].clamp(0, 1), labels


def textures(kinds: tuple[tuple[float, float], ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gratings of an angle and a frequency for each class, of random phase and contrast, with noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = grid(generator, count)
    labels = torch.randint(len(kinds), (count,), generator=generator)
    angles, frequencies = torch.tensor(kinds)[labels].unbind(1)
    angles = angles + 0.12 * torch.randn(count, generator=generator)
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    wave = torch.cos(angles)[:, None, None] * x + torch.sin(angles)[:, None, None] * y
    images = 0.5 + 0.4 * torch.sin(frequencies[:, None, None] * wave + phase)
    return (images + 0.25 * torch.randn(images.shape, generator=generator))[:, None].clamp(0, 1), labels


SEEN_SHAPES = ("disc", "ring", "square", "plus", "triangle")
NEW_SHAPES = ("frame", "cross", "bar", "half", "corner")
SEEN_TEXTURES = ((0.0, 6.0), (0.8, 6.0), (1.6, 6.0), (2.4, 6.0))
NEW_TEXTURES = ((0.4, 9.0), (1.2, 9.0), (2.0, 9.0), (2.8, 9.0), (0.4, 13.0), (2.0, 13.0))


def pretraining(samples: int) -> TensorDataset:
    """Digits 0 to 4, five shapes and four textures: fourteen classes."""
    images, labels = digits()
    seen = labels < 5
    shape_images, shape_labels = shapes(SEEN_SHAPES, samples, seed=1)
    texture_images, texture_labels = textures(SEEN_TEXTURES, samples, seed=2)
    return TensorDataset(
        torch.cat([images[seen], shape_images, texture_images]) * 2 - 1,
        torch.cat([labels[seen], shape_labels + 5, texture_labels + 10]),
    )


def split(name: str, images: Tensor, labels: Tensor, train: int, seed: int = 0) -> Task:
    """A task of labels from 0 on, ``train`` samples to train on, at most 400 others to test with."""
    classes, labels = labels.unique(return_inverse=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images = images * 2 - 1
    parts: list[Dataset[Any]] = [
        TensorDataset(images[chosen], labels[chosen]) for chosen in (order[:train], order[train : train + 400])
    ]
    return Task(name, parts[0], parts[1], len(classes))


def stream(train: int) -> tuple[list[Task], list[str]]:
    """The tasks, from near to far, and the names of the near ones."""
    images, labels = digits()
    unseen = labels >= 5
    generator = torch.Generator().manual_seed(5)
    occluded = images.clone()
    for image, (top, left) in zip(
        occluded, torch.randint(0, SIDE - 6, (len(images), 2), generator=generator), strict=True
    ):
        image[:, top : top + 6, left : left + 6] = 0
    coarse = F.interpolate(F.avg_pool2d(images, 4), SIDE, mode="nearest")
    tasks = [
        split("unseen digits", images[unseen], labels[unseen], min(train, 480)),
        split("all digits", images, labels, train),
        split("rotated digits", images.rot90(1, (2, 3)), labels, train),
        split("occluded digits", occluded, labels, train),
        split("inverted digits", 1 - images, labels, train),
        split("coarse digits", coarse, labels, train),
        split("new shapes", *shapes(NEW_SHAPES, train + 400, seed=11), train),
        split("new textures", *textures(NEW_TEXTURES, train + 400, seed=12), train),
    ]
    return tasks, [task.name for task in tasks[:4]]


def development(train: int) -> list[Task]:
    """Tasks to choose learning rates on: none of them is in the stream."""
    images, labels = digits()
    return [
        split("mirrored digits", images.flip(3), labels, train, seed=3),
        split("both shapes", *shapes(SEEN_SHAPES[:3] + NEW_SHAPES[:3], train + 400, seed=13), train),
    ]


def sgd(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The optimizer of all runs."""
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4, nesterov=True)


def pretrained(folder: Path, samples: int, budget: float) -> SmallResNet:
    """The small ResNet, pretrained once and stored."""
    torch.manual_seed(0)
    model, file = SmallResNet(14), folder / "pretrained.pt"
    if not file.exists():
        data = pretraining(samples)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        train, test = (torch.utils.data.Subset(data, part) for part in (order[300:], order[:300]))
        curve = finetune(
            model,
            Task("pretraining", train, test),
            budget_flops=budget,
            optimizer=functools.partial(sgd, rate=0.1),
            schedule=one_cycle,
            progress=True,
        )
        print(f"pretrained: error {curve.final:.3f} on held-out samples of 14 classes")
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


def one_cycle(spent: float) -> float:
    """Up over the first tenth, then down to zero along a cosine."""
    return min(1.0, spent / 0.1 + 1e-3) * 0.5 * (1 + float(np.cos(np.pi * spent)))


def run(
    model: nn.Module, tasks: list[Task], rates: dict[str, float], seeds: range, store: Path, options: Any
) -> Frontier:
    """Every network with its own learning rate, on every task and seed."""
    curves, failures = [], []
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(options.jobs or threads, get_context("spawn")) as executor:
        for cut, rate in rates.items():
            granularity, ratio = cut.split()
            part = sweep(
                model,
                tasks,
                [float(ratio)],
                [granularity],
                seeds,
                budget_flops=options.budget,
                executor=executor,
                store=store / f"rate {rate:g}",
                example_inputs=options.example,
                pruning={"round_to": 1, "compensate": options.compensate},
                optimizer=functools.partial(sgd, rate=rate),
                batch_size=options.batch_size,
                evaluate_at=[options.budget * 2.0**-k for k in np.arange(0, 7.1, 0.5)],
                **({"device": options.device} if options.device else {}),
            )
            curves += part.curves
            failures += part.failures
    return Frontier(curves, failures)


def chosen_rates(model: nn.Module, tasks: list[Task], store: Path, options: Any) -> dict[str, float]:
    """For every network the rate of the least area under its curve on the development tasks."""
    cuts = ["dense 0"] + [f"{g} {r:g}" for g in GRANULARITIES for r in RATIOS if r]
    frontiers = {
        rate: run(model, tasks, dict.fromkeys(cuts, rate), range(1), store / "development", options) for rate in RATES
    }
    rates = {}
    for cut in cuts:
        granularity, ratio = cut.split()
        areas = {rate: frontier.area((float(ratio), granularity)) for rate, frontier in frontiers.items()}
        rates[cut] = min(areas, key=areas.__getitem__)
        print(f"{cut:12} rate {rates[cut]:g}  ({', '.join(f'{r:g}: {a:.3f}' for r, a in areas.items())})", flush=True)
    return rates


def main() -> None:
    """Pretrain, choose rates, run the stream, store the frontier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/transfer"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=0, help="processes at a time; default: as many as cores")
    parser.add_argument("--device", default="")
    parser.add_argument("--train", type=int, help="training samples of a task")
    parser.add_argument("--budget", type=float, help="FLOPs of a run")
    options = parser.parse_args()
    options.batch_size, options.compensate = 32, True
    store = options.out / ("quick" if options.quick else "full")
    store.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()

    train = options.train or (600 if options.quick else 1200)
    options.example = torch.zeros(1, 1, SIDE, SIDE)
    dense_step = 3 * structprune.count_flops(SmallResNet(), options.example).flops * options.batch_size
    options.budget = options.budget or dense_step * (128 if options.quick else 512)
    model: nn.Module = pretrained(store, 1500 if options.quick else 4000, dense_step * (400 if options.quick else 2000))
    tasks, near = stream(train)
    rates = chosen_rates(model, development(train), store, options)
    frontier = run(model, tasks, rates, range(options.seeds), store / "stream", options)
    document = {
        "frontier": json.loads(frontier.to_json()),
        "rates": rates,
        "near": near,
        "settings": {
            "quick": options.quick, "train": train, "seeds": options.seeds, "budget": options.budget,
            "dense_step": dense_step, "batch_size": options.batch_size, "rates": RATES,
            "seconds": round(time.perf_counter() - start),
        },
    }  # fmt: skip
    (store / "results.json").write_text(json.dumps(document))
    print(frontier)
    mean, (low, high) = frontier.improvement("filter")
    print(f"low compute: the best pruned network errs {mean:.1%} less than the dense one ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
