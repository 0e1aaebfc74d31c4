"""What people hand over in place of a model, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from structprune.errors import ModelError, described


def check_module(model: Any) -> None:
    """Refuse what is no model.

    Raises:
        ModelError: With what it is, and how to come from there to a model.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected an nn.Module, got {_what(model)}{_way_on(model)}")


def _what(given: Any) -> str:
    if isinstance(given, (type, torch.Tensor)) or isinstance(given, (str, os.PathLike)):
        return described(given)
    return f"a {type(given).__name__}"


def _way_on(given: Any) -> str:
    if isinstance(given, torch.export.ExportedProgram):
        return ": prune the module that it was exported from, then export."
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f": build one, {given.__name__}(...), and give that."
    if isinstance(given, (str, os.PathLike)):
        return (
            ": build the model, load the weights into it (model.load_state_dict(...)), and give the model. "
            "structprune.load(path, model) reads what structprune.save wrote."
        )
    if isinstance(given, Mapping):
        modules = [key for key, value in given.items() if isinstance(value, nn.Module)]
        if modules:
            return f": there is a model at {described(modules[0])}, give that."
        return ": weights without the code that runs them. Build the model, model.load_state_dict(...), and give that."
    if isinstance(given, torch.Tensor):
        return ": the model comes first, inputs as example_inputs=..."
    return "."
