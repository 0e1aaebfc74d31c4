"""Why a pruned network is not as fast as its MACs promise."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from structprune import compare, count_flops
from structprune.measure import causes
from structprune.measure.comparison import timed_calls
from structprune.measure.profile import of_operators, operator_seconds
from structprune.measure.runner import Runner, Setting
from tests.support import timing

CPU = Setting(torch.device("cpu"))


class Tokens(nn.Module):
    """A cheap projection, and much work on positions that no channel shrinks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ordered = x.sort(1).values
        return self.last(self.first(ordered))


def short(runner: Any) -> float:
    """Half of the time is left where the MACs promise an eighth."""
    return 1.0 if runner.model.first.out_features == 512 else 0.5


def test_cause_time_in_operators_that_do_not_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    timing.given(monkeypatch.setattr, short)
    by_width = {512: {"aten::sort": 0.4, "aten::linear": 0.6}, 64: {"aten::sort": 0.4, "aten::linear": 0.1}}
    monkeypatch.setattr(causes, "operator_seconds", lambda runner: by_width[runner.model.first.out_features])
    comparison = compare(Tokens(512), Tokens(64), torch.randn(2, 40, 64), device="cpu")
    assert "in operators that are no contractions" in comparison.causes[0]
    assert comparison.causes[0].endswith("sort 400 ms to 400 ms.")
    by_width[64] = {"aten::sort": 0.05, "aten::linear": 0.5}
    comparison = compare(Tokens(512), Tokens(64), torch.randn(2, 40, 64), device="cpu")
    assert "the contractions run at" in comparison.causes[0] and "sort" not in str(comparison.causes)


def test_operators_are_timed() -> None:
    model = Tokens(64)
    seconds = operator_seconds(Runner(model, timed_calls(model, torch.randn(2, 40, 64)), CPU))
    assert {"aten::sort", "aten::linear"} <= seconds.keys() and all(own > 0 for own in seconds.values())


class Many(nn.Module):
    """Layers so small that calling them is all the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(150)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("calling", "power", "said"),
    [
        (1e-3, 2, True),  # calls take a thousand times what an entry takes
        (8e-8, 2, False),  # a quarter of the time: larger batches would not gain much
        (0, 1, False),  # an entry takes as long in every batch
    ],
)
def test_cause_overhead(calling: float, power: int, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calling the layers takes so many seconds whatever their width, and an entry a nanosecond for each channel."""

    def seconds(runner: Runner) -> float:
        assert runner.batch_size is not None
        return calling + runner.batch_size * 1e-9 * runner.model.layers[0].in_features ** power

    timing.given(monkeypatch.setattr, seconds)
    comparison = compare(Padded(128), Padded(16), torch.randn(1, 128), device="cpu")
    assert comparison.speedup < 0.9 * comparison.theoretical_speedup
    found = [cause for cause in comparison.causes if cause.startswith("Overhead-bound: with a batch of 1 about ")]
    assert len(found) == said and all("; with 256 the same pair gives 4." in cause for cause in found)


@pytest.mark.parametrize(
    ("seconds", "share"),
    [
        (2.0, 0.5),
        (1e3, None),  # far from both ceilings: small layers take what their calls take
        (1e-6, None),  # faster than the bytes could be moved: they were not
    ],
)
def test_what_moves_bytes_for_most_of_its_time_is_memory_bound(
    seconds: float, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Many(16), torch.randn(1, 16)
    runner = Runner(model, timed_calls(model, x), CPU)
    count = count_flops(runner.model, runner.calls)
    bytes_ = sum(cost.moved_bytes for cost in count.by_module.walk() if not cost.children)
    monkeypatch.setattr(Runner, "block", lambda runner, forwards: seconds)
    monkeypatch.setattr(causes, "_ceilings", lambda runner, moved: (1e18, bytes_ / 1.0))
    cause = causes._memory(runner, count)
    assert (cause is None) == (share is None)
    if cause is not None:
        assert cause[0] == pytest.approx(share) and "would take 50% of the pruned model's time" in cause[1]
    compiled = Runner(model, timed_calls(model, x), CPU)
    compiled.setting = replace(compiled.setting, compile=True)
    assert causes._memory(compiled, count) is None


def test_the_ceilings_are_measured() -> None:
    model = Many(16)
    flops, bandwidth = causes._ceilings(Runner(model, timed_calls(model, torch.randn(1, 16)), CPU), 100)
    assert flops > 0 and bandwidth > 0


def test_a_kernel_is_not_counted_beside_its_operator() -> None:
    def event(key: str, device: DeviceType, microseconds: float) -> Any:
        return SimpleNamespace(key=key, device_type=device, self_device_time_total=microseconds)

    events = [
        event("aten::native_layer_norm", DeviceType.CPU, 30.0),
        event("void at::native::vectorized_layer_norm_kernel<c10::BFloat16>(c10::BFloat16*)", DeviceType.CUDA, 30.0),
        event("cudaLaunchKernel", DeviceType.CPU, 0.0),
        event("aten::empty", DeviceType.CPU, 0.0),
    ]
    assert of_operators(events, 2) == {"aten::native_layer_norm": pytest.approx(15e-6)}


class Padded(Many):
    """The same for an input of one size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, : self.layers[0].in_features])


def test_cause_odd_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    timing.given(monkeypatch.setattr, short)
    comparison = compare(Tokens(512), Tokens(51), torch.randn(2, 40, 64), device="cpu")
    assert any("first.weight is 51 x 64" in cause for cause in comparison.causes)
    even = compare(Tokens(512), Tokens(56), torch.randn(2, 40, 64), device="cpu")
    assert not any("first.weight" in cause for cause in even.causes)
