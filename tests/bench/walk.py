"""The way of a model from ``prune_model`` to the cut: ``python -m tests.bench.walk``.

Of all functions of the package that are called with the model itself, in their order: the files that they are in, and
how often the way comes back to a file that it had left. Fewer of both are easier to follow.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import structprune

PACKAGE = Path(structprune.__file__).parent


def walk(model: nn.Module, inputs: torch.Tensor) -> list[str]:
    """The files in the order in which functions called with the model were entered, without repetitions in a row."""
    seen: list[str] = []

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(frame.f_locals.get(name) is model for name in names):
                seen.append(str(Path(code.co_filename).relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        structprune.prune_model(model, 0.5, example_inputs=inputs, verify=False)
    finally:
        sys.setprofile(None)
    return [file for file, _ in groupby(seen)]


def counted(files: list[str]) -> tuple[int, int]:
    """How many files are entered, and how often one is entered that was left before."""
    return len(set(files)), len(files) - len(set(files))


def main() -> int:
    """Print the way."""
    files = walk(structprune.demo.resnet50(num_classes=10), torch.zeros(1, 3, 64, 64))
    print(*files, sep="\n")
    entered, returns = counted(files)
    print(f"{entered} files entered, {returns} returns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
