"""The small ResNet, pretrained once and stored, and what it errs when channels have gone."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import structprune
from structprune.transfer import Task, finetune
from transfer import images
from transfer.network import SmallResNet

EXAMPLE = torch.zeros(1, 1, images.SIDE, images.SIDE)
_BATCH = 64
_TESTED = 500


class Left(NamedTuple):
    """What is left of a network at a share of its MACs, and what it errs then."""

    macs: float
    granularity: str
    inside_first_block: int
    error: float


def pretrained(file: Path, expansion: int, samples: int, steps: int) -> tuple[SmallResNet, Task, float]:
    """Pretrain a network, or read it from the file that it was stored in.

    Args:
        file: Where it is stored.
        expansion: How many times wider than the inside of its blocks the residual stream is.
        samples: See ``images.pretraining``.
        steps: Batches of 64.

    Returns:
        The network, what it was trained and tested on, and its error on the held-out samples.
    """
    inputs, labels = images.pretraining(samples)
    torch.manual_seed(0)
    model = SmallResNet(int(labels.max()) + 1, expansion=expansion)
    order = torch.randperm(len(labels)).tolist()
    train, test = (Subset(TensorDataset(inputs, labels), part) for part in (order[_TESTED:], order[:_TESTED]))
    task = Task("pretraining", train, test)
    if not file.exists():
        batch = EXAMPLE.expand(_BATCH, *EXAMPLE.shape[1:])
        curve = finetune(
            model,
            task,
            budget_flops=1.02 * structprune.count_flops(model, batch, training=True).flops * steps,
            batch_size=_BATCH,
            optimizer=_sgd,
            schedule=_one_cycle,
            progress=True,
        )
        partial = file.with_suffix(".partial")
        torch.save({"model": model.state_dict(), "error": curve.final}, partial)
        partial.replace(file)
    stored = torch.load(file, weights_only=True)
    model.load_state_dict(stored["model"])
    return model, task, stored["error"]


def after_the_cut(file: Path, model: nn.Module, task: Task) -> list[Left]:
    """How well the granularities keep what was learnt: at equal MACs, batch norms estimated anew, nothing trained.

    It is read from the file, if it was stored there.
    """
    if file.exists():
        return [Left(*row) for row in json.loads(file.read_text())]
    found = []
    batches = [inputs for inputs, _ in itertools.islice(DataLoader(task.train, 256), 20)]  # type: ignore[arg-type]
    granularities: tuple[Literal["filter", "channel"], ...] = ("filter", "channel")
    for share, granularity in itertools.product((0.7, 0.5, 0.3), granularities):
        small = structprune.prune_model(
            model.eval(), granularity=granularity, macs=share, example_inputs=EXAMPLE, round_to=1
        )
        structprune.recalibrate(small, batches)
        inside = small.get_submodule("stages.0.conv2").weight.shape[0]
        found.append(Left(share, granularity, int(inside), _error(small.eval(), task.test)))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.replace(file)
    return found


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)


def _error(model: nn.Module, test: Any) -> float:
    with torch.no_grad():
        wrong = [model(inputs).argmax(1) != labels for inputs, labels in DataLoader(test, _TESTED)]
    return float(torch.cat(wrong).float().mean())


def _one_cycle(spent: float) -> float:
    """Up over the first tenth, then down to zero along a cosine."""
    return min(1.0, spent / 0.1 + 1e-3) * 0.5 * (1 + math.cos(math.pi * spent))
