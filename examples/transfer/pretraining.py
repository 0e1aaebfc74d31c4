"""The small ResNet, pretrained once and stored, and what it errs when channels have gone."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import structprune
from structprune.transfer import Task, finetune
from transfer import images
from transfer.network import SmallResNet

EXAMPLE = torch.zeros(1, 1, images.SIDE, images.SIDE)
GRANULARITIES: tuple[Literal["filter", "channel"], ...] = ("filter", "channel")
_BATCH = 64
_TESTED = 500
_SHARES = (0.7, 0.5, 0.3)


class Left(NamedTuple):
    """What is left of a network at a share of its MACs, and what it errs then."""

    macs: float
    granularity: str
    inside_first_block: int
    error: float


class Pretrained(NamedTuple):
    """A network, its error on held-out samples, and what it errs after a cut, before any training."""

    model: SmallResNet
    error: float
    after_the_cut: list[Left]


def pretrained(file: Path, expansion: int, samples: int, steps: int) -> Pretrained:
    """Pretrain a network, or read it from the file that it was stored in.

    Args:
        file: Where it is stored.
        expansion: How much wider than the inside of its blocks the residual stream is.
        samples: See ``images.pretraining``.
        steps: Batches of 64.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # other processes have the other cores
    inputs, labels = images.pretraining(samples)
    torch.manual_seed(0)
    model = SmallResNet(int(labels.max()) + 1, expansion=expansion)
    if not file.exists():
        order = torch.randperm(len(labels)).tolist()
        train, test = (Subset(TensorDataset(inputs, labels), part) for part in (order[_TESTED:], order[:_TESTED]))
        error = _trained(model, Task("pretraining", train, test), steps)
        torch.save({"model": model.state_dict(), "error": error, "left": _after_the_cut(model, train, test)}, file)
    stored = torch.load(file, weights_only=True)
    model.load_state_dict(stored["model"])
    return Pretrained(model, stored["error"], [Left(*left) for left in stored["left"]])


def sgd(parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """With momentum, Nesterov's."""
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay, nesterov=True)


def _trained(model: nn.Module, task: Task, steps: int) -> float:
    batch = EXAMPLE.expand(_BATCH, *EXAMPLE.shape[1:])
    curve = finetune(
        model,
        task,
        budget_flops=1.02 * structprune.count_flops(model, batch, training=True).flops * steps,
        batch_size=_BATCH,
        optimizer=functools.partial(sgd, rate=0.1, decay=1e-3),
        schedule=_one_cycle,
    )
    return curve.final


def _after_the_cut(
    model: nn.Module, train: Dataset[object], test: Dataset[object]
) -> list[tuple[float, str, int, float]]:
    """How well the granularities keep what was learnt: at equal MACs, batch norms estimated anew."""
    found = []
    batches = [inputs for inputs, _ in itertools.islice(DataLoader(train, 256), 20)]
    for share, granularity in itertools.product(_SHARES, GRANULARITIES):
        small = structprune.prune_model(
            model.eval(), granularity=granularity, macs=share, example_inputs=EXAMPLE, round_to=1
        )
        structprune.recalibrate(small, batches)
        with torch.no_grad():
            ((wrong, count),) = [((small.eval()(x).argmax(1) != y).sum(), len(y)) for x, y in DataLoader(test, _TESTED)]
        inside = small.get_submodule("stages.0.conv2").weight.shape[0]
        found.append((share, granularity, inside, float(wrong) / count))
    return found


def _one_cycle(spent: float) -> float:
    """Up over the first tenth, then down to zero along a cosine."""
    return min(1.0, spent / 0.1 + 1e-3) * 0.5 * (1 + math.cos(math.pi * spent))
