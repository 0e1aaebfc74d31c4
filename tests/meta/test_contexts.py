"""What surrounds a call, or surrounded the model when it was made: modes, default devices and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import structprune
from tests.support import timing

Tensor = torch.Tensor


@pytest.fixture(autouse=True)
def given_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a forward takes is not what surrounds it."""
    timing.given(monkeypatch.setattr)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip


def image() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "the meta device": lambda: torch.device("meta"),
    "the meta device by default": lambda: default_device("meta"),
    "float64 by default": lambda: default_dtype(torch.float64),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_calls_within(around: Any) -> None:
    model, other, x = network(), network(), image()
    expected = structprune.prune_model(network(), 0.5, example_inputs=x)
    with around():
        gradients = torch.is_grad_enabled()
        plan = structprune.plan_pruning(model, 0.5, example_inputs=x)
        small = structprune.prune_model(model, 0.5, example_inputs=x)
        inferred = structprune.prune_model(model, 0.5)
        assert structprune.trace(model, x).frozen.keys() == {"8.weight"}
        macs = structprune.count_flops(small, x).macs
        proof = structprune.prove(model, small, x)
        compared = structprune.compare(model, small, x)
        again = plan.apply(other, inplace=True)
        assert torch.is_grad_enabled() == gradients  # left as it was
    assert proof, str(proof)
    assert macs == compared.pruned.macs == structprune.count_flops(expected, x).macs
    for made in (small, inferred, again):
        for name, tensor in made.state_dict(keep_vars=True).items():
            assert torch.equal(tensor, expected.state_dict()[name]) and not tensor.is_inference()
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_within_fake_tensors() -> None:
    model, x = network(), image()
    small = structprune.prune_model(model, 0.5, example_inputs=x)
    calls: list[Callable[[], Any]] = [
        lambda: structprune.prune_model(model, 0.5, example_inputs=x),
        lambda: structprune.trace(model, x),
        lambda: structprune.plan_of(small).apply(model),
        lambda: structprune.prove(model, small, x),
        lambda: structprune.compare(model, small, x),
        lambda: structprune.count_flops(model, x),
        lambda: structprune.measure_latency(model, x),
    ]
    for call in calls:
        with (
            FakeTensorMode(),
            pytest.raises(structprune.ModelError, match=r"a FakeTensor, .* FakeTensorMode is active"),
        ):
            call()


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = network(), image()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=x)
    small = plan.apply(model)
    assert structprune.prove(model, small, x)
    assert structprune.compare(model, small, x).theoretical_speedup > 1
    small.train()(image()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


class Reads(nn.Module):
    """A forward that reads a value: its weights are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(-x if x.sum() > 1e9 else x).relu()))


def test_weights_made_in_inference_mode_of_a_forward_that_reads_values() -> None:
    with torch.inference_mode():
        model, x = Reads(), torch.randn(2, 8)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=x, round_to=1)
    assert small.a.out_features == 8 and structprune.prove(model, small, x)


def test_weights_without_numbers() -> None:
    with FakeTensorMode():
        model, x = network(), image()
    with pytest.raises(structprune.ModelError, match=r"^0.weight is a FakeTensor, which has a shape and no numbers"):
        structprune.plan_pruning(model, 0.5, example_inputs=image())
    # Inputs without numbers: of floats only the shape matters.
    dense = network()
    small = structprune.prune_model(dense, 0.5, example_inputs=x)
    assert structprune.prove(dense, small, x)
    assert structprune.compare(dense, small, x).theoretical_speedup > 1
    with FakeTensorMode():
        tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(structprune.InputError, match=r"a FakeTensor of int64\[1, 4\]: integers are read"):
        structprune.plan_pruning(nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 4)), 0.5, example_inputs=tokens)


class Sampled(nn.Module):
    """Samples at a grid that is made on the default device, beside the model in use and not in a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, 5)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand(len(x), -1, -1, -1)
        return self.c(self.b(F.grid_sample(self.a(x), grid, align_corners=False)).mean((2, 3)))


def test_what_is_made_on_the_default_device_follows_the_model() -> None:
    model = Sampled()
    small: Any = structprune.prune_model(model, 0.5, example_inputs=image(), round_to=1)
    assert small.a.out_channels == 8 and structprune.plan_of(small).notes == ()
    assert structprune.prove(model, small, image())
    assert structprune.count_flops(model, image()).macs > structprune.count_flops(small, image()).macs


class Flexible(nn.Module):
    """Attention by a higher-order operator, which compiles what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 3 * 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        return self.out(flex_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_higher_order_operator_is_refused_by_name() -> None:
    model = nn.Sequential(Flexible(), nn.Linear(8, 3))
    with pytest.raises(
        structprune.TraceError, match=r"^flex_attention in 0 is a higher-order operator: .* in place of"
    ):
        structprune.plan_pruning(model, 0.5, example_inputs=torch.randn(1, 5, 8))
    with pytest.raises(structprune.InputError, match=r"^flex_attention in 0 is a higher-order operator: "):
        structprune.count_flops(model, torch.randn(1, 5, 8))
