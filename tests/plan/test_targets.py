"""Targets in place of a ratio: shares and numbers of MACs and parameters, and a speed-up that is measured."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import structprune
from structprune import OptionError
from tests.support import timing
from tests.support.small import IMAGE, TinyResNet, chain

TOLERANCES = {1: 0.02, "auto": 0.05}


def left(dense: nn.Module, small: nn.Module, quantity: str) -> float:
    """The share of a quantity that is left, counted on the two models themselves."""
    before, after = (structprune.count_flops(model, IMAGE) for model in (dense, small))
    return float(getattr(after, quantity) / getattr(before, quantity))


@pytest.mark.parametrize(
    ("quantity", "share", "round_to"),
    [("macs", 0.5, 1), ("macs", 0.3, "auto"), ("params", 0.3, 1), ("params", 0.7, "auto")],
)
def test_a_target_is_met_on_the_safe_side(quantity: str, share: float, round_to: Any) -> None:
    model = structprune.demo.resnet50(num_classes=10)
    options: dict[str, Any] = {quantity: share, "round_to": round_to}
    plan = structprune.plan_pruning(model, granularity="channel", example_inputs=IMAGE, **options)
    found = left(model, plan.apply(model), quantity)
    assert (1 - TOLERANCES[round_to]) * share <= found <= share
    assert plan.notes[0].startswith(f"{quantity}={share}: met at ratio 0.")
    assert plan.settings["target"] == f"{quantity}={share}"


def test_layers_of_one_width_shrink_one_after_the_other() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(9)))
    plan = structprune.plan_pruning(model, params=0.8, scope="local", round_to=4, example_inputs=torch.zeros(2, 16))
    # One more layer of 16 would be more than 0.8, and with all of them at 12 there would be 0.66.
    assert [16 - g.removed for g in plan.groups] == [12] * 5 + [16] * 4
    assert 0.75 < plan.params[1] / plan.params[0] <= 0.8


def test_a_target_takes_what_keeps_most_unless_told_otherwise() -> None:
    asked = {"example_inputs": IMAGE, "round_to": 1}
    plan = structprune.plan_pruning(TinyResNet().eval(), macs=0.8, **asked)  # type: ignore[arg-type]
    took = {name: plan.settings[name] for name in ("importance", "scope", "compensate", "max_ratio")}
    assert took == {"importance": "error", "scope": "global", "compensate": True, "max_ratio": 0.9} and plan.shifts
    bare = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    # No batch norms to compensate by; no weights to predict errors by; a criterion of one's own; a ratio.
    for model, options, expected in (
        (bare, {"macs": 0.8}, ("error", "global", False)),
        (chain(16, 16).to("meta"), {"macs": 0.8, "importance": "random"}, ("random", "local", False)),
        (chain(16, 16), {"macs": 0.8, "importance": "l1"}, ("l1", "local", True)),
        (chain(16, 16), {"macs": 0.8, "compensate": False, "scope": "local"}, ("error", "local", False)),
        (chain(16, 16), {"ratio": 0.2}, ("l2", "local", False)),
        (chain(16, 16), {"ratio": 0.2, "compensate": "auto"}, ("l2", "local", True)),
        (bare, {"ratio": 0.2, "compensate": "auto"}, ("l2", "local", False)),
    ):
        plan = structprune.plan_pruning(model.eval(), **asked, **options)  # type: ignore[arg-type]
        assert tuple(plan.settings[name] for name in ("importance", "scope", "compensate")) == expected


def test_every_step_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "structprune"):
        structprune.prune_model(chain(32, 32, 8), macs=0.5, example_inputs=IMAGE, round_to=1)
    assert len(caplog.messages) > 3 and all("% of the MACs" in message for message in caplog.messages)


def test_a_target_that_is_out_of_reach_says_what_is_not() -> None:
    with pytest.raises(OptionError, match=r"params=0\.1 cannot be reached: .* (\d+\.\d) % of the parameters are left"):
        structprune.plan_pruning(TinyResNet(), params=0.1, example_inputs=IMAGE)


@pytest.mark.parametrize(
    ("wanted", "busy"), [({"speedup": 1.5}, ""), ({"latency": 0.3}, "the load of other programs is 1.4 cores")]
)
def test_a_speedup_that_is_measured(wanted: dict[str, float], busy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timing.given(monkeypatch.setattr, busy=busy)
    model, x = nn.Sequential(*(nn.Linear(128, 128) for _ in range(6))), torch.randn(256, 128)
    plan = structprune.plan_pruning(model, example_inputs=x, measure={"device": "cpu"}, round_to=1, **wanted)
    share = plan.macs[1] / plan.macs[0]
    target = wanted.get("latency") or 1 / wanted["speedup"]
    # As near as a measured target has to be: 3 % below it, and not much farther.
    assert 0.92 * target <= share <= 0.97 * target
    assert f"it is {1 / share:.2f} times as fast" in plan.notes[0] and (
        f"not to be trusted: {busy}" in plan.notes[0]
    ) == bool(busy)


def test_a_speedup_that_scatters_is_met_by_its_lower_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(0)
    timing.given(monkeypatch.setattr, lambda runner: timing.by_macs(runner) * float(drawn.uniform(0.8, 1.2)))
    model, x = nn.Sequential(*(nn.Linear(128, 128) for _ in range(6))), torch.randn(256, 128)
    plan = structprune.plan_pruning(model, speedup=1.5, example_inputs=x, measure={"device": "cpu"}, round_to=1)
    low = re.search(r"95 % interval (.*) to", plan.notes[0])
    assert low is not None and float(low[1]) >= 1.5


def test_a_speedup_that_no_width_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    timing.given(monkeypatch.setattr, lambda runner: 1.0)
    with pytest.raises(OptionError, match=r"speedup=1\.5 cannot be reached: with 99% .*, it is 1\.00 times as fast"):
        structprune.plan_pruning(chain(32, 32), speedup=1.5, example_inputs=IMAGE, measure={"device": "cpu"})


def test_a_measured_target_needs_weights() -> None:
    with pytest.raises(structprune.ModelError, match=r"latency=0\.7 is measured, and the model is on the meta device"):
        structprune.plan_pruning(chain(8, 8).to("meta"), latency=0.7, example_inputs=IMAGE, importance="random")


@pytest.mark.parametrize(("quantity", "number"), [("macs", 40e6), ("params", 100_000), ("params", 5e5)])
def test_a_target_may_be_a_number(quantity: str, number: float) -> None:
    model: Any = chain(32, 64, 96)
    dense = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    number = min(number, 0.6 * getattr(dense, quantity)[0])
    options: dict[str, Any] = {quantity: number, "round_to": 1}
    plan = structprune.plan_pruning(model, granularity="channel", example_inputs=IMAGE, **options)
    assert 0.97 * number <= getattr(plan, quantity)[1] <= number
    share = number / getattr(plan, quantity)[0]
    by_share = structprune.plan_pruning(
        model, granularity="channel", example_inputs=IMAGE, **{**options, quantity: share}
    )
    assert by_share.kept == plan.kept
    assert plan.notes[0].startswith(f"{quantity}={number}: met at ratio 0.")


def test_a_number_beyond_what_is_there_is_said_to_be() -> None:
    model = chain(32, 32, 8)
    count = sum(p.numel() for p in model.parameters())
    said = (
        rf"^params={count} is no less than the {count:,} parameters that the dense network has: give fewer, or a share"
    )
    with pytest.raises(OptionError, match=said):
        structprune.plan_pruning(model, params=count, example_inputs=IMAGE)
