"""What cannot be pruned as it stands is refused before anything is traced."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from structprune.errors import ModelError
from structprune.meta.replica import named_tensors, walk


def check_model(model: Any) -> None:
    """Refuse what cannot be pruned as it stands.

    Raises:
        ModelError: With what is wrong, where, and what to do.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected an nn.Module, got a {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("A TorchScript module cannot be cut: prune the Python module it was made from.")
    for path, module in walk(model):
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
        if tensor.is_quantized:
            raise ModelError(f"{name} is quantised: prune the model first, then quantise it.")
        if tensor.layout != torch.strided:
            raise ModelError(f"{name} has the layout {tensor.layout}: only dense (strided) tensors can be cut.")
    _check_storage(tensors)


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
