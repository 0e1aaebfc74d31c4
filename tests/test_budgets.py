"""Targets in place of a ratio, one ratio for all layers, uniform widths, sensitivity."""

from __future__ import annotations

import logging
import math
import re
from itertools import pairwise, product
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import structprune
from structprune import OptionError
from structprune.select.allotment import Widths, allotted
from tests.support import timing
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


# What a layer at its limit cannot give, others give.


def layers(*widths: int) -> nn.Sequential:
    sizes = [(8, widths[0]), *pairwise(widths), (widths[-1], 4)]
    return nn.Sequential(*(layer for before, after in sizes for layer in (nn.Linear(before, after), nn.ReLU())))


def gone_of(plan: structprune.Plan) -> list[int]:
    return [group.removed for group in plan.groups[:-1]]  # the last are the classes


GIVEN = [
    # widths, weak neurons of the second layer, options, what goes, what the notes say
    ((40, 40), 38, {}, [4, 36], ["as narrow as max_ratio=0.9 lets a layer become: 2.weight"]),
    ((40, 40), 38, {"max_ratio": 0.5}, [20, 20], ["max_ratio=0.5 lets a layer become: 0.weight, 2.weight"]),
    ((40, 40), 38, {"max_ratio": 1}, [2, 38], []),
    ((40, 40), 38, {"max_ratio": 0.25}, [10, 10], ["asks for 40 of 80 channels, and 20 go (25.0%): no layer may lose"]),
    ((40, 10), 0, {"max_ratio": 0.5, "ratio": {"0": 0.9, "2": 0.1}}, [20, 1], ["the ratio 0.9 asks for 36 of 40"]),
    ((10, 10), 0, {"round_to": 8}, [2, 2], ["asks for 10 of 20 channels, and 4 go (20.0%): no layer may lose more"]),
    ((12, 12), 0, {"round_to": 4, "ratio": 0.34}, [4, 4], []),
    ((24, 24), 20, {"round_to": 8, "ratio": 0.4}, [0, 16], ["asks for 19 of 48 channels, and 16 go (33.3%): the w"]),
    ((40, 40), 0, {"scope": "local", "max_ratio": 0.25}, [10, 10], ["as narrow as max_ratio=0.25 lets a layer become"]),
    ((40, 40), 0, {"scope": "local", "max_ratio": 0.25, "ratio": 0.2}, [8, 8], []),
    ((24, 20), 0, {"scope": "local", "max_ratio": 0.5, "round_to": 16}, [8, 4], ["as narrow as max_ratio=0.5"]),
    ((40, 40), 0, {"scope": "local", "max_ratio": {"0": 0.25}}, [10, 20], ["max_ratio=0.25 lets a layer become: 0.w"]),
    ((40, 40), 0, {"scope": "local", "max_ratio": {"0": 0.25, "*": 0.4}}, [10, 16], ["max_ratio=0.4 lets a layer be"]),
    ((40, 40), 0, {"scope": "local", "max_ratio": {"*": 0.4, "0": 0.25}}, [16, 16], ["become: 0.weight, 2.weight"]),
    ((40, 40), 38, {"max_ratio": {"2": 0.5}}, [20, 20], ["max_ratio=0.5 lets a layer become: 2.weight"]),
    ((40, 40), 38, {"max_ratio": {"0": 0.5}}, [4, 36], ["as narrow as max_ratio=0.9 lets a layer become: 2.weight"]),
]  # fmt: skip


