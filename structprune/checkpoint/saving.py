"""``structprune.save``: a pruned model's tensors and its plan in one safetensors file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from structprune.checkpoint.contents import EXTRA_STATE, LAYOUTS, PLAN, dim_order, packed_plan
from structprune.checkpoint.names import check_shapes, own_states
from structprune.checkpoint.writing import DTYPES, Entry, in_place_of, write_tensors
from structprune.errors import CheckpointError
from structprune.meta.replica import is_sparse_buffer, named_tensors
from structprune.meta.surroundings import ordinary_tensors
from structprune.plan.plan import Plan, plan_of
from structprune.tracing.checks import check_model

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@ordinary_tensors()
def save(pruned: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned model to a safetensors file, with its plan in the metadata.

    The file holds every parameter and buffer, non-persistent ones too, a tied one once, under its
    first name. ``structprune.load`` reads it; so does every reader of safetensors.

    Args:
        pruned: What ``structprune.prune_model`` or ``Plan.apply`` returned, trained further or not.
        path: The file, best ``*.safetensors``. One that is there is replaced when the new one is whole. An ending
            that stands for a pickle (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.pkl``) is taken as it is, with a
            warning: the file is safetensors all the same, which ``torch.load`` does not read.

    Raises:
        PlanError: The model carries no plan: it was not pruned by structprune.
        CheckpointError: It is not of the sizes that its plan left, holds what has no place in safetensors,
            or the file cannot be written. A file that was there is as it was.

    Examples:
        >>> import structprune
        >>> small = structprune.prune_model(structprune.demo.resnet50(), 0.5)
        >>> structprune.save(small, "small.safetensors")  # doctest: +SKIP
    """
    check_model(pruned)
    plan, target = plan_of(pruned), Path(path)
    if target.suffix in _PICKLED:
        warnings.warn(
            f"{target} will be a safetensors file in spite of its ending, which torch.load does not read: "
            f"structprune.load does. Call it {target.with_suffix('.safetensors').name}, or store the whole model with "
            "torch.save(model, path).",
            stacklevel=3,  # over the decorator
        )
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{target} is there and is no file: give the name of a file.")
    tensors = named_tensors(pruned)
    for name, buffer in pruned.named_buffers():
        if is_sparse_buffer(buffer) and name in pruned.state_dict(keep_vars=True):
            raise CheckpointError(f"{name} is sparse ({buffer.layout}), which safetensors files do not know.")
    _check_cut(pruned, plan, tensors)
    layouts = {name: order for name, tensor in tensors.items() if (order := dim_order(tensor))}
    more, plain = _extra_states(pruned)
    tensors |= more
    entries = {name: _entry(name, tensor) for name, tensor in tensors.items()}
    metadata = {"format": "pt", PLAN: packed_plan(plan.to_json(), sum(e.nbytes for e in entries.values()))}
    metadata |= {LAYOUTS: json.dumps(layouts)} if layouts else {}
    metadata |= {EXTRA_STATE: json.dumps(plain)} if plain else {}
    with in_place_of(target) as partial:
        write_tensors(partial, entries, lambda name: tensors[name].detach().cpu(), metadata)


def _check_cut(pruned: nn.Module, plan: Plan, tensors: Mapping[str, torch.Tensor]) -> None:
    """The dense model that the file will be loaded into has the plan's tensors, and no others."""
    changed = sorted((plan.shapes.keys() - set(plan.plain)) ^ tensors.keys())
    kind = type(pruned).__name__
    if changed:
        where = "is new" if changed[0] in tensors else "is gone"
        raise CheckpointError(
            f"{changed[0]} {where} in this {kind} since it was pruned, so that no dense model would fit the file. "
            "Change the dense model in this way and prune that one."
        )
    free = plan.free_buffers(pruned)
    expected = {name: plan.shape_left(name) for name in tensors if name not in free}
    check_shapes(
        expected, {n: tuple(t.shape) for n, t in tensors.items()}, f"This {kind} was changed since it was pruned"
    )


def _entry(name: str, tensor: torch.Tensor) -> Entry:
    if tensor.is_meta:
        raise CheckpointError(f"{name} is on the meta device and has no values to save.")
    if type(tensor.detach()) is not torch.Tensor:
        raise CheckpointError(f"{name} is a {type(tensor).__name__}, whose values alone would not bring it back.")
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{name} is of {tensor.dtype}, which safetensors files do not know: convert it first.")
    return Entry(tensor.dtype, tuple(tensor.shape))


def _extra_states(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What modules hand over through ``get_extra_state``: tensors by name, and what JSON can hold by module."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for path, module in own_states(model).items():
        state = module.get_extra_state()
        if isinstance(state, torch.Tensor):
            tensors[f"{path}._extra_state" if path else "_extra_state"] = state
        elif _survives_json(state):
            plain[path] = state
        else:
            raise CheckpointError(
                f"{path or 'the model'} ({type(module).__name__}) has extra state of type {type(state).__name__}, "
                "which only pickle could hold. Let its get_extra_state return a tensor, or plain data as JSON has it."
            )
    return tensors, plain


def _survives_json(state: Any) -> bool:
    try:
        return bool(repr(json.loads(json.dumps(state))) == repr(state))
    except (TypeError, ValueError, RecursionError):
        return False
