"""Message passing in plain PyTorch: nodes and edges keep their places, channels do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support import oracle

Tensor = torch.Tensor
NODES, EDGES, INPUTS = 10, 30, 8
generator = torch.Generator().manual_seed(0)
X = torch.randn(NODES, INPUTS, generator=generator)
EDGE = torch.randint(0, NODES, (2, EDGES), generator=generator)


def summed(messages: Tensor, target: Tensor) -> Tensor:
    """The sum over the edges that end at each node."""
    index = target[:, None].expand_as(messages)
    return messages.new_zeros(NODES, messages.shape[1]).scatter_add_(0, index, messages)


def degree(target: Tensor) -> Tensor:
    return torch.zeros(NODES).scatter_add_(0, target, torch.ones(len(target))).clamp(min=1).to(X.dtype)


class Convolution(nn.Module):
    """Kipf and Welling (2017)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        weight = degree(target).rsqrt()[target] * degree(source).rsqrt()[source]
        return summed(self.lin(x)[source] * weight[:, None].to(x.dtype), target)


class Attention(nn.Module):
    """Velickovic et al. (2018): a softmax over the edges that end at a node, for every head."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.heads = 4
        self.lin = nn.Linear(inputs, outputs)
        self.source, self.target = (nn.Parameter(torch.randn(4, outputs // 4)) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        h = self.lin(x).view(NODES, self.heads, -1)
        scores = (h * self.source).sum(-1)[source] + (h * self.target).sum(-1)[target]
        scores = nn.functional.leaky_relu(scores, 0.2)
        index = target[:, None].expand_as(scores)
        most = scores.new_full((NODES, scores.shape[1]), -1e9).scatter_reduce(0, index, scores, "amax")
        scores = (scores - most[target]).exp()
        scores = scores / (summed(scores, target)[target] + 1e-9)
        messages = h[source] * scores[..., None]
        out = h.new_zeros(h.shape).index_add_(0, target, messages)
        return out.flatten(1)


class Sage(nn.Module):
    """Hamilton et al. (2017), with the mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        mean = summed(x.index_select(0, source), target) / degree(target)[:, None].to(x.dtype)
        return self.own(x) + self.others(mean)


class Isomorphism(nn.Module):
    """Xu et al. (2019)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        return self.mlp((1 + self.eps) * x + summed(x[source], target))


class Greatest(nn.Module):
    """The greatest message of every node."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(2 * inputs, outputs)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        messages = self.lin(torch.cat([x[target], x[source] - x[target]], 1))
        index = target[:, None].expand_as(messages)
        return messages.new_zeros(NODES, messages.shape[1]).scatter_reduce(0, index, messages, "amax")


class Network(nn.Module):
    def __init__(self, kind: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.c = kind(INPUTS, 32), kind(32, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.a(x, edges).relu()
        return self.head(self.c(self.b(x, edges).relu()))


@pytest.mark.parametrize("kind", [Convolution, Attention, Sage, Isomorphism, Greatest])
def test_networks(kind: Any) -> None:
    dense: Any = oracle.randomise(Network(kind).eval())
    x = X.double()
    small = structprune.prune_model(
        dense, 0.5, "channel", example_inputs=(x, EDGE), round_to=1, keep_representation=False
    )
    assert small.c.weight.shape == (8, 16)
    assert small.b(torch.zeros(NODES, 16).double(), EDGE).shape == (NODES, 16)
    proof = structprune.prove(dense, small, (x, EDGE))
    assert proof, str(proof)
    # Other edges than those of the example: what was cut are channels.
    kept = oracle.kept_slices(dense, small)
    other = torch.randint(0, NODES, (2, EDGES + 5), generator=generator)
    if kind is not Attention:  # of heads, of which no layer's input goes
        masked = Network(kind).double()
        masked.load_state_dict(dense.state_dict())
        oracle.zero_inputs(masked, kept, {})
        assert torch.allclose(small(x, other), masked(x, other), atol=1e-12)


TABLE = torch.randint(0, 4, (4, 16), generator=generator)


class Written(nn.Module):
    """One row of what a layer makes is written over by another one's, and what is negative by a number."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.a, self.b, self.c, self.head = (nn.Linear(*size) for size in ((8, 16), (8, 16), (16, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.write(self.a(x), self.b(x)).relu()))


def by_index(a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    a[torch.tensor([0, 2])] = b[:2]
    return a


def negative(a: Tensor, b: Tensor) -> Tensor:
    a = a + b
    a[a < 0] = 0.5
    return a


def tokens(a: Tensor, b: Tensor) -> Tensor:
    """Rows of images in the place of tokens, as models of vision and language have them."""
    mask = torch.tensor([False, True, True, False])[:, None].expand_as(a)
    return a.masked_scatter(mask, b)


@pytest.mark.parametrize(
    ("write", "left"),
    [
        (by_index, 8),
        (negative, 8),
        (tokens, 8),
        (lambda a, b: a.index_fill(0, torch.tensor([1]), 2.0) + b, 8),
        (lambda a, b: torch.select_scatter(a, b[0], 0, 2), 8),
        (lambda a, b: torch.slice_scatter(a, b[:2], 0, 1, 3), 8),
        (lambda a, b: a.index_reduce(0, torch.tensor([1, 3]), b[:2], "mean"), 8),
        # Along the channels: they keep their places.
        (lambda a, b: a.scatter(1, torch.arange(16).expand_as(a), b), 16),
        (lambda a, b: a.scatter(0, TABLE, b), 16),
        (lambda a, b: torch.slice_scatter(a, 2 * b, 1, 0, 16), 16),
        (lambda a, b: a.masked_scatter(torch.arange(16) > 7, b), 16),
    ],
)
@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
def test_written_at_positions(write: Any, left: int) -> None:
    model, x = Written(write), torch.randn(4, 8, generator=generator)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=x, round_to=1, keep_representation=False)
    assert (small.a.out_features, small.b.out_features, small.c.out_features) == (left, left, 4)
    proof = structprune.prove(model, small, x)
    assert proof, str(proof)
