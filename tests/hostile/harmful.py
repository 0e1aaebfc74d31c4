"""Files that do harm because they are trusted: whoever watches the processes must notice each."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.hostile.kinds import REFUSED, Kind, Place, Sample


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


def _trusted(call: Callable[[Place], _Call]) -> Callable[[Random, Place], Sample]:
    def make(random: Random, place: Place) -> Sample:
        torch.save([call(place)], place.file, pickle_module=pickle)
        return Sample(place.file, ("--trust",))

    return make


def _kind(name: str, call: Callable[[Place], _Call]) -> Kind:
    return Kind(name, name, _trusted(call), REFUSED)


HARMFUL = {
    kind.name: kind
    for kind in (
        _kind("writes", lambda place: _Call(os.system, f"touch {place.marker}")),
        _kind("writes here", lambda place: _Call(Path.touch, Path("x"))),
        _kind("never done", lambda place: _Call(time.sleep, 100_000)),
        _kind("floods", lambda place: _Call(eval, "len(bytearray(b'x') * 400_000_000)")),
        _kind("injects", lambda place: _Call(print, "\x1b[2J")),
        _kind("leaves", lambda place: _Call(os._exit, 7)),
        _kind("says it twice", lambda place: _Call(print, "structprune-report: all is well")),
    )
}
