"""The state of an optimizer, cut with the parameters: momentum and moments go with their slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from structprune.errors import ModelError, OptionError
from structprune.surgery.cut import Cut
from structprune.surgery.selection import sliced

State = tuple[dict[str, Any], str, torch.Tensor]


def check_optimizer(optimizer: Any, inplace: bool) -> None:
    """Refuse what cannot be cut along.

    Raises:
        OptionError: It is no optimizer, or the model is copied.
    """
    if optimizer is None:
        return
    if not inplace:
        raise OptionError("optimizer goes with inplace=True: a pruned copy has parameters of its own.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptionError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer.")


def cut_states(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], cut: Cut) -> list[State]:
    """What every state tensor of a parameter that is cut becomes: state, key and value. Nothing is changed.

    A state tensor of the parameter's shape is cut like the parameter, a number stays.

    Raises:
        OptionError: The optimizer has none of these parameters.
        ModelError: A state has another shape: it holds sums over what would go (Adafactor, Shampoo), or
            all parameters in one (LBFGS).
    """
    names = {id(tensor): name for name, tensor in tensors.items()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in names for p in held):
        raise OptionError(
            f"The {type(optimizer).__name__} holds no parameter of this model: give the optimizer that trains it, "
            "made after the model was moved or wrapped."
        )
    found: list[State] = []
    for parameter in held:
        name = names.get(id(parameter), "")
        kept = cut.kept.get(name)
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                found += [] if kept is None else [(state, key, sliced(value, kept))]
            elif not _is_number(value) and (kept is not None or not _is_of(value, parameter)):
                shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ModelError(
                    f"The {type(optimizer).__name__} keeps {key!r} ({shape}) for {name} {list(parameter.shape)}, which "
                    "is not of the parameter's shape and cannot be cut along: make a new optimizer after the cut."
                )
    return found


def _is_of(value: Any, parameter: torch.Tensor) -> bool:
    """Whether a state could be of one parameter alone; larger ones, and lists, are of all that the optimizer has."""
    return isinstance(value, torch.Tensor) and value.numel() <= parameter.numel()


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, (int, float, str, type(None)))
