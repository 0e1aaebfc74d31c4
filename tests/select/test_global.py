"""One ratio for all layers: channels are ranked across them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import structprune
from tests.support.small import IMAGE, TinyResNet, chain


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


def test_isomorphic_lets_alike_layers_compete() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[:2].mul_(1e-3)  # of the two that a kernel of three writes and one of one reads
        model[4].weight[:22].mul_(1e-3)
    plan = structprune.plan_pruning(model, 0.5, scope="isomorphic", round_to=1, example_inputs=IMAGE)
    lost = {g.name: g.removed for g in plan.groups}
    assert lost["0.weight"] + lost["4.weight"] == 24 and lost["2.weight"] == 8 and not lost["6.weight"]
    assert lost["4.weight"] >= 22
    assert plan.settings["scope"] == "isomorphic" and plan.settings["max_ratio"] == 0.9
