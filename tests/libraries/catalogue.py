"""All architectures, library by library."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from tests.libraries.architecture import Architecture
from tests.support import vision
from tests.zoo.calls import Call

_TABLES = (
    "detection",
    "generation",
    "graphs",
    "language",
    "recognition",
    "segmentation",
    "sound",
    "transformers_of_vision",
)


def architectures() -> list[Architecture]:
    """Every architecture of the catalogue, by library and in the order of the tables."""
    listed = [a for table in _TABLES for a in importlib.import_module(f"tests.libraries.{table}").ARCHITECTURES]
    libraries = sorted({a.library for a in listed}, key=str.lower)
    return [a for library in libraries for a in listed if a.library == library]


def architecture(key: str) -> Architecture:
    """The architecture ``library:name``."""
    return next(a for a in architectures() if f"{a.library}:{a.name}" == key)


def build(chosen: Architecture) -> tuple[nn.Module, Call]:
    """The network with random weights, in evaluation mode, and its call with random floats."""
    vision.torchvision()  # which many of the libraries import
    torch.manual_seed(0)
    return chosen.build().eval(), chosen.call.random()
