"""One call of a network: its inputs, their variants, and the tensors among its outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

Shapes = list[tuple[int | None, ...]]


@dataclass(frozen=True)
class Call:
    """The arguments of a forward."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def example_inputs(self) -> Any:
        """The arguments as structprune and torch-pruning take them: a dict by name or a tuple by place."""
        return dict(self.kwargs) if self.kwargs else self.args

    def __call__(self, model: nn.Module) -> list[torch.Tensor]:
        """The output tensors. Networks that draw random numbers draw the same ones in every call."""
        torch.manual_seed(0)
        with torch.no_grad():
            return tensors(model(*self.args, **self.kwargs))

    def shapes(self, model: nn.Module) -> Shapes:
        """The shapes of the output tensors."""
        return [tuple(t.shape) for t in self(model)]

    def settled_shapes(self, model: nn.Module) -> Shapes:
        """The shapes of the output tensors, ``None`` for a size that depends on values.

        A detector returns as many boxes as it finds, with other weights another number.
        """
        other = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1 + torch.randn(parameter.shape, generator=generator))
        shapes, others = self.shapes(model), self.shapes(other)
        return [
            tuple(a if a == b else None for a, b in zip(shape, other, strict=True))
            for shape, other in zip(shapes, others, strict=True)
        ]

    def random(self) -> Call:
        """The same call with random floats; integers are tokens or masks and stay."""
        generator = torch.Generator().manual_seed(0)

        def drawn(tensor: torch.Tensor) -> torch.Tensor:
            return torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor

        return self._mapped(drawn)

    def double(self) -> Call:
        """The same call in float64."""
        return self._mapped(lambda t: t.double() if t.is_floating_point() else t)

    def pair(self) -> Call:
        """The same call with a batch of two, which batch normalisation asks for in training."""
        return self._mapped(lambda t: torch.cat([t, t]))

    def _mapped(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        args, kwargs = tree_map_only(torch.Tensor, convert, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)


class Bound(nn.Module):
    """A network with its inputs, for the oracle, which passes on nothing but tensors in float64."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self) -> list[torch.Tensor]:
        return self.call(self.model)


def agree(shapes: Shapes, others: Shapes) -> bool:
    """Whether shapes are the same, in all sizes that depend on no value."""
    return len(shapes) == len(others) and all(
        len(shape) == len(other) and all(None in (a, b) or a == b for a, b in zip(shape, other, strict=True))
        for shape, other in zip(shapes, others, strict=True)
    )


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of an output; caches of keys and values are state, and may shrink."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for v in output.values() for t in tensors(v)]
    if isinstance(output, (list, tuple)):
        return [t for v in output for t in tensors(v)]
    return []
