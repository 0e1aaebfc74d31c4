"""Layers of torch.nn that are met less often, and options of others."""

from __future__ import annotations

from random import Random

import torch
from torch import nn

from tests.support.wild.registry import block

Tensor = torch.Tensor


class Between(nn.Module):
    """A layer of torch.nn between two linear ones, on tokens or with channels first."""

    def __init__(self, c: int, layer: nn.Module, *, first: bool = False, read: int = 32, wide: int = 32) -> None:
        super().__init__()
        self.up, self.layer, self.down = nn.Linear(c, wide), layer, nn.Linear(read, c)
        self.first, self.out = first, c

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        y = self.layer(y.transpose(1, 2)).transpose(1, 2) if self.first else self.layer(y)
        return x + self.down(y)


@block("activations of torch.nn")
class Activations(Between):
    def __init__(self, c: int, rng: Random) -> None:
        kinds = (
            nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.LogSigmoid,
            nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.ReLU6, nn.PReLU, nn.Hardsigmoid, nn.RReLU,
        )  # fmt: skip
        super().__init__(
            c, nn.Sequential(rng.choice(kinds)(), nn.Threshold(0.1, 0.05), rng.choice(kinds[:-1])()).eval()
        )

    def train(self, mode: bool = True) -> Activations:
        super().train(mode)
        self.layer.eval()  # RReLU draws random numbers
        return self


@block("norms of torch.nn, options")
class NormOptions(Between):
    def __init__(self, c: int, rng: Random) -> None:
        layer = rng.choice([
            lambda: nn.BatchNorm1d(32, affine=False), lambda: nn.BatchNorm1d(32, track_running_stats=False),
            lambda: nn.BatchNorm1d(32, momentum=None), lambda: nn.InstanceNorm1d(32, affine=True),
            lambda: nn.InstanceNorm1d(32, track_running_stats=True), lambda: nn.GroupNorm(32, 32, affine=False),
            lambda: nn.GroupNorm(8, 32, eps=1e-3),
        ])()  # fmt: skip
        super().__init__(c, layer, first=True)


@block("dropout of every kind", random=True)
class Dropouts(Between):
    def __init__(self, c: int, rng: Random) -> None:
        kind = rng.choice([nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout])
        super().__init__(c, kind(0.3), first=True)


@block("gated linear unit layer")
class GluLayer(Between):
    def __init__(self, c: int, rng: Random) -> None:
        first = rng.random() < 0.5
        super().__init__(c, nn.GLU(1 if first else -1), first=first, read=16)


@block("attention of torch.nn, options")
class AttentionOptions(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.how, self.out = rng.randrange(4), c
        options = ({"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 12, "vdim": 20}, {"dropout": 0.0})[self.how]
        self.down, self.up = nn.Linear(c, 24), nn.Linear(24, c)
        self.key, self.value = nn.Linear(c, 12 if self.how == 2 else 24), nn.Linear(c, 20 if self.how == 2 else 24)
        self.attend = nn.MultiheadAttention(24, 3, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.how == 3 else None
        y, weights = self.attend(self.down(x), self.key(x), self.value(x), attn_mask=mask, average_attn_weights=False)
        return x + self.up(y) * (1 + weights.mean((1, 2, 3)).view(-1, 1, 1))


@block("decoder layer of torch.nn")
class Decoder(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(
            c, 4, 40, dropout=0.0, batch_first=True, norm_first=rng.random() < 0.5, activation=torch.tanh
        )
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.flip(1))


@block("bag of embeddings")
class Bag(nn.Module):
    """Every token looks up the sum of several rows."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.bag, self.mix, self.out = nn.EmbeddingBag(12, 20, mode=rng.choice(["sum", "mean"])), nn.Linear(20, c), c
        self.register_buffer("ids", torch.tensor([[(3 * i + j) % 12 for j in range(4)] for i in range(16)]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.bag(self.ids[: x.shape[1]]))


@block("convolutions over tokens, options")
class TokenConvolutions(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(c, 24, 3, padding="same", padding_mode=rng.choice(["zeros", "reflect", "circular", "replicate"])),
            rng.choice([nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(3, 1, 1), nn.LPPool1d(2, 1), nn.Identity()]),
            nn.SiLU(), nn.Conv1d(24, 24, 3, padding=2, dilation=2, groups=rng.choice([1, 2, 24])), nn.BatchNorm1d(24),
            nn.ConvTranspose1d(24, 20, 3, padding=1, groups=rng.choice([1, 2])),
        )  # fmt: skip
        self.out = 20

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mT).mT


@block("pooling and unpooling", "images")
class Unpooling(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Conv2d(c, 20, 3, padding=1), nn.Conv2d(20, c, 1), c
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y, where = self.pool(self.up(x))
        return x + self.down(self.unpool(y.tanh(), where))


@block("layers for images, options", "images")
class ImageOptions(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            rng.choice([nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ConstantPad2d(1, 0.3)]),
            nn.Conv2d(c, 32, 3, bias=False), rng.choice([nn.ChannelShuffle(4), nn.Identity()]), nn.Softplus(),
            rng.choice([nn.Dropout2d(0.0), nn.LPPool2d(2, 1), nn.AvgPool2d(3, 1, 1)]),
            nn.PixelUnshuffle(2), nn.Conv2d(128, 64, 1), nn.PixelShuffle(2), nn.PReLU(16), nn.Conv2d(16, 24, 1),
        )  # fmt: skip
        self.out = 24

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@block("upsampling of every kind", "images")
class Upsampling(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        grow = rng.choice([
            nn.Upsample(scale_factor=2), nn.UpsamplingBilinear2d(scale_factor=2), nn.UpsamplingNearest2d(None, 2),
            nn.ConvTranspose2d(20, 20, 4, 2, 1, groups=20), nn.ConvTranspose2d(20, 20, 3, 2, 1, output_padding=1),
        ])  # fmt: skip
        self.down, self.grow, self.mix, self.out = nn.Conv2d(c, 20, 3, 2, 1), grow, nn.Conv2d(20, c, 1), c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.grow(self.down(x)))