@pytest.mark.parametrize(("widths", "weak", "options", "gone", "notes"), GIVEN)
def test_what_layers_at_their_limit_cannot_give(
    widths: tuple[int, ...], weak: int, options: dict[str, Any], gone: list[int], notes: list[str]
) -> None:
    torch.manual_seed(0)
    model: Any = layers(*widths)
    model[2].weight.data[:weak] *= 1e-3
    options = {"ratio": 0.5, "scope": "global", "round_to": 1, **options}
    plan = structprune.plan_pruning(model, keep_representation=False, example_inputs=torch.randn(1, 8), **options)
    found = gone_of(plan)
    assert found == gone if weak or options["scope"] == "local" else sum(found) == sum(gone)
    said = [note for note in plan.notes if "max_ratio" in note]
    assert all(any(part in note for note in said) for part in notes) and (notes or not said), said
    assert plan.settings["max_ratio"] == options.get("max_ratio", 0.9)
    assert structprune.Plan.from_json(plan.to_json()).settings == plan.settings


def test_without_a_limit_none_is_in_the_plan() -> None:
    plan = structprune.plan_pruning(layers(16, 16), 0.5, example_inputs=torch.randn(1, 8))
    assert plan.settings["max_ratio"] is None


def allowed(width: int, unit: int, most: float) -> list[int]:
    """What can go of a layer, one width after the other."""
    return [0] + [g for g in range(1, width) if (width - g) % unit == 0 and g <= most * width + 1e-9]


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(data=st.data())
def test_what_goes_is_the_nearest_to_the_ratio_that_can_go(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=4), "widths")
    most, ratio = data.draw(st.sampled_from([0.3, 0.5, 0.9, 1.0]), "most"), data.draw(st.floats(0.05, 0.95), "ratio")
    unit, ranks = data.draw(st.sampled_from([1, 2, 3, 8]), "unit"), data.draw(st.integers(0, 2**31), "ranks")
    random = np.random.default_rng(ranks)
    wanted = math.floor(ratio * sum(widths) + 1e-9)
    plan_of_none = all(len(allowed(width, unit, most)) == 1 for width in widths)
    totals = {sum(each) for each in product(*(allowed(width, unit, most) for width in widths))}
    nearest = min(totals, key=lambda total: (abs(total - wanted), total))
    if plan_of_none or not nearest:
        return
    plan = structprune.plan_pruning(
        layers(*widths),
        ratio,
        scope="global",
        max_ratio=most,
        round_to=unit,
        importance=lambda group: random.exponential(size=group.width),
        keep_representation=False,
        example_inputs=torch.zeros(1, 8),
    )
    found = gone_of(plan)
    assert sum(found) == nearest
    assert all(gone in allowed(width, unit, most) for gone, width in zip(found, widths, strict=True))
    assert (nearest < wanted) == any(f"and {nearest:,} go" in note for note in plan.notes)


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(data=st.data())
def test_tied_widths_are_allotted_the_nearest_that_can_go(data: st.DataObject) -> None:
    """Ties of several partitions, each of several channels in a share."""
    ties, scores, options = [], [], []
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    for _ in range(data.draw(st.integers(1, 4))):
        shares, unit = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
        least, parts = data.draw(st.integers(1, shares)), data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        ties.append(Widths(shares, sum(parts), unit, least))
        scores.append([random.normal(size=shares * part) for part in parts])
        options.append([0] + [shares - left for left in range(least, shares) if left % unit == 0])
    target = data.draw(st.integers(0, sum(b.shares * b.size for b in ties)))
    found = allotted(ties, scores, target)
    assert all(gone in own for gone, own in zip(found, options, strict=True))
    totals = {sum(g * b.size for g, b in zip(each, ties, strict=True)) for each in product(*options)}
    nearest = min(totals, key=lambda total: (abs(total - target), total))
    assert sum(gone * b.size for gone, b in zip(found, ties, strict=True)) == nearest


def test_steps_go_to_the_weakest_layers_first() -> None:
    """With multiples of 8 that no layer's own share reaches, the weaker half of the layers gives a step each."""
    widths = [Widths(64, 1, 8, 1)] * 6
    scores = [[np.linspace(1.0, 1.0 + spread, 64)] for spread in (1, 9, 2, 8, 3, 7)]
    assert allotted(widths, scores, 24) == [0, 8, 0, 8, 0, 8]


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
