"""What goes: the weakest, in the widths, patterns and granularity that were asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support.small import IMAGE, TinyResNet, chain


def widths(model: Any) -> list[int]:
    return [m.out_channels for m in model if isinstance(m, nn.Conv2d)]


def test_the_weakest_filters_go() -> None:
    model = chain(4, 8)
    with torch.no_grad():
        for filter_, scale in zip(model[0].weight, (3.0, 0.1, 2.0, 0.2), strict=True):
            filter_.fill_(scale)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    assert plan.kept["0.weight"] == {0: (0, 2)} and plan.kept["3.weight"] == {1: (0, 2)}


def test_equal_scores_keep_the_lower_index() -> None:
    model = chain(6, 8)
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    plan = structprune.plan_pruning(model, 0.4, example_inputs=IMAGE)
    assert plan.kept["0.weight"] == {0: (0, 1, 2, 3)}


def test_scores_are_summed_over_tied_producers() -> None:
    model = TinyResNet()
    with torch.no_grad():
        for parameter in (model.block1.conv3.weight, model.block1.downsample[0].weight, model.block2.conv3.weight):  # type: ignore[index]
            parameter.fill_(0.1)
        # Channel 5 is strong in one producer of the stream only, which is enough to stay.
        model.block2.conv3.weight[5].fill_(9.0)
        model.block1.conv3.weight[60].fill_(9.0)
    plan = structprune.plan_pruning(model, 0.9, "channel", example_inputs=IMAGE, round_to=1, keep_representation=False)
    kept = plan.kept["fc.weight"][1]
    assert 5 in kept and 60 in kept and len(kept) == 64 - 57


def test_weight_normalised_filters_are_scored_by_what_they_are() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[0].parametrizations.weight.original0.copy_(torch.tensor([1.0, 9.0, 8.0, 2.0]).view(4, 1, 1, 1))  # type: ignore[union-attr, index, operator]
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE, keep_representation=False)
    assert plan.kept["1.weight"] == {1: (1, 2)}


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "left"),
    [
        (64, 0.5, "auto", 32), (64, 0.3, "auto", 48), (64, 0.1, "auto", 56), (100, 0.5, "auto", 50),
        (48, 0.3, "auto", 34), (48, 0.3, 16, 32), (48, 0.1, 16, 48), (48, 0.9, 16, 16), (10, 0.25, 1, 8),
        (72, 0.5, "auto", 40), (72, 0.5, 1, 36), (7, 0.5, 4, 4),
    ],
)  # fmt: skip
def test_rounding(width: int, ratio: float, round_to: Any, left: int) -> None:
    model = chain(width, 8)
    if left == width:
        with pytest.raises(structprune.NothingToPruneError, match="round_to=1"):
            structprune.prune_model(model, ratio, example_inputs=IMAGE, round_to=round_to)
        return
    small = structprune.prune_model(model, ratio, example_inputs=IMAGE, round_to=round_to)
    assert widths(small) == [left, 8]


def test_a_pattern_that_changes_nothing_is_noted() -> None:
    plan = structprune.plan_pruning(chain(16, 16), 0.5, example_inputs=IMAGE, ignore=["1", "3"])
    assert [n for n in plan.notes if "names no layer" in n] == [
        "'1' names no layer that produces channels, and changes nothing"
    ]


def test_ratio_by_pattern_and_ignore() -> None:
    model = chain(16, 16, 16, 8)
    small = structprune.prune_model(model, {"3": 0.5, "6*": 0.25}, example_inputs=IMAGE)
    assert widths(small) == [16, 8, 12, 8]
    small = structprune.prune_model(model, 0.5, example_inputs=IMAGE, ignore=["3"])
    assert widths(small) == [8, 16, 8, 8]
    small = structprune.prune_model(model, 0.5, example_inputs=IMAGE, ignore="6.weight")
    assert widths(small) == [8, 8, 16, 8]


def test_keep_representation() -> None:
    model = chain(16, 16)
    assert widths(structprune.prune_model(model, 0.5, example_inputs=IMAGE)) == [8, 16]
    assert widths(structprune.prune_model(model, 0.5, example_inputs=IMAGE, keep_representation=False)) == [8, 8]


def test_granularities() -> None:
    model = TinyResNet()
    filters: Any = structprune.prune_model(model, 0.5, example_inputs=IMAGE, keep_representation=False)
    channels: Any = structprune.prune_model(model, 0.5, "channel", example_inputs=IMAGE, keep_representation=False)
    assert (filters.block1.conv1.out_channels, filters.block1.conv3.out_channels) == (8, 64)
    assert (channels.block1.conv1.out_channels, channels.block1.conv3.out_channels) == (8, 32)
    assert channels.fc.in_features == 32


def test_group_counts_all_that_leaves_with_a_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    first, norm, second = model[0], model[1], model[3]
    squares = first.weight.square().sum((1, 2, 3)) + first.bias.square() + norm.weight.square() + norm.bias.square()
    squares = (squares + second.weight.square().sum((0, 2, 3))).detach()
    model[1].running_var.fill_(1e6)  # no weight
    free: dict[str, Any] = {"round_to": 1, "keep_representation": False}
    plan = structprune.plan_pruning(model, {"0": 0.5}, importance="group", example_inputs=IMAGE, **free)
    assert plan.kept["0.weight"][0] == tuple(sorted(squares.argsort()[3:].tolist()))
    lost = squares.sqrt().sort().values
    (share,) = (g.score_removed for g in plan.groups if g.removed)
    assert share == pytest.approx(float(lost[:3].sum() / lost.sum()), abs=1e-5)
    with pytest.raises(structprune.ModelError, match="is on the meta device and has no values to rank"):
        structprune.plan_pruning(model.to("meta"), {"0": 0.5}, importance="group", example_inputs=IMAGE, **free)
