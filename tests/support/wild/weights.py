"""Weights that are computed: by other networks, by products, by parametrizations, by functional calls."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from tests.support.wild.marks import only_kept, without_gone
from tests.support.wild.registry import block

Tensor = torch.Tensor


@block("hypernetwork")
class Hyper(nn.Module):
    """One layer's weights come out of another, for every sample."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.context, self.make = nn.Linear(c, 12), nn.Linear(12, 6 * 10)
        self.down, self.up, self.out = nn.Linear(c, 6), nn.Linear(10, c), c
        self.shape = (10, 6)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(torch.tanh(self.context(x.mean(1)))).view(-1, *self.shape)
        return x + self.up(torch.relu(torch.bmm(self.down(x), weight.transpose(1, 2))))


@block("fast weights from an embedding")
class Fast(nn.Module):
    """A layer's whole weight matrix is the product of two learned tables."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.randn(28, 5)), nn.Parameter(torch.randn(5, c))
        self.bias, self.out = nn.Parameter(torch.randn(28)), 28

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rows @ self.columns, self.bias).tanh()


@block("low rank update")
class LowRank(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.base = nn.Linear(c, 24)
        self.a, self.b = nn.Parameter(torch.randn(3, c)), nn.Parameter(torch.randn(24, 3))
        self.merged, self.out = rng.random() < 0.5, 24

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.base.weight + 0.5 * self.b @ self.a, self.base.bias)
        return self.base(x) + 0.5 * (x @ self.a.t() @ self.b.t())


@block("tied across a transpose")
class Transposed(nn.Module):
    """An autoencoder: the way back is the transposed way there."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.encode, self.bias, self.out = nn.Linear(c, 24), nn.Parameter(torch.randn(c)), c
        self.how = rng.choice(["linear", "matmul", "einsum"])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.encode(x))
        if self.how == "linear":
            return x + F.linear(h, self.encode.weight.t(), self.bias)
        if self.how == "matmul":
            return x + h @ self.encode.weight + self.bias
        return x + torch.einsum("bth,hc->btc", h, self.encode.weight) + self.bias


@block("one weight in chunks")
class Chunks(nn.Module):
    """Three projections in one parameter, taken apart at every forward."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.weight, self.proj, self.out = nn.Parameter(torch.randn(60, c)), nn.Linear(20, c), c

    def forward(self, x: Tensor) -> Tensor:
        a, b, gate = (F.linear(x, w) for w in self.weight.chunk(3))
        return x + self.proj((a + b.relu()) * gate.sigmoid())


@block("parameter list and dict")
class Lists(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(c, 20)), nn.Parameter(torch.randn(20, 28))])
        self.shifts = nn.ParameterDict(
            {"first": nn.Parameter(torch.randn(20)), "second": nn.Parameter(torch.randn(28))}
        )
        self.out = 28

    def forward(self, x: Tensor) -> Tensor:
        for weight, name in zip(self.weights, self.shifts, strict=True):
            x = torch.relu(x @ weight + self.shifts[name])
        return x


@block("functional call")
class Functional(nn.Module):
    """A layer runs with other parameters than its own: they are scaled by a learned number."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(c, 24), nn.ReLU(), nn.Linear(24, c))
        self.scale, self.out = nn.Parameter(torch.tensor(0.7)), c

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: p * self.scale.sigmoid() for name, p in self.inner.named_parameters()}
        return x + torch.func.functional_call(self.inner, weights, (x,))


@block("stacked ensemble")
class Stacked(nn.Module):
    """Members' weights are stacked, and run as one batched product, by bmm or by vmap."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(c, 20) for _ in range(3))
        self.mix, self.vmap, self.out = nn.Linear(20, 24), rng.random() < 0.5, 24

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.stack([m.weight for m in self.members])
        bias = torch.stack([m.bias for m in self.members])
        if self.vmap:
            y = torch.vmap(F.linear, in_dims=(None, 0, 0))(x, weight, bias)
        else:
            y = torch.einsum("btc,moc->mbto", x, weight) + bias[:, None, None]
        return self.mix(y.relu().sum(0))


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5 + weight.tanh()


@block("own parametrization")
class Parametrized(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(c, 24), 24
        parametrize.register_parametrization(self.layer, "weight", Scaled())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@block("weight norm")
class WeightNorm(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        new = rng.random() < 0.6
        self.layer = (parametrizations.weight_norm if new else weight_norm)(nn.Linear(c, 24))
        self.out = 24

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


@block("standardised weights")
class Standardised(nn.Module):
    """Rows of the weight get mean 0 and deviation 1 before use."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.weight, self.gain, self.out = nn.Parameter(torch.randn(24, c)), nn.Parameter(torch.randn(24, 1)), 24

    def forward(self, x: Tensor) -> Tensor:
        weight, x = only_kept(self.weight, self.weight, 1, 1), only_kept(x, self.weight, -1, 1)
        mean, std = weight.mean(1, keepdim=True), weight.std(1, unbiased=False, keepdim=True)
        return F.linear(x, (weight - mean) / (std + 1e-3) * self.gain)


