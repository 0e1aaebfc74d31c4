"""Where a forward leaves PyTorch's operators: an operator of our own stands there, so that a trace sees it."""

from __future__ import annotations

import torch

# A tensor's memory is handed to what is no operator: NumPy, a kernel in C or Triton.
LEAVES = "structprune::leaves"
_LIBRARY = torch.library.Library("structprune", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("leaves(Tensor x, str how) -> ()")  # type: ignore[no-untyped-call]
_LIBRARY.impl("leaves", lambda x, how: None, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def hand_over(tensor: torch.Tensor, how: str) -> None:
    """Say, by an operator, that code beyond PyTorch gets the memory of a tensor through ``how``."""
    torch.ops.structprune.leaves(tensor, how)
