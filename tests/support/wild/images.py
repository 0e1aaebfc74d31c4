"""Convolutional blocks: [batch, channels, 8, 8]."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.support.wild.marks import only_kept
from tests.support.wild.registry import block

Tensor = torch.Tensor


class ConvBlock(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.variant = rng.randrange(4)
        self.make(c)

    def make(self, c: int) -> None:
        self.up, self.down, self.out = nn.Conv2d(c, 32, 1), nn.Conv2d(32, c, 1), c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(x)))

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError


@block("separable convolution", "images")
class Separable(ConvBlock):
    def make(self, c: int) -> None:
        super().make(c)
        self.deep, self.norm = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32)

    def between(self, y: Tensor) -> Tensor:
        return F.hardswish(self.norm(self.deep(y)))


@block("grouped and shuffled convolution", "images")
class GroupedShuffled(ConvBlock):
    def make(self, c: int) -> None:
        super().make(c)
        self.groups, self.conv = 4, nn.Conv2d(32, 32, 3, padding=1, groups=4)

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        return self.conv(y).view(b, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


@block("transposed convolution", "images")
class Upsampled(ConvBlock):
    def make(self, c: int) -> None:
        self.up, self.conv, self.out = nn.Conv2d(c, 20, 3, 2, 1), nn.ConvTranspose2d(20, 24, 2, 2), 24

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.conv(y.relu(), output_size=x.shape[2:]) if self.variant % 2 else self.conv(y)


@block("pixel shuffle", "images")
class PixelShuffle(ConvBlock):
    def make(self, c: int) -> None:
        self.up, self.out = nn.Conv2d(c, 48, 1), 12

    def forward(self, x: Tensor) -> Tensor:
        if self.variant % 2:
            return F.pixel_shuffle(F.avg_pool2d(self.up(x), 2), 2)
        return F.avg_pool2d(F.pixel_shuffle(self.up(x), 2), 2)


@block("space to depth by views", "images")
class SpaceToDepth(ConvBlock):
    def make(self, c: int) -> None:
        self.up, self.mix, self.out = nn.Conv2d(c, 10, 1), nn.Conv2d(40, 24, 1), 24

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        b, c, h, w = y.shape
        if self.variant % 2:
            y = F.pixel_unshuffle(y, 2)
        else:
            y = y.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return F.interpolate(self.mix(y), size=x.shape[-2:], mode="nearest")


@block("unfold, product, fold", "images")
class Unfolded(ConvBlock):
    def make(self, c: int) -> None:
        self.weight, self.up, self.out = nn.Parameter(torch.randn(24, 12 * 9)), nn.Conv2d(c, 12, 1), 24

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(self.up(x), 3, padding=1)
        return F.fold(self.weight @ columns, x.shape[2:], 1)


@block("sampled at offsets", "images")
class Deformed(ConvBlock):
    def make(self, c: int) -> None:
        super().make(c)
        self.offset = nn.Conv2d(c, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        axis = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
        grid = grid + 0.1 * self.offset(x).permute(0, 2, 3, 1).tanh()
        return x + self.down(F.grid_sample(y, grid, align_corners=False))


@block("resized by size", "images")
class Resized(ConvBlock):
    def between(self, y: Tensor) -> Tensor:
        h, w = y.shape[-2:]
        small = F.adaptive_avg_pool2d(y, (h // 2, w // 2))
        mode = ("nearest", "bilinear", "bicubic", "area")[self.variant]
        return y * F.interpolate(small, size=(h, w), mode=mode).sigmoid()


@block("squeeze and excite", "images")
class Squeeze(ConvBlock):
    def make(self, c: int) -> None:
        super().make(c)
        self.fc1, self.fc2 = nn.Linear(32, 8), nn.Linear(8, 32)

    def between(self, y: Tensor) -> Tensor:
        b, c = y.shape[:2]
        gate = self.fc2(self.fc1(F.adaptive_avg_pool2d(y, 1).view(b, c)).relu()).sigmoid()
        return y * (gate.view(b, c, 1, 1) if self.variant % 2 else gate[:, :, None, None].expand_as(y))


@block("spatial attention", "images")
class Spatial(ConvBlock):
    """The mean and the largest of the channels make a map."""

    def make(self, c: int) -> None:
        super().make(c)
        self.map = nn.Conv2d(2, 1, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        left = only_kept(y, self.up.weight, 1)
        stats = torch.cat([left.mean(1, keepdim=True), left.max(1, keepdim=True).values], 1)
        return y * self.map(stats).sigmoid()


@block("split and hierarchical", "images")
class Hierarchical(ConvBlock):
    def make(self, c: int) -> None:
        super().make(c)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def between(self, y: Tensor) -> Tensor:
        parts = list(y.chunk(4, 1))
        for i, conv in enumerate(self.convs):
            parts[i + 1] = conv(parts[i + 1] + parts[i])
        return torch.cat(parts, 1)


@block("partial convolution", "images")
class Partial(ConvBlock):
    """Only the first quarter is convolved, in place or joined."""

    def make(self, c: int) -> None:
        super().make(c)
        self.part, self.conv = 8, nn.Conv2d(8, 8, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            first, rest = torch.split(y, [self.part, y.shape[1] - self.part], 1)
            return torch.cat((self.conv(first), rest), 1)
        y = y.clone()
        y[:, : self.part] = self.conv(y[:, : self.part].clone())
        return y


@block("generated kernels", "images")
class Involution(ConvBlock):
    def make(self, c: int) -> None:
        self.groups = 4
        self.value, self.kernel, self.down, self.out = nn.Conv2d(c, 32, 1), nn.Conv2d(c, 36, 1), nn.Conv2d(32, c, 1), c

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        kernel = self.kernel(x).view(b, self.groups, 1, 9, h, w)
        patches = F.unfold(self.value(x), 3, padding=1).view(b, self.groups, -1, 9, h, w)
        return x + self.down((kernel * patches).sum(3).flatten(1, 2))


@block("filter in the frequency domain", "images")
class GlobalFilter(ConvBlock):
    def make(self, c: int) -> None:
        super().make(c)
        self.filter = nn.Parameter(torch.randn(32, 8, 5, 2))

    def between(self, y: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(self.filter.contiguous())
        return torch.fft.irfft2(spectrum, s=y.shape[-2:], norm="ortho")


@block("fixed kernels for every channel", "images")
class Fixed(ConvBlock):
    """A blur, as a depthwise convolution with a kernel that is repeated for each channel."""

    def make(self, c: int) -> None:
        super().make(c)
        self.register_buffer("blur", torch.rand(1, 1, 3, 3))

    def between(self, y: Tensor) -> Tensor:
        c = y.shape[1]
        if self.variant % 2:
            kernel = self.blur.expand(c, -1, -1, -1)
        else:
            kernel = self.blur.repeat(y.size(1), 1, 1, 1)
        return F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), kernel, groups=c)


@block("norms over channels by hand", "images")
class ChannelNorm(ConvBlock):
    def make(self, c: int) -> None:
        super().make(c)
        self.gain, self.shift = nn.Parameter(torch.randn(32)), nn.Parameter(torch.randn(1, 32, 1, 1))

    def between(self, y: Tensor) -> Tensor:
        left = only_kept(y, self.up.weight, 1)
        if self.variant % 2:
            mean, var = left.mean(1, keepdim=True), left.var(1, keepdim=True, unbiased=False)
            return (y - mean) * torch.rsqrt(var + 1e-6) * self.gain[:, None, None] + self.shift
        size = y.norm(p=2, dim=(2, 3), keepdim=True)
        size = size / (only_kept(size, self.up.weight, 1).mean(1, keepdim=True) + 1e-6)
        return self.gain.view(1, -1, 1, 1) * (y * size) + self.shift + y


@block("spectral norm", "images")
class Spectral(ConvBlock):
    """In evaluation the weight is divided by an estimate of its largest singular value."""

    def make(self, c: int) -> None:
        self.conv = parametrizations.spectral_norm(nn.Conv2d(c, 24, 3, padding=1))
        self.mix, self.out = nn.Conv2d(24, 24, 1), 24

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.conv(x).relu())


@block("coordinates joined", "images")
class Coordinates(ConvBlock):
    def make(self, c: int) -> None:
        self.conv, self.down, self.out = nn.Conv2d(c + 2, 24, 3, padding=1), nn.Conv2d(24, c, 1), c

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        rows = torch.arange(h, dtype=x.dtype).view(1, 1, h, 1).expand(x.shape[0], 1, h, w) / h
        columns = torch.arange(w, dtype=x.dtype).expand(x.shape[0], 1, h, w) / w
        return x + self.down(self.conv(torch.cat([x, rows, columns], 1)).relu())


@block("pyramid of scales", "images")
class Pyramid(ConvBlock):
    def make(self, c: int) -> None:
        self.a, self.b = nn.Conv2d(c, 16, 3, 2, 1), nn.Conv2d(16, 20, 3, 2, 1)
        self.la, self.lb, self.lx, self.out = nn.Conv2d(16, 24, 1), nn.Conv2d(20, 24, 1), nn.Conv2d(c, 24, 1), 24

    def forward(self, x: Tensor) -> Tensor:
        features = {"0": x}
        for name, layer in (("1", self.a), ("2", self.b)):
            features[name] = layer(features[str(int(name) - 1)]).relu()
        top = self.lb(features["2"])
        for name, layer in (("1", self.la), ("0", self.lx)):
            top = layer(features[name]) + F.interpolate(top, size=features[name].shape[-2:])
        return top


@block("attention inside windows of an image", "images")
class WindowAttention(ConvBlock):
    def make(self, c: int) -> None:
        self.qkv, self.proj, self.heads, self.side, self.out = nn.Conv2d(c, 48, 1), nn.Conv2d(16, c, 1), 2, 4, c

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        s = self.side
        y = self.qkv(x).view(b, -1, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)
        q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2)
        y = y.view(b, h // s, w // s, s, s, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h, w)
        return x + self.proj(y)


@block("non-local", "images")
class NonLocal(ConvBlock):
    def make(self, c: int) -> None:
        self.theta, self.phi, self.g, self.back, self.out = (
            *(nn.Conv2d(c, 16, 1) for _ in range(3)),
            nn.Conv2d(16, c, 1),
            c,
        )
        self.inner = 16

    def forward(self, x: Tensor) -> Tensor:
        b, h, w = x.shape[0], x.shape[2], x.shape[3]
        q, k, v = (f(x).view(b, self.inner, -1) for f in (self.theta, self.phi, self.g))
        y = torch.bmm(v, torch.bmm(q.permute(0, 2, 1), k).mul(0.1).softmax(-1).permute(0, 2, 1))
        return x + self.back(y.view(b, self.inner, h, w))


@block("inverted residual, width by a number", "images")
class Inverted(ConvBlock):
    """channels_last memory, ReLU6, a layer scale."""

    def make(self, c: int) -> None:
        self.body = nn.Sequential(
            nn.Conv2d(c, 3 * c, 1, bias=False), nn.BatchNorm2d(3 * c), nn.ReLU6(),
            nn.Conv2d(3 * c, 3 * c, 3, padding=1, groups=3 * c, bias=False), nn.BatchNorm2d(3 * c), nn.Hardswish(),
            nn.Conv2d(3 * c, c, 1),
        )  # fmt: skip
        self.scale, self.out = nn.Parameter(torch.randn(c, 1, 1)), c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.body(x.contiguous(memory_format=torch.channels_last))


@block("dense growth", "images")
class Growth(ConvBlock):
    def make(self, c: int) -> None:
        self.layers = nn.ModuleList(nn.Conv2d(c + 8 * i, 8, 3, padding=1) for i in range(3))
        self.out = c + 24

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)).relu())
        return torch.cat(features, 1)
