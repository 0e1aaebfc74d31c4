"""Where a forward leaves PyTorch's operators: an operator of our own stands there, so that a trace sees it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeAlias

import torch

from structprune.ir.operators import OperatorSpec, nothing
from structprune.ir.slices import Labels
from structprune.ops.call import Call

Run: TypeAlias = Callable[[list[torch.Tensor]], list[torch.Tensor]]

# A tensor's memory is handed to what is no operator: NumPy, a kernel in C or Triton.
LEAVES = "structprune::leaves"
OPAQUE = "structprune::opaque"
_LIBRARY = torch.library.Library("structprune", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("leaves(Tensor x, str how) -> ()")  # type: ignore[no-untyped-call]
_LIBRARY.impl("leaves", lambda x, how: None, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
# A module whose inside is left alone runs: its tensors and what it is given go in, what it returns comes out.
_LIBRARY.define("opaque(Tensor[] tensors, str module, int run) -> Tensor[]")  # type: ignore[no-untyped-call]
_LIBRARY.impl("opaque", lambda tensors, module, run: _RUNS[run](tensors), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_RUNS: dict[int, Run] = {}
_numbers = count()


def hand_over(tensor: torch.Tensor, how: str) -> None:
    """Say, by an operator, that code beyond PyTorch gets the memory of a tensor through ``how``."""
    torch.ops.structprune.leaves(tensor, how)


def run_opaque(tensors: list[torch.Tensor], module: str, run: Run) -> list[torch.Tensor]:
    """Call ``run`` with tensors as one operator, which takes place in the module at a path."""
    number = next(_numbers)
    _RUNS[number] = run
    try:
        outputs: list[torch.Tensor] = torch.ops.structprune.opaque(tensors, module, number)
    finally:
        del _RUNS[number]
    return outputs


def leaves_pytorch(call: Call) -> list[Labels]:
    """What other code does with a tensor's memory is not seen."""
    call.freeze_all(f"leaves PyTorch through {call['how']}")
    return []


def left_alone(call: Call) -> list[Labels]:
    """Nobody looks into the module."""
    call.freeze_all(f"goes into {call['module'] or 'the model'} or belongs to it, which the rules leave alone")
    return []


SPECS = (OperatorSpec(LEAVES, leaves_pytorch, flops=nothing), OperatorSpec(OPAQUE, left_alone, sizes=("run",)))
