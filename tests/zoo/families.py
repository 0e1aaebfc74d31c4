"""The networks of the zoo, by family, and how each is built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support import vision
from tests.zoo.calls import Call
from tests.zoo.tiny_transformers import TINY, build_tiny

TITLES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "timm-other": "timm, other families",
    "transformers": "transformers",
}
_TIMM = Path(__file__).with_name("timm.json")


@dataclass(frozen=True)
class Network:
    """A published network."""

    family: str
    name: str

    @property
    def key(self) -> str:
        """Family and name in one word."""
        return f"{self.family}:{self.name}"

    @classmethod
    def of(cls, key: str) -> Network:
        """The network with this key."""
        return cls(*key.split(":", 1))


def networks() -> Iterator[Network]:
    """All networks of the zoo, family by family."""
    listed = json.loads(_TIMM.read_text())
    torchvision = vision.torchvision().models
    names = {
        "torchvision": torchvision.list_models(module=torchvision),
        "timm": listed["timm"],
        "timm-other": listed["other"],
        "transformers": TINY,
    }
    for family in TITLES:
        yield from (Network(family, name) for name in names[family])


def build(network: Network) -> tuple[nn.Module, Call]:
    """A network with random weights, in evaluation mode, and a call with a batch of one."""
    torch.manual_seed(0)
    if network.family == "torchvision":
        model, call = _torchvision(network.name)
    elif network.family == "transformers":
        vision.torchvision()  # transformers' image models import it
        model, call = build_tiny(network.name)
    else:
        model, call = _timm(network.name)
    return model.eval(), call.random()


def _torchvision(name: str) -> tuple[nn.Module, Call]:
    model = vision.build(name)
    with torch.no_grad():
        for parameter in model.parameters():  # which the quick build leaves empty
            parameter.uniform_(-0.1, 0.1)
    side = vision.image_size(name)
    return model, Call((torch.zeros(1, 3, side, side),))


def _timm(name: str) -> tuple[nn.Module, Call]:
    vision.torchvision()
    import timm

    model: Any = timm.create_model(name, pretrained=False)
    size = json.loads(_TIMM.read_text())["timm"].get(name) or model.pretrained_cfg["input_size"]
    return model, Call((torch.zeros(1, *size),))
