"""What a cut takes from a task, before any training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from structprune.compat import BatchNorm, tree_leaves, tree_map_only
from structprune.errors import ModelError, OptionError
from structprune.select.options import PruningOptions
from structprune.transfer.batches import Batch, outputs_of
from structprune.transfer.cut import DENSE, Cut, network_of
from structprune.transfer.meter import ComputeMeter
from structprune.transfer.task import Task, head_of

Tensor = torch.Tensor
Prepare = Callable[[nn.Module, Task], nn.Module]


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
    prepare: Prepare | None = None,
    device: str | torch.device | None = None,
) -> list[Probe]:
    """Hold the features of a pretrained network, dense and pruned, against the classes of tasks; nothing is trained.

    A nearest class mean classifier (as in Mensink et al., 2013, there on features whose distance is learnt) is made of
    the features that each network hands to its head, every one scaled to the same scatter. Each sample is told by the
    means of all others. Batch norms normalise by the statistics of the batch, as after a few steps of training.

    Args:
        model: The pretrained network; it is not changed.
        tasks: Those to probe, of which only training data is used. Targets are class numbers.
        cuts: The networks, of those that were run, such as the dense one, ``(0.0, "dense")``, and the most pruned ones:
            these cost little beside it. Tasks are compared by the same cuts.
        samples: How many of the training data: of a ``Dataset`` at random and in one batch, of a ``DataLoader`` as they
            come, batch by batch.
        example_inputs: As for ``prune_model``.
        pruning: Further options of ``prune_model``, those of the sweep.
        prepare: As for ``sweep``.
        device: Where to compute; default: where the model is.

    Returns:
        A probe for every task: the same one each time, but for a loader or data that have a random generator of their
        own.

    Raises:
        OptionError: A task's targets are no class numbers, or too few to tell classes by.
        ModelError: There is no head whose features could be taken, a row for each sample.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from structprune.transfer import Task, probe
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
        >>> labels = torch.arange(40) % 2
        >>> data = TensorDataset(labels[:, None] * torch.ones(8), labels)
        >>> [own] = probe(model, [Task("on or off", data, data, classes=2)], [(0.0, "dense"), (0.5, "filter")])
        >>> {str(cut): error for cut, error in own.errors.items()}
        {'dense': 0.0, 'filter 0.5': 0.0}
    """
    if samples < 2:
        raise OptionError(f"samples={samples} are too few to tell classes by: give 2 or more.")
    found: list[dict[Cut, tuple[float, int]]] = [{} for _ in tasks]
    # Loaders, augmentation and prepare draw from PyTorch's generator: the same each time, and the caller's stays.
    with torch.random.fork_rng():
        drawn = [_drawn(task, samples) for task in tasks]
        for cut in [Cut(*cut) if cut[0] else DENSE for cut in cuts]:
            pruned = network_of(cut, model, example_inputs, pruning)
            for own, task, batches in zip(found, tasks, drawn, strict=True):
                own[cut] = _probed(pruned, task, batches, prepare, device)
    return [
        Probe(task.name, {cut: error for cut, (error, _) in own.items()}, sum(flops for _, flops in own.values()))
        for task, own in zip(tasks, found, strict=True)
    ]


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
    # Without a sample the mean of its class lies n / (n - 1) times as far from it; alone it has none.
    own = counts[targets]
    rows = torch.arange(len(features))
    distance[rows, targets] = torch.where(own > 1, distance[rows, targets] * own / (own - 1).clamp(min=1), torch.inf)
    return float((distance.argmin(1) != targets).double().mean())


def _probed(
    model: nn.Module, task: Task, batches: Sequence[Batch], prepare: Prepare | None, device: str | torch.device | None
) -> tuple[float, int]:
    """The error of a network's features, and the FLOPs of the forward passes."""
    network = copy.deepcopy(model)
    if prepare is not None:
        torch.manual_seed(0)
        network = prepare(network, task)
    network.to(device or next(network.parameters()).device)
    meter, features = ComputeMeter(network), []
    for inputs, targets in batches:
        inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(next(network.parameters()).device), inputs)
        features.append(_features(network, inputs, len(targets)))
        meter.evaluate(inputs)
    error = nearest_mean_error(torch.cat(features), torch.cat([targets.cpu() for _, targets in batches]))
    return error, meter.evaluation_flops


def _drawn(task: Task, samples: int) -> list[Batch]:
    """Training samples in batches: of a ``Dataset`` at random and in one, of a ``DataLoader`` the first."""
    data: Any = task.train
    batches: list[Batch] = []
    torch.manual_seed(0)
    if isinstance(data, DataLoader):
        for inputs, targets in data:
            if len(targets) > 1:  # of one sample there are no statistics
                batches.append((inputs, targets))
            if sum(len(targets) for _, targets in batches) >= samples:
                break
    else:
        order = torch.randperm(len(data))[:samples].tolist()
        batches.append(tuple(default_collate([data[i] for i in order])))
    for _, targets in batches:
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
            raise OptionError(f"Task {task.name!r} has targets that are no class numbers: it cannot be probed.")
    numbers = torch.cat([targets for _, targets in batches]) if batches else torch.zeros(0)
    counts = torch.unique(numbers, return_counts=True)[1].tolist()
    if len(counts) < 2 or max(counts) < 2:
        raise OptionError(
            f"Task {task.name!r}: {len(numbers)} training samples of {len(counts)} classes do not tell classes apart. "
            "Give more samples, of all classes: a DataLoader should shuffle."
        )
    return batches


def _features(model: nn.Module, inputs: Any, count: int) -> Tensor:
    """What the head is given, a row for each of ``count`` samples; positions, if it is given any, are averaged."""
    given: list[Tensor] = []
    path, head = head_of(model)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.extend(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))

    hook = head.register_forward_pre_hook(note, with_kwargs=True)
    model.eval()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.train()
    try:
        with torch.no_grad():
            outputs_of(model, inputs)
    finally:
        hook.remove()
    shapes = [tuple(tensor.shape) for tensor in given]
    if len(given) != 1 or given[0].ndim < 2 or len(given[0]) != count:
        raise ModelError(
            f"{path}, the last layer of {type(model).__name__}, is given {shapes or 'nothing'} for {count} samples: a "
            "probe needs one tensor, a row for each sample."
        )
    features = given[0].cpu().float()
    if not features.isfinite().all():
        raise ModelError(f"{path}, the last layer of {type(model).__name__}, is given features that are not finite.")
    channels = 1 if isinstance(head, nn.Conv2d) else features.ndim - 1
    return features.movedim(channels, 1).flatten(2).mean(2) if features.ndim > 2 else features
