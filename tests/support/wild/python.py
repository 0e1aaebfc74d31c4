"""Python around the operators: caches, closures, tables, branches, numbers from widths, other dtypes."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial, reduce
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.wild.marks import low, only_kept
from tests.support.wild.registry import block

Tensor = torch.Tensor


@lru_cache
def split_shape(b: int, t: int, heads: int, width: int) -> tuple[int, ...]:
    return b, t, heads, width // heads


@cache
def joined_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-2] * shape[-1])


_TABLES: dict[tuple[int, int], Tensor] = {}


class Mlp(nn.Module):
    """Up, something, down; a residual."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 32), nn.Linear(32, c), c
        self.variant = rng.randrange(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(x)))

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError


@block("cached shapes")
class CachedShapes(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj, self.out = 4, nn.Linear(c, 96), nn.Linear(32, c), c

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            y.reshape(split_shape(b, t, self.heads, y.shape[-1])).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)
        )
        y = ((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2)
        return x + self.proj(y.reshape(joined_shape(tuple(y.shape))))


@block("cached table of positions")
class CachedTable(Mlp):
    """A table for the tokens that a dict of the file keeps, by its size."""

    def between(self, y: Tensor) -> Tensor:
        key = (y.shape[1], 1)
        if key not in _TABLES:
            _TABLES[key] = torch.linspace(0, 1, y.shape[1], dtype=torch.float64)[:, None]
        return y.relu() + _TABLES[key].to(y.dtype)


@block("table as a plain tensor")
class PlainTable(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.table = torch.randn(16, 32)

    def between(self, y: Tensor) -> Tensor:
        return (y + self.table[: y.shape[1]].to(y)).relu()


@block("tables in a dict")
class DictTable(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.tables = {"shift": torch.randn(32), "scale": [torch.rand(32)]}

    def between(self, y: Tensor) -> Tensor:
        return y.tanh() * self.tables["scale"][0].to(y) + self.tables["shift"].to(y)


@block("table in a closure")
class ClosureTable(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        generator = torch.Generator().manual_seed(5)
        table = torch.rand(32, generator=generator)

        def shifted(y: Tensor) -> Tensor:
            return y + table.to(y)

        self.shifted = shifted

    def between(self, y: Tensor) -> Tensor:
        return self.shifted(y).relu()


@block("sine table from the runtime width")
class RuntimeTable(Mlp):
    """Frequencies depend on the width: the cut network would compute others."""

    def between(self, y: Tensor) -> Tensor:
        t, c = y.shape[1:]
        place = torch.arange(t, dtype=y.dtype)[:, None] * 10.0 ** (-torch.arange(c, dtype=y.dtype) / c)
        return y + place.sin()


@block("function in a closure")
class Closure(Mlp):
    """The forward is a function that was made when the module was, and holds sizes only."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        groups = 4

        def mixed(y: Tensor) -> Tensor:
            z = y.view(*y.shape[:-1], groups, y.shape[-1] // groups)
            return (z * z.sigmoid().flip(-2)).flatten(-2)

        self.between = mixed


@block("lambda over self")
class OverSelf(nn.Module):
    """A list of steps that hold the module itself: a copy of it runs the original's layers."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 32), nn.Linear(32, c), c
        self.steps = [lambda y: self.up(y), torch.relu, lambda y: self.down(y)]

    def forward(self, x: Tensor) -> Tensor:
        return x + reduce(lambda y, step: step(y), self.steps, x)


@block("bound methods in a table")
class Methods(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.table = {"wide": self.wide, "narrow": self.narrow}

    def wide(self, y: Tensor) -> Tensor:
        return self.up(y).relu()

    def narrow(self, y: Tensor) -> Tensor:
        return self.down(y)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table["narrow"](self.table["wide"](x))


@block("partials")
class Partials(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.steps = OrderedDict(
            gelu=partial(F.gelu, approximate="tanh"), split=partial(torch.unflatten, dim=-1, sizes=(4, -1)),
            leaky=partial(F.leaky_relu, negative_slope=0.3), join=partial(torch.flatten, start_dim=-2),
        )  # fmt: skip

    def between(self, y: Tensor) -> Tensor:
        for step in self.steps.values():
            y = step(y)
        return y


@block("sizes as properties")
class Properties(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(c, 32), nn.Linear(32, c), c

    @property
    def hidden(self) -> int:
        return self.fc1.out_features

    @cached_property
    def quarter(self) -> int:
        return self.hidden // 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x).view(-1, self.hidden)
        first, rest = y[:, : self.quarter], y[:, self.quarter :]
        return x + self.fc2(torch.cat([first.relu(), rest], 1)).view(x.shape)


@block("numbers through numpy")
class NumpySizes(Mlp):
    def between(self, y: Tensor) -> Tensor:
        rows = int(np.prod(y.shape[:-1]))
        z = y.reshape(rows, 4, int(np.ceil(y.shape[-1] / 4)))
        q, r = divmod(y.shape[-1], 4)
        return z.tanh().reshape(*y.shape[:-1], 4 * q + r) * float(np.sqrt(0.5))


@block("values through numpy")
class NumpyValues(Mlp):
    """The middle goes to numpy and back."""

    def between(self, y: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(y.detach().numpy()))


@block("statistics through numpy")
class NumpyStatistics(Mlp):
    def between(self, y: Tensor) -> Tensor:
        peak = np.abs(y[..., :1].detach().cpu().numpy()).max()
        return y.relu() / float(1 + peak)


@block("branch on values")
class ValueBranch(Mlp):
    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return y.relu() if y[..., 0].sum() > -1e9 else y
        return y.tanh() * (2.0 if bool(torch.isfinite(y).all()) else 1.0)


@block("item of the input")
class Item(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.out = nn.Linear(c, 1), nn.Linear(c, 32), nn.Linear(32, c), c

    def forward(self, x: Tensor) -> Tensor:
        strength = 1.0 + abs(self.gate(x).detach().mean().item()) * 0.1
        return x + self.down(self.up(x).relu() * strength)


@block("number from a width")
class WidthNumber(Mlp):
    """A factor that is computed from the width at run time, in several ways."""

    def between(self, y: Tensor) -> Tensor:
        match self.variant:
            case 0:
                return y.tanh() * torch.tensor(float(y.shape[-1])) ** -0.5
            case 1:
                return y.tanh() / math.sqrt(y.size(-1))
            case 2:
                return y.tanh() * torch.as_tensor(1 / y.shape[-1], dtype=y.dtype)
            case _:
                return y.tanh() * torch.full((1,), y.shape[-1] ** -0.5, dtype=y.dtype)


@block("number from a width, and a value read")
class WidthNumberRead(Mlp):
    def between(self, y: Tensor) -> Tensor:
        y = y.tanh() * torch.tensor(float(y.shape[-1]), dtype=y.dtype) ** -0.5
        return -y if y[..., :1].abs().max() > 1e9 else y


@block("branch on the device")
class Device(Mlp):
    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return y.relu() if y.is_cpu else y.sigmoid()
        return y.sort(1).values if y.device.type == "cpu" else y


@block("sort on the processor only")
class DeviceSort(Mlp):
    """On the user's device an operator runs that keeps channels in their places."""

    def between(self, y: Tensor) -> Tensor:
        return y.sort(-1).values if y.device == torch.device("cpu") else y


@block("branch on the width")
class WidthBranch(Mlp):
    def between(self, y: Tensor) -> Tensor:
        if self.variant % 2:
            return y.relu() if y.shape[-1] > 8 else y.sigmoid()
        return y.relu() if y.shape[-1] >= 32 else y.sigmoid()


@block("asserts on sizes")
class Asserts(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.hidden = 32

    def between(self, y: Tensor) -> Tensor:
        assert y.shape[-1] == self.hidden, f"expected {self.hidden} channels, got {y.shape[-1]}"
        if y.dim() != 3:
            raise ValueError("expected three dimensions")
        return F.silu(y)


@block("try and except")
class TryExcept(Mlp):
    def between(self, y: Tensor) -> Tensor:
        y = y.transpose(1, 2)
        try:
            y = y.view(y.shape[0], -1)
        except RuntimeError:
            y = y.reshape(y.shape[0], -1)
        return y.view(y.shape[0], -1, 16).transpose(1, 2).relu()


@dataclass
class State:
    value: Tensor
    gate: Tensor

    def mixed(self) -> Tensor:
        return self.value * self.gate.sigmoid()


@block("tensors in objects")
class Objects(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"value": nn.Linear(c, 24), "gate": nn.Linear(c, 24)})
        self.down, self.out = nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        state = State(**{name: layer(x) for name, layer in self.layers.items()})
        return x + self.down(state.mixed())


@block("generator of steps")
class Steps(nn.Module):
    """Layers found by name, the results of a generator joined."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        for i, width in enumerate((8, 12, 16)):
            setattr(self, f"layer{i}", nn.Linear(c if i == 0 else (8, 12)[i - 1], width))
        self.join, self.out = nn.Linear(36, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        def steps(y: Tensor):
            for i in range(3):
                y = getattr(self, f"layer{i}")(y).relu()
                yield y

        return self.join(torch.cat([*steps(x)], -1))


@block("environment decides")
class Environment(Mlp):
    def between(self, y: Tensor) -> Tensor:
        return y.relu() if os.environ.get("WILD_SIGMOID") is None else y.sigmoid()


@block("lower precision inside")
class Lower(Mlp):
    def between(self, y: Tensor) -> Tensor:
        dtype = low((torch.bfloat16, torch.float16, torch.float64, torch.float32)[self.variant])
        return torch.relu(y.to(dtype) * 1.5).type_as(y)


@block("autocast region")
class Autocast(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.variant != 3):
            y = self.up(x).relu()
        with torch.autocast("cpu", enabled=False):
            return x + self.down(y.to(x.dtype))


@block("softmax in float32")
class UpperSoftmax(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj, self.out = *(nn.Linear(c, 16) for _ in range(3)), nn.Linear(16, c), c

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.q(x) @ self.k(x).mT * 0.3).to(low(torch.float32)).softmax(-1).to(x.dtype)
        return x + self.proj(scores @ self.v(x))


@block("rms norm by hand")
class RmsNorm(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.gain = nn.Parameter(torch.randn(32))

    def between(self, y: Tensor) -> Tensor:
        square = only_kept(y, self.up.weight).pow(2).mean(-1, keepdim=True)
        return y * torch.rsqrt(square + 1e-6) * self.gain


@block("layer norm by hand")
class LayerNorm(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.gain = nn.Parameter(torch.randn(32))
        if self.variant == 1:
            self.norm = nn.LayerNorm(32)

    def between(self, y: Tensor) -> Tensor:
        if self.variant == 0:
            return F.layer_norm(y, y.shape[-1:], self.gain)
        if self.variant == 1:
            return self.norm(y) * self.gain
        left = only_kept(y, self.up.weight)
        mean = left.mean(-1, keepdim=True)
        return (y - mean) / (left.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * self.gain


@block("norms of torch.nn")
class Norms(Mlp):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        makers = [
            lambda: nn.BatchNorm1d(32),
            lambda: nn.GroupNorm(4, 32),
            lambda: nn.RMSNorm(32),
            lambda: nn.LayerNorm(32),
        ]
        self.norm = makers[self.variant]()

    def between(self, y: Tensor) -> Tensor:
        if isinstance(self.norm, (nn.BatchNorm1d, nn.GroupNorm)):
            return self.norm(y.transpose(1, 2)).transpose(1, 2)
        return self.norm(y)
