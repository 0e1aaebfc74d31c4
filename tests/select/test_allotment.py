"""What a layer at its limit cannot give, others give."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import structprune
from structprune.select.allotment import Widths, allotted


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
