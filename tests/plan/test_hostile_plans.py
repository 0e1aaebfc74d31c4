"""Plans that somebody else wrote: what is no plan of the model is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

import structprune
from structprune import Plan, PlanError
from tests.support.small import IMAGE, TinyResNet


def _changed(**changes: Any) -> str:
    document = json.loads(structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE).to_json())
    del document["checksum"]
    return json.dumps({**document, **changes})


def _attribute(name: str, old: Any, new: Any, module: str = "") -> dict[str, Any]:
    return {"attributes": [{"module": module, "name": name, "old": old, "new": new}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checksum": "0"}, "checksum does not match its contents"),
        ({"version": True}, "version True"),
        ({"params": [10**30, 1]}, "is no size or index"),
        ({"notes": [1]}, "1 is no text"),
        ({"kept": {"stem.weight": {"00": 0}}}, "'00' is no dimension"),
        (_attribute("training", 1, 0), "training is no size that a module holds"),
        (_attribute("weight.ndim", 4, 3, "stem"), "stem.weight.ndim is no size that a module holds"),
        (_attribute("padding", [1, 1], 1, "stem"), "of another kind"),
        (_attribute("padding", [1, 1], [1], "stem"), "of another kind"),
        (_attribute("weight", 1, 2, "stem"), "stem.weight is no size that a module holds"),
        (_attribute("none", 1, 2, "stem"), "stem.none cannot be read"),
        (_attribute("out_channels", 16, 8, "none"), "none.out_channels cannot be read"),
        (_attribute("out_channels", 17, 8, "stem"), "stem.out_channels is 16, the plan expects 17"),
    ],
)
def test_hostile_plans(change: dict[str, Any], message: str) -> None:
    model = TinyResNet()
    with pytest.raises(PlanError, match=message):
        Plan.from_json(_changed(**change)).apply(model, inplace=True)
    assert model.stem.out_channels == 16 and model.training and model.stem.weight.ndim == 4


def test_a_plan_without_a_checksum_is_read() -> None:
    # As plans were written before there was one, and as they are written by hand.
    assert Plan.from_json(_changed()).kept and Plan.from_json(_changed(ratio="added")).kept
