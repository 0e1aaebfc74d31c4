"""Sensitivity adds up, and survives JSON."""

from __future__ import annotations

import pytest

import structprune
from tests.support.small import IMAGE, chain


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
