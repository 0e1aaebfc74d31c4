"""Small attention blocks, each as some library writes them: tokens of a stream in, tokens of the stream out.

``out`` is the layer behind the heads.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor
STREAM, HEADS, TOKENS, INPUTS, CLASSES = 32, 4, 6, 7, 5


class Net(nn.Module):
    """An embedding, a block on the residual stream, a head."""

    def __init__(self, block: nn.Module, stream: int = STREAM) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, stream), block, nn.Linear(stream, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.block(x)).mean(1))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Attention without any scale."""
    return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v


class Separate(nn.Module):
    """A layer each for queries, keys and values; heads and their width are attributes; the scale is stored."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS, kv_heads: int | None = None) -> None:
        super().__init__()
        self.heads, self.width = heads, stream // heads
        self.scale = self.width**-0.5
        inner, kv_inner = heads * self.width, (kv_heads or heads) * self.width
        self.q, self.k, self.v = nn.Linear(stream, inner), nn.Linear(stream, kv_inner), nn.Linear(stream, kv_inner)
        self.out = nn.Linear(inner, stream)

    def split(self, x: Tensor, heads: int | None = None) -> Tensor:
        """``(b, n, heads * width)`` to ``(b, heads, n, width)``."""
        return x.view(x.shape[0], x.shape[1], heads or self.heads, self.width).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """Back, and through the last layer."""
        return self.out(x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        return self.merge(self.mixed(q, k, v))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the heads do."""
        return attend(q * self.scale, k, v)


class Fused(nn.Module):
    """As timm: one layer for all three, the width of the heads from the stream that comes in."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.scale = heads, (stream // heads) ** -0.5
        self.qkv, self.out = nn.Linear(stream, 3 * stream), nn.Linear(stream, stream)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(attend(q * self.scale, k, v).transpose(1, 2).reshape(b, n, c))


class HeldWidth(nn.Module):
    """As newer blocks of timm: one layer for all three; head count and width are attributes."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS, stored_scale: bool = False) -> None:
        super().__init__()
        self.heads, self.width = heads, stream // heads
        self.scale = self.width**-0.5 if stored_scale else None
        self.qkv, self.out = nn.Linear(stream, 3 * stream), nn.Linear(stream, stream)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(mixed.transpose(1, 2).reshape(b, n, self.heads * self.width))


class NanoGPT(nn.Module):
    """As nanoGPT: split by the stored width of the stream, reshaped to that of the input; causal."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS) -> None:
        super().__init__()
        self.n_head, self.n_embd = heads, stream
        self.c_attn, self.out = nn.Linear(stream, 3 * stream), nn.Linear(stream, stream)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (y.view(b, n, self.n_head, c // self.n_head).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(b, n, c))


class Grouped(Separate):
    """One head of keys and values for two of queries."""

    def __init__(self, how: str, stream: int = STREAM, heads: int = HEADS, each: int = 2) -> None:
        super().__init__(stream, heads, heads // each)
        self.kv_heads, self.each, self.how = heads // each, each, how

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x), self.kv_heads), self.split(self.v(x), self.kv_heads)
        if self.how == "enable_gqa":
            return self.merge(F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
        return self.merge(F.scaled_dot_product_attention(q, self.repeated(k), self.repeated(v)))

    def repeated(self, x: Tensor) -> Tensor:
        """Every head of keys or values once for each of its queries."""
        if self.how == "repeat_interleave":
            return x.repeat_interleave(self.each, 1)
        b, heads, n, width = x.shape
        return x[:, :, None].expand(b, heads, self.each, n, width).reshape(b, heads * self.each, n, width)


class RelativeBias(Separate):
    """A learned bias for every head and distance, as in Swin and T5."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS, tokens: int = TOKENS) -> None:
        super().__init__(stream, heads)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
        self.register_buffer("distance", distance + tokens - 1)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]
        return attend(q * self.scale, k, v, self.table[self.distance.flatten()].view(n, n, -1).permute(2, 0, 1))


