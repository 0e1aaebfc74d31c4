"""Activations of a trained network without data: what its batch norms say of them."""

from __future__ import annotations

from typing import Any

import torch

# A channel's distribution is as many quantiles, one in each run.
QUANTILES = 16


def fill(out: Any, arguments: dict[str, Any], seed: int, quantile: int) -> None:
    """Write ``bias + weight * z`` into a batch norm's output, ``z`` one of the quantiles of a standard normal.

    The same at every position, another one in every channel: neighbouring positions are nearly alike in
    images, so that pooling and padding see what they would see.

    Args:
        out: What the batch norm returned.
        arguments: What it was given, by name.
        seed: Decides in which order the channels take the quantiles.
        quantile: Which run it is, below ``QUANTILES``.
    """
    result = out[0] if isinstance(out, (tuple, list)) else out
    channels = result.shape[1]
    points = torch.special.ndtri((torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES)
    points = points / points.square().mean().sqrt()
    order = torch.rand(channels, QUANTILES, generator=torch.Generator().manual_seed(seed)).argsort(1)
    values = points[order[:, quantile]].to(result)
    weight, bias = arguments.get("weight"), arguments.get("bias")
    values = values if weight is None else values * weight
    values = values if bias is None else values + bias
    result.copy_(values.view(1, channels, *(1,) * (result.ndim - 2)).expand_as(result))
