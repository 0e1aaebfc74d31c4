"""Sizes that code computes in every way: from siblings, by shifts, by fractions, by a common divisor."""

from __future__ import annotations

import math
from enum import IntEnum
from fractions import Fraction
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.wild.registry import block

Tensor = torch.Tensor


class Sized(nn.Module):
    """A layer to 32 channels and one back; what is between computes sizes."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 32), nn.Linear(32, c), c
        self.variant = rng.randrange(5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(x)))

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError


def swap(y: Tensor, half: int) -> Tensor:
    """The first ``half`` channels behind the others."""
    return torch.cat([y[..., half:].tanh(), y[..., :half]], -1)


@block("half by arithmetic")
class Half(Sized):
    def between(self, y: Tensor) -> Tensor:
        width = y.shape[-1]
        match self.variant:
            case 0:
                return swap(y, width >> 1)
            case 1:
                return swap(y, int(width * 0.5))
            case 2:
                return swap(y, int(width * Fraction(1, 2)))
            case 3:
                return swap(y, -(-width // 2))
            case _:
                return swap(y, round(width / 2))


@block("size of a sibling")
class Sibling(Sized):
    def between(self, y: Tensor) -> Tensor:
        match self.variant:
            case 0:
                width = self.up.out_features
            case 1:
                width = len(self.up.bias)
            case 2:
                width = self.down.weight.size(1)
            case 3:
                width = self.up.weight.numel() // self.up.in_features
            case _:
                width = max(p.shape[0] for p in self.up.parameters())
        return swap(y.reshape(-1, width), width // 2).view_as(y)


@block("groups by a common divisor")
class Divisor(Sized):
    """How many groups there are depends on the width."""

    def between(self, y: Tensor) -> Tensor:
        groups = math.gcd(y.shape[-1], 8)
        z = y.unflatten(-1, (groups, -1))
        return (z * z.flip(-2)).flatten(-2)


@block("split by a quarter of the width")
class Quarter(Sized):
    """With another width there may be more pieces, or a shorter one."""

    def between(self, y: Tensor) -> Tensor:
        a, b, c, d = torch.split(y, y.shape[-1] // 4, -1)
        return torch.cat([a * b, b.relu(), c * d, d.sigmoid()], -1)


@block("chunks of unequal size")
class Uneven(Sized):
    def between(self, y: Tensor) -> Tensor:
        pieces = y.chunk(3, -1)
        return torch.cat([p * (1 + i) for i, p in enumerate(pieces)], -1)


class Width(IntEnum):
    GROUPS = 4
    EACH = 8


@block("sizes of an enumeration")
class Enumeration(Sized):
    def between(self, y: Tensor) -> Tensor:
        z = y.view(*y.shape[:-1], Width.GROUPS, Width.EACH) if self.variant % 2 else y.unflatten(-1, (Width.GROUPS, -1))
        return (z + z.mean(-2, keepdim=True)).flatten(-2)


@block("slices with steps and negative bounds")
class Slices(Sized):
    def between(self, y: Tensor) -> Tensor:
        match self.variant:
            case 0:
                return torch.cat([y[..., ::2], y[..., 1::2].relu()], -1)
            case 1:
                return torch.cat([y[..., -8:], y[..., :-8].relu()], -1)
            case 2:
                return y[..., None].expand(*y.shape, 2)[..., 0] + y[:, [0]]
            case 3:
                return y[:, torch.arange(y.shape[1] - 1, -1, -1)] + y[:, y.shape[1] // 2, None]
            case _:
                return torch.cat([y[..., slice(0, 16)], y[..., slice(16, None)].tanh()], -1)


@block("order of channels in a buffer")
class Order(Sized):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        order = list(range(32))
        rng.shuffle(order)
        self.register_buffer("order", torch.tensor(order))

    def between(self, y: Tensor) -> Tensor:
        return y[..., self.order] if self.variant % 2 else y.index_select(-1, self.order)


@block("a loop over channels")
class OverChannels(Sized):
    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return torch.stack([y[..., i].tanh() for i in range(y.shape[-1])], -1)
        return torch.cat([channel.relu() for channel in y.split(1, -1)], -1)


@block("scale that was computed once")
class StoredScale(Sized):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.scale = 32**-0.5
        self.register_buffer("factor", torch.tensor(32**-0.5))

    def between(self, y: Tensor) -> Tensor:
        return y.tanh() * (self.scale if self.variant % 2 else self.factor)


class Child(nn.Module):
    """Reads its size from the module above, which it holds in a list."""

    def __init__(self, above: nn.Module) -> None:
        super().__init__()
        self.above = [above]

    def forward(self, y: Tensor) -> Tensor:
        return swap(y.view(*y.shape[:-1], self.above[0].hidden), self.above[0].hidden // 2)


@block("size of the module above")
class Above(Sized):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.hidden = 32
        self.child = Child(self)

    def between(self, y: Tensor) -> Tensor:
        return self.child(y)


class OwnLinear(nn.Linear):
    """A layer of torch.nn with more to it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.fan, self.gain = inputs, nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.fan
        return super().forward(x) * self.gain


@block("own subclass of a layer")
class Subclass(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = OwnLinear(c, 32), OwnLinear(32, c), c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Cache:
    """Keys and values of one forward, joined as they come."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.append(k)
        self.values.append(v)
        return torch.cat(self.keys, 2), torch.cat(self.values, 2)


@block("keys and values in a cache")
class Cached(nn.Module):
    """Decodes step by step with a cache object."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.config = {"n_head": 4, "head_dim": 8, "n_embd": 32}
        self.qkv, self.proj, self.out = nn.Linear(c, 96), nn.Linear(32, c), c

    def forward(self, x: Tensor) -> Tensor:
        cache, outs = Cache(), []
        for step in x.split(4, 1):
            b, t, _ = step.shape
            shape = (b, t, self.config["n_head"], self.config["head_dim"])
            q, k, v = (y.view(shape).transpose(1, 2) for y in self.qkv(step).split(self.config["n_embd"], dim=2))
            k, v = cache.update(k, v)
            y = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).contiguous()
            outs.append(self.proj(y.view(b, t, self.config["n_embd"])))
        return x + torch.cat(outs, 1)


@block("arguments by keyword and none")
class Keywords(Sized):
    def between(self, y: Tensor) -> Tensor:
        return self.inner(values=y, mask=None, **self.options(y))

    def options(self, y: Tensor) -> dict[str, Any]:
        return {"scale": 0.5, "shape": tuple(y.shape)}

    def inner(
        self, *, values: Tensor, mask: Tensor | None, scale: float, shape: tuple[int, ...], **rest: Any
    ) -> Tensor:
        values = values.reshape(shape)
        return values * scale if mask is None else values.masked_fill(mask, 0.0)
