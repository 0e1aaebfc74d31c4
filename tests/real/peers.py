"""torch-pruning by its own pruner: the same channels may go, and its ratio is searched for the same MACs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from tests.real.bisection import nearest
from tests.real.methods import Method, every
from tests.real.subject import Subject

_CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "FPGM": tp.importance.FPGMImportance,
    "LAMP": tp.importance.LAMPImportance,
    "BN scale": tp.importance.BNScaleImportance,
    "random": tp.importance.RandomImportance,
    "Taylor": tp.importance.GroupTaylorImportance,
}
_WITH_DATA = ("Taylor",)
_SCOPES: dict[str, dict[str, bool]] = {
    "local": {"global_pruning": False},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}


def torch_pruning_methods() -> list[Method]:
    """Every criterion in every scope."""
    return every("torch-pruning", _CRITERIA, _WITH_DATA, _SCOPES, _prune)


def _prune(key: str, criterion: str, scope: str, subject: Subject, share: float) -> nn.Module:
    return nearest(key, subject, share, lambda ratio: _cut(subject, criterion, scope, ratio))


def _cut(subject: Subject, criterion: str, scope: str, ratio: float) -> nn.Module:
    model = copy.deepcopy(subject.model)
    if criterion in _WITH_DATA:
        give_gradients(model, subject)
    layers = dict(model.named_modules())
    heads = {layers[name]: number for name, number in subject.heads.items() if name in subject.allowed}
    torch.manual_seed(0)
    pruner = tp.pruner.BasePruner(
        model,
        subject.example,
        importance=_CRITERIA[criterion](),
        pruning_ratio=ratio,
        ignored_layers=subject.kept(model),
        # Its defaults are dicts that all pruners share.
        in_channel_groups={},
        out_channel_groups={},
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio if heads else 0.0,
        **_SCOPES[scope],
    )
    pruner.step()
    model.zero_grad()
    return model


def give_gradients(model: nn.Module, subject: Subject) -> None:
    """Put the subject's gradients on a copy of its model."""
    for name, parameter in model.named_parameters():
        gradient = subject.gradients.get(name)
        parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient.clone()
