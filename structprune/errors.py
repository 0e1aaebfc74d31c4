"""The errors of structprune: one tree, every message says what, where, and what to do."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = [
    "CheckpointError",
    "InputError",
    "ModelError",
    "NothingToPruneError",
    "OptionError",
    "PlanError",
    "RuleError",
    "StructPruneError",
    "TraceError",
    "UntracedParameterError",
    "VerificationError",
]


_LONGEST = 300


class StructPruneError(Exception):
    """Base of every error that structprune raises on purpose."""


class OptionError(StructPruneError, ValueError):
    """An option has a value that cannot be used: a ratio, a granularity, a pattern, a multiple."""


class ModelError(StructPruneError):
    """The model cannot be pruned as it stands: no parameter, lazy, quantised, overlapping storage."""


class InputError(StructPruneError):
    """Example inputs are missing, cannot be inferred, or have a type that cannot be passed on."""


class TraceError(StructPruneError):
    """The model's forward could not be followed with the example inputs."""


class UntracedParameterError(TraceError):
    """A parameter that no traced forward read has a size that the cut would change."""


class RuleError(StructPruneError, ValueError):
    """A rule of a user's fails or returns what fits no output, or a registry cannot take what it is given."""


class VerificationError(StructPruneError):
    """A cut network does not give what the dense one gives with those channels masked; the model is as it was."""


class NothingToPruneError(StructPruneError):
    """Not one channel can be removed with these options; the message lists the reasons."""


class PlanError(StructPruneError):
    """A plan does not fit the model, was applied already, or its JSON cannot be read."""


class CheckpointError(StructPruneError):
    """A file of weights cannot be read or written, or does not fit the model; nothing was changed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: ", did you mean …?" with the nearest ones, or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f", did you mean {' or '.join(repr(c) for c in close)}?" if close else "."


class _Words(reprlib.Repr):
    """Values as a message has them: short, and without the numbers of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, (torch.Tensor, np.ndarray)):
            kind = "tensor" if isinstance(x, torch.Tensor) else "NumPy array"
            return f"a {kind} of {str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        if isinstance(x, nn.Module):
            return f"a {type(x).__name__} (a module)"
        if isinstance(x, type):
            return f"the class {x.__name__}"
        return super().repr1(x, level)


_WORDS = _Words()


def described(value: Any) -> str:
    """A user's value in a message: shape and dtype of a tensor, the class of a module, else a short ``repr``."""
    return _WORDS.repr(value)


def brief(error: BaseException) -> str:
    """Another library's error within a message of ours: its type and first line."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
