"""Plans: what they print, JSON both ways, and that they are immutable."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

import structprune
from structprune import Plan, PlanError
from tests.support.small import IMAGE, Table, TinyResNet, chain


def test_json_both_ways() -> None:
    plan = structprune.plan_pruning(TinyResNet(), {"block1": 0.5}, "channel", example_inputs=IMAGE, ignore=["stem"])
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.to_json() == plan.to_json()
    model = TinyResNet()
    one, two = plan.apply(model), again.apply(model)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())


def test_plans_are_immutable() -> None:
    plan = structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE)
    with pytest.raises(AttributeError):
        plan.params = (0, 0)  # type: ignore[misc]


def test_a_plan_says_what_it_will_do() -> None:
    model = TinyResNet()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    small = plan.apply(model)
    assert plan.params == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert plan.macs[1] == structprune.plan_pruning(small, 0, example_inputs=IMAGE).macs[0]
    text = str(plan)
    assert "Plan for TinyResNet: ratio 0.5, granularity 'filter'" in text
    assert f"parameters {plan.params[0]:,} -> {plan.params[1]:,}" in text
    assert "16 -> 8" in text and "is the representation" in text and "block1.conv1.out_channels: 16 -> 8" in text


def _changed(**changes: Any) -> str:
    document = json.loads(structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE).to_json())
    return json.dumps({**document, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no structprune plan"),
        ({"version": 99}, "version 99, this release of structprune reads version 1"),
        ({"kept": {"stem.weight": {"0": 10**6}}}, "cannot be read as a plan: IndexError"),
        ({"index_sets": [[3, 2, 1]] * 10}, "not ascending or too large"),
        ({"index_sets": [[10**6]] * 10}, "not ascending or too large"),
        ({"index_sets": None}, "cannot be read as a plan"),
        ({"params": [1]}, "cannot be read as a plan"),
        ({"attributes": [{"module": "", "name": "__class__", "old": 1, "new": 2}]}, "no size that a module could hold"),
        ({"attributes": [{"module": "", "name": "x", "old": "a", "new": 2}]}, "is no size or index"),
    ],
)
def test_broken_json(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(_changed(**change))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"plan"'])
def test_no_json(text: str) -> None:
    with pytest.raises(PlanError, match="plan"):
        Plan.from_json(text)


def test_buffers_that_a_forward_makes_anew_do_not_matter() -> None:
    model, x = Table().eval(), torch.randn(1, 3, 10, 10)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=x, round_to=1)
    model(x)
    pruned = plan.apply(model)
    assert structprune.prove(Table().eval(), pruned, x).reason.startswith("first.weight is not a slice")
    pruned(torch.randn(1, 3, 12, 12))
    assert structprune.prove(model, pruned, x).proved


def test_the_old_name_of_row_scales_works_with_a_warning() -> None:
    plan = structprune.plan_pruning(chain(16, 16), 0.5, example_inputs=torch.zeros(1, 3, 8, 8))
    scaled = dataclasses.replace(plan, row_scales={"0.weight": (2.0,) * plan.shape_left("0.weight")[0]})
    with pytest.warns(DeprecationWarning, match=r"Plan.gains is called Plan.row_scales"):
        assert scaled.gains == scaled.row_scales
    # Files are as they were: an older reader must not pass over what it does not know.
    assert json.loads(scaled.to_json())["gains"] == {"0.weight": list(scaled.row_scales["0.weight"])}
    assert structprune.Plan.from_json(scaled.to_json()) == scaled