@block("masked weight")
class Masked(nn.Module):
    """A buffer of ones and zeros, as unstructured pruning leaves it."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(c, 24), 24
        self.register_buffer("mask", torch.rand(24, c))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight * (self.mask > 0.1), self.layer.bias)


@block("complex weights")
class Complex(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.real, self.imaginary = nn.Parameter(torch.randn(20, c)), nn.Parameter(torch.randn(20, c))
        self.mix, self.out = nn.Linear(20, 24), 24
        self.how = rng.choice(["complex", "magnitude", "view"])

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.complex(self.real, self.imaginary)
        y = x.to(weight.dtype) @ weight.mT
        if self.how == "complex":
            return self.mix(y.real + y.imag.tanh())
        return self.mix(y.abs() if self.how == "magnitude" else torch.view_as_real(y).sum(-1))


@block("complex parameter")
class ComplexParameter(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 2, dtype=torch.complex64))
        self.up, self.mix, self.out = nn.Linear(c, 20), nn.Linear(20, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        y = torch.view_as_complex(torch.stack([self.up(x), self.up(x).tanh()], -1).contiguous())
        y = y * self.weight[:, 0] + self.weight[:, 1]
        return self.mix(y.real * y.imag)


@block("bilinear")
class Bilinear(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(c, 8), nn.Linear(c, 10)
        self.both, self.out = nn.Bilinear(8, 10, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.a(x), self.b(x).relu())


@block("outer product")
class Outer(nn.Module):
    """Every channel of one branch times every channel of another, flattened and read."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.a, self.b, self.read, self.out = nn.Linear(c, 6), nn.Linear(c, 8), nn.Linear(48, c), c

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.a(x).unsqueeze(-1) * self.b(x).unsqueeze(-2)
        return x + self.read(pairs.flatten(-2))


@block("mixture of kernels")
class Mixture(nn.Module):
    """Weights of several layers, averaged by attention for every sample."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.bank, self.choose, self.out = nn.Parameter(torch.randn(3, 24, c)), nn.Linear(c, 3), 24

    def forward(self, x: Tensor) -> Tensor:
        share = without_gone(self.choose(x.mean(1)), self.choose.weight, float("-inf")).softmax(-1)
        weight = torch.einsum("bk,koc->boc", share, self.bank)
        return torch.matmul(x, weight.transpose(1, 2))


@block("film")
class Film(nn.Module):
    """Scale and shift of every channel come from the mean of the tokens."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.condition, self.down, self.out = nn.Linear(c, 24), nn.Linear(c, 48), nn.Linear(24, c), c
        self.norm = nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(x.mean(1, keepdim=True)).chunk(2, -1)
        return x + self.down(self.norm(self.up(x)) * (1 + scale) + shift)


@block("linear over all tokens")
class Flat(nn.Module):
    """Tokens and channels flattened into one dimension, and taken apart again."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down, self.all = nn.Linear(c, 6), nn.Linear(6 * 16, 16 * 5)
        self.flatten, self.unflatten, self.up = nn.Flatten(1), nn.Unflatten(1, (16, 5)), nn.Linear(5, c)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.unflatten(torch.relu(self.all(self.flatten(self.down(x))))))


@block("codebook")
class Codebook(nn.Module):
    """Tokens are replaced by the nearest of learned codes, straight through."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down, self.codes, self.up, self.out = nn.Linear(c, 12), nn.Embedding(9, 12), nn.Linear(12, c), c

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        # Removed channels are zero in tokens and codes alike.
        distances = (y.unsqueeze(2) - self.codes.weight).pow(2).sum(-1)
        codes = self.codes(distances.argmin(-1))
        return x + self.up(y + (codes - y).detach())


@block("prototypes")
class Prototypes(nn.Module):
    """Similarity with learned prototypes, by cosine or by distance."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.down, self.prototypes, self.up = nn.Linear(c, 12), nn.Parameter(torch.randn(10, 12)), nn.Linear(10, c)
        self.how, self.out = rng.choice(["cosine", "distance"]), c

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        if self.how == "cosine":
            near = F.cosine_similarity(y.unsqueeze(2), self.prototypes, dim=-1)
        else:
            near = -torch.cdist(y, self.prototypes.expand(x.shape[0], -1, -1))
        return x + self.up(near)
