"""Copies of a model that share nothing with it: on the meta device, or with tensors of one's choice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from structprune.errors import ModelError

TensorMap = Callable[[str, torch.Tensor], torch.Tensor]


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name; a tied one under its first name only."""
    found: dict[int, None] = {}
    named: dict[str, torch.Tensor] = {}
    for pairs in (model.named_parameters(), model.named_buffers()):
        for name, tensor in pairs:
            if id(tensor) not in found:
                found[id(tensor)] = None
                named[name] = tensor
    return named


def duplicate(model: nn.Module, tensor_map: TensorMap, loose: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """Deep-copy a model, its parameters and buffers through ``tensor_map``, other tensors through ``loose``.

    No weight is copied on the way: the copy's tensors are made by the two functions alone.

    Raises:
        ModelError: The model holds something that cannot be copied.
    """
    tensors = named_tensors(model)
    memo: dict[int, Any] = {id(t): tensor_map(name, t) for name, t in tensors.items()}
    # ``deepcopy`` keeps the originals alive in the memo for the time of the copy.
    try:
        with torch.no_grad(), _LooseTensors(loose):
            copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Pruning works on a copy: "
            "remove what cannot be copied (open files, locks, generators) from the modules, or define __deepcopy__."
        ) from error
    _check_nothing_shared(model, copied)
    return copied


def _check_nothing_shared(model: nn.Module, copied: nn.Module) -> None:
    """A module whose ``__deepcopy__`` returns itself would be cut with the copy."""
    own = {id(module) for module in model.modules()}
    for path, module in copied.named_modules():
        if id(module) in own:
            raise ModelError(f"{path or 'the model'} is not copied by copy.deepcopy: its __deepcopy__ returns itself.")


def meta_replica(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device; small integers and booleans are copied for real."""
    return duplicate(model, lambda _name, tensor: to_meta(tensor), to_meta)


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without storage, or a CPU copy of integers and booleans: code may read those."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta:
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    else:
        twin = tensor.detach().cpu().clone()
    return like_parameter(tensor, twin)


def like_parameter(original: torch.Tensor, twin: torch.Tensor) -> torch.Tensor:
    """Make ``twin`` a parameter (of the same class, where that takes plain data) if the original is one."""
    if isinstance(original, nn.Parameter):
        return nn.Parameter(twin, requires_grad=original.requires_grad)
    return twin.requires_grad_(original.requires_grad) if original.is_leaf else twin


class _LooseTensors(TorchFunctionMode):
    """Sends the deep copy of every tensor that is no parameter or buffer through a function."""

    def __init__(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._convert(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
