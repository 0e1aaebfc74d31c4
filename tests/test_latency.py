"""Timing: what is stated, what is refused, what is noticed, and that nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.utils.benchmark import Timer

import structprune
from structprune import Latency, OptionError, compare, count_flops, measure_latency
from structprune.measure import causes, latency, machine, runner
from structprune.measure.comparison import bootstrap_interval, timed_calls
from structprune.measure.profile import of_operators, operator_seconds
from structprune.measure.runner import Runner, Setting
from tests.bench.comparison import Sleeps
from tests.support import timing
from tests.support.small import IMAGE, chain

CPU = Setting(torch.device("cpu"))
X = torch.randn(2, 3, 64, 64)


def net(width: int = 48) -> nn.Module:
    """A few milliseconds a forward."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


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


STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]
WATCHED = [
    # seconds that threads waited and that were stolen, in ten; load of others; timings; what is said
    (0.5, 0.1, 9.0, STEADY, ""),
    (6.0, 0.1, 0.0, STEADY, "its threads waited for a core 0.60 s in every second: other programs use the CPU"),
    (0.5, 8.0, 0.0, STEADY, "the hypervisor took 40% of the CPU time away"),
    (None, None, 0.4, STEADY, ""),
    (None, None, 1.4, STEADY, "the load of other programs is 1.4 cores"),
    (0.5, 0.1, 0.0, [1.0, 1.0, 1.5, 1.5], "the timings spread by 40% between their quartiles"),
    (0.5, 0.1, 0.0, [1.0, 2.0, 3.0], ""),  # too few to tell
]


@pytest.mark.parametrize(("waited", "stolen", "load", "samples", "said"), WATCHED)
def test_a_busy_machine_is_noticed(
    waited: Any, stolen: Any, load: float, samples: list[float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passing(*readings: Any) -> Callable[[], Any]:
        left = iter(readings)
        return lambda: next(left)

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=passing(5.0, 15.0)))
    monkeypatch.setattr(machine, "_waited", passing(*((None, None) if waited is None else (2.0, 2.0 + waited))))
    monkeypatch.setattr(machine, "_stolen", passing(*((None, None) if stolen is None else (3.0, 3.0 + stolen))))
    monkeypatch.setattr(machine, "_foreign_load", lambda: load)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    verdict = machine.Watch().verdict(samples)
    assert verdict.startswith(said) if said else verdict == ""


def test_what_the_machine_says_of_itself() -> None:
    """Counters that only grow, where the system has them."""
    for read in (machine._waited, machine._stolen):
        before, after = read(), read()
        assert (before is None) == (after is None) and (before is None or 0 <= before <= after)
    assert isinstance(machine._foreign_load(), float)


def test_timings_of_a_busy_machine_are_not_to_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    timing.given(monkeypatch.setattr, busy="the load of other programs is 1.4 cores")
    measured = measure_latency(net(), X, device="cpu")
    assert "\n  not to be trusted: the load of other programs is 1.4 cores" in str(measured)
    comparison = compare(net(), net(24), X, device="cpu")
    assert comparison.verdict == "The machine is too busy to tell: the load of other programs is 1.4 cores."
    assert comparison.busy in str(comparison).replace("\n", " ") and comparison.causes == ()


def test_the_same_model_twice_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(0)
    timing.given(monkeypatch.setattr, lambda runner: float(drawn.normal(1.0, 0.05)))
    model = net()
    comparison = compare(model, model, X, device="cpu")
    low, high = comparison.speedup_interval
    assert low < 1 < high and low <= comparison.speedup <= high
    assert comparison.verdict.startswith("No measurable difference in latency")
    assert comparison.theoretical_speedup == 1


def test_a_pause_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(0)
    timing.given(monkeypatch.setattr, lambda runner: float(drawn.normal(2.0 if runner.name == "Sleeps" else 1.0, 0.05)))
    model = net()
    comparison = compare(Sleeps(model, 0.0), model, X, device="cpu")
    low, high = comparison.speedup_interval
    assert 1.8 < low <= comparison.speedup <= high < 2.2
    assert comparison.verdict.startswith(
        f"{comparison.speedup:.2f} times as fast (95 % interval of the speed-up {low:.2f} to "
    )
    back = compare(model, Sleeps(model, 0.0), X, device="cpu")
    assert back.verdict.startswith(f"{1 / back.speedup:.2f} times slower")


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


DOUBTS = [
    (chain(8, 8), chain(8, 4), ""),
    (
        chain(8, 4),
        chain(8, 8),
        "The second model is wider than the first (3.weight): compare takes the dense",
    ),
    (nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Conv2d(3, 4, 1), "The models share 0 of 2 names of parameters: they do not"),
    (nn.ReLU(), chain(8), ""),
]


@pytest.mark.parametrize(("first", "second", "said"), DOUBTS)
def test_swapped_and_unrelated_models_are_said_to_be(first: nn.Module, second: nn.Module, said: str) -> None:
    comparison = structprune.compare(first, second, IMAGE, min_seconds=0.01, device="cpu")
    assert comparison.doubt.startswith(said) and bool(comparison.doubt) is bool(said)
    assert comparison.doubt in " ".join(str(comparison).split())
    assert json.loads(comparison.to_json())["doubt"] == comparison.doubt
