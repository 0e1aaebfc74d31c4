"""How much a file may ask for: what is not the weights themselves stays far below 2 GB and 20 seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch

from structprune.compat import OpOverload, TorchDispatchMode, schema_of, tree_leaves

# The networks of torchvision and timm take less than an eighth of each.
MOST_PICKLE_BYTES = 64_000_000
MOST_STEPS = 3_000_000
# Records of an archive, or tensors of a state dict.
MOST_RECORDS = 60_000
MOST_HEADER_BYTES = 25_000_000
MOST_PLAN_BYTES = 16_000_000
# Keys other than text: their hashes can be chosen so that a dictionary takes quadratic time.
MOST_OTHER_KEYS = 50_000
# What walks through a model calls itself for every level.
DEEPEST = 100
# How many values, values in the attributes of modules, and modules a walk meets that does not remember where it was.
MOST_WALKED = 5_000_000
MOST_KEPT = 500_000
MOST_MODULES = 100_000
MOST_NAMES = 1_000
# Modules of libraries that are not loaded yet: a file may not have a library import all of itself.
MOST_IMPORTS = 12
# Of a recurrent network.
MOST_LAYERS = 1_000
LONGEST_NAME = 500
# Tensors may show their storages twice (tied weights do), and this much more.
MOST_VIEWED_BYTES = 64_000_000
MOST_EXPANDED = 4_000_000
# What one forward of a network that is counted may make.
MOST_OPERATORS = 50_000
MOST_ELEMENTS = 1 << 25
# With inputs that the user gives: this many times theirs, if that is more.
_GROWTH = 512


class Refused(Exception):
    """Why a file is not opened; who opens it adds which file, and what to do."""


class Budget:
    """Counts what a file makes its reader do."""

    def __init__(self) -> None:
        self._steps = 0
        self._other_keys = 0
        self._stored = 0
        self._viewed = 0

    def spend(self, steps: int) -> None:
        """Objects are made, or bytes or entries copied: one step for each object."""
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise Refused(f"it makes more than {MOST_STEPS:,} objects, which no saved network needs")

    def spend_keys(self, keys: int) -> None:
        """Keys that are no text go into a dictionary or set."""
        self._other_keys += keys
        if self._other_keys > MOST_OTHER_KEYS:
            raise Refused(f"it makes more than {MOST_OTHER_KEYS:,} keys that are no text")

    def store(self, nbytes: int) -> None:
        """A storage is read."""
        self._stored += nbytes

    def view(self, size: Sequence[int], itemsize: int, stored: int) -> None:
        """A tensor of this size shows a storage of so many elements."""
        # An empty tensor may still have a dimension of a size that nothing can hold.
        cells = prod(max(extent, 1) for extent in size)
        self._viewed += cells * itemsize
        if cells > max(stored, MOST_EXPANDED) or self._viewed > 2 * self._stored + MOST_VIEWED_BYTES:
            raise Refused(f"it makes tensors much larger than the values that it holds, one of {shown(size)}")


def shown(size: Sequence[int]) -> str:
    """A size, short."""
    return "x".join(str(extent) for extent in size[:8]) + ("x..." if len(size) > 8 else "")


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses a forward that makes more than memory holds, or never ends."""

    def __init__(self, most_elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most_elements = most_elements
        self._operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operators += 1
        if self._operators > MOST_OPERATORS:
            raise Refused(f"one forward takes more than {MOST_OPERATORS:,} operators")
        # Before it is made, if it says how large it will be: inputs are made of real numbers.
        arguments = schema_of(func).arguments if isinstance(func, OpOverload) else ()
        for argument, value in zip(arguments, args, strict=False):
            if argument.name == "size" and isinstance(value, (list, tuple)):
                self._check(value)
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._check(tensor.shape)
        return out

    def _check(self, size: Sequence[int]) -> None:
        if prod(max(int(extent), 1) for extent in size) > self._most_elements:
            raise Refused(f"one forward makes a tensor of {shown(size)}, more than {self._most_elements:,} elements")


@contextmanager
def bounded_forward(example_inputs: Any) -> Iterator[None]:
    """Within it a forward may take so many operators, and make tensors of so many elements."""
    given = [leaf.numel() for leaf in tree_leaves(example_inputs) if isinstance(leaf, torch.Tensor)]
    with _Counted(max(MOST_ELEMENTS, _GROWTH * sum(given))):
        yield
