"""Numbers that are computed from a size and change no shape: what they change is noticed, and stays whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from structprune import NothingToPruneError
from tests.support.attention import STREAM, Net, Separate
from tests.support.pruned import Between, X, pruned

Tensor = torch.Tensor


class Argument(NamedTuple):
    """An operator with an argument other than a tensor that is computed from a size, and changes no shape."""

    name: str
    function: Callable[[Tensor], Tensor]


def gram(h: Tensor) -> Tensor:
    return h @ h.mT


ARGUMENTS = [
    Argument("slope", lambda h: F.softplus(h, h.shape[-1] / 16)),
    Argument("number that is the default in the dense network", lambda h: F.celu(h, h.shape[-1] / 16)),
    Argument("number that becomes the default", lambda h: torch.add(h, h.relu(), alpha=h.shape[-1] // 8)),
    Argument("slope that is the default in the dense network", lambda h: F.leaky_relu(h, h.shape[-1] / 1600)),
    Argument("decimals", lambda h: h.round(decimals=h.shape[-1] // 8)),
    Argument("word", lambda h: F.gelu(h, approximate="tanh" if h.shape[-1] >= 16 else "none")),
    Argument("rounding", lambda h: torch.div(h * 9, 3.0, rounding_mode="floor" if h.shape[-1] >= 16 else "trunc")),
    Argument("flag", lambda h: h.sort(1, descending=h.shape[-1] >= 16).values),
    Argument("diagonal", lambda h: torch.tril(gram(h), h.shape[-1] - 16) @ h),
    Argument("window", lambda h: F.max_pool1d(h.mT, h.shape[-1] // 4 + 1, 1, h.shape[-1] // 8).mT),
    Argument("rank", lambda h: h + h.kthvalue(h.shape[-1] // 4, 1, keepdim=True).values),
    Argument("padding", lambda h: F.pad(h.mT, (h.shape[-1] // 4, -(h.shape[-1] // 4))).mT),
    Argument("dimension", lambda h: gram(h).softmax(h.shape[-1] // 8) @ h),
    Argument("norm of an FFT", lambda h: torch.fft.fft(h, dim=1, norm="ortho" if h.shape[-1] >= 16 else None).real),
    Argument("dtype", lambda h: h.to(torch.float16 if h.shape[-1] >= 16 else torch.bfloat16).to(h)),
]  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda a: a.name)
def test_arguments_computed_from_a_size_are_noticed(argument: Argument) -> None:
    """What is left must be whole: with another argument the network would compute something else."""
    model = Between(lambda y, m: argument.function(y), 16)
    with pytest.raises(NothingToPruneError, match=r"first\.weight: cannot shrink here"):
        structprune.prune_model(model, 0.5, example_inputs=X, keep_representation=False, round_to=1)


class TwoRoles(Separate):
    """The number of heads is also the dilation of a convolution over tokens, which keeps every shape."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(STREAM, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).mT
        return F.conv1d(y, self.kernel, padding=self.heads, dilation=self.heads, groups=y.shape[1]).mT


def test_a_held_size_with_a_second_role_stays() -> None:
    try:
        small = pruned(Net(TwoRoles()))
    except NothingToPruneError as error:
        assert "it depends on the size" in str(error)
    else:
        assert small.block.heads == 4
