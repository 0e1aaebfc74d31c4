"""What a cut takes from a task, before any training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.data import DataLoader, default_collate

from structprune.api import prune_model
from structprune.errors import OptionError
from structprune.plan.options import PruningOptions
from structprune.transfer.batches import outputs_of
from structprune.transfer.cut import DENSE, Cut
from structprune.transfer.meter import ComputeMeter
from structprune.transfer.task import Task, head_of

Tensor = torch.Tensor


@dataclass(frozen=True)
class Probe:
    """How well networks tell a task's classes apart before any training.

    The dense network's error says how far the task is from what it was pretrained on, those of the pruned ones how much
    of what it needs goes with a cut.

    Attributes:
        task: The task's name.
        errors: For every cut the share of samples whose features lie nearer to the mean of another class.
        flops: What it took: forward passes alone.
    """

    task: str
    errors: Mapping[Cut, float]
    flops: int

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {"task": self.task, "errors": [[*cut, error] for cut, error in self.errors.items()], "flops": self.flops}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Probe:
        """Read what ``to_dict`` gave."""
        errors = {Cut(ratio, granularity): error for ratio, granularity, error in document["errors"]}
        return cls(document["task"], errors, document["flops"])


def probe(
    model: nn.Module,
    tasks: Sequence[Task],
    cuts: Sequence[tuple[float, str]],
    *,
    samples: int = 256,
    example_inputs: Any = None,
    pruning: PruningOptions | None = None,
    prepare: Callable[[nn.Module, Task], nn.Module] | None = None,
    device: str | torch.device | None = None,
) -> list[Probe]:
    """Hold the features of a pretrained network, dense and pruned, against the classes of tasks; nothing is trained.

    A nearest class mean classifier (as in Mensink et al., 2013, there on features whose distance is learnt) is made of
    the features that each network hands to its head, every one scaled to the same scatter. Each sample is told by the
    means of all others. Batch norms normalise by the statistics of the samples, as after a few steps of training.

    Args:
        model: The pretrained network; it is not changed.
        tasks: Those to probe, of which only training data is used. Targets are class numbers.
        cuts: The networks, such as ``frontier.cuts``; ``(0.0, "dense")`` is the dense one.
        samples: How many of the training data, at random; all of them go through a network together.
        example_inputs: As for ``prune_model``.
        pruning: Further options of ``prune_model``, those of the sweep.
        prepare: As for ``sweep``.
        device: Where to compute; default: where the model is.

    Returns:
        A probe for every task.

    Raises:
        OptionError: A task's targets are no class numbers, or no class has two samples.
        ModelError: There is no head whose features could be taken.
    """
    drawn = [_drawn(task, samples) for task in tasks]
    found: list[dict[Cut, tuple[float, int]]] = [{} for _ in tasks]
    for cut in [Cut(*cut) for cut in cuts]:
        pruned = model
        if cut != DENSE:
            pruned = prune_model(
                model,
                cut.ratio,
                cut.granularity,  # type: ignore[arg-type]
                example_inputs=example_inputs,
                **(pruning or {}),
            )
        for own, task, (inputs, targets) in zip(found, tasks, drawn, strict=True):
            network = copy.deepcopy(pruned)
            if prepare is not None:
                network = prepare(network, task)
            own[cut] = _probed(network.to(device or next(network.parameters()).device), inputs, targets)
    return [
        Probe(task.name, {cut: error for cut, (error, _) in own.items()}, sum(flops for _, flops in own.values()))
        for task, own in zip(tasks, found, strict=True)
    ]


def _probed(network: nn.Module, inputs: Any, targets: Tensor) -> tuple[float, int]:
    """The error of a network's features, and the FLOPs of the forward pass."""
    there = next(network.parameters()).device
    inputs, targets = tree_map_only(torch.Tensor, lambda tensor: tensor.to(there), (inputs, targets))
    error = nearest_mean_error(_features(network, inputs), targets)
    meter = ComputeMeter(network)
    meter.evaluate(inputs)
    return error, meter.evaluation_flops


def nearest_mean_error(features: Tensor, targets: Tensor) -> float:
    """Leave-one-out error of the nearest class mean.

    Args:
        features: ``(samples, width)``; each is scaled to zero mean and unit deviation first.
        targets: Class numbers, ``(samples,)``. A sample that is alone in its class cannot be told.
    """
    features = features.double()
    features = (features - features.mean(0)) / (features.std(0, correction=0) + 1e-6)
    _, targets = torch.unique(targets, return_inverse=True)
    classes = nn.functional.one_hot(targets).to(features)
    counts = classes.sum(0)
    distance = torch.cdist(features, classes.T @ features / counts[:, None])
    # Without a sample the mean of its class lies n / (n - 1) times as far from it.
    own = counts[targets]
    factor = torch.where(own > 1, own / (own - 1).clamp(min=1), torch.inf)
    rows = torch.arange(len(features), device=features.device)
    # A sample that is the mean of its class is at no distance from it, alone it is at an infinite one.
    distance[rows, targets] = torch.where(own > 1, distance[rows, targets] * factor, torch.inf)
    return float((distance.argmin(1) != targets).double().mean())


def _drawn(task: Task, samples: int) -> tuple[Any, Tensor]:
    """Training samples as one batch: of a ``Dataset`` at random, of a ``DataLoader`` the first."""
    data: Any = task.train
    if isinstance(data, DataLoader):
        inputs, targets = _first(data, samples)
    else:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:samples].tolist()
        inputs, targets = default_collate([data[i] for i in order])
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        raise OptionError(f"Task {task.name!r} has targets that are no class numbers: it cannot be probed.")
    if int(targets.bincount().max()) < 2:
        raise OptionError(f"Task {task.name!r}: no class has two of the {len(targets)} samples. Give more samples.")
    return inputs, targets


def _first(loader: DataLoader[Any], samples: int) -> Any:
    """The first samples of a loader, together."""
    batches: list[Any] = []
    count = 0
    for inputs, targets in loader:
        batches.append((inputs, targets))
        count += len(targets)
        if count >= samples:
            break
    return tree_map(lambda *parts: torch.cat(parts)[:samples], *batches)


def _features(model: nn.Module, inputs: Any) -> Tensor:
    """What the head is given, a row for each sample; positions, if it is given any, are averaged."""
    given: list[Tensor] = []
    _, head = head_of(model)
    hook = head.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    try:
        with torch.no_grad():
            outputs_of(model, inputs)
    finally:
        hook.remove()
    if not given:
        raise OptionError(f"{type(model).__name__} does not call its last layer: there are no features to probe.")
    features = given[-1].float()
    channels = 1 if isinstance(head, nn.Conv2d) else features.ndim - 1
    return features.movedim(channels, 1).flatten(2).mean(2) if features.ndim > 2 else features
