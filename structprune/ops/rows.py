"""Contractions with a weight as matrix products: every position of the output is a row of inputs times a matrix.

A convolution reads, for every position of its output, the patch under its kernel; a matrix product reads its rows. So
one solver of linear equations serves them all. Rows come in the order of the samples.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn import functional

Arguments = dict[str, Any]
Place = tuple[Any, ...]


class Rows(Protocol):
    """How a contraction is a matrix product in each of its groups.

    Attributes:
        activation: The name of the argument whose rows are read.
        weight: That of the weight.
        added: That of what is added to the outputs; empty: nothing is.
    """

    activation: str
    weight: str
    added: str

    def count(self, arguments: Arguments) -> int:
        """The number of rows; 0 for a call that cannot be written so."""
        ...

    def inputs(self, arguments: Arguments, picked: torch.Tensor) -> torch.Tensor:
        """Some rows of the inputs: ``(rows, groups, entries)``, the entries of one channel side by side."""
        ...

    def place(self, arguments: Arguments, picked: torch.Tensor) -> Place:
        """Where these rows are in an output, or in what it is added to."""
        ...

    def outputs(self, out: torch.Tensor, place: Place) -> torch.Tensor:
        """Rows of the outputs, or of what they are added to: ``(rows, channels)``, those of each group side by side."""
        ...

    def matrix(self, arguments: Arguments) -> torch.Tensor:
        """The weight: ``(groups, outputs of the group, entries)``."""
        ...

    def weight_of(self, matrix: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """The weight that has this matrix, in the shape of the call's."""
        ...


class _Product:
    """``activation @ weight``, of two matrices."""

    weight = "mat2"

    def __init__(self, activation: str, added: str = "") -> None:
        self.activation, self.added = activation, added

    def count(self, arguments: Arguments) -> int:
        # ``addmm`` may scale what it adds.
        plain = all(arguments.get(name, 1) == 1 for name in ("alpha", "beta"))
        return int(arguments[self.activation].shape[0]) if plain else 0

    def inputs(self, arguments: Arguments, picked: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = arguments[self.activation][picked]
        return rows[:, None]

    def place(self, arguments: Arguments, picked: torch.Tensor) -> Place:
        return (picked,)

    def outputs(self, out: torch.Tensor, place: Place) -> torch.Tensor:
        return out.reshape(-1, out.shape[-1])[place]

    def matrix(self, arguments: Arguments) -> torch.Tensor:
        weight: torch.Tensor = arguments["mat2"]
        return weight.t()[None]

    def weight_of(self, matrix: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        return matrix[0].t()


class _Convolution:
    """A convolution over any number of dimensions, not transposed."""

    activation, weight, added = "input", "weight", "bias"

    def count(self, arguments: Arguments) -> int:
        x, weight = arguments["input"], arguments["weight"]
        if arguments["transposed"] or x.ndim != weight.ndim:
            return 0
        positions = 1
        for extent in self._extents(arguments):
            positions *= extent
        return int(x.shape[0]) * positions

    def inputs(self, arguments: Arguments, picked: torch.Tensor) -> torch.Tensor:
        x, weight, groups = arguments["input"], arguments["weight"], arguments["groups"]
        spatial = range(weight.ndim - 2)
        padding = [self._setting(arguments, "padding", d) for d in spatial]
        x = functional.pad(x, [side for amount in reversed(padding) for side in (amount, amount)])
        for d in spatial:
            dilation = self._setting(arguments, "dilation", d)
            reach = (weight.shape[2 + d] - 1) * dilation + 1
            x = x.unfold(2 + d, reach, self._setting(arguments, "stride", d))[..., ::dilation]
        return x[self.place(arguments, picked)].reshape(len(picked), groups, -1)

    def place(self, arguments: Arguments, picked: torch.Tensor) -> Place:
        sample, *positions = torch.unravel_index(picked, (arguments["input"].shape[0], *self._extents(arguments)))
        return (sample, slice(None), *positions)

    def outputs(self, out: torch.Tensor, place: Place) -> torch.Tensor:
        return out[place]

    def matrix(self, arguments: Arguments) -> torch.Tensor:
        weight, groups = arguments["weight"], arguments["groups"]
        return torch.as_tensor(weight.reshape(groups, weight.shape[0] // groups, -1))

    def weight_of(self, matrix: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        return matrix.reshape(arguments["weight"].shape)

    def _extents(self, arguments: Arguments) -> list[int]:
        """The extents of the output: the formula of ``torch.nn.Conv2d``."""
        x, weight = arguments["input"], arguments["weight"]
        found = []
        for d in range(weight.ndim - 2):
            stride, padding, dilation = (self._setting(arguments, n, d) for n in ("stride", "padding", "dilation"))
            found.append((x.shape[2 + d] + 2 * padding - dilation * (weight.shape[2 + d] - 1) - 1) // stride + 1)
        return found

    @staticmethod
    def _setting(arguments: Arguments, name: str, dim: int) -> int:
        given = arguments[name]
        return int(given[dim] if len(given) > 1 else given[0])


OF_PRODUCT: Rows = _Product("self")
OF_PRODUCT_AND_SUM: Rows = _Product("mat1", "self")
OF_CONVOLUTION: Rows = _Convolution()
