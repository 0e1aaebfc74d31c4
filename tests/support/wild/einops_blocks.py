"""Shapes by einops."""

from __future__ import annotations

from random import Random

import torch
from torch import nn

from tests.support.wild.registry import block

Tensor = torch.Tensor


@block("einops attention", needs="einops")
class Attention(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.scale, self.out = 4, 8**-0.5, c
        self.qkv, self.proj = nn.Linear(c, 96, bias=False), nn.Linear(32, c)
        self.style = rng.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        from einops import rearrange

        if self.style == 0:
            q, k, v = (rearrange(y, "b t (h d) -> b h t d", h=self.heads) for y in self.qkv(x).chunk(3, -1))
        elif self.style == 1:
            q, k, v = rearrange(self.qkv(x), "b t (qkv h d) -> qkv b h t d", qkv=3, h=self.heads)
        else:
            q, k, v = (rearrange(y, "b t (h d) -> (b h) t d", h=self.heads)[None] for y in self.qkv(x).chunk(3, -1))
        y = (torch.einsum("bhid,bhjd->bhij", q, k) * self.scale).softmax(-1) @ v
        if self.style == 2:
            return x + self.proj(rearrange(y[0], "(b h) t d -> b t (h d)", h=self.heads))
        return x + self.proj(rearrange(y, "b h t d -> b t (h d)"))


@block("einops layers", needs="einops")
class Layers(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        from einops.layers.torch import Rearrange, Reduce

        self.mlp = nn.Sequential(
            nn.Linear(c, 32), Rearrange("b t (g d) -> b g t d", g=4), nn.Tanh(), Rearrange("b g t d -> b t (d g)"),
            nn.Linear(32, 24),
        )  # fmt: skip
        self.pool, self.out = Reduce("b (t two) c -> b t c", "max", two=2), 24

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        return y + self.pool(y).repeat_interleave(2, 1)


@block("einops reduce and repeat", needs="einops")
class Reduced(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.gate, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, 24), nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        from einops import einsum, reduce, repeat

        y = self.up(x)
        gate = self.gate(reduce(y, "b t c -> b c", "mean")).sigmoid()
        y = einsum(y, gate, "b t c, b c -> b t c") + repeat(gate, "b c -> b t c", t=y.shape[1])
        return x + self.down(y)


@block("einops unpack", needs="einops")
class Unpacked(nn.Module):
    """Pack and unpack of several tensors."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.token, self.layer, self.out = nn.Parameter(torch.randn(24)), nn.Linear(24, 24), 24
        self.up = nn.Linear(c, 24)

    def forward(self, x: Tensor) -> Tensor:
        from einops import pack, repeat, unpack

        y, shapes = pack([repeat(self.token, "c -> b c", b=x.shape[0]), self.up(x)], "b * c")
        token, y = unpack(self.layer(y).relu(), shapes, "b * c")
        return y + token[:, None]
