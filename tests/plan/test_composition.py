"""Pruning in steps: plans that are composed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import Plan, PlanError
from tests.support.attention import INPUTS, TOKENS, Net, Separate
from tests.support.small import IMAGE, TinyResNet, chain

X = torch.randn(1, TOKENS, INPUTS, generator=torch.Generator().manual_seed(0))
Z = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, tuple[Any, torch.Tensor, dict[str, Any]]] = {
    "chain": (lambda: chain(16, 24, 8), IMAGE, {}),
    "residual": (TinyResNet, IMAGE, {"granularity": "channel"}),
    "attention": (lambda: Net(Separate()), X, {"granularity": "channel", "keep_representation": False}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_two_cuts_are_one_plan(name: str) -> None:
    make, x, options = NETWORKS[name]
    model = make().eval()
    options = {"example_inputs": x, "round_to": 1, **options}
    once = structprune.prune_model(model, 0.3, **options)
    twice = structprune.prune_model(once, 0.4, **options)
    whole = structprune.plan_of(twice)
    assert whole.fits(model) and whole.params[0] == structprune.plan_of(once).params[0]
    assert Plan.from_json(whole.to_json()) == whole
    at_once = whole.apply(model)
    states = (at_once.state_dict(), twice.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(at_once(x), twice(x)) and str(whole).count("ratio 0.") == 2
    # Against the dense model, and against the one in between.
    assert structprune.prove(model, twice, x) and structprune.prove(once, twice, x)
    assert structprune.prove(model, once, x)
    removed = {g.name: g.removed for g in whole.groups}
    for step in (structprune.plan_of(once), structprune.plan_pruning(once, 0.4, **options)):
        for group in step.groups:
            removed[group.name] -= group.removed
    assert not any(removed.values())


def test_the_second_part_of_a_plan() -> None:
    model = chain(16, 24, 8)
    first = structprune.plan_pruning(model, 0.25, example_inputs=IMAGE, round_to=1)
    once = first.apply(model)
    second = structprune.plan_pruning(once, 0.5, example_inputs=IMAGE, round_to=1)
    again = first.then(second).after(first)
    assert (again.kept, again.attributes, again.shapes) == (second.kept, second.attributes, second.shapes)
    assert (again.params, again.macs, again.settings) == (second.params, second.macs, dict(second.settings))
    for mine, theirs in zip(again.groups, second.groups, strict=True):
        assert (mine.width, mine.removed) == (theirs.width, theirs.removed)
        assert abs(mine.score_removed - theirs.score_removed) < 1e-9 and mine.removed <= mine.width
    others = structprune.plan_pruning(model, {"3": 0.5}, example_inputs=IMAGE, round_to=1)
    with pytest.raises(PlanError, match=r"which cuts 0\.weight where it does not"):
        others.after(structprune.plan_pruning(model, {"0": 0.5}, example_inputs=IMAGE, round_to=1))
    with pytest.raises(PlanError, match=r"The second plan does not follow this one: 0\.weight is \[12"):
        first.then(first)
    with pytest.raises(PlanError, match=r"does not begin with that one, which removes slices of .* that it keeps"):
        structprune.plan_pruning(model, 0.3, example_inputs=IMAGE, importance="random").after(first)
    with pytest.raises(PlanError, match="does not begin with that one"):
        second.after(first)


def test_compensation_in_steps() -> None:
    torch.manual_seed(0)
    model = chain(16, 24, 8).eval()
    structprune.recalibrate(model, [Z])
    options: dict[str, Any] = {"example_inputs": IMAGE, "round_to": 1, "compensate": [Z]}
    once = structprune.prune_model(model, 0.3, **options)
    second = structprune.plan_pruning(once, 0.4, **options)
    twice = second.apply(once)
    whole = structprune.plan_of(twice)
    for name, value in whole.apply(model).state_dict().items():
        assert torch.allclose(value, twice.state_dict()[name], atol=1e-6)
    rest = whole.after(structprune.plan_of(once))
    assert rest.shifts.keys() >= second.shifts.keys()
    for name, shift in second.shifts.items():
        assert rest.shifts[name] == pytest.approx(shift, abs=1e-9)
        if name in second.scales:
            assert rest.scales[name] == pytest.approx(second.scales[name])


def test_compensated_steps_are_proved() -> None:
    torch.manual_seed(0)
    model = chain(16, 24, 8).eval()
    structprune.recalibrate(model, [Z])
    options: dict[str, Any] = {"example_inputs": IMAGE, "round_to": 1, "compensate": True}
    once = structprune.prune_model(model, 0.25, **options)
    twice = structprune.prune_model(once, 0.25, **options)
    assert structprune.prove(model, twice, IMAGE) and structprune.prove(once, twice, IMAGE)


def test_a_model_that_was_changed_between_two_cuts() -> None:
    once: Any = structprune.prune_model(chain(16, 24, 8), 0.5, example_inputs=IMAGE, keep_representation=False)
    once[11] = nn.Linear(4, 5)
    twice = structprune.prune_model(once, 0.5, example_inputs=IMAGE, round_to=1)
    plan = structprune.plan_of(twice)
    assert "this plan begins after that" in plan.notes[-1] and plan.fits(once)
    assert structprune.prove(once, twice, IMAGE)


def test_a_plan_for_the_dense_model_meets_a_pruned_one() -> None:
    model = chain(16, 24, 8)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    with pytest.raises(PlanError, match="applied to this model already"):
        plan.apply(plan.apply(model))