class Cosine(Separate):
    """As Swin's second version: normalised queries and keys, a temperature for every head."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS) -> None:
        super().__init__(stream, heads)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(F.normalize(q, dim=-1) * self.temperature.exp(), F.normalize(k, dim=-1), v)


class TalkingHeads(Separate):
    """A layer mixes the heads' logits."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS) -> None:
        super().__init__(stream, heads)
        self.talk = nn.Linear(heads, heads)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = self.talk((q * self.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return logits.softmax(-1) @ v


class Slopes(Separate):
    """As ALiBi: a slope for every head, which is computed from their number where it is not stored."""

    def __init__(self, stored: bool, stream: int = STREAM, heads: int = HEADS) -> None:
        super().__init__(stream, heads)
        self.stored = stored
        if stored:
            self.register_buffer("slopes", self.computed())

    def computed(self) -> Tensor:
        """As the paper has it."""
        return 2.0 ** (-8 * torch.arange(1, self.heads + 1) / self.heads)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        slopes = self.slopes if self.stored else self.computed()
        distance = torch.arange(q.shape[2]) - torch.arange(q.shape[2])[:, None]
        return attend(q * self.scale, k, v, slopes[:, None, None] * distance)


class Windowed(Fused):
    """Attention within windows of two tokens, shifted by one."""

    window, shift = 2, 1

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        windows = x.roll(-self.shift, 1).view(b, n // self.window, self.window, c).reshape(-1, self.window, c)
        mixed = super().forward(windows)
        return mixed.view(b, n // self.window, self.window, c).reshape(b, n, c).roll(self.shift, 1)


class ClassTokens(nn.Module):
    """A class token, a distillation token and positions in front of the block; the two are averaged at the end."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS, tokens: int = TOKENS) -> None:
        super().__init__()
        self.cls, self.distilled = nn.Parameter(torch.randn(1, 1, stream)), nn.Parameter(torch.randn(1, 1, stream))
        self.positions = nn.Parameter(torch.randn(1, tokens + 2, stream))
        self.norm, self.attention = nn.LayerNorm(stream), Fused(stream, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (self.cls.expand(len(x), -1, -1), self.distilled.expand(len(x), -1, -1), x)
        x = torch.cat(tokens, 1) + self.positions
        x = x + self.attention(self.norm(x))
        return ((x[:, 0] + x[:, 1]) / 2)[:, None]


class Rotary(Separate):
    """Queries and keys turned by their position; the table is a buffer."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS, tokens: int = TOKENS) -> None:
        super().__init__(stream, heads)
        angles = torch.outer(torch.arange(float(tokens)), 0.1 ** torch.arange(self.width // 2))
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        """Pairs of the two halves of every head, turned."""
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)


class Configured(nn.Module):
    """The sizes are in what the block is given: an object, a dict or a tuple."""

    def __init__(self, config: Any, sizes: Callable[[Any], tuple[int, int]], stream: int = STREAM) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.q, self.k, self.v = (nn.Linear(stream, stream) for _ in range(3))
        self.out = nn.Linear(stream, stream)

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.sizes(self.config)
        q, k, v = (y(x).view(*x.shape[:2], heads, width).transpose(1, 2) for y in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], heads * width))


class Shared(nn.Module):
    """Two blocks with one configuration object."""

    def __init__(self, stream: int = STREAM, heads: int = HEADS) -> None:
        super().__init__()
        self.config = SimpleNamespace(heads=heads, width=stream // heads)
        self.first = Configured(self.config, lambda c: (c.heads, c.width), stream)
        self.second = Configured(self.config, lambda c: (c.heads, c.width), stream)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


class Checked(Separate):
    """Sizes are compared before they are used, as in transformers."""

    def __init__(self, how: str, stream: int = STREAM, heads: int = HEADS) -> None:
        super().__init__(stream, heads)
        self.dim, self.how = stream, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "assert":
            assert x.shape[-1] == self.dim, "other width"
        return super().forward(x)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = super().mixed(q, k, v)
        if self.how == "raise" and out.size() != (len(q), self.heads, q.shape[2], self.width):
            raise ValueError(f"the heads give {out.size()}")
        return out


class Literal(Separate):
    """The sizes are numbers in the code, which do not follow."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y(x).view(*x.shape[:2], 4, 8).transpose(1, 2) for y in (self.q, self.k, self.v))
        return self.out(attend(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 32))


class LiteralHeads(Separate):
    """The head count is a number in the code; their width is what is left."""

    def split(self, x: Tensor, heads: int | None = None) -> Tensor:
        """``(b, n, heads * width)`` to ``(b, heads, n, width)``."""
        return x.view(x.shape[0], x.shape[1], 4, -1).transpose(1, 2)


class RootOfWidth(Separate):
    """The scale is computed from the width that comes in: heads may go, widths may not."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q / q.shape[-1] ** 0.5, k, v)


class LiteralRoot(LiteralHeads):
    """The head count is a number, and the scale is computed from the width: queries make up for it."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q / q.shape[-1] ** 0.5, k, v)


class LayerScale(nn.Module):
    """A factor for every channel of the stream behind a block."""

    def __init__(self, block: nn.Module, stream: int = STREAM) -> None:
        super().__init__()
        self.norm, self.block, self.gamma = nn.LayerNorm(stream), block, nn.Parameter(torch.ones(stream))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.norm(x)) * self.gamma


class Mlp(nn.Module):
    """Two layers; gated ones multiply two halves of the first, or two layers."""

    def __init__(self, gate: str = "", stream: int = STREAM, hidden: int = 48) -> None:
        super().__init__()
        self.gate = gate
        self.up = nn.Linear(stream, 2 * hidden if gate in ("chunk", "glu") else hidden)
        self.out = nn.Linear(hidden, stream)
        if gate == "two layers":
            self.side = nn.Linear(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate == "glu":
            return self.out(F.glu(self.up(x)))
        if self.gate == "chunk":
            a, b = self.up(x).chunk(2, -1)
            return self.out(F.silu(a) * b)
        if self.gate == "two layers":
            return self.out(F.silu(self.up(x)) * self.side(x))
        return self.out(F.gelu(self.up(x)))


class Torch(nn.Module):
    """``nn.MultiheadAttention``, over the stream or (``cross``) from it to something narrower."""

    def __init__(
        self, weights: str = "", stream: int = STREAM, heads: int = HEADS, cross: bool = False, **options: Any
    ) -> None:
        super().__init__()
        if cross:
            options |= {"kdim": 12, "vdim": 20}
            self.keys, self.values = nn.Linear(stream, 12), nn.Linear(stream, 20)
        self.attention = nn.MultiheadAttention(stream, heads, **options)
        self.weights, self.cross = weights, cross

    def forward(self, x: Tensor) -> Tensor:
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        keys, values = (self.keys(x), self.values(x)) if self.cross else (x, x)
        out, weights = self.attention(x, keys, values, need_weights=bool(self.weights))
        if self.weights == "used":
            out = out + weights @ x
        return out if self.attention.batch_first else out.transpose(0, 1)
