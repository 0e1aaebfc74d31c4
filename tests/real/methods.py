"""The methods that are compared. To add one of structprune's, add a line to one of the two tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

import structprune
from tests.real.subject import Subject

OURS = "structprune"
DEFAULT = f"{OURS}: default"
# Stands for the subject's calibration batches.
BATCHES = object()

WITHOUT_DATA: dict[str, dict[str, Any]] = {
    "default": {},
    "default, any width": {"round_to": 1},
    "default, not compensated": {"compensate": False},
    "error, local": {"importance": "error", "scope": "local"},
    "l2, local": {"importance": "l2", "scope": "local", "compensate": False},
    "l2, local, compensate": {"importance": "l2", "scope": "local", "compensate": True},
    "group, global": {"importance": "group", "scope": "global", "compensate": False},
    "l2, global": {"importance": "l2", "scope": "global", "compensate": False},
}
WITH_DATA: dict[str, dict[str, Any]] = {
    "calibrate": {"calibrate": BATCHES},
    "l2, local, calibrate": {"importance": "l2", "scope": "local", "calibrate": BATCHES},
    "l2, local, compensate from batches": {"importance": "l2", "scope": "local", "compensate": BATCHES},
}


class Method(NamedTuple):
    """A way to prune.

    Attributes:
        key: The library and what is used of it.
        data: Whether it reads the calibration batches.
        prune: Gives a copy of the subject's model with at most a share of its MACs.
    """

    key: str
    data: bool
    prune: Callable[[Subject, float], nn.Module]


def every(
    library: str,
    criteria: Iterable[str],
    with_data: Iterable[str],
    scopes: Iterable[str],
    prune: Callable[..., nn.Module],
) -> list[Method]:
    """A method for every criterion of a library in every scope; ``prune(key, criterion, scope, subject, share)``."""
    made = []
    for criterion in criteria:
        for scope in scopes:
            key = f"{library}: {criterion}, {scope}"
            made.append(Method(key, criterion in with_data, partial(prune, key, criterion, scope)))
    return made


def structprune_methods() -> list[Method]:
    """Everything in the two tables, and the default with batch norms estimated anew."""
    made = [
        Method(f"{OURS}: {name}", data, partial(_prune, options))
        for data, table in ((False, WITHOUT_DATA), (True, WITH_DATA))
        for name, options in table.items()
    ]
    return [*made, Method(f"{OURS}: default, recalibrate", True, _recalibrated)]


def _prune(options: Mapping[str, Any], subject: Subject, share: float) -> nn.Module:
    given = {name: subject.calibration if value is BATCHES else value for name, value in options.items()}
    return structprune.prune_model(
        subject.model,
        macs=share,
        granularity="filter",
        example_inputs=subject.example,
        verify=False,
        **{**subject.options, **given},
    )


def _recalibrated(subject: Subject, share: float) -> nn.Module:
    return structprune.recalibrate(_prune({}, subject, share), subject.calibration)
