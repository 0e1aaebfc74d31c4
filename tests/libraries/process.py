"""A judge in a forked process, under limits: PyTorch and the library are imported once for all of its networks."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from typing import Any

import torch

from tests.libraries import operators
from tests.libraries.architecture import Architecture
from tests.libraries.catalogue import build
from tests.zoo.process import Limits, emit, merged
from tests.zoo.structprune_judge import judge_model

# What takes seconds to import.
_MODULES = {
    "diffusers": "diffusers.models",
    "kornia": "kornia.feature",
    "monai": "monai.networks.nets",
    "open-clip-torch": "open_clip",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "speechbrain": "speechbrain.lobes.models.CRDNN",
    "torch-geometric": "torch_geometric.nn",
    "ultralytics": "ultralytics.nn.tasks",
}


def prepare() -> None:
    """What every judge needs. One thread, since a process with several cannot be forked."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    operators.register()


def run(architecture: Architecture, limits: Limits) -> dict[str, Any]:
    """Judge an architecture; under ``error`` why the result is not complete, if it is not."""
    if architecture.library in _MODULES:
        importlib.import_module(_MODULES[architecture.library])
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os._exit(_judge(architecture, limits, writer))
    os.close(writer)
    output, in_time = _read(reader, limits.seconds)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    result = merged(output)
    doing = result.pop("doing", "start")
    if not in_time:
        result["error"] = f"took longer than {limits.seconds} s ({doing})"
    elif status:
        result["error"] = f"{result.pop('raised', f'status {status}')} ({doing})"
    return result


def _judge(architecture: Architecture, limits: Limits, writer: int) -> int:
    """The child: its standard output is the pipe."""
    os.dup2(writer, 1)
    sys.stdout = os.fdopen(1, "w")
    limit = limits.gigabytes << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        with contextlib.redirect_stderr(None):
            emit({"doing": "dense"})
            model, call = build(architecture)
            judge_model(model, call, emit, allow_untraced=architecture.allow_untraced, timed=False)
    except BaseException:
        emit({"raised": traceback.format_exc().strip().splitlines()[-1][:400]})
        return 1
    return 0


def _read(reader: int, seconds: int) -> tuple[str, bool]:
    """Everything that the child says, and whether it ended in time."""
    end, parts = time.monotonic() + seconds, []
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while (left := end - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                part = pipe.read(1 << 16)
                if not part:
                    return b"".join(parts).decode(errors="replace"), True
                parts.append(part)
    return b"".join(parts).decode(errors="replace"), False
