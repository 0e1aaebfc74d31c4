"""Which layers run, and how: experts, hooks, checkpoints, own functions, depth that is drawn."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.support.wild.registry import block

Tensor = torch.Tensor


def mlp(c: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(c, hidden), nn.GELU(), nn.Linear(hidden, out))


@block("experts, top k by a loop")
class Experts(nn.Module):
    """Every expert gets the tokens that chose it, and adds into the result by index."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.router, self.experts, self.k = nn.Linear(c, 4), nn.ModuleList(mlp(c, 24, c) for _ in range(4)), 2
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(flat).softmax(-1).topk(self.k, -1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            out.index_add_(0, token, expert(flat[token]) * weights[token, place, None])
        return x + out.view_as(x)


@block("experts, all run and are weighted")
class DenseExperts(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(c, 3), 24
        self.up, self.down = nn.Parameter(torch.randn(3, c, 20)), nn.Parameter(torch.randn(3, 20, 24))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        top, where = scores.topk(2, -1)
        gates = torch.zeros_like(scores).scatter(-1, where, top.softmax(-1))
        h = torch.einsum("btc,ech->bteh", x, self.up).relu()
        return torch.einsum("bteh,eho,bte->bto", h, self.down, gates)


@block("switch by argmax")
class Switch(nn.Module):
    """One of two layers for every token, by a where."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.router, self.a, self.b, self.out = nn.Linear(c, 2), nn.Linear(c, 24), nn.Linear(c, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.router(x).argmax(-1, keepdim=True) == 0, self.a(x), self.b(x).tanh())


@block("routes by name")
class Routes(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.routes = nn.ModuleDict({"left": mlp(c, 20, 24), "right": mlp(c, 28, 24), "unused": nn.Identity()})
        self.order, self.out = rng.choice([("left", "right"), ("right", "left"), ("right", "left", "left")]), 24

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.routes[name](x) * (1 + i) for i, name in enumerate(self.order))


@block("early exit")
class EarlyExit(nn.Module):
    """The second layer runs unless the first is sure, which it never is."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.first, self.sure, self.second, self.out = mlp(c, 24, c), nn.Linear(c, 1), mlp(c, 24, c), c

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        if self.sure(x).sigmoid().min() > 0.999999:
            return x
        return x + self.second(x)


@block("loop until done")
class Loop(nn.Module):
    """The same layer again and again, while a value says so."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        steps = 0
        while steps < 3 and not torch.isnan(x).any():
            x = x + self.down(torch.tanh(self.up(x)))
            steps += 1
        return x


@block("stochastic depth", random=True)
class Depth(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.inner, self.drop, self.out = mlp(c, 32, c), nn.Dropout(0.2), c

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if torch.rand(()) < 0.1:
                return x
            keep = torch.rand(x.shape[0], 1, 1) < 0.8
            return x + self.drop(self.inner(x)) * keep / 0.8
        return x + self.inner(x)


@block("checkpointed")
class Checkpointed(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.inner, self.how, self.out = mlp(c, 32, c), rng.randrange(3), c

    def forward(self, x: Tensor) -> Tensor:
        if self.how == 0:
            return x + checkpoint(self.inner, x, use_reentrant=False)
        if self.how == 1:
            return x + checkpoint_sequential(self.inner, 2, x, use_reentrant=False)
        return x + checkpoint(lambda y: self.inner(y).tanh(), x, use_reentrant=True)


class Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gain = gain
        return torch.tanh(x) * gain

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * (1 - torch.tanh(x) ** 2) * ctx.gain, None


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.flatten(0, -2).t() @ x.flatten(0, -2)


@block("own functions of autograd")
class Own(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.weight, self.down, self.out = nn.Parameter(torch.randn(24, c)), nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(Squash.apply(Product.apply(x, self.weight), 1.2))


def double(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0] * 2, *args[1:])


def shifted(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    return out.relu() + 0.1


@block("hooks that change values")
class Hooks(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, c), c
        self.up.register_forward_pre_hook(double)
        self.up.register_forward_hook(shifted)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x))


@block("hook that keeps an activation")
class Keeps(nn.Module):
    """A hook leaves the activation in a dict; the forward reads it from there."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.skip, self.out = nn.Linear(c, 24), nn.Linear(24, c), nn.Linear(24, c), c

    def forward(self, x: Tensor) -> Tensor:
        kept: dict[str, Tensor] = {}
        handle = self.up.register_forward_hook(lambda m, a, out: kept.update(up=out))
        try:
            y = self.down(self.up(x).relu())
        finally:
            handle.remove()
        return x + y + self.skip(kept["up"])


@block("vmap over the batch")
class Vmap(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 24), nn.Linear(24, c), c

    def one(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(y.relu() * y.mean(0))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.vmap(self.one)(x)


@block("layers in plain lists")
class PlainList(nn.Module):
    """Registered under names, called through a list that is no module."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(c, 24), nn.Linear(24, c), c
        self.order = [self.a, nn.functional.relu, self.b]

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for step in self.order:
            y = step(y)
        return x + y


@block("shared layer, run twice")
class Shared(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.again = nn.Linear(c, 24), nn.Linear(24, c), nn.ModuleList()
        self.again.append(self.up)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.up(x).relu())
        return x + self.down(self.again[0](x).tanh())


@block("only in training")
class TrainingOnly(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.main, self.extra, self.out = mlp(c, 24, 20), nn.Linear(c, 20), 20

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.extra(x) if self.training else self.main(x)


@block("recursion")
class Recursive(nn.Module):
    """A tree: every module holds two smaller ones."""

    def __init__(self, c: int, rng: Random, depth: int = 2) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(c, 12), nn.Linear(12, c), c
        self.left = Recursive(12, rng, depth - 1) if depth else None
        self.right = Recursive(12, rng, depth - 1) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).relu()
        if self.left is not None and self.right is not None:
            y = self.left(y) + self.right(y)
        return x + self.down(y)


@block("gated by several")
class Gated(nn.Module):
    """GLU, SwiGLU and GeGLU by one layer."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down, self.how, self.out = nn.Linear(c, 48), nn.Linear(24, c), rng.randrange(3), c

    def forward(self, x: Tensor) -> Tensor:
        if self.how == 0:
            return x + self.down(F.glu(self.up(x), -1))
        a, b = self.up(x).split(self.down.in_features, -1) if self.how == 1 else self.up(x).chunk(2, -1)
        return x + self.down(F.silu(a) * b)
