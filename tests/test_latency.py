"""Timing: what is stated, what is refused, what is noticed, and that nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

import structprune
from structprune import Latency, OptionError, compare, count_flops, measure_latency
from structprune.measure import causes
from structprune.measure.comparison import bootstrap_interval, timed_calls
from structprune.measure.profile import of_operators
from structprune.measure.runner import Runner, Setting
from tests.bench.comparison import Sleeps

X = torch.randn(2, 3, 64, 64)


def net(width: int = 48) -> nn.Module:
    """A few milliseconds a forward."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@contextmanager
def loaded(processes: int) -> Iterator[None]:
    """Other programs that use every core."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_latency_states_its_circumstances() -> None:
    latency = measure_latency(net(), X, min_seconds=0.1, device="cpu")
    assert latency.p10 <= latency.median <= latency.p90
    assert latency.iqr >= 0
    assert len(latency.samples) >= 8
    assert all(0 < s < 5 for s in latency.samples)
    assert (latency.device, latency.threads, latency.dtype) == ("cpu", torch.get_num_threads(), "float32")
    assert (latency.batch_size, latency.inputs, latency.how) == (2, "(float32[2, 3, 64, 64])", ())
    assert latency.device_name
    threads = torch.get_num_threads()
    assert f"on cpu ({latency.device_name}), {threads} thread{'s' * (threads != 1)}, float32" in str(latency)


def test_quantiles_of_known_samples() -> None:
    samples = tuple(float(i) for i in range(11))
    latency = Latency(samples, "cpu", "a CPU", 1, "float32", 1, "()")
    assert (latency.median, latency.p10, latency.p90, latency.iqr) == (5.0, 1.0, 9.0, 5.0)


def test_latency_measures_what_a_clock_would() -> None:
    latency = measure_latency(Sleeps(nn.Identity(), 0.02), X, min_seconds=0.1)
    assert 0.02 <= latency.median < 0.06


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


def test_compiled() -> None:
    latency = measure_latency(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(2, 8), compile=True, min_seconds=0.1
    )
    assert latency.how == ("compile",)


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


def test_models_without_a_mac_are_compared() -> None:
    comparison = compare(nn.ReLU(), Sleeps(nn.ReLU(), 0.005), X, min_seconds=0.1, device="cpu")
    assert "promise" not in comparison.verdict
    assert comparison.causes == ()
    assert '"theoretical_speedup": null' in comparison.to_json()


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


def test_bootstrap_interval_of_the_median() -> None:
    drawn = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = bootstrap_interval(drawn.normal(1.5, 0.2, 25))
        held += low <= 1.5 <= high
    # 95 % in theory; 200 draws leave a deviation of 1.5 %.
    assert 0.90 <= held / 200 <= 0.99


def test_a_busy_machine_is_noticed() -> None:
    with loaded(2 * (os.cpu_count() or 1)):
        latency = measure_latency(net(), X, min_seconds=0.3, device="cpu")
        comparison = compare(net(), net(), X, min_seconds=0.2, device="cpu")
    assert "not to be trusted" in str(latency)
    assert comparison.verdict.startswith("The machine is too busy to tell: ")
    assert comparison.busy in str(comparison).replace("\n", " ")


def test_the_same_model_twice_is_no_difference_or_a_small_one() -> None:
    model = net()
    for _ in range(3):
        comparison = compare(model, model, X, min_seconds=0.5, device="cpu")
        low, high = comparison.speedup_interval
        if comparison.busy or low <= 1 <= high:
            break
    assert comparison.busy or comparison.verdict.startswith("No measurable difference in latency")
    assert comparison.theoretical_speedup == 1
    assert low <= comparison.speedup <= high


def test_a_sleep_is_seen() -> None:
    model = net()
    base = measure_latency(model, X, min_seconds=0.5, device="cpu").median
    comparison = compare(Sleeps(model, base), model, X, min_seconds=0.5, device="cpu")
    low, _high = comparison.speedup_interval
    # A wide margin: the machine that runs the tests may do something else meanwhile.
    assert comparison.busy or (low > 1.3 and comparison.speedup < 4)


def test_comparison_says_what_was_promised_and_what_is() -> None:
    dense = net()
    pruned = structprune.prune_model(dense, 0.5, example_inputs=X, keep_representation=False, round_to=1)
    comparison = compare(dense, pruned, X, min_seconds=0.2, device="cpu")
    counts = [structprune.count_flops(model, X) for model in (dense, pruned)]
    assert comparison.theoretical_speedup == counts[0].macs / counts[1].macs
    for side, count in zip((comparison.dense, comparison.pruned), counts, strict=True):
        assert (side.params, side.macs, side.param_bytes) == (count.params, count.macs, count.param_bytes)
        assert side.peak_bytes == count.param_bytes + count.peak_activation_bytes
    assert comparison.speedup == float(np.median(comparison.ratios))
    assert [stage.name for stage in comparison.stages] == ["0", "3", "5", "8"]
    assert sum(stage.dense_macs for stage in comparison.stages) == counts[0].macs
    assert all(stage.dense_seconds and stage.pruned_seconds for stage in comparison.stages)


def test_comparison_goes_to_json_and_html() -> None:
    import json

    comparison = compare(net(), net(24), X, min_seconds=0.1, device="cpu")
    document = json.loads(comparison.to_json())
    assert document["speedup_interval"] == list(comparison.speedup_interval)
    assert document["dense"]["latency"]["samples"] == list(comparison.dense.latency.samples)
    assert document["verdict"] == comparison.verdict
    page = comparison._repr_html_()
    assert page.startswith("<pre")
    assert "parameters" in page
    assert all(len(line) <= 100 for line in str(comparison).splitlines())


class Tokens(nn.Module):
    """A cheap projection, and much work on positions that no channel shrinks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ordered = x.sort(1).values
        return self.last(self.first(ordered))


