"""What an operator was given, as it can be compared between runs, and the line of the user's that called it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from structprune.ir.slices import Labels

_OURS = str(Path(__file__).parent.parent)
_AS_THEY_ARE = frozenset((type(None), bool, int, float, str, torch.dtype))


def comparable(value: Any) -> Any:
    """An argument as it can be compared: tensors are not, only that there is one."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, torch.Tensor):
        return torch.Tensor
    if isinstance(value, (list, tuple)):
        return tuple(comparable(item) for item in value)
    return value


def places(arguments: dict[str, Any], labels: Labels) -> tuple[Any, ...]:
    """The numbers that an operator was given, if none of its dimensions carries labels that show them."""
    dims = arguments["dims"] if "dims" in arguments else [arguments["dim"]]
    if any(labels[d] is not None for d in dims):
        return ()
    return tuple(v for k, v in arguments.items() if k != "self")


def source_line() -> str:
    """The source line that is running, with those it was called from up to a module's forward.

    The line alone would not do: all that a model rearranges may go through one line of a library.
    """
    frame: FrameType | None = sys._getframe(1)
    lines = []
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            lines.append(f"{file}:{frame.f_lineno}")
            if frame.f_code.co_name == "forward":
                break
        frame = frame.f_back
    return " < ".join(lines)
