"""What a network is transferred to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from structprune.errors import ModelError

Tensor = torch.Tensor


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for every sample whose largest output is not its target, else 0."""
    return (outputs.argmax(1) != targets).float()


@dataclass(frozen=True)
class Task:
    """Data to train on and to test with.

    Attributes:
        name: How results call it.
        train: Pairs of input and target: a ``Dataset``, batched and shuffled by the seed of a run, or a
            ``DataLoader``, taken as it comes.
        test: Likewise, in order.
        classes: Width of the new head; ``None``: the model keeps its own.
        loss: A function of outputs and targets.
        metric: A function of outputs and targets that returns a number for each sample, whose mean is to be
            small; the share of wrong answers if not given.
    """

    name: str
    train: Dataset[Any] | DataLoader[Any]
    test: Dataset[Any] | DataLoader[Any]
    classes: int | None = None
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    metric: Callable[[Any, Any], Tensor] = wrong


def head_of(model: nn.Module) -> tuple[str, Any]:
    """The model's last layer: the linear one, or 1x1 convolution, that is registered last.

    Returns:
        Its path and itself.

    Raises:
        ModelError: There is no such layer.
    """
    found: list[tuple[str, Any]] = [
        (p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear) or _is_pointwise(m)
    ]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no linear layer that a new head could take the place of: put one in yourself, "
            "and give a task with classes=None."
        )
    return found[-1]


def new_head(model: nn.Module, classes: int, seed: int = 0) -> str:
    """Put a new linear layer of ``classes`` outputs in place of the model's last one.

    The last one is the linear layer, or 1x1 convolution, that is registered last. The new weights are drawn from
    ``seed``, uniform in ``1 / sqrt(fan in)``, the bias is zero.

    Returns:
        Its path in the model.

    Raises:
        ModelError: There is no such layer.
    """
    path, last = head_of(model)
    generator = torch.Generator().manual_seed(seed)
    weight: Tensor = last.weight
    made: Any
    if isinstance(last, nn.Linear):
        made = nn.Linear(last.in_features, classes, bias=True, device=weight.device, dtype=weight.dtype)
    else:
        made = nn.Conv2d(weight.shape[1], classes, 1, bias=True, device=weight.device, dtype=weight.dtype)
    bound = weight[0].numel() ** -0.5
    with torch.no_grad():
        made.weight.copy_((torch.rand(made.weight.shape, generator=generator) * 2 - 1) * bound)
        made.bias.zero_()
    owner, _, name = path.rpartition(".")
    if not path:
        raise ModelError("The model is its own head: wrap it in a module that a new head can be put into.")
    setattr(model.get_submodule(owner), name, made)
    return path


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
