"""Products of every spelling, factored weights, functional calls of torch.nn.functional."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.support.wild.marks import only_kept, without_gone
from tests.support.wild.registry import block

Tensor = torch.Tensor


@block("heads as a dimension of the weights")
class HeadWeights(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(4, c, 8)) for _ in range(3))
        self.o, self.out = nn.Parameter(torch.randn(4, 8, c)), c

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,hcd->bhtd", x, w) for w in (self.q, self.k, self.v))
        y = torch.einsum("bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k).mul(0.3).softmax(-1), v)
        return x + torch.einsum("bhtd,hdc->btc", y, self.o)


@block("a module for every head")
class HeadModules(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.ModuleList(nn.Linear(c, 8) for _ in range(3)) for _ in range(3))
        self.proj, self.out = nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for q, k, v in self.heads:
            outs.append((q(x) @ k(x).swapaxes(-1, -2) * 0.3).softmax(-1) @ v(x))
        return x + self.proj(torch.cat(outs, dim=-1))


@block("one key head for all queries")
class MultiQuery(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.q, self.kv, self.proj, self.out = 4, nn.Linear(c, 32), nn.Linear(c, 16), nn.Linear(32, c), c

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).split([8, 8], -1)
        return x + self.proj(((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2).flatten(2))


@block("block diagonal product")
class Monarch(nn.Module):
    """Blocks, a transpose, blocks again."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 32), nn.Linear(32, c), c
        self.a, self.b = nn.Parameter(torch.randn(4, 8, 8)), nn.Parameter(torch.randn(8, 4, 4))
        self.how = rng.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).unflatten(-1, (4, 8))
        if self.how:
            y = torch.einsum("btgi,gio->btgo", y, self.a)
            y = torch.einsum("btig,gio->btgo", y, self.b)
        else:
            y = torch.matmul(y.unsqueeze(-2), self.a).squeeze(-2)
            y = torch.matmul(y.transpose(-1, -2).unsqueeze(-2), self.b).squeeze(-2)
        return x + self.down(y.flatten(-2))


@block("kronecker product as a weight")
class Kronecker(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down, self.out = nn.Linear(c, 12), 12
        self.a, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.down(x) @ torch.kron(self.a, self.b))


@block("orthogonal weight")
class Orthogonal(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down, self.turn, self.up, self.out = nn.Linear(c, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 24), 24
        parametrizations.orthogonal(self.turn, orthogonal_map="householder")

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.turn(self.down(x)).relu())


@block("covariance of channels")
class Covariance(nn.Module):
    """Channel against channel, flattened and read by a layer."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down, self.read, self.out = nn.Linear(c, 8), nn.Linear(64, c), c
        self.how = rng.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        gram = torch.einsum("btc,btd->bcd", y, y) if self.how else torch.bmm(y.mT, y)
        return x + self.read((gram / y.shape[1]).flatten(1)).unsqueeze(1)


@block("mixer of tokens and channels")
class Mixer(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(c), c
        self.tokens = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.channels = nn.Sequential(nn.Linear(c, 40), nn.GELU(), nn.Linear(40, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


@block("spatial gating")
class SpatialGating(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.norm, self.down, self.out = nn.Linear(c, 48), nn.LayerNorm(24), nn.Linear(24, c), c
        self.mix = nn.Conv1d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.up(x).chunk(2, dim=-1)
        return x + self.down(u * self.mix(self.norm(v)))


@block("convolution over tokens")
class TokenConv(nn.Module):
    """Causal, depthwise, by the functional call with groups from the runtime."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, c), c
        self.kernel, self.shift = nn.Parameter(torch.randn(24, 1, 3)), nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.up(x).mT, (2, 0))
        y = F.conv1d(y, self.kernel, self.shift, groups=y.size(1))
        return x + self.down(F.silu(y).mT)


@block("functional layers")
class Functions(nn.Module):
    """Batch norm, PReLU and embedding as functions of raw tensors."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.w1, self.b1, self.w2 = (nn.Parameter(torch.randn(*s)) for s in ((24, c), (24,), (c, 24)))
        self.gain, self.slope = nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(24))
        self.register_buffer("mean", torch.zeros(24))
        self.register_buffer("var", torch.ones(24))
        self.register_buffer("ids", torch.arange(16) % 5, persistent=False)
        self.codes, self.out = nn.Parameter(torch.randn(5, 24)), c

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.w1, self.b1) + F.embedding(self.ids[: x.shape[1]], self.codes.tanh())
        y = F.batch_norm(y.mT, self.mean, self.var, self.gain, None, self.training, 0.1)
        return x + F.linear(F.prelu(y, self.slope).mT, self.w2)


@block("products of many spellings")
class Spellings(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.a, self.b, self.v = (nn.Parameter(torch.randn(*s)) for s in ((c, 20), (20, 24), (24,)))
        self.how, self.out = rng.randrange(5), 24

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case 0:
                return torch.tensordot(torch.tensordot(x, self.a, dims=1), self.b, dims=([-1], [0])) + self.v
            case 1:
                return torch.inner(torch.inner(x, self.a.T), self.b.T) * self.v
            case 2:
                return x @ torch.linalg.multi_dot([self.a, self.b, torch.diag(self.v)])
            case 3:
                flat = torch.addmm(self.v, x.flatten(0, 1) @ self.a, self.b, beta=0.5, alpha=2.0)
                return flat.unflatten(0, x.shape[:2])
            case _:
                y = (x.unsqueeze(-1) * self.a).sum(-2).tanh()
                return torch.stack([torch.mv(self.b.T, row) for row in y.flatten(0, 1)]).view(*x.shape[:2], -1) + self.v


@block("softmax gates over channels")
class SoftmaxGate(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.gate, self.down, self.out = nn.Linear(c, 24), nn.Linear(c, 24), nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        gate = without_gone(self.gate(x), self.gate.weight, float("-inf")).softmax(-1)
        return x + self.down(self.up(x) * gate)


@block("largest channels only")
class Winners(nn.Module):
    """The k largest channels stay: which, depends on all."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        least = y.topk(6, -1).values[..., -1:]
        return x + self.down(torch.where(y >= least, y, torch.zeros_like(y)))


@block("one-hot times a table")
class OneHot(nn.Module):
    """The nearest of bins as one-hot vectors, times a learned table."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.score, self.table, self.out = nn.Linear(c, 1), nn.Linear(7, c, bias=False), c
        self.register_buffer("edges", torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        bins = torch.bucketize(self.score(x).squeeze(-1).detach().contiguous(), self.edges.sort().values.to(x.dtype))
        return x + self.table(F.one_hot(bins, 7).to(x.dtype))


@block("penalty among the outputs of a norm")
class Normed(nn.Module):
    """Rows divided by their length over all channels."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, c), c
        self.how = rng.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        left = only_kept(y, self.up.weight)
        if self.how == 0:
            y = y / (left.norm(dim=-1, keepdim=True) + 1e-6)
        elif self.how == 1:
            y = y / left.abs().amax(-1, keepdim=True).clamp(min=1e-6)
        else:
            y = y - left.logsumexp(-1, keepdim=True)
        return x + self.down(y)
