"""One method on one network at one point."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch

from tests.real.bisection import Refused
from tests.real.kirigami import kirigami_methods
from tests.real.methods import Method, structprune_methods
from tests.real.peers import torch_pruning_methods
from tests.real.subject import Subject, Unavailable, count, outputs


def methods() -> list[Method]:
    """All of them, structprune's first."""
    return [*structprune_methods(), *torch_pruning_methods(), *kirigami_methods()]


def measured(subject: Subject, method: Method, share: float) -> dict[str, Any]:
    """What is stored: the figures and the losses of all samples, or why there are none.

    Raises:
        Unavailable: The method's library is not there.
    """
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = method.prune(subject, share).eval()
            seconds = time.perf_counter() - started
            left = count(pruned, subject.example) / subject.macs
            given = outputs(pruned, subject.judging)
    except Unavailable:
        raise
    except Refused as reason:
        return {"data": method.data, "refused": str(reason)}
    except Exception as error:
        # Whatever a library raises is its answer, and the page shows it.
        text = " ".join(str(error).split())
        return {"data": method.data, "refused": f"{type(error).__name__}: {text[:300]}"}
    if given.shape != subject.dense.shape or not torch.isfinite(given).all():
        return {"data": method.data, "refused": "the pruned network's output has another shape or is not finite"}
    losses = subject.loss(given, subject.dense)
    return {
        "data": method.data,
        "seconds": round(seconds, 2),
        "macs": round(left, 5),
        "measures": {name: _short(value) for name, value in subject.measures(given, subject.dense).items()},
        "loss": _short(float(losses.mean())),
        "losses": [_short(loss) for loss in losses.tolist()],
    }


def _short(value: float) -> float:
    """Five digits, so that the file of the results stays small."""
    return float(f"{value:.5g}")
