"""Attention as language models write it: heads go alike in all layers, and whole ones or none where keys are turned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from tests.networks.test_attention import judge
from tests.support import oracle

Tensor = torch.Tensor
TOKENS, STREAM, HEADS, WIDTH = 6, 32, 4, 8


class Masked(nn.Module):
    """Scores are added to a mask that all layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v, self.out = (nn.Linear(STREAM, STREAM) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, WIDTH).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = (q @ k.transpose(2, 3) * WIDTH**-0.5 + mask).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


class Turned(nn.Module):
    """Queries and keys are turned by frequencies that the model holds; keys and values have fewer heads."""

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH
        self.q, self.k, self.v, self.out = (nn.Linear(STREAM, size) for size in (STREAM, 16, 16, STREAM))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (t * angles.cos() + torch.cat([-t[..., WIDTH // 2 :], t[..., : WIDTH // 2]], -1) * angles.sin()
                for t in (q, k))  # fmt: skip
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(out.transpose(1, 2).flatten(2))


class Sliced(nn.Module):
    """One projection, sliced at heads times width; who holds the heads is another object."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.width, self.key_heads = config, WIDTH, 2
        self.qkv, self.out = nn.Linear(STREAM, STREAM + 32), nn.Linear(STREAM, STREAM)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        b, n, _channels = x.shape
        both, at = self.qkv(x), self.config.heads * self.width
        parts = (
            both[..., :at],
            both[..., at : at + self.key_heads * self.width],
            both[..., at + self.key_heads * WIDTH :],
        )
        q, k, v = (part.view(b, n, -1, self.width).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(b, n, -1))


class Written(nn.Module):
    """Keys are written into a tensor that was made empty: one part of their own, one that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.shared = nn.Linear(STREAM, STREAM), nn.Linear(STREAM, HEADS * 12), nn.Linear(STREAM, 4)
        self.out = nn.Linear(STREAM, STREAM)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        b, n, _channels = x.shape
        q = self.q(x).view(b, n, -1, WIDTH).transpose(1, 2)
        own, v = self.kv(x).view(b, n, -1, 12).transpose(1, 2).split([4, 8], -1)
        k = own.new_empty(*own.shape[:-1], WIDTH)
        k[..., :4].copy_(own)
        k[..., 4:].copy_(self.shared(x)[:, None].expand(-1, own.shape[1], -1, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Model(nn.Module):
    """Two layers on a stream."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.config = kind, SimpleNamespace(heads=HEADS)
        self.embed, self.head = nn.Linear(5, STREAM), nn.Linear(STREAM, 7)
        self.register_buffer("frequencies", 10.0 ** -torch.arange(0, 1, 2 / WIDTH))
        makes: dict[str, Any] = {
            "masked": Masked, "turned": Turned, "sliced": lambda: Sliced(self.config), "written": Written,
        }  # fmt: skip
        self.layers = nn.ModuleList(makes[kind]() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if self.kind == "turned":
            half = torch.arange(n)[:, None] * self.frequencies
            beside = torch.cat([half, half], -1)
        else:
            beside = torch.full((n, n), float("-inf")).triu(1)[None, None]
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x, beside)
        return self.head(x)


def cut(kind: str, ratio: float) -> tuple[Any, structprune.Plan]:
    torch.manual_seed(0)
    model: Any = oracle.randomise(Model(kind).eval())
    x = torch.randn(1, TOKENS, 5, dtype=torch.float64)
    plan = structprune.plan_pruning(model, ratio, example_inputs=x, round_to=1)
    return judge(model, plan, x), plan


def test_a_mask_that_layers_share_is_no_residual_stream() -> None:
    small, _ = cut("masked", 0.5)
    assert [(layer.heads, layer.q.out_features) for layer in small.layers] == [(2, 16)] * 2


def test_of_keys_that_are_turned_whole_heads_go() -> None:
    small, _ = cut("turned", 0.5)
    assert [(layer.q.out_features, layer.k.out_features, layer.v.out_features) for layer in small.layers] == [
        (16, 8, 8)
    ] * 2
    assert len(small.frequencies) == WIDTH // 2


def test_where_no_whole_head_fits_none_goes() -> None:
    torch.manual_seed(0)
    model: Any = oracle.randomise(Model("turned").eval())
    x = torch.randn(1, TOKENS, 5, dtype=torch.float64)
    with pytest.raises(structprune.NothingToPruneError, match=r"layers.0.q.weight: too narrow for this ratio"):
        structprune.plan_pruning(model, 0.25, example_inputs=x, round_to=1)


def test_a_projection_is_sliced_where_fewer_heads_end() -> None:
    small, plan = cut("sliced", 0.5)
    assert [(layer.qkv.out_features, layer.key_heads) for layer in small.layers] == [(32, 1)] * 2
    assert small.config.heads == 2 and small.layers[0].width == WIDTH
    assert {change.name for change in plan.attributes} >= {"key_heads"}


def test_keys_may_be_written_piece_by_piece() -> None:
    small, _ = cut("written", 0.5)
    assert [layer.q.out_features for layer in small.layers] == [16] * 2
    assert small.layers[0].shared.out_features == 4
