"""What an entry of the catalogue says: a library, a name, how the network is made and what it is called with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.zoo.calls import Call

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """One network of a library, small and with random weights.

    Attributes:
        library: The name of its package.
        name: What the table calls it; with ``library`` unique.
        build: Makes the network. Imports the library, so that an entry costs nothing until it is judged.
        call: The inputs, with a batch of one where the first dimension is the batch.
        allow_untraced: It registers parameters that only other calls read.
    """

    library: str
    name: str
    build: Build
    call: Call
    allow_untraced: bool = False


def made(path: str, *args: Any, **kwargs: Any) -> Build:
    """Builds ``path``, the dotted name of a class or function, with these arguments."""
    return lambda: found(path)(*args, **kwargs)


def found(path: str) -> Any:
    """The object with this dotted name, such as ``vit_pytorch.simple_vit.SimpleViT``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def image(side: int, channels: int = 3) -> Call:
    """One square image."""
    return Call((torch.zeros(1, channels, side, side),))


def volume(side: int, channels: int = 1) -> Call:
    """One cube."""
    return Call((torch.zeros(1, channels, side, side, side),))


def sequence(length: int, width: int) -> Call:
    """One sequence of vectors: ``[1, length, width]``."""
    return Call((torch.zeros(1, length, width),))


def signal(length: int, channels: int = 1) -> Call:
    """One signal: ``[1, channels, length]``."""
    return Call((torch.zeros(1, channels, length),))


def tokens(length: int, vocabulary: int = 64) -> Call:
    """One sequence of token numbers."""
    return Call((ids(length, vocabulary),))


def ids(length: int, vocabulary: int = 64) -> torch.Tensor:
    """Token numbers, the same in every run."""
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


class Part(nn.Module):
    """One method of a network as its forward, such as ``encode_image`` or the mean of a distribution.

    Args:
        model: The network.
        forward: Gets the network and the inputs.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The method's outputs."""
        return self._forward(self.model, *args, **kwargs)
