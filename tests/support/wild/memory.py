"""Views, writes in place, preallocated memory, indices: what tensors do before and after products."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.wild.registry import block

Tensor = torch.Tensor


class Wide(nn.Module):
    """A layer to 32 channels, something in between, a layer back."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 32), nn.Linear(self.read(), c), c
        self.variant = rng.randrange(4)

    def read(self) -> int:
        return 32

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(x)))

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError


@block("halves written in place")
class Halves(Wide):
    def between(self, y: Tensor) -> Tensor:
        out, half = torch.zeros_like(y), y.shape[-1] // 2
        out[..., :half] = y[..., half:].tanh()
        out[..., half:] = y[..., :half].relu()
        return out


@block("view written through")
class ThroughView(Wide):
    def between(self, y: Tensor) -> Tensor:
        y = y.clone()
        half = y.shape[-1] // 2
        first, second = y.narrow(-1, 0, half), y[..., half:]
        first.mul_(second.sigmoid())
        second.tanh_()
        return y


@block("every other channel")
class Strided(Wide):
    def between(self, y: Tensor) -> Tensor:
        y = y.clone()
        y[..., ::2] += y[..., 1::2]
        return y


@block("pairs by a view")
class Pairs(Wide):
    """Turns pairs of channels, as rotary embeddings do."""

    def between(self, y: Tensor) -> Tensor:
        pairs = y.unflatten(-1, (-1, 2)) if self.variant % 2 else y.view(*y.shape[:-1], y.shape[-1] // 2, 2)
        a, b = pairs.unbind(-1)
        return torch.stack((a * 0.6 - b * 0.8, a * 0.8 + b * 0.6), -1).flatten(-2)


@block("preallocated and copied")
class Preallocated(Wide):
    def between(self, y: Tensor) -> Tensor:
        out = torch.empty(y.shape, dtype=y.dtype)
        for t in range(y.shape[1]):
            out[:, t].copy_(y[:, t] * (1 + t))
        return out


@block("out argument")
class Out(Wide):
    def between(self, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return y.tanh() * y
        out = torch.empty_like(y)
        torch.tanh(y, out=out)
        return torch.mul(out, y, out=torch.empty_like(y))


@block("masked fill by size")
class FilledBySize(Wide):
    """A mask over the tokens made from sizes, and one over values."""

    def between(self, y: Tensor) -> Tensor:
        gone = torch.arange(y.shape[1]) >= y.shape[1] - 3
        y = y.masked_fill(gone[:, None], 0.0)
        return torch.where(y > 0, y, 0.1 * y)


@block("index put")
class IndexPut(Wide):
    def between(self, y: Tensor) -> Tensor:
        y, where = y.clone(), torch.tensor([0, 3, 5])
        match self.variant:
            case 0:
                y[:, where] = y[:, where + 1].tanh()
            case 1:
                y.index_put_((torch.zeros(3, dtype=torch.long), where), y[0, where + 2], accumulate=True)
            case 2:
                y = y.index_copy(1, where, y[:, where + 1])
            case _:
                y = y.index_fill(1, where, 0.5)
        return y


@block("gather of tokens")
class Gathered(Wide):
    """The tokens in the order of a score, which a layer gives."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.score = nn.Linear(c, 1)

    def forward(self, x: Tensor) -> Tensor:
        order = self.score(x).squeeze(-1).argsort(1)
        y = self.up(x)
        y = y.gather(1, order.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        y = y * torch.arange(1, y.shape[1] + 1, dtype=y.dtype)[:, None]
        back = order.argsort(1)
        return x + self.down(torch.take_along_dim(y, back[..., None].expand_as(y), 1))


@block("sorted along tokens")
class SortedTokens(Wide):
    def between(self, y: Tensor) -> Tensor:
        match self.variant:
            case 0:
                return y.sort(1).values
            case 1:
                return y.topk(y.shape[1], 1).values
            case 2:
                return y.cummax(1).values
            case _:
                return y.median(1, keepdim=True).values + y


@block("as strided")
class AsStrided(Wide):
    """Windows of two tokens, by strides."""

    def between(self, y: Tensor) -> Tensor:
        y = F.pad(y, (0, 0, 0, 1)).contiguous()
        b, t, c = y.shape
        return y.as_strided((b, t - 1, 2, c), (t * c, c, c, 1)).sum(2)


@block("unfolded tokens")
class Unfolded(Wide):
    def between(self, y: Tensor) -> Tensor:
        return F.pad(y, (0, 0, 1, 1), value=0.2).unfold(1, 3, 1).max(-1).values


@block("shuffled channels")
class Shuffled(Wide):
    def between(self, y: Tensor) -> Tensor:
        b, t, c = y.shape
        match self.variant:
            case 0:
                return y.view(b, t, 4, c // 4).transpose(-1, -2).reshape(b, t, c)
            case 1:
                return y.flip(-1)
            case 2:
                return torch.cat(y.tensor_split(2, -1)[::-1], -1)
            case _:
                return y.roll(c // 2, -1)


@block("stack and unbind")
class Stack(Wide):
    def read(self) -> int:
        return 16

    def between(self, y: Tensor) -> Tensor:
        a, b = torch.stack(y.split(y.size(-1) // 2, -1)).unbind()
        return torch.maximum(a, b) + torch.amax(torch.stack([a, b], -1), -1)


@block("maxout")
class Maxout(Wide):
    def read(self) -> int:
        return 16

    def between(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:-1], -1, 2).amax(-1)


@block("repeat of channels")
class Repeated(Wide):
    def read(self) -> int:
        return 64

    def between(self, y: Tensor) -> Tensor:
        match self.variant % 3:
            case 0:
                return y.repeat(1, 1, 2)
            case 1:
                return y.repeat_interleave(2, -1)
            case _:
                return torch.cat((y, -y), -1).relu()


@block("expanded and added")
class Expanded(Wide):
    def between(self, y: Tensor) -> Tensor:
        first = y[:, :1].expand_as(y)
        return torch.addcmul(y, first, torch.ones_like(y), value=0.3) + y.mean(1, keepdim=True).expand(
            -1, y.size(1), -1
        )


@block("noise of the right shape")
class Noise(Wide):
    """Tensors made like others, multiplied by nothing."""

    def between(self, y: Tensor) -> Tensor:
        return y + 0 * torch.rand_like(y) + y.new_full((y.shape[-1],), 0.25) * torch.ones(y.shape[-1], dtype=y.dtype)


@block("split with sizes in a list")
class SplitSizes(Wide):
    """Three stretches of unequal size, held in a list."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.parts = [8, 16, 8]
        self.inner = nn.Linear(16, 16)

    def between(self, y: Tensor) -> Tensor:
        a, b, c = torch.split(y, self.parts, dim=-1)
        return torch.cat([a.sigmoid() * c, self.inner(b), c], -1)


@block("offsets of joined branches")
class Offsets(Wide):
    """Branches are written side by side into memory, at offsets that are counted."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.branches = nn.ModuleList([nn.Linear(32, 8), nn.Linear(32, 24)])

    def between(self, y: Tensor) -> Tensor:
        total = sum(branch.out_features for branch in self.branches)
        out, at = y.new_zeros(*y.shape[:2], total), 0
        for branch in self.branches:
            piece = branch(y)
            out[..., at : at + piece.shape[-1]] = piece
            at += piece.shape[-1]
        return out


@block("real and imaginary")
class Views(Wide):
    """Halves as the parts of complex numbers, multiplied with their conjugate, and back."""

    def between(self, y: Tensor) -> Tensor:
        z = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
        z = z * z.conj() + z
        return torch.view_as_real(z).flatten(-2)


@block("fourier over tokens")
class Fourier(Wide):
    def between(self, y: Tensor) -> Tensor:
        match self.variant:
            case 0:
                return torch.fft.fft(y, dim=1).real
            case 1:
                return torch.fft.irfft(torch.fft.rfft(y, dim=1) * 0.5, n=y.shape[1], dim=1)
            case 2:
                z = torch.fft.rfft(y, dim=1, norm="ortho")
                return torch.fft.irfft(z * z.abs(), n=y.shape[1], dim=1, norm="ortho")
            case _:
                return torch.fft.fftn(y, dim=(0, 1)).imag


@block("fourier over channels")
class FourierChannels(Wide):
    """Every channel comes out of all: none may go in between, others may."""

    def between(self, y: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(y, dim=-1), dim=1).real


@block("cumulative over channels")
class Cumulative(Wide):
    def between(self, y: Tensor) -> Tensor:
        return y.cumsum(-1) if self.variant % 2 else y.sort(-1).values
