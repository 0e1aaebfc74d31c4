"""What cannot be pruned as it stands is refused before anything is traced."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from structprune.compat import is_traceable_wrapper_subclass
from structprune.errors import ModelError
from structprune.inputs import is_fake
from structprune.meta.given import check_module
from structprune.meta.replica import named_tensors, walk


def check_model(model: Any) -> None:
    """Refuse what cannot be pruned as it stands.

    Raises:
        ModelError: With what is wrong, where, and what to do.
    """
    check_module(model)
    for path, module in walk(model):
        _check_unwrapped(path, module)
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise ModelError(
                f"{path or 'the model'} is a quantised {type(module).__name__}: prune first, then quantise."
            )
    tensors = named_tensors(model)
    if not any(isinstance(t, nn.Parameter) for t in tensors.values()):
        raise ModelError(f"{type(model).__name__} has no parameter, so there is nothing to prune.")
    for name, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise ModelError(f"{name} is lazy: run the model once, so that its shapes are known, then prune it.")
        if is_fake(tensor):
            raise ModelError(
                f"{name} is a FakeTensor, which has a shape and no numbers: load the weights first. A model without "
                "weights is made under torch.device('meta'), and takes the plan of a copy that has them (Plan.apply)."
            )
        if tensor.is_quantized:
            raise ModelError(f"{name} is quantised: prune the model first, then quantise it.")
        if is_traceable_wrapper_subclass(tensor):
            raise ModelError(
                f"{name} is a {type(tensor).__name__}, which stands for other tensors (quantised or distributed): "
                "prune the model first, then quantise or distribute it."
            )
        if tensor.layout != torch.strided:
            raise ModelError(
                f"{name} has the layout {tensor.layout} and is a parameter: only dense (strided) ones can be cut. Make "
                "it dense, or a buffer if it is not trained."
            )
    _check_storage(tensors)


def _check_unwrapped(path: str, module: nn.Module) -> None:
    """A wrapper that holds the sizes of its parameters elsewhere cannot be cut with them."""
    what, here = (path, f"model.{path}") if path else ("The model", "model")
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{what} is a {type(module).__name__}. A TorchScript module cannot be cut: prune the Python module it was "
            "made from, then script or trace that."
        )
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ModelError(
            f"{what} is wrapped in {type(module).__name__}, which remembers what it wrapped: prune {here}.module, wrap "
            "the result, and make the optimizer anew."
        )
    # Nobody can have sharded a model by a module that was never imported, and importing it takes a while.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)):
        how = "fully_shard" if isinstance(module, fsdp.FSDPModule) else "FullyShardedDataParallel"
        raise ModelError(
            f"{what} is sharded by {how}: a process holds a part of every weight. Prune the whole model first, in "
            "every process alike, then shard it and make the optimizer."
        )


def _check_storage(tensors: dict[str, torch.Tensor]) -> None:
    """Two tensors may be the same object, but not different ones over the same memory."""
    spans: list[tuple[int, int, str]] = []
    for name, tensor in tensors.items():
        if tensor.is_meta or not tensor.numel():
            continue
        start = tensor.data_ptr()
        extent = sum((n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        spans.append((start, start + extent * tensor.element_size(), name))
    spans.sort()
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise ModelError(
                f"{name} and {other} share memory without being the same parameter: cutting one would tear the other. "
                "Tie them as one Parameter, or give each memory of its own with clone()."
            )
