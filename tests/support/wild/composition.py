"""Blocks of blocks: skips over several layers, layers that are shared, streams side by side."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.wild.marks import without_gone
from tests.support.wild.registry import block

Tensor = torch.Tensor


@block("skips on a stack")
class Stacked(nn.Module):
    """Down, and up again with what was put aside."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(c, 24), nn.Linear(24, 20), nn.Linear(20, 16)])
        self.up = nn.ModuleList([nn.Linear(16 + 20, 20), nn.Linear(20 + 24, 24), nn.Linear(24 + c, c)])
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        aside = []
        for layer in self.down:
            aside.append(x)
            x = F.leaky_relu(layer(x))
        for layer in self.up:
            x = layer(torch.cat((x, aside.pop()), -1))
        return x


@block("weighted sum of layers")
class WeightedLayers(nn.Module):
    """The states of all layers are stacked and weighted by a softmax."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(c, c) for _ in range(3))
        self.weights, self.out = nn.Parameter(torch.randn(4)), c

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for layer in self.layers:
            states.append(states[-1] + layer(states[-1]).tanh())
        weights = without_gone(self.weights, self.weights, float("-inf")).softmax(0)
        return torch.einsum("l,lbtc->btc", weights, torch.stack(states))


@block("stream written in place")
class InPlace(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.again, self.out = nn.Linear(c, 24), nn.Linear(24, c), nn.Linear(c, c), c

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.down(self.up(x.clone()).relu_())
        x[:, 1:].add_(self.again(x.clone())[:, :-1], alpha=0.5)
        return x.mul_(0.9)


@block("two streams that meet")
class TwoStreams(nn.Module):
    """A reversible block: the halves of the stream change one another."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.split, self.join, self.out = nn.Linear(c, 32), nn.Linear(32, c), c
        self.f = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.g = nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 16))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(x).chunk(2, -1)
        a = a + self.f(b)
        b = b + self.g(a)
        return self.join(torch.cat((b, a), -1))


@block("one attention for several places")
class SharedAttention(nn.Module):
    """The same layers run on the tokens, and on the tokens turned around."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj, self.out = 2, nn.Linear(c, 48), nn.Linear(16, c), c
        self.gates = nn.ModuleList(nn.Linear(c, c) for _ in range(2))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        scores = torch.einsum("bthd,bshd->bhts", q, k).mul(0.3).softmax(-1)
        return self.proj(torch.einsum("bhts,bshd->bthd", scores, v).reshape(*x.shape[:2], -1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gates[0](x).sigmoid() * self.attend(x)
        return x + self.gates[1](x).sigmoid() * self.attend(x.flip(1)).flip(1)


@block("weights shared between layers")
class TiedLayers(nn.Module):
    """Two layers with one weight and biases of their own; a third with its transpose."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.a, self.b, self.bias, self.out = nn.Linear(c, 24), nn.Linear(c, 24), nn.Parameter(torch.randn(c)), c
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu() + self.b(x.flip(1)).sigmoid()
        return x + F.linear(y, self.a.weight.T, self.bias)


@block("halves at two rates")
class TwoRates(nn.Module):
    """Pairs of tokens are merged, worked on, and taken apart."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.merge, self.work, self.apart, self.out = nn.Linear(2 * c, 28), nn.Linear(28, 28), nn.Linear(28, 2 * c), c

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.merge(x.reshape(b, t // 2, 2 * c))
        y = y + self.work(y).relu()
        return x + self.apart(y).reshape(b, t, c)


@block("even and odd tokens")
class EvenOdd(nn.Module):
    """Merges the tokens at even and at odd places, as hierarchical vision transformers do."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.norm, self.reduce, self.out = nn.LayerNorm(2 * c), nn.Linear(2 * c, 24, bias=False), 24

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(self.norm(torch.cat([x[:, 0::2], x[:, 1::2]], -1)))
        return y.repeat_interleave(2, dim=1)


@block("special tokens before the others")
class Special(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.token, self.registers = nn.Parameter(torch.randn(1, 1, c)), nn.Parameter(torch.randn(3, c))
        self.layer, self.out = nn.TransformerEncoderLayer(c, 2, 40, dropout=0.0, batch_first=True), c

    def forward(self, x: Tensor) -> Tensor:
        b = len(x)
        y = torch.cat([self.token.expand(b, -1, -1), self.registers.repeat(b, 1, 1), x], dim=1)
        y = self.layer(y)
        return y[:, 4:] + y[:, 0].unsqueeze(1)


@block("encoder and decoder of torch.nn")
class EncoderDecoder(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Linear(c, 16), nn.Linear(16, c), c
        self.model = nn.Transformer(16, 2, 1, 1, 24, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return x + self.up(self.model(y, y.flip(1), tgt_mask=mask, tgt_is_causal=True))


@block("an unused layer and a frozen one")
class Frozen(nn.Module):
    """Parameters that need no gradient, a buffer beside them, a layer in half precision that is turned back."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 24).requires_grad_(False), nn.Linear(24, c), c
        self.register_buffer("shift", torch.randn(24), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.up(x) + self.shift
        return x + self.down(y.relu())
