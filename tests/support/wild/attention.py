"""Attention over tokens, written by hand in many styles; heads and their width are held in every way."""

from __future__ import annotations

import math
from random import Random

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.wild.holders import STYLES, Held
from tests.support.wild.marks import only_kept, without_gone
from tests.support.wild.registry import block

Tensor = torch.Tensor


class HeadsBlock(Held):
    """Projections to 4 heads of width 8, held somehow."""

    def __init__(self, c: int, rng: Random, kv_heads: int = 4) -> None:
        super().__init__()
        self.hold(rng.choice(STYLES), 4, 8)
        self.q, self.k, self.v = nn.Linear(c, 32), nn.Linear(c, 8 * kv_heads), nn.Linear(c, 8 * kv_heads)
        self.proj = nn.Linear(32, c)
        self.out = c

    def values(self, x: Tensor) -> Tensor:
        v = self.v(x)
        return v * self.sized if self.style == "property" else v


@block("attention, view and transpose")
class Viewed(HeadsBlock):
    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, width = self.sizes()
        q, k, v = (y.view(b, t, heads, width).transpose(1, 2) for y in (self.q(x), self.k(x), self.values(x)))
        y = ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, t, heads * width))


@block("attention, einsum")
class Einsum(HeadsBlock):
    def forward(self, x: Tensor) -> Tensor:
        heads, _ = self.sizes()
        q, k, v = (y.unflatten(-1, (heads, -1)) for y in (self.q(x), self.k(x), self.values(x)))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(8)
        return x + self.proj(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(-2))


@block("attention, bmm over merged heads")
class Merged(HeadsBlock):
    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, width = self.sizes()

        def split(y: Tensor) -> Tensor:
            return y.reshape(b, t, heads, width).permute(0, 2, 1, 3).reshape(b * heads, t, width)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.values(x))
        y = torch.bmm(torch.baddbmm(torch.zeros(1, 1, 1, dtype=x.dtype), q, k.mT, alpha=0.3).softmax(-1), v)
        return x + self.proj(y.view(b, heads, t, width).permute(0, 2, 1, 3).reshape(b, t, -1))


@block("attention, width from the runtime")
class RuntimeScale(HeadsBlock):
    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, _ = self.sizes()
        q, k, v = (
            y.view(b, t, heads, y.shape[-1] // heads).transpose(1, 2) for y in (self.q(x), self.k(x), self.values(x))
        )
        scores = q @ k.mT / k.shape[-1] ** 0.5
        return x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@block("attention, scale through a tensor")
class TensorScale(HeadsBlock):
    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, width = self.sizes()
        q, k, v = (y.view(b, t, heads, width).transpose(1, 2) for y in (self.q(x), self.k(x), self.values(x)))
        scores = q @ k.mT * torch.tensor(float(q.shape[-1]), dtype=x.dtype).rsqrt()
        return x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@block("attention, fused kernel")
class Fused(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.out = 4, c
        self.qkv, self.proj = nn.Linear(c, 96, bias=rng.random() < 0.5), nn.Linear(32, c)
        self.causal = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=0.35)
        return x + self.proj(y.transpose(1, 2).flatten(2))


@block("attention, few key heads repeated")
class Grouped(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width, self.out = 4, 2, 8, c
        self.q, self.kv, self.proj = nn.Linear(c, 32), nn.Linear(c, 32), nn.Linear(32, c)
        self.style = rng.choice(["interleave", "expand"])

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.width).transpose(1, 2)
        k, v = (y.view(b, t, self.kv_heads, self.width).transpose(1, 2) for y in self.kv(x).chunk(2, -1))
        times = self.heads // self.kv_heads
        if self.style == "interleave":
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        else:
            k, v = (y[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for y in (k, v))
        return x + self.proj(((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))


@block("attention, rotary table")
class Rotary(HeadsBlock):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        angles = torch.outer(torch.arange(16.0), 10.0 ** -torch.arange(0, 1, 0.25))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, width = self.sizes()
        q, k, v = (y.view(b, t, heads, width).transpose(1, 2) for y in (self.q(x), self.k(x), self.values(x)))
        y = (self.turn(q) @ self.turn(k).mT * 0.3).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, t, -1))


@block("attention, learned latents")
class Latents(nn.Module):
    """Cross attention: a few learned queries read the tokens, and the tokens read them back."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(5, 24))
        self.read = nn.MultiheadAttention(24, 3, kdim=c, vdim=c, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 24))
        self.q, self.k, self.back = nn.Linear(c, 16), nn.Linear(24, 16), nn.Linear(24, c)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        latents = latents + self.read(latents, x, x, need_weights=False)[0]
        latents = latents + self.mlp(latents)
        scores = self.q(x) @ self.k(latents).mT * 0.2
        return x + self.back(without_gone(scores, self.latents, float("-inf")).softmax(-1) @ latents)


@block("attention, torch.nn's layer")
class Torchs(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(c, 4, batch_first=True, bias=rng.random() < 0.7)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attend(x, x, x)[0]


@block("encoder layer of torch.nn")
class Encoder(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            c, 4, 48, dropout=0.0, batch_first=True, norm_first=rng.random() < 0.5, activation="gelu"
        )
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@block("linear attention")
class Linear(HeadsBlock):
    def forward(self, x: Tensor) -> Tensor:
        heads, _ = self.sizes()
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(x), self.values(x)))
        q, k = q.tanh(), k.tanh()  # zero stays zero
        return x + self.proj((q @ (k.mT @ v)).transpose(1, 2).flatten(2))


@block("attention with a bias of positions")
class Biased(nn.Module):
    """A table of relative positions with a column for each head, and a mask made from the lengths."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.out = 4, c
        self.table = nn.Parameter(torch.randn(31, 4))
        places = torch.arange(16)
        self.register_buffer("places", places[:, None] - places[None] + 15, persistent=False)
        self.qkv, self.proj = nn.Linear(c, 96), nn.Linear(32, c)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places[:t, :t].reshape(-1)].view(t, t, -1).permute(2, 0, 1)
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        scores = (q @ k.mT * 0.3 + bias).masked_fill(future, float("-inf"))
        return x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))


