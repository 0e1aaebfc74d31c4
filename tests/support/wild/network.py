"""A random network: a stem, blocks of any kinds, heads, a container of outputs. All from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.wild import (  # noqa: F401  (each registers its blocks)
    algebra,
    attention,
    composition,
    einops_blocks,
    graphs,
    images,
    layers,
    memory,
    positions,
    python,
    recurrent,
    routing,
    sizes,
    weights,
)
from tests.support.wild.containers import CONTAINERS
from tests.support.wild.registry import KINDS, kinds

Tensor = torch.Tensor
TOKENS, VOCABULARY, CLASSES = 16, 11, 5
STEMS = {"tokens": ("ids", "ids, tied", "ids, positions", "floats", "floats, normed"), "images": ("plain", "strided")}
ORDERS = ("list", "sequential", "dict", "reduce", "property")


@dataclass(frozen=True)
class Recipe:
    """What a network is made of, and how it is pruned."""

    seed: int
    domain: str
    stem: str
    channels: int
    blocks: tuple[str, ...]
    tail: tuple[str, ...]
    order: str
    container: str
    ratio: float
    granularity: str
    keep_representation: bool

    @property
    def random(self) -> bool:
        """Whether training mode draws random numbers."""
        return any(KINDS[name].random for name in (*self.blocks, *self.tail))


def recipe(seed: int) -> Recipe:
    """The network of a seed; the kinds take turns as its first block."""
    rng = Random(seed)
    both = [(domain, name) for domain in ("tokens", "images") for name in kinds(domain)]
    domain, first = both[seed % len(both)]
    more = rng.choices(kinds(domain), k=rng.randrange(4))
    blocks = [first, *more]
    rng.shuffle(blocks)
    tail = rng.choices(kinds("tokens"), k=rng.randrange(3)) if domain == "images" else []
    return Recipe(
        seed, domain, rng.choice(STEMS[domain]), rng.choice([16, 24, 32]), tuple(blocks), tuple(tail),
        rng.choice(ORDERS), rng.choice(sorted(CONTAINERS)), rng.choice([0.25, 0.5, 0.5, 0.7]),
        rng.choice(["channel", "channel", "filter"]), rng.random() < 0.3,
    )  # fmt: skip


def alone(kind: str, seed: int = 0) -> Recipe:
    """A network of one block, of which all may go."""
    domain = KINDS[kind].domain
    stem = "floats" if domain == "tokens" else "plain"
    return Recipe(seed, domain, stem, 24, (kind,), (), "list", "tuple", 0.5, "channel", False)


class TokenStem(nn.Module):
    def __init__(self, stem: str, c: int) -> None:
        super().__init__()
        self.stem = stem
        self.embed = nn.Linear(6, c) if stem.startswith("floats") else nn.Embedding(VOCABULARY, c)
        self.norm = nn.LayerNorm(c) if stem.endswith("normed") else nn.Identity()
        self.positions = nn.Parameter(torch.randn(1, TOKENS, c)) if stem.endswith("positions") else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.embed(x))
        return y if self.positions is None else y + self.positions[:, : y.shape[1]]


class ImageStem(nn.Module):
    def __init__(self, stem: str, c: int) -> None:
        super().__init__()
        stride = 2 if stem == "strided" else 1
        self.conv, self.norm = nn.Conv2d(3, c, 3, stride, 1), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Network(nn.Module):
    """Stem, blocks, a change to tokens for images, more blocks, two heads."""

    def __init__(self, r: Recipe) -> None:
        super().__init__()
        rng = Random(r.seed + 1)
        self.stem = TokenStem(r.stem, r.channels) if r.domain == "tokens" else ImageStem(r.stem, r.channels)
        made, c = self._blocks(r.blocks, r.channels, rng)
        self.order = r.order
        self.blocks = self._held(made)
        self.to_tokens = nn.Conv2d(c, 24, 2, 2) if r.domain == "images" else None
        tail, c = self._blocks(r.tail, 24 if r.domain == "images" else c, rng)
        self.tail = nn.ModuleList(tail)
        self.tied = r.stem == "ids, tied"
        self.back = nn.Linear(c, r.channels) if self.tied else nn.Linear(c, 20)
        self.head = nn.Identity() if self.tied else nn.Linear(20, CLASSES)
        self.extra = nn.Linear(c, 3)
        self.pack: Callable[[Tensor, Tensor], Any] = CONTAINERS[r.container]

    def _blocks(self, names: tuple[str, ...], c: int, rng: Random) -> tuple[list[nn.Module], int]:
        made: list[nn.Module] = []
        for name in names:
            made.append(KINDS[name].make(c, rng))
            c = made[-1].out  # type: ignore[assignment]
        return made, c

    def _held(self, made: list[nn.Module]) -> nn.Module:
        if self.order == "sequential":
            return nn.Sequential(*made)
        if self.order == "dict":
            return nn.ModuleDict({f"block{i}": b for i, b in enumerate(made)})
        return nn.ModuleList(made)

    @property
    def steps(self) -> list[nn.Module]:
        return [*self.blocks.children()]

    def _through(self, x: Tensor) -> Tensor:
        match self.order:
            case "sequential":
                return self.blocks(x)
            case "dict":
                for name in self.blocks:
                    x = self.blocks[name](x)
                return x
            case "property":
                for step in self.steps:
                    x = step(x)
                return x
            case _:
                return reduce(lambda y, block: block(y), self.blocks, x)

    def forward(self, x: Tensor) -> Any:
        x = self._through(self.stem(x))
        if self.to_tokens is not None:
            x = self.to_tokens(x).flatten(2).transpose(1, 2)
        for block in self.tail:
            x = block(x)
        y = torch.relu(self.back(x))
        logits = y @ self.stem.embed.weight.t() if self.tied else self.head(y.mean(1))
        return self.pack(logits, self.extra(x).amax(1))


def example(r: Recipe, batch: int = 2) -> Tensor:
    """An input."""
    generator = torch.Generator().manual_seed(7)
    if r.domain == "images":
        side = 16 if r.stem == "strided" else 8
        return torch.randn(batch, 3, side, side, generator=generator)
    if r.stem.startswith("ids"):
        return torch.randint(VOCABULARY, (batch, TOKENS), generator=generator)
    return torch.randn(batch, TOKENS, 6, generator=generator)


def build(r: Recipe) -> nn.Module:
    """The network, in evaluation mode, with another random value in every place of its tensors."""
    torch.manual_seed(r.seed)
    model = Network(r).eval()
    generator = torch.Generator().manual_seed(r.seed + 2)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            for part in _parts(tensor):
                part.copy_(_values(name, part, generator))
    return model


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.is_complex():
        return [torch.view_as_real(tensor.data)]
    return [tensor.data] if tensor.is_floating_point() else []


def _values(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random values, each but once in a tensor, also in float32."""
    noise = (torch.randperm(tensor.numel(), generator=generator) + 0.5) / max(1, tensor.numel())
    noise = noise.view(tensor.shape)
    if name.endswith(("var", "_u", "_v")):
        return noise + 0.5
    if tensor.ndim > 1:
        return (noise - 0.5) * (12 / max(1, tensor.numel() // tensor.shape[0])) ** 0.5
    return (noise + 0.2) * torch.where(noise * 1e3 % 1 < 0.4, -1.0, 1.0)
