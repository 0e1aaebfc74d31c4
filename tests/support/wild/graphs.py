"""Message passing over tokens as the nodes of a graph."""

from __future__ import annotations

from random import Random

import torch
from torch import nn

from tests.support.wild.registry import block

Tensor = torch.Tensor
NODES, EDGES = 16, 40


class Graph(nn.Module):
    """A fixed graph in a buffer; every node has an edge to itself."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        ends = [[rng.randrange(NODES) for _ in range(EDGES)] for _ in range(2)]
        edges = torch.tensor([ends[0] + list(range(NODES)), ends[1] + list(range(NODES))])
        self.register_buffer("edges", edges, persistent=rng.random() < 0.5)
        self.variant = rng.randrange(4)

    def degree(self, x: Tensor) -> Tensor:
        ones = torch.ones(self.edges.shape[1], dtype=x.dtype)
        return torch.zeros(x.shape[1], dtype=x.dtype).scatter_add_(0, self.edges[1], ones)


@block("graph convolution")
class Convolution(Graph):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.layer, self.bias, self.out = nn.Linear(c, 24, bias=False), nn.Parameter(torch.randn(24)), 24

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.edges
        norm = self.degree(x).rsqrt()
        messages = self.layer(x).index_select(1, source) * (norm[source] * norm[target])[:, None]
        out = messages.new_zeros(x.shape[0], x.shape[1], messages.shape[-1])
        match self.variant:
            case 0:
                out = out.index_add(1, target, messages)
            case 1:
                out.scatter_add_(1, target[None, :, None].expand_as(messages), messages)
            case 2:
                out = out.scatter_reduce(1, target[None, :, None].expand_as(messages), messages, "sum")
            case _:
                out.index_add_(1, target, messages, alpha=0.5)
        return torch.relu(out + self.bias)


@block("graph, mean or largest")
class Sage(Graph):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.own, self.theirs, self.out = nn.Linear(c, 24), nn.Linear(c, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.edges
        messages = self.theirs(x)[:, source].relu()
        index = target.view(1, -1, 1).expand(x.shape[0], -1, messages.shape[-1])
        zeros = torch.zeros(*x.shape[:2], messages.shape[-1], dtype=x.dtype)
        how = ("mean", "amax", "amin", "mean")[self.variant]
        return self.own(x) + zeros.scatter_reduce(1, index, messages, how, include_self=False)


@block("graph attention")
class Attention(Graph):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.heads, self.width = 3, 8
        self.layer, self.out = nn.Linear(c, 24), 24
        self.left, self.right = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.edges
        h = self.layer(x).view(*x.shape[:2], self.heads, self.width)
        score = (h * self.left).sum(-1)[:, source] + (h * self.right).sum(-1)[:, target]
        score = torch.nn.functional.leaky_relu(score, 0.2).exp()
        total = torch.zeros(*x.shape[:2], self.heads, dtype=x.dtype).index_add(1, target, score)
        share = score / total[:, target]
        out = torch.zeros_like(h).index_add(1, target, h[:, source] * share.unsqueeze(-1))
        return out.flatten(-2)


@block("graph by a dense matrix")
class Adjacency(Graph):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.layer, self.out = nn.Linear(c, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        matrix = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
        matrix.index_put_(
            (self.edges[1], self.edges[0]), torch.ones(self.edges.shape[1], dtype=x.dtype), accumulate=True
        )
        matrix = matrix / matrix.sum(1, keepdim=True)
        return torch.relu(
            matrix @ self.layer(x) if self.variant % 2 else torch.einsum("st,btc->bsc", matrix, self.layer(x))
        )


@block("edge network")
class Edges(Graph):
    """Messages out of both ends, joined."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.message, self.update, self.out = nn.Linear(2 * c, 20), nn.Linear(c + 20, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.edges
        messages = self.message(torch.cat((x[:, source], x[:, target] - x[:, source]), -1)).relu()
        total = messages.new_zeros(x.shape[0], x.shape[1], messages.shape[2]).index_add_(1, target, messages)
        return self.update(torch.cat((x, total / self.degree(x)[:, None]), -1))


@block("segments by counts")
class Segments(Graph):
    """Tokens are averaged in segments, and every token gets its segment's mean."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__(c, rng)
        self.up, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, c), c
        segments = [*sorted(rng.randrange(4) for _ in range(NODES - 4)), 0, 1, 2, 3]
        self.register_buffer("segment", torch.tensor(segments))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        counts = torch.bincount(self.segment, minlength=4).to(y.dtype)
        sums = y.new_zeros(y.shape[0], 4, y.shape[2]).index_add(1, self.segment, y)
        means = sums / counts[:, None]
        return x + self.down((y + means[:, self.segment]).relu())
