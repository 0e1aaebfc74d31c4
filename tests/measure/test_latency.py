"""Timing: what is stated, what is refused, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.benchmark import Timer

import structprune
from structprune import Latency, OptionError, measure_latency
from structprune.measure import latency, runner
from structprune.measure.comparison import timed_calls
from structprune.measure.runner import Runner, Setting
from tests.support import timing
from tests.support.timed import X, net

CPU = Setting(torch.device("cpu"))


def test_latency_states_its_circumstances() -> None:
    latency = measure_latency(net(), X, min_seconds=0.1, device="cpu")
    assert latency.p10 <= latency.median <= latency.p90
    assert latency.iqr >= 0
    assert len(latency.samples) >= 8
    assert all(s > 0 for s in latency.samples)
    assert (latency.device, latency.threads, latency.dtype) == ("cpu", torch.get_num_threads(), "float32")
    assert (latency.batch_size, latency.inputs, latency.how) == (2, "(float32[2, 3, 64, 64])", ())
    assert latency.device_name
    threads = torch.get_num_threads()
    assert f"on cpu ({latency.device_name}), {threads} thread{'s' * (threads != 1)}, float32" in str(latency)


def test_quantiles_of_known_samples() -> None:
    samples = tuple(float(i) for i in range(11))
    latency = Latency(samples, "cpu", "a CPU", 1, "float32", 1, "()")
    assert (latency.median, latency.p10, latency.p90, latency.iqr) == (5.0, 1.0, 9.0, 5.0)


class Clock:
    """Time that passes only where something takes some of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (runner, latency):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=self))
        monkeypatch.setattr(torch.utils.benchmark, "Timer", partial(Timer, timer=self))

    def __call__(self) -> float:
        return self.now


class Takes(nn.Module):
    """A forward that takes so many seconds of a clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.take = lambda: setattr(clock, "now", clock.now + seconds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.take()
        return x


@pytest.mark.parametrize("seconds", [0.0005, 0.02, 1.0])
def test_latency_measures_what_a_clock_would(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    measured = measure_latency(Takes(clock, seconds), X, min_seconds=1.0)
    assert measured.samples == pytest.approx([seconds] * len(measured.samples))
    # The warm-up and what is asked for, and at least eight blocks.
    assert len(measured.samples) >= 8 and clock.now >= 0.3 + 1.0


def test_both_models_see_the_same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are timed in turn, every second round backwards."""
    order: list[str] = []
    runners = [Runner(model, timed_calls(model, X), CPU) for model in (nn.ReLU(), nn.Identity())]
    timing.given(monkeypatch.setattr, lambda runner: 1.0)
    monkeypatch.setattr(Runner, "block", lambda runner, forwards: order.append(runner.name) or float(len(order)))
    samples, busy = latency.in_turn(runners)
    assert order == ["ReLU", "Identity", "Identity", "ReLU"] * 4 and busy == ""
    assert samples[0] == [float(i + 1) for i, name in enumerate(order) if name == "ReLU"]


@pytest.mark.parametrize(
    ("options", "dtype", "batch_size", "how"),
    [
        ({"dtype": torch.bfloat16}, "bfloat16", 2, ()),
        ({"batch_size": 5}, "float32", 5, ()),
        ({"batch_size": 1}, "float32", 1, ()),
        ({"channels_last": True, "dtype": torch.float64}, "float64", 2, ("channels_last",)),
    ],
)
def test_options(options: Any, dtype: str, batch_size: int, how: tuple[str, ...]) -> None:
    seen: list[tuple[torch.dtype, int, bool, bool, bool]] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            seen.append((x.dtype, len(x), last, self.training, torch.is_inference_mode_enabled()))
            return self.conv(x)

    latency = measure_latency(Looks(), X, min_seconds=0.05, **options)
    assert (latency.dtype, latency.batch_size, latency.how) == (dtype, batch_size, how)
    wanted = options.get("dtype", torch.float32)
    assert set(seen[3:]) == {(wanted, batch_size, options.get("channels_last", False), False, True)}


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        return lambda *args: calls.append(len(args)) or module(*args)

    # Which code a compiler makes is not what this is about, and takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    measured = measure_latency(model, torch.randn(2, 8), compile=True, min_seconds=0.1)
    assert measured.how == ("compile",) and len(calls) > len(measured.samples)
    calls.clear()
    assert measure_latency(model, torch.randn(2, 8), min_seconds=0.1).how == () and calls == []


def test_nothing_is_left_behind() -> None:
    model = net().train()
    model[1].eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    threads = torch.get_num_threads()
    structprune.compare(model, net(24), X, min_seconds=0.1)
    assert [m.training for m in model] == [True, False] + [True] * 7
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.get_num_threads() == threads


def test_a_forward_that_writes_changes_its_own_copy_only() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ReLU(inplace=True)
            self.register_buffer("calls", torch.zeros(1))
            self.extra = torch.zeros(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.extra += 1
            return self.first(x)

    model, x = Writes(), torch.tensor([[-1.0, 2.0]])
    measure_latency(model, x, min_seconds=0.02)
    assert (float(model.calls), float(model.extra), x.tolist()) == (0, 0, [[-1, 2]])


def test_batch_size_of_nested_inputs() -> None:
    class Nested(nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return inputs["x"] * 2

    assert measure_latency(Nested(), ({"x": torch.ones(2, 3)},), batch_size=8, min_seconds=0.02).batch_size == 8
    with pytest.raises(OptionError, match="no first dimension in common"):
        measure_latency(nn.Bilinear(2, 2, 2), (torch.ones(5, 2), torch.ones(2, 2)), batch_size=8)


def test_inputs_are_inferred_and_not_zeros() -> None:
    seen: list[torch.Tensor] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return self.first(x)

    measure_latency(Looks(), min_seconds=0.05)
    assert float(seen[-1].std()) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nonsense"}, "device='nonsense' cannot be used here"),
        ({"device": "meta"}, "device='meta' computes nothing"),
        ({"dtype": torch.int64}, "dtype=torch.int64: expected a floating-point torch.dtype"),
        ({"batch_size": 0}, "batch_size=0: expected an integer of 1 or more"),
        ({"min_seconds": 0}, "min_seconds=0: expected a number of seconds above 0"),
        ({"cuda_graph": True, "device": "cpu"}, "cuda_graph=True needs a CUDA device; this is cpu"),
        ({"batchsize": 3}, "'batchsize' is not an option of a measurement; there are device, dtype"),
    ],
)
def test_options_that_cannot_be_used(options: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        measure_latency(net(), X, **options)
    assert message in str(caught.value)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(structprune.InputError, match=r"Sequential does not run with \(float32\[2, 4\]\) on cpu"):
        measure_latency(nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 4), device="cpu")
    with pytest.raises(OptionError, match="batch_size cannot be used where example_inputs is a callable"):
        measure_latency(net(), lambda m: m(X), batch_size=3)
