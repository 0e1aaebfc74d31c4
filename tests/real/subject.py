"""A trained network with what it is calibrated and judged on."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import structprune

Tensor = torch.Tensor
Batch = Tensor | tuple[Tensor, ...]
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)


class Unavailable(Exception):
    """A package or a folder is not there; the text says which, and how to get it."""


@dataclass
class Subject:
    """A network, its inputs, and how far a pruned one is from it.

    Attributes:
        name: What the page calls it.
        model: In evaluation mode. Methods work on copies.
        example: One input: a tensor, or a tuple of arguments.
        calibration: Batches that methods with data may use.
        judging: Batches that no method sees.
        loss: The pruned network's and the dense network's outputs to the loss of every sample.
        measures: The same to figures for the page.
        objective: The same to a scalar, whose gradients Taylor criteria read.
        options: What structprune needs to be told, in every method.
        heads: Heads of the query, key and value layers, for libraries that have to be told.
    """

    name: str
    model: nn.Module
    example: Batch
    calibration: list[Batch]
    judging: list[Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    measures: Callable[[Tensor, Tensor], dict[str, float]]
    objective: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)

    @cached_property
    def dense(self) -> Tensor:
        """What the dense network gives for all that is judged."""
        return outputs(self.model, self.judging)

    @cached_property
    def macs(self) -> int:
        """Of the dense network, for one example."""
        return count(self.model, self.example)

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Of the objective, by parameter, summed over the calibration batches."""
        with torch.no_grad():
            wanted = [call(self.model, batch) for batch in self.calibration]
        self.model.zero_grad()
        with torch.enable_grad():
            for batch, dense in zip(self.calibration, wanted, strict=True):
                self.objective(call(self.model, batch), dense).backward()  # type: ignore[no-untyped-call]
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return found

    @cached_property
    def allowed(self) -> frozenset[str]:
        """The layers whose output channels structprune would cut: no other library may cut more."""
        plan = structprune.plan_pruning(
            self.model, 0.5, "filter", example_inputs=self.example, round_to=1, **self.options
        )
        names = {group.name for group in plan.groups if group.removed}
        groups = (g for g in structprune.trace(self.model, self.example).groups if g.name in names)
        cut = {tensor.rpartition(".")[0] for g in groups for tensor, dims in g.slices().items() if 0 in dims}
        return frozenset(name for name, module in self.model.named_modules() if isinstance(module, _LAYERS)) & cut

    def kept(self, model: nn.Module) -> list[nn.Module]:
        """The layers of a copy of the model that have to stay whole."""
        layers = ((n, m) for n, m in model.named_modules() if isinstance(m, _LAYERS))
        return [module for name, module in layers if name not in self.allowed]


def call(model: nn.Module, batch: Batch) -> Tensor:
    """The model's output for a batch."""
    result = model(*batch) if isinstance(batch, tuple) else model(batch)
    assert isinstance(result, Tensor)
    return result


def outputs(model: nn.Module, batches: list[Batch]) -> Tensor:
    """The model's outputs for all batches, without gradients."""
    with torch.no_grad():
        return torch.cat([call(model, batch) for batch in batches])


def count(model: nn.Module, example: Batch) -> int:
    """The MACs of a call."""
    return int(structprune.count_flops(model, example).macs)


def split(inputs: Tensor, size: int = 32) -> list[Batch]:
    """Batches of a size."""
    return list(torch.split(inputs, size))


def contrast(output: Tensor, dense: Tensor) -> Tensor:
    """An objective for embeddings: the cross entropy of finding oneself among the batch, by cosine, at temperature 0.1.

    The distance to the dense embedding will not do: at the dense network all its gradients are zero.
    """
    similar = F.normalize(output, dim=1) @ F.normalize(dense, dim=1).T
    return F.cross_entropy(similar / 0.1, torch.arange(len(output)), reduction="sum")


def cosine_loss(output: Tensor, dense: Tensor) -> Tensor:
    """One less the cosine to the dense embedding, by sample."""
    return 1 - F.cosine_similarity(output, dense, dim=1)


def without_init(package: str, **attributes: Any) -> str:
    """Make modules of a package importable without its ``__init__``, which asks for libraries that are not needed.

    Args:
        package: The import's name.
        **attributes: What its modules read from the package.

    Returns:
        The package's folder.

    Raises:
        Unavailable: The package is not installed.
    """
    spec = importlib.util.find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"{package} is not installed")
    if package not in sys.modules:
        module = types.ModuleType(package)
        module.__spec__, module.__path__ = spec, list(spec.submodule_search_locations)
        vars(module).update(attributes)
        sys.modules[package] = module
    return str(spec.submodule_search_locations[0])
