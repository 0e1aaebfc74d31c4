"""Batch-norm statistics, estimated again after a cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from structprune.compat import BatchNorm
from structprune.errors import InputError, ModelError, OptionError, brief
from structprune.inputs import read_inputs
from structprune.meta.surroundings import ordinary_tensors


@ordinary_tensors()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Estimate the running statistics of batch norms again, from a few batches.

    After a cut the inputs of a batch norm have another mean and variance than those that it holds. The new ones are
    averages over all batches, with equal weight; nothing else is trained, and dropout stays off.

    Args:
        model: The model, usually a pruned one. Its batch norms' buffers are changed, and nothing else.
        batches: What it takes, each as ``example_inputs`` of ``structprune.prune_model``.

    Returns:
        The same model, in the mode in which it was.

    Raises:
        ModelError: It has no batch norm with running statistics.
        OptionError: There is no batch.
        InputError: It does not run with one of them; its statistics are as they were.
    """
    if isinstance(batches, torch.Tensor):
        raise OptionError("batches is one tensor; expected a list of batches: [batch].")
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    if not norms:
        raise ModelError(f"{type(model).__name__} has no batch norm with running statistics: nothing to recalibrate.")
    modes = [(module, module.training) for module in model.modules()]
    before = [(norm, norm.momentum, {n: b.clone() for n, b in norm.named_buffers(recurse=False)}) for norm in norms]
    number = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the average over all batches
        with torch.no_grad():
            for batch in batches:
                number += 1
                for call in read_inputs(batch):
                    call(model)
        if not number:
            raise OptionError("batches is empty: give at least one batch.")
    except BaseException as error:
        for norm, _, buffers in before:
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
        if isinstance(error, (OptionError, InputError)) or not isinstance(error, Exception):
            raise
        raise InputError(f"{type(model).__name__} does not run with batch {number}: {brief(error)}") from error
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    return model
