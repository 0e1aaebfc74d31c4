"""Entry points and outputs: several ways in, and whatever a model returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import structprune
from structprune import NothingToPruneError
from tests.support.attention import INPUTS, STREAM, TOKENS, Fused, Separate
from tests.support.pruned import PAIR, X, imported, pruned

Tensor = torch.Tensor


class Encoder(nn.Module):
    """Three ways in: none of them runs all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Separate(), nn.Linear(STREAM, 5)
        self.project = nn.Linear(STREAM, 3)

    def encode(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return x + self.block(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))

    def contrast(self, x: Tensor) -> Tensor:
        return self.project(self.encode(x)).mean(1)


def test_several_entry_points() -> None:
    model = Encoder()

    def contrast(m: Any) -> Tensor:
        return m.contrast(torch.zeros(1, TOKENS, INPUTS).to(m.embed.weight))

    with pytest.raises(structprune.UntracedParameterError, match=r"project\.weight"):
        pruned(model)
    small = pruned(model, [X, contrast])
    assert (small.project.in_features, small.head.in_features, small.block.heads) == (16, 16, 2)
    assert small(PAIR).shape == (2, TOKENS, 5) and small.contrast(PAIR).shape == (2, 3)


@dataclass
class Prediction:
    """What a model may return."""

    logits: Tensor
    features: Tensor | None = None


class Returns(nn.Module):
    """A model with its own way to return."""

    def __init__(self, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Fused(), nn.Linear(STREAM, 5)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.how(self.head(x + self.block(x)))


RETURNS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda y: {"logits": y, "parts": {"first": y[:, 0]}},
    "ordered dict": lambda y: OrderedDict(logits=y),
    "dataclass": lambda y: Prediction(y),
    "None beside it": lambda y: (None, y, 3, "name"),
    "list of lists": lambda y: [[y], [y.mean(1), None]],
}


@pytest.mark.parametrize("how", RETURNS)
def test_outputs_of_many_kinds(how: str) -> None:
    model = Returns(RETURNS[how])
    small = pruned(model)
    assert small.embed.out_features == 16 and small.head.out_features == 5
    assert type(small(X)) is type(model(X))
    # One by name is an output like any other: its width stays.
    whole = Returns(lambda y: RETURNS[how](y))
    whole.head = nn.Identity()
    with pytest.raises(NothingToPruneError, match="is a dimension of the model's output"):
        pruned(whole)


def test_an_output_of_transformers() -> None:
    outputs = imported("transformers.modeling_outputs")
    model = Returns(lambda y: outputs.SequenceClassifierOutput(loss=None, logits=y))
    small = pruned(model)
    assert small(X).logits.shape == (1, TOKENS, 5) and small.embed.out_features == 16


class Cache:
    """Keys and values of attention, as transformers' ``DynamicCache`` keeps them."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.layers.append((k, v))
        return k, v


class Caching(Separate):
    """Attention that hands out its cache; ``hidden`` puts a prediction into it that nothing reads."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Any:
        cache = Cache()
        k, v = cache.update(self.split(self.k(x)), self.split(self.v(x)))
        out = self.merge(self.mixed(self.split(self.q(x)), k, v))
        if self.hidden:
            cache.layers.append((out, out))
        return out, cache


class WithCache(nn.Module):
    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Caching(hidden), nn.Linear(STREAM, 5)

    def forward(self, x: Tensor) -> Any:
        out, cache = self.block(self.embed(x))
        return self.head(out) if not self.block.hidden else self.head(self.embed(x)), cache


def test_a_cache_among_the_outputs_follows_the_heads() -> None:
    model = WithCache(hidden=False)
    small = pruned(model)
    logits, cache = small(X)
    assert logits.shape == (1, TOKENS, 5) and small.block.heads == 2
    assert [t.shape for t in cache.layers[0]] == [(1, 2, TOKENS, 8)] * 2


def test_a_prediction_in_an_object_stays_whole() -> None:
    model = WithCache(hidden=True)
    small = pruned(model)
    _, cache = small(X)
    assert cache.layers[1][0].shape == (1, TOKENS, STREAM) and small.block.out.out_features == STREAM
    assert small.block.heads == 2 and small.embed.out_features == 16


X8 = torch.zeros(2, 8)


def test_outputs_of_every_kind() -> None:
    class Pair(NamedTuple):
        one: torch.Tensor
        two: Any

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.side = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> Any:
            h = self.body(x)
            return {"pair": Pair(self.head(h), None), "list": [self.side(h), 3, "text"], "none": None}

    small: Any = structprune.prune_model(Many(), 0.5, example_inputs=X8, keep_representation=False)
    out = small(X8)
    assert out["pair"].one.shape == (2, 4) and out["list"][0].shape == (2, 3) and small.body.out_features == 8