@block("cosine attention")
class Cosine(nn.Module):
    """Queries and keys of length one: statistics over the width of a head."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.out = 4, c
        self.q, self.k, self.v, self.proj = nn.Linear(c, 32), nn.Linear(c, 32), nn.Linear(c, 32), nn.Linear(32, c)
        self.logit = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Removed channels are zero by their weights, so that norms need no mark.
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.logit.sigmoid()
        return x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@block("talking heads")
class Talking(HeadsBlock):
    """A linear layer over the heads of the scores."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.talk = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads, _ = self.sizes()
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(x), self.values(x)))
        scores = self.talk((q @ k.mT * 0.3).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@block("windows of tokens")
class Windows(nn.Module):
    """Attention inside windows, made by views; shifted by a roll."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.window, self.heads, self.out = 4, 2, c
        self.qkv, self.proj = nn.Linear(c, 48), nn.Linear(16, c)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = x.roll(-1, 1).view(b * (t // self.window), self.window, c)
        q, k, v = self.qkv(y).view(*y.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.25).transpose(1, 2).flatten(2))
        return x + y.view(b, t, -1).roll(1, 1)


@block("pooling by attention")
class Pooling(nn.Module):
    """A learned query weighs the tokens; the result is broadcast back."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(20))
        self.key, self.value, self.out = nn.Linear(c, 20), nn.Linear(c, 28), 28

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.matmul(self.key(x).tanh(), self.query).softmax(1)
        pooled = torch.einsum("bt,btc->bc", weights, self.value(x))
        return pooled[:, None] + self.value(x)


@block("attention over channels")
class Channels(nn.Module):
    """Softmax over channels, channel against channel: a statistic over what may go."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(c, 12), nn.Linear(c, 20), nn.Linear(c, 20), nn.Linear(12, c)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q.mT @ only_kept(k, self.k.weight) * 0.2
        y = scores.softmax(-1) @ only_kept(v, self.v.weight).mT
        return x + self.proj(y.mT)


@block("lengths as a mask")
class Lengths(nn.Module):
    """A padding mask of torch.nn's layer, made by comparing positions with lengths."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.attend, self.up, self.down = nn.MultiheadAttention(c, 2), nn.Linear(c, 40), nn.Linear(40, c)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        lengths = torch.full((x.shape[0],), x.shape[1] - 2)
        padding = torch.arange(x.shape[1])[None] >= lengths[:, None]
        y = y + self.attend(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        y = y + self.down(F.gelu(self.up(y)))
        return y.permute(1, 0, 2)
