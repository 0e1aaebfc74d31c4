"""Operators between two layers: what follows the cut, what stays, and what has no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import structprune
from structprune import NothingToPruneError
from tests.support import oracle
from tests.support.attention import TOKENS
from tests.support.pruned import PAIR, Between, X, pruned
from tests.zoo.by_value import by_value
from tests.zoo.calls import Call

Tensor = torch.Tensor


class Op(NamedTuple):
    """A function of ``(y, module)``, how wide it makes the sixteen channels, how many stay or why all do."""

    name: str
    function: Callable[[Tensor, Any], Tensor]
    left: int | str = 8
    out: int = 16
    held: Callable[[], dict[str, Any]] = dict


def weight(*shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"w": nn.Parameter(torch.randn(*shape))}


def written(y: Tensor, _module: Any) -> Tensor:
    z = y.clone()
    z[:, 0] = y[:, 1]
    return z


def turned(y: Tensor, _module: Any) -> Tensor:
    """Neighbours as complex numbers, as some rotary embeddings have them."""
    return torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * 1j).flatten(-2)


THREE, SECOND = torch.tensor([0, 3, 3]), torch.ones(1, 2, 1, dtype=torch.long)
OPS = [
    Op("stack", lambda y, m: torch.stack([y, y.relu()], 1).sum(1)),
    Op("stack, then flatten", lambda y, m: torch.stack([y, y.relu()], -1).flatten(-2), out=32),
    Op("unbind of tokens", lambda y, m: torch.stack([t * i for i, t in enumerate(y.unbind(1), 1)], 1)),
    Op("unbind of channels", lambda y, m: torch.stack(y.unbind(2), 2), "is taken apart entry by entry"),
    Op("select of a token", lambda y, m: y[:, 0]),
    Op("slice of a channel", lambda y, m: y[..., 3:4] * y, 10),
    Op("roll of tokens", lambda y, m: y.roll(2, 1) + y),
    Op("roll by half of the channels", lambda y, m: y.roll(y.shape[-1] // 2, -1)),
    Op("repeat of tokens", lambda y, m: y.repeat(1, 2, 1)),
    Op("repeat of channels", lambda y, m: y.repeat(1, 1, 2), out=32),
    Op("repeat_interleave", lambda y, m: y.repeat_interleave(2, -1), out=32),
    Op("gather of tokens", lambda y, m: y.gather(1, SECOND.expand(len(y), 2, y.shape[-1]))),
    Op("gather of channels", lambda y, m: y.gather(2, torch.arange(16).expand_as(y)), "is indexed by position"),
    Op("index_select of tokens", lambda y, m: y.index_select(1, THREE)),
    Op("advanced index of tokens", lambda y, m: y[:, torch.tensor([[0, 3], [1, 2]])].flatten(1, 2)),
    Op("advanced index in two dimensions", lambda y, m: y[torch.arange(len(y))[:, None], THREE[None]]),
    Op("advanced index of channels", lambda y, m: y[..., torch.arange(16).flip(0)], "is indexed by position"),
    Op("write to a token", written),
    Op("einsum over channels", lambda y, m: torch.einsum("bnc,cd->bnd", y, m.w), held=weight(16, 16)),
    Op("einsum over tokens", lambda y, m: torch.einsum("bnc,mn->bmc", y, m.w), held=weight(4, TOKENS)),
    Op("einsum of all pairs", lambda y, m: torch.einsum("bnc,bmc->bnm", y, y) @ y),
    Op("einsum of channel pairs", lambda y, m: torch.einsum("bnc,bnd->bncd", y, y).flatten(2), "is merged with", 256),
    Op("cat with itself", lambda y, m: torch.cat([y, y], -1), out=32),
    Op("cat of functions of itself", lambda y, m: torch.cat([y, y.relu(), y], -1), out=48),
    Op("halves swapped", lambda y, m: torch.cat([-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]], -1)),
    Op("even and odd swapped", lambda y, m: torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2)),
    Op("FFT over tokens", lambda y, m: torch.fft.fft(y, dim=1).real),
    Op("real FFT over tokens and back", lambda y, m: torch.fft.irfft(torch.fft.rfft(y, dim=1), n=y.shape[1], dim=1)),
    Op("FFT over channels", lambda y, m: torch.fft.fft(y, dim=-1).real, "is transformed to frequencies"),
    Op("layer over tokens", lambda y, m: m.mix(y.mT).mT + y, held=lambda: {"mix": nn.Linear(TOKENS, TOKENS)}),
    Op("all tokens flattened", lambda y, m: m.all(y.flatten(1))[:, None], held=lambda: {"all": nn.Linear(96, 16)}),
    Op("cumulative sum of tokens", lambda y, m: y.cumsum(1)),
    Op("cumulative sum of channels", lambda y, m: y.cumsum(-1), "is accumulated by cumsum"),
    Op("sort of channels", lambda y, m: y.sort(-1).values, "is ordered by sort"),
    Op("complex pairs", turned),
]  # fmt: skip


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_operators_between_two_layers(op: Op) -> None:
    torch.manual_seed(0)
    model: Any = oracle.randomise(Between(op.function, op.out, **op.held()).eval())
    x = X.double()
    if isinstance(op.left, str):
        with pytest.raises(NothingToPruneError, match=f"first.weight: {op.left}"):
            pruned(model, x)
        return
    small = pruned(model, x)
    assert small.first.out_features == op.left and small.last.in_features * 16 == op.out * op.left
    assert by_value(model, small, Call((x,)))["oracle"] == "right"
    assert small.train()(PAIR.double()).shape == model(PAIR.double()).shape


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if rank == 1 else (nn.Conv3d, nn.BatchNorm3d)
    transposed = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose3d
    model = nn.Sequential(
        conv(3, 16, 3, padding=1), norm(16), nn.ReLU(), conv(16, 16, 3, groups=16), transposed(16, 8, 2), conv(8, 4, 1)
    )
    x = torch.randn(1, 3, *(6,) * rank, dtype=torch.float64)
    small = pruned(oracle.randomise(model).eval(), x)
    assert [m.out_channels for m in small if hasattr(m, "out_channels")] == [8, 8, 4, 4] and small[3].groups == 8
    oracle.check(model, small, x)
    oracle.check(model, small, torch.cat([x, x + 1]), training=True)


def test_an_operator_without_a_rule_is_named() -> None:
    model = Between(lambda y, m: torch.cdist(y, y) @ m.second(y), 16, second=nn.Linear(16, 16))
    graph = structprune.trace(model, X)
    assert graph.unknown_operators == {"aten::_cdist_forward": 2}
    assert graph.frozen["first.weight"].startswith("_cdist_forward has no rule (_cdist_forward in the model's own")
    assert "second.weight" not in graph.frozen and "no rule for aten::_cdist_forward (2 times)" in str(graph)
