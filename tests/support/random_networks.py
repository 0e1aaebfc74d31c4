"""Small random networks of everything that convolutional networks are made of, and of attention over positions.

The generator knows what may be cut: every filter of every convolution or linear layer but the
last, which makes the outputs. Blocks keep enough channels for each constraint they add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

Tensor = torch.Tensor
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
SIDE = {1: 12, 2: 6, 3: 4}
# Weight standardisation takes statistics over the input channels; the oracle switches it off.
STANDARDISE = [True]


@dataclass(frozen=True)
class Recipe:
    """What a random network is made of."""

    rank: int
    width: int
    blocks: tuple[str, ...]
    head: str
    ending: str
    classes: int = 5


@dataclass
class Context:
    """What a block needs to be made: the rank, the number of channels that come in."""

    rank: int
    channels: int
    raw_inputs: dict[str, int] = field(default_factory=dict)


def conv(rank: int, inputs: int, outputs: int, kernel: int = 1, **options: int) -> nn.Module:
    """A convolution that keeps the size."""
    dilation = options.get("dilation", 1)
    return CONVS[rank](inputs, outputs, kernel, padding=dilation * (kernel // 2), **options)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(rank, channels, channels + 8, 3)
        self.norm = BATCH_NORMS[rank](channels + 8)
        self.conv2 = conv(rank, channels + 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm(self.conv1(x))))


class Branches(nn.Module):
    """Concatenation of unequal branches and of the input itself."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.a = conv(rank, channels, 8, 3)
        self.b = conv(rank, channels, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), x, F.gelu(self.b(x))], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.down = conv(rank, channels, 8)
        self.up = conv(rank, 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x * torch.sigmoid(self.up(F.relu(self.down(pooled))))


class GatedUnit(nn.Module):
    """Two halves of one convolution, one gating the other."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.expand = conv(rank, channels, 32)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.expand(x).chunk(2, 1)
        return a * torch.sigmoid(b)


class GatedMlp(nn.Module):
    """Two layers, the first of twice the width: one half gates the other."""

    def __init__(self, rank: int, channels: int, outputs: int, *, glu: bool) -> None:
        super().__init__()
        self.up = conv(rank, channels, 32)
        self.down = conv(rank, 16, outputs)
        self.glu = glu

    def forward(self, x: Tensor) -> Tensor:
        if self.glu:
            return x + self.down(F.glu(self.up(x), 1))
        a, b = self.up(x).chunk(2, 1)
        return self.down(a * torch.sigmoid(b))


class SplitConv(nn.Module):
    """Each half of the channels to its own convolution."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.expand = conv(rank, channels, 32)
        self.a = conv(rank, 16, 8, 3)
        self.b = conv(rank, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.expand(x), self.a.in_channels, 1)
        return torch.cat([self.a(a), self.b(b)], 1)


class RawWeight(nn.Module):
    """A functional call on a raw parameter."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, channels, *(1,) * rank))
        self.shift = nn.Parameter(torch.randn(16, *(1,) * rank))
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, f"conv{self.rank}d")(x, self.kernel) + self.shift


class Standardised(nn.Module):
    """A convolution whose filters are standardised before use."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, channels, *(3,) * rank))
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if STANDARDISE[0]:
            mean = weight.mean(dim=tuple(range(1, weight.ndim)), keepdim=True)
            variance = weight.var(dim=tuple(range(1, weight.ndim)), keepdim=True)
            weight = (weight - mean) / torch.sqrt(variance + 1e-5)
        return getattr(F, f"conv{self.rank}d")(x, weight, padding=1)


class Reused(nn.Module):
    """One convolution run twice."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(rank, channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.a = conv(rank, channels, 16)
        self.b = conv(rank, channels, 16)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(F.relu(x))], 1)


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class TrainOnly(nn.Module):
    """A branch that only training runs."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(rank, channels, 16)
        self.extra = conv(rank, channels, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return out + self.extra(x) if self.training else out


class Attention(nn.Module):
    """Attention over positions; the head count and the scale are stored, the last reshape takes the input's width."""

    def __init__(self, channels: int, *, residual: bool) -> None:
        super().__init__()
        self.heads, self.residual = 4, residual
        self.scale = (channels // 4) ** -0.5
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        n, t, c = tokens.shape
        q, k, v = self.qkv(tokens).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        out = self.out(mixed.transpose(1, 2).reshape(n, t, c)).transpose(1, 2).reshape(x.shape)
        return x + out if self.residual else out


class InferredAttention(nn.Module):
    """Attention over positions with its own width; the head count, width and scale are stored, reshapes infer."""

    def __init__(self, channels: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.heads, self.width, self.residual = 4, 4, residual
        self.scale = self.width**-0.5
        self.q, self.k, self.v = (nn.Linear(channels, 16) for _ in range(3))
        self.out = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        n, t, _ = tokens.shape
        q, k, v = (
            layer(tokens).view(n, t, self.heads, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out = self.out(mixed.transpose(1, 2).reshape(n, t, -1)).transpose(1, 2).reshape(n, -1, *x.shape[2:])
        return x + out if self.residual else out


def shuffle_channels(x: Tensor) -> Tensor:
    """Channel shuffle of two groups by views."""
    n, c, *rest = x.shape
    return x.view(n, 2, c // 2, *rest).transpose(1, 2).reshape(n, c, *rest)


def _expanded(c: Context, function: Callable[[Tensor], Tensor], divisor: int = 1) -> tuple[nn.Module, int]:
    """A convolution to 32 channels, then a function that leaves 32 / divisor."""
    return nn.Sequential(conv(c.rank, c.channels, 32), Apply(function)), 32 // divisor


def _block(name: str, c: Context) -> tuple[nn.Module, int]:
    rank, n = c.rank, c.channels
    widened = conv(rank, n, 16)
    match name:
        case "conv":
            return conv(rank, n, 16, 3), 16
        case "dilated":
            return conv(rank, n, 24, 3, dilation=2), 24
        case "grouped":
            return nn.Sequential(conv(rank, n, 32), conv(rank, 32, 24, 3, groups=2)), 24
        case "depthwise":
            return nn.Sequential(widened, conv(rank, 16, 16, 3, groups=16)), 16
        case "multiplier":
            return nn.Sequential(widened, conv(rank, 16, 32, 3, groups=16)), 32
        case "transposed":
            return TRANSPOSED[rank](n, 16, 3, padding=1), 16
        case "transposed grouped":
            return nn.Sequential(conv(rank, n, 16), TRANSPOSED[rank](16, 24, 1, groups=2)), 24
        case "batch norm":
            return nn.Sequential(widened, BATCH_NORMS[rank](16), nn.ReLU()), 16
        case "instance norm":
            return nn.Sequential(widened, INSTANCE_NORMS[rank](16, affine=True)), 16
        case "plain instance norm":
            return nn.Sequential(widened, INSTANCE_NORMS[rank](16)), 16
        case "group norm":
            return nn.Sequential(conv(rank, n, 32), nn.GroupNorm(4, 32)), 32
        case "layer norm":
            return nn.Sequential(widened, ChannelLayerNorm(16)), 16
        case "prelu":
            return nn.Sequential(widened, nn.PReLU(16)), 16
        case "residual":
            return Residual(rank, n), n
        case "branches":
            return Branches(rank, n), n + 20
        case "gate":
            return Gate(rank, n), n
        case "gated unit":
            return GatedUnit(rank, n), 16
        case "gated mlp":
            return GatedMlp(rank, n, 16, glu=False), 16
        case "residual glu":
            return GatedMlp(rank, n, n, glu=True), n
        case "attention":
            return nn.Sequential(widened, Attention(16, residual=False)), 16
        case "residual attention":
            return nn.Sequential(widened, Attention(16, residual=True)), 16
        case "inferred attention":
            return InferredAttention(n, 16, residual=False), 16
        case "residual inferred attention":
            return InferredAttention(n, n, residual=True), n
        case "split":
            return SplitConv(rank, n), 24
        case "swap":
            return _expanded(c, lambda x: torch.cat(x.chunk(2, 1)[::-1], 1))
        case "shuffle":
            return _expanded(c, shuffle_channels)
        case "pixel shuffle" if rank == 2:
            return _expanded(c, lambda x: F.max_pool2d(F.pixel_shuffle(x, 2), 2), 4)
        case "stride":
            return _expanded(c, lambda x: x[:, ::2], 2)
        case "flip":
            return _expanded(c, lambda x: x.flip(1))
        case "roll":
            return _expanded(c, lambda x: x.roll(x.shape[1] // 2, 1))
        case "raw weight":
            return RawWeight(rank, n), 16
        case "weight norm":
            return parametrizations.weight_norm(conv(rank, n, 16, 3)), 16
        case "standardised":
            return Standardised(rank, n), 16
        case "reused":
            return Reused(rank, n), n
        case "tied":
            return Tied(rank, n), 32
        case "train only":
            return TrainOnly(rank, n), 16
        case _:
            return widened, 16


BLOCKS = (
    "conv", "dilated", "grouped", "depthwise", "multiplier", "transposed", "transposed grouped", "batch norm",
    "instance norm", "plain instance norm", "group norm", "layer norm", "prelu", "residual", "branches", "gate",
    "gated unit", "split", "swap", "shuffle", "pixel shuffle", "stride", "flip", "roll", "raw weight", "weight norm",
    "standardised", "reused", "tied", "train only", "gated mlp", "residual glu", "attention", "residual attention",
    "inferred attention", "residual inferred attention",
)  # fmt: skip


class RandomNetwork(nn.Module):
    """A stem, the blocks, a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.stem = conv(recipe.rank, 3, recipe.width, 3)
        context = Context(recipe.rank, recipe.width)
        blocks = []
        for name in recipe.blocks:
            block, context.channels = _block(name, context)
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.flat = recipe.head == "flatten"
        size = SIDE[recipe.rank] ** recipe.rank if self.flat else 1
        self.neck = nn.Linear(context.channels * size, 16)
        self.head = nn.Linear(16, recipe.classes)
        self.ending = recipe.ending

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x.flatten(1) if self.flat else x.flatten(2).mean(-1)
        x = self.head(F.relu(self.neck(x)))
        if self.ending == "argmax":
            return x.argmax(1)
        return x.logsumexp(1) if self.ending == "logsumexp" else x


def raw_inputs(model: nn.Module) -> dict[str, int]:
    """Parameters that no layer of torch.nn owns, with the dimension that is summed over."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, RawWeight):
            found[f"{path}.kernel"] = 1
        elif isinstance(module, Standardised):
            found[f"{path}.weight"] = 1
    return found


def filters(model: nn.Module) -> dict[str, int]:
    """The widths that may be cut: by weight, the dimension of its filters."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        if path == "head":
            continue
        if isinstance(module, nn.modules.conv._ConvNd):
            depthwise = module.groups == module.in_channels > 1
            if not depthwise:
                weight = "parametrizations.weight.original1" if hasattr(module, "parametrizations") else "weight"
                found[f"{path}.{weight}"] = 1 if module.transposed else 0
        elif isinstance(module, nn.Linear):
            found[f"{path}.weight"] = 0
        elif isinstance(module, RawWeight):
            found[f"{path}.kernel"] = 0
        elif isinstance(module, Standardised):
            found[f"{path}.weight"] = 0
    return found


def example(recipe: Recipe, batch: int = 2) -> Tensor:
    """An input."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, *(SIDE[recipe.rank],) * recipe.rank, generator=generator, dtype=torch.float64)


def recipes_with_each_block(rank: int) -> Sequence[Recipe]:
    """Every block once, alone."""
    return [Recipe(rank, 16, (name,), "pool", "plain") for name in BLOCKS]
