"""Is a pruned model right? Judged from the dense and the pruned model alone.

The oracle knows nothing of plans, labels or couplings. It finds out by value which slices were
kept, checks that every tensor left is an exact slice, zeroes the removed input slices of
convolutions and linear layers in the dense model, and compares the outputs in float64. All
values must be random, so that every one occurs once. Normalisations that take a statistic over
channels are made elementwise in both models.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TOLERANCE = 1e-10


class WrongCut(AssertionError):
    """The pruned model is not the dense one with channels removed."""


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make a model float64 with a random, unique value in every float of its state; positive variances."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                if tensor.ndim > 1:
                    fan_in = max(1, tensor.numel() // tensor.shape[0])
                    tensor.data.copy_((noise - 0.5) * (12 / fan_in) ** 0.5)
                elif name.endswith("var"):
                    tensor.data.copy_(noise + 0.5)
                else:
                    tensor.data.copy_((noise + 0.2) * torch.where(noise * 1e5 % 1 < 0.4, -1.0, 1.0))
    return model


def check(
    dense: nn.Module,
    pruned: nn.Module,
    *inputs: torch.Tensor,
    training: bool = False,
    raw_inputs: Mapping[str, int] | None = None,
) -> float:
    """Compare the two models.

    Args:
        dense: The model before, randomised; unchanged.
        pruned: The model after; unchanged.
        inputs: What both take.
        training: Compare in training mode (no dropout may be active).
        raw_inputs: For parameters that no convolution or linear module owns: the dimension that a
            contraction sums over.

    Returns:
        How much zeroing the removed inputs changed the dense outputs, relative to their scale.

    Raises:
        WrongCut: What is wrong, and where.
    """
    kept = kept_slices(dense, pruned)
    masked = copy.deepcopy(dense)
    zero_inputs(masked, kept, raw_inputs or {})
    with elementwise_norms():
        expected = _run(masked, inputs, training)
        del masked
        before, got = _run(dense, inputs, training), _run(pruned, inputs, training)
    if [t.shape for t in expected] != [t.shape for t in got]:
        raise WrongCut(f"outputs have shapes {[list(t.shape) for t in got]}, not {[list(t.shape) for t in expected]}")
    scale = max(float(t.abs().max()) for t in before if t.numel()) or 1.0
    error = max(float((a - b).abs().max()) for a, b in zip(expected, got, strict=True) if a.numel()) / scale
    if not error <= TOLERANCE:
        raise WrongCut(f"outputs differ by {error:.2e} of their scale")
    return max(float((a - b).abs().max()) for a, b in zip(expected, before, strict=True) if a.numel()) / scale


def _run(model: nn.Module, inputs: tuple[torch.Tensor, ...], training: bool) -> list[torch.Tensor]:
    """The outputs in one mode. A forward in training changes statistics, so that runs on a copy."""
    modes = {module: module.training for module in model.modules()}
    runner = copy.deepcopy(model).train() if training else model.eval()
    with torch.no_grad():
        out = _flat(runner(*(x.double() for x in inputs)))
    for module, mode in modes.items():
        module.training = mode
    return out


def kept_slices(dense: nn.Module, pruned: nn.Module) -> dict[str, dict[int, torch.Tensor]]:
    """Which indices every tensor kept along every dimension, recovered from the values."""
    big, small = dict(_tensors(dense)), dict(_tensors(pruned))
    if big.keys() != small.keys():
        raise WrongCut(f"other tensors: {sorted(big.keys() ^ small.keys())}")
    return {name: _kept(name, big[name], small[name]) for name in big}


def _kept(name: str, big: torch.Tensor, small: torch.Tensor) -> dict[int, torch.Tensor]:
    if big.shape == small.shape:
        if not torch.equal(big, small):
            raise WrongCut(f"{name} has its old shape and other values")
        return {}
    if big.ndim != small.ndim or any(s > b or s == 0 for b, s in zip(big.shape, small.shape, strict=True)):
        raise WrongCut(f"{name} went from {list(big.shape)} to {list(small.shape)}")
    # The corner lines say which indices are left; then the whole tensor must be exactly those.
    kept = {}
    flat = big.detach().reshape(-1)
    for dim in range(big.ndim):
        if big.shape[dim] == small.shape[dim]:
            kept[dim] = torch.arange(big.shape[dim])
            continue
        line = small.detach()
        for other in reversed([d for d in range(big.ndim) if d != dim]):
            line = line.select(other, 0)
        values, order = line.contiguous().sort()
        place = torch.searchsorted(values, flat).clamp_(max=len(values) - 1)
        found = (values[place] == flat).nonzero().flatten()
        if len(found) != len(line):
            raise WrongCut(f"{name} holds values that the dense tensor does not have, or has more than once")
        stride = math.prod(big.shape[dim + 1 :])
        index = torch.empty(len(line), dtype=torch.long)
        index[order[place[found]]] = found // stride % big.shape[dim]
        kept[dim] = index
        if bool((index[1:] <= index[:-1]).any()):
            raise WrongCut(f"{name} has its slices along dim {dim} out of order")
    rebuilt = big.detach()
    for dim, index in kept.items():
        rebuilt = rebuilt.index_select(dim, index)
    if not torch.equal(rebuilt, small.detach()):
        raise WrongCut(f"{name} is no slice of the dense tensor")
    return {d: i for d, i in kept.items() if len(i) < big.shape[d]}


def zero_inputs(model: nn.Module, kept: Mapping[str, Mapping[int, torch.Tensor]], raw: Mapping[str, int]) -> None:
    """Zero the input slices of convolutions and linear layers that the pruned model no longer has."""
    own = dict(raw)
    for path, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            dim = 0 if getattr(module, "transposed", False) else 1
            prefix = f"{path}." if path else ""
            for name in (f"{prefix}weight", f"{prefix}parametrizations.weight.original1"):
                own.setdefault(name, dim)
    tensors = dict(_tensors(model))
    with torch.no_grad():
        for name, dim in own.items():
            if name in tensors and dim in kept.get(name, {}):
                gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
                gone[kept[name][dim]] = False
                tensors[name].data.index_fill_(dim, gone.nonzero().flatten(), 0.0)


@contextmanager
def elementwise_norms() -> Iterator[None]:
    """Layer norm and group norm without their statistics, which would differ over fewer channels."""
    saved = F.layer_norm, F.group_norm

    def layer_norm(
        x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> torch.Tensor:
        return _affine(x, weight, bias, -1)

    def group_norm(
        x: torch.Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> torch.Tensor:
        return _affine(x, weight, bias, 1)

    F.layer_norm, F.group_norm = layer_norm, group_norm
    try:
        yield
    finally:
        F.layer_norm, F.group_norm = saved


def _affine(x: torch.Tensor, weight: Any, bias: Any, dim: int) -> torch.Tensor:
    shape = [1] * x.ndim
    shape[dim] = -1
    scaled = x if weight is None else x * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _flat(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for v in output.values() for t in _flat(v)]
    if isinstance(output, (list, tuple)):
        return [t for v in output for t in _flat(v)]
    return []