def test_cause_time_in_operators_that_do_not_shrink() -> None:
    comparison = compare(Tokens(512), Tokens(64), torch.randn(2, 4_000, 64), min_seconds=0.3, device="cpu")
    assert comparison.busy or "in operators that are no contractions" in comparison.causes[0]
    assert comparison.busy or "sort" in comparison.causes[0]


class Many(nn.Module):
    """Layers so small that calling them is all the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(150)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_cause_overhead() -> None:
    dense, pruned = Padded(128), Padded(16)
    comparison = compare(dense, pruned, torch.randn(1, 128), min_seconds=0.3, device="cpu")
    assert comparison.busy or any(cause.startswith("Overhead-bound") for cause in comparison.causes)


def test_far_from_both_ceilings_nothing_is_memory_bound() -> None:
    """Small layers take what their calls take: the roofline's own time is next to nothing."""
    runner = Runner(Many(16), timed_calls(Many(16), torch.randn(1, 16)), Setting(torch.device("cpu")))
    count = count_flops(runner.model, runner.calls)
    slow = Slow(runner)
    assert causes._memory(slow, count) is None  # type: ignore[arg-type]
    # Faster than the bytes could be moved: they were not.
    slow.factor = 1e-6
    assert causes._memory(slow, count) is None  # type: ignore[arg-type]


def test_what_moves_bytes_for_most_of_its_time_is_memory_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Many(16), torch.randn(1, 16)
    runner = Runner(model, timed_calls(model, x), Setting(torch.device("cpu")))
    count = count_flops(runner.model, runner.calls)
    bytes_ = sum(cost.moved_bytes for cost in count.by_module.walk() if not cost.children)
    monkeypatch.setattr(causes, "_seconds", lambda runner: 2.0)
    monkeypatch.setattr(causes, "_ceilings", lambda runner, moved: (1e18, bytes_ / 1.0))
    share, text = causes._memory(runner, count)  # type: ignore[misc]
    assert share == pytest.approx(0.5) and "would take 50% of the pruned model's time" in text
    compiled = Runner(model, timed_calls(model, x), Setting(torch.device("cpu")))
    compiled.setting = replace(compiled.setting, compile=True)
    assert causes._memory(compiled, count) is None


class Slow:
    """A runner that says it took another time."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.factor = runner, 1e3

    def block(self, forwards: int) -> float:
        return self.factor * self.runner.block(forwards)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


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


def test_cause_odd_widths() -> None:
    comparison = compare(Tokens(512), Tokens(51), torch.randn(2, 4_000, 64), min_seconds=0.2, device="cpu")
    assert comparison.busy or any("first.weight is 51 x 64" in cause for cause in comparison.causes)
