"""Operators along the channels, where a place matters, and in-place changes of a tensor's shape."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.wild.marks import only_kept
from tests.support.wild.registry import block

Tensor = torch.Tensor


class Along(nn.Module):
    """A layer to 32 channels, an operator along them, a layer back."""

    read = 32

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(c, 32), c
        self.down = nn.Linear(self.read, c)
        self.variant = rng.randrange(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(x)))

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError


@block("pooled along channels")
class Pooled(Along):
    read = 16

    def between(self, y: Tensor) -> Tensor:
        match self.variant % 3:
            case 0:
                return F.max_pool1d(y, 2)
            case 1:
                return F.avg_pool1d(y, 2)
            case _:
                return F.adaptive_avg_pool1d(y, 16)


@block("resized along channels")
class Resized(Along):
    read = 48

    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return F.interpolate(y, size=48, mode="linear")
        return F.pad(F.interpolate(y, scale_factor=1.25), (4, 4))


@block("padded along channels")
class Padded(Along):
    """A shortcut without parameters: channels of zeros are added."""

    read = 48

    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return torch.cat([y, y.new_zeros(*y.shape[:-1], 16)], -1)
        return F.pad(y, (8, 8))


@block("moved along channels")
class Moved(Along):
    def between(self, y: Tensor) -> Tensor:
        match self.variant:
            case 0:
                return y.roll(1, -1)
            case 1:
                return y.roll((3, -5), (1, -1))
            case 2:
                return torch.cat([y[..., 1:], y[..., :1]], -1)
            case 3:
                return F.pad(torch.diff(y, dim=-1), (0, 1))
            case 4:
                return F.pad(y[..., :-1], (1, 0))
            case _:
                return torch.rot90(y, 2, (1, 2))


@block("triangles of tokens and channels")
class Triangles(Along):
    def between(self, y: Tensor) -> Tensor:
        match self.variant:
            case 0:
                return y.tril()
            case 1:
                return y.triu(2)
            case 2:
                return y * torch.ones(y.shape[1:], dtype=y.dtype).tril(3)
            case 3:
                return y + torch.eye(y.shape[1], y.shape[2], dtype=y.dtype)
            case 4:
                return y.diagonal_scatter(torch.zeros(y.shape[0], 16, dtype=y.dtype), 0, 1, 2)
            case _:
                return y + y.diagonal(0, 1, 2).unsqueeze(-1)


@block("distances between channels")
class Distances(Along):
    """A bias by the distance of two channels, as attention has it for tokens."""

    def between(self, y: Tensor) -> Tensor:
        place = torch.arange(y.shape[-1], dtype=y.dtype)
        near = torch.exp(-(place[:, None] - place).abs())
        return y @ near


@block("fixed transform of channels")
class Transform(Along):
    """A cosine transform, with a matrix made from the width or held in a buffer."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.register_buffer("matrix", torch.randn(32, 32))

    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return y @ self.matrix
        n = y.shape[-1]
        place = torch.arange(n, dtype=y.dtype)
        return y @ torch.cos(torch.pi / n * torch.outer(place + 0.5, place))


@block("statistics of channels")
class Statistics(Along):
    """What is made of all channels is joined to the tokens."""

    read = 33

    def between(self, y: Tensor) -> Tensor:
        left = only_kept(y, self.up.weight)
        match self.variant:
            case 0:
                one = left.var(-1, keepdim=True)
            case 1:
                one = left.std(-1, keepdim=True, unbiased=False)
            case 2:
                one = left.tanh().prod(-1, keepdim=True)
            case 3:
                one = left.norm(1, -1, keepdim=True)
            case 4:
                one = left.aminmax(dim=-1, keepdim=True).max
            case _:
                one = left.mean(-1, keepdim=True)
        return torch.cat([y, one], -1)


@block("normalised over tokens and channels")
class Both(Along):
    def between(self, y: Tensor) -> Tensor:
        left = only_kept(y, self.up.weight)
        if self.variant % 2:
            return (y - left.mean((1, 2), keepdim=True)) / (left.std((1, 2), keepdim=True) + 1e-3)
        return y / (left.flatten(1).norm(dim=1)[:, None, None] + 1e-3)


@block("index of the largest channel")
class Index(nn.Module):
    """Looked up in a table of as many rows."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.score, self.table, self.out = nn.Linear(c, 9), nn.Embedding(9, c), c
        self.variant = rng.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.score(x)
        match self.variant:
            case 0:
                return x + self.table(y.argmax(-1))
            case 1:
                values, where = y.max(-1)
                return x + self.table(where) * values.unsqueeze(-1)
            case _:
                hard = F.one_hot(y.argmax(-1), y.shape[-1]).to(y.dtype)
                return x + (hard - y.detach() + y) @ self.table.weight


@block("shape changed in place")
class InPlaceShape(Along):
    def between(self, y: Tensor) -> Tensor:
        y = y.clone() if self.variant % 2 else y * 1.0
        match self.variant % 3:
            case 0:
                y.transpose_(1, 2)
                return y.tanh().transpose(1, 2)
            case 1:
                y.unsqueeze_(1).squeeze_(1)
                return y.relu_()
            case _:
                y.swapdims_(0, 2)
                return y.sigmoid().swapdims(0, 2)


@block("data exchanged")
class Data(Along):
    def between(self, y: Tensor) -> Tensor:
        y = y.detach().clone() if self.variant % 2 else y.clone().detach()
        if self.variant < 3:
            y.data = y.data.tanh()
        else:
            y.data[..., ::2] *= 2.0
        return y


@block("bits of numbers")
class Bits(Along):
    """The sign by its bit: memory read as another type."""

    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return y.detach().contiguous().view(torch.uint8).view(y.dtype) * 2
        return torch.signbit(y).to(y.dtype) + y.frac() + torch.copysign(torch.ones_like(y), y)


@block("multiplied along channels")
class Cumulated(Along):
    def between(self, y: Tensor) -> Tensor:
        match self.variant % 3:
            case 0:
                return y.logcumsumexp(-1)
            case 1:
                return y.tanh().cumprod(-1)
            case _:
                return y.cummax(-1).values


@block("convolution over channels")
class Efficient(nn.Module):
    """Attention of channels by a small convolution along them."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 32), nn.Linear(32, c), c
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        gate = self.conv(y.mean(1, keepdim=True)).sigmoid()
        return x + self.down(y * gate)
