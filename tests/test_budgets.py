"""Targets in place of a ratio, one ratio for all layers, uniform widths, sensitivity."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import OptionError
from tests.support.attention import INPUTS, TOKENS, Net, Separate
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
    plan = structprune.plan_pruning(model, params=0.8, round_to=4, example_inputs=torch.zeros(2, 16))
    # One more layer of 16 would be more than 0.8, and with all of them at 12 there would be 0.66.
    assert [16 - g.removed for g in plan.groups] == [12] * 5 + [16] * 4
    assert 0.75 < plan.params[1] / plan.params[0] <= 0.8


def test_every_step_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "structprune"):
        structprune.prune_model(chain(32, 32, 8), macs=0.5, example_inputs=IMAGE, round_to=1)
    assert len(caplog.messages) > 3 and all("% of the MACs" in message for message in caplog.messages)


def test_a_target_that_is_out_of_reach_says_what_is_not() -> None:
    with pytest.raises(OptionError, match=r"params=0\.1 cannot be reached: .* (\d+\.\d) % of the parameters are left"):
        structprune.plan_pruning(TinyResNet(), params=0.1, example_inputs=IMAGE)


def test_a_speedup_that_is_measured() -> None:
    layers = [nn.Linear(1024, 1024) for _ in range(6)]
    model, x = nn.Sequential(*layers), torch.randn(256, 1024)
    try:
        plan = structprune.plan_pruning(model, speedup=1.5, example_inputs=x, measure={"min_seconds": 0.3})
    except OptionError as error:  # a machine on which no width helps
        pytest.skip(str(error))
    assert "times as fast" in plan.notes[0] and plan.params[1] < plan.params[0]


def test_a_measured_target_needs_weights() -> None:
    with pytest.raises(structprune.ModelError, match=r"latency=0\.7 is measured, and the model is on the meta device"):
        structprune.plan_pruning(chain(8, 8).to("meta"), latency=0.7, example_inputs=IMAGE, importance="random")


# One ratio for all layers.


def scaled_chain() -> nn.Sequential:
    """Two wide layers, of which in the second half of the filters is next to nothing."""
    model = chain(32, 32, 8)
    with torch.no_grad():
        for index, few in ((0, 4), (3, 20)):
            model[index].weight.normal_()
            model[index].weight[:few].mul_(1e-3)
    return model


def test_global_ranks_channels_across_layers() -> None:
    model = scaled_chain()
    plan = structprune.plan_pruning(model, 24 / 64, scope="global", round_to=1, example_inputs=IMAGE)
    assert plan.kept["0.weight"][0] == tuple(range(4, 32)) and plan.kept["3.weight"][0] == tuple(range(20, 32))
    # Scores are beside the mean of their layer: one layer's scale decides nothing.
    with torch.no_grad():
        model[3].weight.mul_(100)
    again = structprune.plan_pruning(model, 24 / 64, scope="global", round_to=1, example_inputs=IMAGE)
    assert again.kept == plan.kept


def test_global_leaves_something_of_every_layer() -> None:
    model = scaled_chain()
    with torch.no_grad():
        model[3].weight[:31].mul_(1e-6)
    plan = structprune.plan_pruning(model, 0.6, scope="global", round_to=1, example_inputs=IMAGE)
    assert len(plan.kept["3.weight"][0]) == 4


def test_global_is_right_where_widths_are_tied() -> None:
    model, x = TinyResNet(), IMAGE
    small = structprune.prune_model(
        model, 0.5, "channel", scope="global", example_inputs=x, round_to=1, keep_representation=False
    )
    assert structprune.prove(model, small, x)


def test_global_treats_layers_of_equal_scores_alike() -> None:
    plan = structprune.plan_pruning(
        chain(32, 32, 32, 32),
        0.5,
        scope="global",
        round_to=1,
        importance=lambda g: [1.0] * g.width,
        example_inputs=IMAGE,
    )
    assert [g.removed for g in plan.groups if g.removed] == [16, 16, 16]


@pytest.mark.parametrize("shift", [0.0, -10.0, -1e3])
def test_global_with_scores_below_zero(shift: float) -> None:
    """The layer whose scores are spread loses more, wherever zero lies."""

    def spread(group: structprune.Group) -> torch.Tensor:
        scores = torch.ones(group.width) * 5
        scores[: group.width // 2] = 0.1 if group.name == "0.weight" else 4.9
        scores[0] = 0
        return scores + shift

    plan = structprune.plan_pruning(
        chain(32, 32, 8), 0.25, scope="global", round_to=1, importance=spread, example_inputs=IMAGE
    )
    removed = {g.name: g.removed for g in plan.groups}
    assert removed["0.weight"] > removed["3.weight"]
    assert all(0 <= g.score_removed <= 1 for g in plan.groups)


def test_the_floor_of_global_is_noted() -> None:
    plan = structprune.plan_pruning(chain(16, 32, 32, 8), 0.95, scope="global", round_to=1, example_inputs=IMAGE)
    assert any("keeps its last channels" in note for note in plan.notes)


# Uniform widths.


class Blocks(nn.Module):
    """Three blocks, the second with an auxiliary output that is of its hidden units."""

    def __init__(self, tapped: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 32), "down": nn.Linear(32, 8)}) for _ in range(3))
        self.head, self.tapped = nn.Linear(8, 4), tapped

    def forward(self, x: torch.Tensor) -> Any:
        taps = []
        for layer in self.layers:
            hidden = layer["up"](x).relu()  # type: ignore[index]
            taps.append(hidden)
            x = x + layer["down"](hidden)  # type: ignore[index]
        return (self.head(x), taps[1]) if self.tapped else self.head(x)


@pytest.mark.parametrize(
    ("tapped", "uniform", "scope", "widths"),
    [
        (False, False, "local", [16, 16, 16]), (True, False, "local", [16, 32, 16]),
        (True, True, "local", None), (False, True, "global", [16, 16, 16]),
    ],
)  # fmt: skip
def test_layers_that_repeat_keep_one_width(tapped: bool, uniform: bool, scope: Any, widths: list[int] | None) -> None:
    torch.manual_seed(0)
    model, x = Blocks(tapped), torch.randn(2, 8)
    options: dict[str, Any] = {"uniform": uniform, "scope": scope, "round_to": 1, "example_inputs": x}
    if widths is None:
        with pytest.raises(structprune.NothingToPruneError, match=r"as wide as layers\.1\.up\.weight, which stays"):
            structprune.plan_pruning(model, 0.5, **options)
        return
    small: Any = structprune.prune_model(model, 0.5, **options)
    assert [layer["up"].out_features for layer in small.layers] == widths


def test_patterns_that_make_a_uniform_width_impossible() -> None:
    plan = structprune.plan_pruning(
        Blocks(False), {"layers": 0.5, "layers.1": 0.25}, uniform=True, round_to=1, example_inputs=torch.randn(2, 8)
    )
    assert {32 - g.removed for g in plan.groups if "up" in g.name} == {16}


# Sensitivity.


def test_sensitivity_adds_up() -> None:
    model = chain(16, 24, 8)
    plan = structprune.plan_pruning(model, {"0": 0.5}, round_to=1, example_inputs=IMAGE)
    cut, *whole = plan.sensitivity().groups
    # Only one group is cut: what it saves to first order is what goes.
    assert cut.name == "0.weight" and cut.params_saved == plan.params[0] - plan.params[1]
    assert cut.macs_saved == plan.macs[0] - plan.macs[1]
    norms = model[0].weight.detach().flatten(1).norm(dim=1).sort().values
    assert cut.score_removed == pytest.approx(float(norms[:8].sum() / norms.sum()), rel=1e-5)
    assert all(g.macs_saved == 0 and g.macs > 0 for g in whole)
    lines = str(plan.sensitivity()).splitlines()
    assert len(lines) == 1 + len(plan.groups) and "16 -> 8" in lines[1] and max(map(len, lines)) <= 110


def test_sensitivity_survives_json() -> None:
    plan = structprune.plan_pruning(chain(16, 8), 0.5, example_inputs=IMAGE)
    assert str(structprune.Plan.from_json(plan.to_json()).sensitivity()) == str(plan.sensitivity())


def test_heads_are_uniform_as_well() -> None:
    model, x = Net(nn.Sequential(Separate(), Separate())), torch.randn(1, TOKENS, INPUTS)
    small = structprune.prune_model(
        model, 0.5, "channel", uniform=True, scope="global", keep_representation=False, round_to=1, example_inputs=x
    )
    assert small.block[0].heads == small.block[1].heads < 4  # type: ignore[index, union-attr]
    assert structprune.prove(model, small, x)
