"""The kinds of blocks, by name: each says in which domain it lives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from torch import nn


class Kind(NamedTuple):
    """A kind of block.

    Attributes:
        make: Takes the channels that come in and the random numbers of the network.
        domain: ``"tokens"``: [batch, tokens, channels]; ``"images"``: [batch, channels, height, width].
        random: Whether training mode draws random numbers.
        needs: A package that may not be installed.
    """

    make: Callable[[int, Random], nn.Module]
    domain: str
    random: bool
    needs: str


KINDS: dict[str, Kind] = {}


def block(name: str, domain: str = "tokens", *, random: bool = False, needs: str = "") -> Callable[[type], type]:
    """Register a block's class; it takes (channels, random numbers) and has the attribute ``out``."""

    def register(cls: type) -> type:
        if name in KINDS:
            raise ValueError(f"two blocks are called {name}")
        KINDS[name] = Kind(cls, domain, random, needs)
        return cls

    return register


def kinds(domain: str) -> list[str]:
    """The kinds of a domain for which everything is installed."""
    return [
        name
        for name, kind in KINDS.items()
        if kind.domain == domain and (not kind.needs or importlib.util.find_spec(kind.needs))
    ]
