"""Sizes that a model's own modules hold follow the cut: by provenance, judged by the trial."""

from __future__ import annotations

import copy
import logging
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from structprune.resolve.provenance import HeldInt, Holder

IMAGE = torch.zeros(1, 3, 16, 16)
Tensor = torch.Tensor


class Shuffle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups, self.each = 2, channels // 2

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = x.view(n, self.groups, self.each, h, w).transpose(1, 2)
        return x.reshape(n, self.groups * self.each, h, w)


class Split(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = [channels // 4, channels - channels // 4]
        self.conv = nn.Conv2d(channels // 4, channels // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.sizes, 1)
        return torch.cat([self.conv(a), b], 1)


class OwnLayerNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shape = (channels,)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.shape, self.weight, self.bias).movedim(-1, 1)


class Partial(nn.Module):
    """A convolution over the first channels; their number equals the kernel's and the padding's by chance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.part, self.kernel, self.padding = channels // 4, 8, 8
        self.conv = nn.Conv2d(self.part, self.part, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.pad(x, (0, self.padding, 0, self.padding)), self.kernel, stride=1)
        return torch.cat([self.conv(x[:, : self.part]), x[:, self.part :]], 1)


class Depthwise(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.kernel = nn.Parameter(torch.randn(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, groups=self.channels, padding=1)


class Heads(nn.Module):
    """Attention over positions with a stored scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads, self.width = 4, channels // 4
        self.scale = self.width**-0.5
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(n, h * w, 3, self.heads, self.width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q * self.scale @ k.transpose(-1, -2)).softmax(-1) @ v
        out = self.out(mixed.transpose(1, 2).reshape(n, h * w, self.heads * self.width))
        return out.transpose(1, 2).reshape(n, c, h, w)


def network(middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 32, 3), middle, nn.Conv2d(32, 16, 1), nn.Flatten(), nn.LazyLinear(4))


@pytest.mark.parametrize(
    ("middle", "followed"),
    [
        (Shuffle(32), {"each": 8}),
        (Split(32), {"sizes": [4, 12]}),
        (OwnLayerNorm(32), {"shape": (16,)}),
        (Partial(32), {"part": 4, "kernel": 8, "padding": 8}),
        (Depthwise(32), {"channels": 16}),
        (Heads(32), {"scale": 8**-0.5}),
    ],
    ids=lambda x: type(x).__name__,
)
def test_held_sizes_follow(middle: nn.Module, followed: dict[str, Any]) -> None:
    model = network(middle)
    model(IMAGE)
    before = copy.deepcopy({k: v for k, v in vars(middle).items() if not k.startswith("_")})
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE, round_to=1)
    assert plan.kept["0.weight"][0] and len(plan.kept["0.weight"][0]) == 16
    pruned: Any = plan.apply(model)
    assert {name: getattr(pruned[1], name) for name in followed} == followed
    assert pruned(IMAGE).shape == (1, 4)
    proof = structprune.prove(model, pruned, IMAGE)
    assert proof, str(proof)
    # The dense model holds its own sizes still, and a plan read from JSON does the same.
    assert before == {k: v for k, v in vars(middle).items() if not k.startswith("_")}
    again: Any = structprune.Plan.from_json(plan.to_json()).apply(model)
    assert {name: getattr(again[1], name) for name in followed} == followed
    assert all(type(getattr(again[1], name)) is type(value) for name, value in followed.items())


def test_attention_heads_go_whole() -> None:
    model = network(Heads(32))
    model(IMAGE)
    pruned: Any = structprune.prune_model(model, 0.5, example_inputs=IMAGE, round_to=1)
    heads, width = pruned[1].heads, pruned[1].width
    assert heads * width == 16 and pruned[1].qkv.out_features == 48 and pruned[1].out.in_features == 16


class FromSize(nn.Module):
    """A scale computed from the number of channels: with fewer channels it would be another."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(x)
        return self.head(self.how(h))


@pytest.mark.parametrize(
    "how",
    [
        lambda h: h + h.shape[1],
        lambda h: torch.tanh(h) / h.shape[1],
        lambda h: h + h / h.shape[1],
        lambda h: (h / h.shape[1]) * h,
        lambda h: h + torch.tensor(float(h.shape[1])),
        lambda h: h * torch.full((1,), float(h.shape[1])),
        lambda h: h + torch.ones(h.shape[1]).sum(),
        lambda h: h + torch.arange(h.shape[1]),
    ],
)
def test_scales_computed_from_the_new_size_are_refused(how: Any) -> None:
    model = FromSize(how)
    try:
        pruned = structprune.prune_model(model, 0.5, example_inputs=torch.zeros(2, 8), keep_representation=False)
    except structprune.NothingToPruneError as error:
        assert "wide.weight" in str(error)
    else:
        raise AssertionError(f"{pruned} was cut")


def test_integers_remember_their_holders() -> None:
    a, b = HeldInt(6, frozenset([Holder("m", "a")])), HeldInt(4, frozenset([Holder("m", "b")]))
    for value, expected in ((a * b, 24), (a + 1, 7), (10 - a, 4), (24 // b, 6), (-a, -6), (a % 4, 2)):
        assert value == expected and type(value) is HeldInt
    assert (a * b).origins == a.origins | b.origins and (a * b).holders == [*a.holders, *b.holders]
    assert isinstance(a / b, float) and copy.deepcopy(a).origins == a.origins


def test_the_log_tells_the_story_of_a_plan(caplog: pytest.LogCaptureFixture) -> None:
    """Which interpretation, which repair, what was given up and why."""
    with caplog.at_level(logging.DEBUG, logger="structprune"):
        heads = network(Heads(32))
        heads(IMAGE)
        structprune.plan_pruning(heads, 0.5, example_inputs=IMAGE, round_to=1)
        with pytest.raises(structprune.NothingToPruneError):
            model = FromSize(lambda h: h + h.shape[1])
            structprune.plan_pruning(model, 0.5, example_inputs=torch.zeros(2, 8), keep_representation=False)
    said = caplog.text
    for part in (
        r"aten::view splitting of dim \d at .*test_repairs\.py:\d+ is interpreted as dim \d, else",
        r"trial 1: fails at view in .*: fails: shape '.*' is invalid",
        r"let sizes follow: 1.heads follows dim \d of output \d of operator \d+ in evaluation",
        r"trial \d: passes",
        r"freeze: .*cannot shrink here: its number 'other' becomes 8, was 16: it depends on the size",
    ):
        assert re.search(part, said), (part, said)
    assert "torch/_dynamo" not in said
