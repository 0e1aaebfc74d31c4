"""Two models compared: the interval, the verdict, what was promised, and doubts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

import structprune
from structprune import compare
from structprune.measure.comparison import bootstrap_interval
from tests.bench.comparison import Sleeps
from tests.support import timing
from tests.support.small import IMAGE, chain
from tests.support.timed import X, net


def test_models_without_a_mac_are_compared() -> None:
    comparison = compare(nn.ReLU(), Sleeps(nn.ReLU(), 0.005), X, min_seconds=0.1, device="cpu")
    assert "promise" not in comparison.verdict
    assert comparison.causes == ()
    assert '"theoretical_speedup": null' in comparison.to_json()


def test_bootstrap_interval_of_the_median() -> None:
    drawn = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = bootstrap_interval(drawn.normal(1.5, 0.2, 25))
        held += low <= 1.5 <= high
    # 95 % in theory; 200 draws leave a deviation of 1.5 %.
    assert 0.90 <= held / 200 <= 0.99


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
