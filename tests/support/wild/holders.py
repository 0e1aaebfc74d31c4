"""The ways in which people's code holds a size: each returns how it is read."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

GLOBAL_SIZES: dict[str, int] = {"heads": 4, "width": 8}
Pair = namedtuple("Pair", "heads width")


@dataclass
class Sizes:
    heads: int
    width: int


@dataclass(frozen=True)
class FrozenSizes:
    heads: int
    width: int

    @property
    def inner(self) -> int:
        return self.heads * self.width


class Held(nn.Module):
    """A module with a number of heads and the width of each, held in one of the ways of ``HOLDERS``."""

    heads_of_class, width_of_class = 4, 8

    def hold(self, style: str, heads: int, width: int) -> None:
        self.style = style
        HOLDERS[style](self, heads, width)

    @property
    def heads_now(self) -> int:
        return self.sized.shape[0] // self.each

    def sizes(self) -> tuple[int, int]:
        """The number of heads and the width of each."""
        match self.style:
            case "attributes":
                return self.heads, self.width
            case "dict":
                return self.held["heads"], self.held["width"]
            case "tuple" | "list":
                return self.held[0], self.held[1]
            case "text":
                heads, width = self.held.split("x")
                return int(heads), int(width)
            case "closure" | "partial":
                return self.held()
            case "property":
                return self.heads_now, self.each
            case "class attribute":
                return self.heads_of_class, self.width_of_class
            case "global":
                return GLOBAL_SIZES["heads"], GLOBAL_SIZES["width"]
            case "numpy":
                return int(self.held[0]), int(self.held[1])
            case "buffer":
                return int(self.held_heads), int(self.held_width)
            case "nested":
                return self.config["attention"]["heads"], self.config["attention"]["widths"][0]
            case _:
                return self.held.heads, self.held.width


def _attributes(m: Held, heads: int, width: int) -> None:
    m.heads, m.width = heads, width


def _property(m: Held, heads: int, width: int) -> None:
    m.sized, m.each = nn.Parameter(torch.randn(heads * width)), width


def _buffer(m: Held, heads: int, width: int) -> None:
    m.register_buffer("held_heads", torch.tensor(heads))
    m.register_buffer("held_width", torch.tensor(width))


def _setter(make: Callable[[int, int], object], name: str = "held") -> Callable[[Held, int, int], None]:
    return lambda m, heads, width: setattr(m, name, make(heads, width))


def _closure(heads: int, width: int) -> Callable[[], tuple[int, int]]:
    def sizes() -> tuple[int, int]:
        return heads, width

    return sizes


def _pair(heads: int, width: int) -> tuple[int, int]:
    return heads, width


HOLDERS: dict[str, Callable[[Held, int, int], None]] = {
    "attributes": _attributes,
    "dict": _setter(lambda h, w: {"heads": h, "width": w}),
    "tuple": _setter(lambda h, w: (h, w)),
    "list": _setter(lambda h, w: [h, w]),
    "named tuple": _setter(Pair),
    "dataclass": _setter(Sizes),
    "frozen dataclass": _setter(FrozenSizes),
    "namespace": _setter(lambda h, w: SimpleNamespace(heads=h, width=w)),
    "nested": _setter(lambda h, w: {"attention": {"heads": h, "widths": [w, 0]}}, "config"),
    "text": _setter(lambda h, w: f"{h}x{w}"),
    "closure": _setter(_closure),
    "partial": _setter(lambda h, w: partial(_pair, h, width=w)),
    "property": _property,
    "class attribute": lambda m, h, w: None,
    "global": lambda m, h, w: None,
    "numpy": _setter(lambda h, w: np.array([h, w])),
    "buffer": _buffer,
}
STYLES = tuple(HOLDERS)
