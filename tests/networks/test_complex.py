"""Complex weights: ranked by absolute values, cut like any others, proved in complex128."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune

Tensor = torch.Tensor
generator = torch.Generator().manual_seed(0)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(numbers(*shape, dtype=torch.complex64))


class Product(nn.Module):
    """Two layers make the parts of complex numbers, which a matrix mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(12, 8), nn.Linear(8, 3)
        self.w, self.bias, self.batched = weight(12, 16), weight(12), weight(1, 12, 12)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.addmm(self.bias, torch.complex(self.a(x), self.b(x)), self.w.mH)
        return self.d(self.c(torch.bmm(z[None], self.batched.conj())[0].abs()))


class Layers(nn.Module):
    """Complex layers of torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 16, 3, dtype=torch.complex64)
        self.b, self.c = nn.Linear(16, 12, dtype=torch.complex64), nn.Linear(12, 8, dtype=torch.complex64)
        self.d = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(torch.complex(x, x.flip(1))).mean((2, 3))
        h = self.c(torch.tanh(self.b(torch.complex(h.real.relu(), h.imag))))
        return self.d(torch.view_as_real(h).flatten(1))


class Spectral(nn.Module):
    """Li et al. (2021): the lowest frequencies, mixed by weights of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.modes = width, 4
        self.w = weight(width, width, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft2(x)
        out = torch.zeros(len(x), self.width, *low.shape[2:], dtype=low.dtype, device=x.device)
        corner = low[:, :, : self.modes, : self.modes]
        out[:, :, : self.modes, : self.modes] = torch.einsum("bixy,ioxy->boxy", corner, self.w)
        return torch.fft.irfft2(out, s=x.shape[-2:])


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.a, self.b = nn.Conv2d(2, 16, 1), Spectral(16), Spectral(16)
        self.beside, self.c, self.d = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        x = F.gelu(self.a(x) + self.beside(x))
        return self.d(self.c(self.b(x)).relu())


class Rotary(nn.Module):
    """Su et al. (2021), with neighbours as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 16
        self.a, self.q, self.k, self.v, self.c = (nn.Linear(*s) for s in ((8, 64), *[(64, 64)] * 3, (64, 32)))
        self.d = nn.Linear(32, 3)
        angle = torch.outer(torch.arange(6.0), 1e4 ** (-torch.arange(8) / 8))
        self.register_buffer("turns", torch.polar(torch.ones_like(angle), angle))

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns[:, None]).flatten(3).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        q, k, v = (f(x).view(*x.shape[:2], self.heads, self.width) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v.transpose(1, 2))
        return self.d(self.c(y.transpose(1, 2).reshape(*x.shape[:2], -1)))


CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, tuple[int, ...]]]] = [
    (Product, (2, 8), {"a.weight": (8, 8), "b.weight": (8, 8), "w": (6, 8), "batched": (1, 6, 6), "c.weight": (4, 6)}),
    (Layers, (2, 2, 6, 6), {"a.weight": (8, 2, 3, 3), "b.weight": (6, 8), "c.weight": (4, 6), "d.weight": (3, 8)}),
    (Fourier, (2, 2, 16, 16), {"lift.weight": (8, 2, 1, 1), "a.w": (8, 8, 4, 4), "b.w": (8, 8, 4, 4)}),
    (Rotary, (2, 6, 8), {"a.weight": (32, 8), "q.weight": (32, 32), "v.weight": (32, 32), "c.weight": (16, 32)}),
]


@pytest.mark.parametrize(("make", "size", "left"), CASES)
def test_networks(make: Any, size: tuple[int, ...], left: dict[str, tuple[int, ...]]) -> None:
    model, x = make(), numbers(*size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # to drop an imaginary part is one
        small = structprune.prune_model(model, 0.5, "channel", example_inputs=x, round_to=1, keep_representation=False)
        proof = structprune.prove(model, small, x)
    assert proof and proof.max_error < 1e-12, str(proof)
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert {name: shapes[name] for name in left} == left
    assert [p.dtype for p in small.parameters()] == [p.dtype for p in model.parameters()]
    small(x).sum().backward()
    assert structprune.count_flops(small, x).macs < structprune.count_flops(model, x).macs


def test_a_wrong_cut_is_noticed() -> None:
    model, x = Product(), numbers(2, 8)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=x, round_to=1)
    small.bias.data.imag.zero_()
    assert "bias is not a slice" in structprune.prove(model, small, x).reason


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_channels_are_ranked_by_absolute_values(importance: Any) -> None:
    model = Layers()
    with torch.no_grad():
        for kept, tensor in ((3, model.b.weight), (5, model.b.weight)):
            tensor[kept] = tensor[kept] * 100j  # large, with whatever real part
    plan = structprune.plan_pruning(
        model, {"b": 0.8}, example_inputs=numbers(2, 2, 6, 6), importance=importance, round_to=1
    )
    assert {3, 5} <= set(plan.kept["b.weight"][0])


def test_compensated_stored_and_loaded(tmp_path: Path) -> None:
    model, x = Product(), numbers(2, 8)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=x, round_to=1, compensate=[numbers(4, 8)])
    small: Any = plan.apply(model)
    assert structprune.prove(model, small, x).max_error < 1e-12
    assert set(plan.shifts) == {"c.bias"}  # a mean of complex numbers fits no bias
    structprune.save(small, tmp_path / "small.safetensors")
    loaded: Any = structprune.load(tmp_path / "small.safetensors", Product())
    assert torch.equal(loaded(x), small(x)) and loaded.w.dtype == torch.complex64
    assert structprune.compare(model, small, x, min_seconds=0.01).theoretical_speedup > 1
