"""Plans that remove the channels which are named, with what leaves with them, or an error that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from tests.support import oracle


class Coupled(nn.Module):
    """A stream of two layers, a gate whose halves meet, and a norm in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.back = nn.Linear(6, 16), nn.Linear(16, 10), nn.Linear(10, 16)
        self.gate, self.wide = nn.Linear(16, 16), nn.Linear(8, 12)
        self.norm, self.head = nn.GroupNorm(3, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.back(self.inner(h).tanh())
        value, gate = self.gate(h).chunk(2, -1)
        return self.head(self.norm(self.wide(value * gate.sigmoid())).relu())


X = torch.randn(8, 6)
# What is asked for, the widths that go with it, and what else the notes say goes.
REMOVED: list[tuple[dict[Any, Any], dict[str, list[int]], tuple[str, ...]]] = [
    ({"inner": [0, 3]}, {"inner.weight": [0, 3]}, ()),
    ({"inner.weight": torch.tensor([9])}, {"inner.weight": [9]}, ()),
    ({"inner": np.array([1]), "wide": [0, 4, 8]}, {"inner.weight": [1], "wide.weight": [0, 4, 8]}, ()),
    ({"inner": 5}, {"inner.weight": [5]}, ()),
    ({"inner": [2, 2], "inner.weight": [7]}, {"inner.weight": [2, 7]}, ()),
    (
        {"embed": [2]},
        {"embed.weight": [2], "back.weight": [2]},
        ("with them go back.weight [2]",),
    ),
    ({"embed": [2], "back": [2]}, {"embed.weight": [2], "back.weight": [2]}, ()),
    ({"gate": [1]}, {"gate.weight": [1, 9]}, ("with them go gate.weight [9]",)),
    ({"wide": [0, 1, 2, 3]}, {"wide.weight": [0, 1, 2, 3]}, ()),
    ({"wide": [5]}, {"wide.weight": [1, 5, 9]}, ("with them go wide.weight [1, 9]",)),
]


@pytest.mark.parametrize(("asked", "gone", "notes"), REMOVED, ids=[str(list(r[0].items())) for r in REMOVED])
def test_what_is_named_goes(asked: dict[Any, Any], gone: dict[str, list[int]], notes: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = Coupled()
    plan = structprune.plan_removal(model, asked, example_inputs=X)
    lost = {
        name: sorted(set(range(plan.shapes[name][0])) - set(dims[0]))
        for name, dims in plan.kept.items()
        if 0 in dims and name.endswith(".weight") and name != "norm.weight"
    }
    assert lost == gone
    assert tuple(note for note in plan.notes if note.startswith("with them")) == notes
    small = plan.apply(model)
    assert structprune.prove(model, small, X)
    assert structprune.Plan.from_json(plan.to_json()).kept == plan.kept
    oracle.randomise(model)
    oracle.check(model, plan.apply(model), X.double())


def test_modules_and_weights_are_names_too() -> None:
    model = Coupled()
    by_name = structprune.plan_removal(model, {"inner": [1, 2]}, example_inputs=X)
    for key in (model.inner, model.inner.weight):
        assert structprune.plan_removal(model, {key: [1, 2]}, example_inputs=X) == by_name
    assert str(by_name).startswith("Plan for Coupled: channels that are named\n")


def test_a_transposed_convolution_has_its_channels_second() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    plan = structprune.plan_removal(model, {"0": [7]}, example_inputs=torch.zeros(1, 3, 4, 4))
    assert plan.kept["0.weight"] == {1: (0, 1, 2, 3, 4, 5, 6)} and plan.kept["2.weight"] == {1: (0, 1, 2, 3, 4, 5, 6)}


def test_a_model_without_weights_is_planned() -> None:
    with torch.device("meta"):
        model = Coupled()
    plan = structprune.plan_removal(model, {"inner": [1, 2]}, example_inputs=X)
    assert plan.kept["inner.weight"] == {0: (0, 3, 4, 5, 6, 7, 8, 9)}


WRONG: list[tuple[Any, str]] = [
    (
        {"head": [1]},
        r"^These channels of this Coupled cannot be removed:\n  head\.weight \[1\]: is a dimension of the ",
    ),
    ({"inner": [10, -1]}, r"^channels\['inner\.weight'\] has \[-1, 10\]; its layer has 10 channels, 0 to 9\.$"),
    ({"inner": range(10)}, r"has all 10 channels of its layer; one must stay\.$"),
    ({"inned": [1]}, r"^channels names 'inned', which is no layer and no weight, did you mean 'inner'\?$"),
    ({"": [1]}, r"^channels names '', which has no weight: name a layer that has one, or the weight itself\.$"),
    ({"inner": []}, r"^channels\['inner\.weight'\] is \[\]; expected the indices of channels, such as \[1, 3, 5\]\.$"),
    ({"inner": [True]}, r"^channels\['inner\.weight'\] is \[True\]; expected the indices"),
    ({"inner": "12"}, r"^channels\['inner\.weight'\] is '12'; expected the indices"),
    ({"inner": 0.5}, r"^channels\['inner\.weight'\] is 0\.5; expected the indices"),
    ({}, r"^channels is \{\}; expected a dict from layer \(its name, the module or its weight\) to the indices"),
    (["inner"], r"^channels is \['inner'\]; expected a dict from layer"),
    ({3: [1]}, r"^channels has the key 3; expected the name of a layer, a module or a weight\.$"),
    ({nn.Linear(2, 2): [0]}, r"^channels holds a Linear \(a module\) that is no part of this Coupled: give one of "),
]


@pytest.mark.parametrize(("asked", "said"), WRONG, ids=[str(w[0])[:30] for w in WRONG])
def test_what_cannot_go_is_said_to(asked: Any, said: str) -> None:
    with pytest.raises(structprune.OptionError, match=said):
        structprune.plan_removal(Coupled(), asked, example_inputs=X)


def unequal(model: Any, x: Tensor) -> Tensor:
    first, second = model.wide(x).chunk(2, -1)
    return torch.cat([first.exp(), second], -1)


class Halves(nn.Module):
    def __init__(self, meet: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.meet = meet

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.meet(self, x))


class Sides(nn.Module):
    """A wide layer that meets a narrow one and another beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.left, self.right, self.head = (nn.Linear(n, m) for n, m in ((6, 8), (6, 4), (6, 4), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(x) * torch.cat([self.left(x), self.right(x)], -1))


def test_a_layer_that_would_be_left_without_channels_is_said_to() -> None:
    with pytest.raises(structprune.OptionError, match=r"\n  left\.weight: not one channel would be left of it"):
        structprune.plan_removal(Sides(), {"wide": [0, 1, 2, 3]}, example_inputs=X)
    plan = structprune.plan_removal(Sides(), {"wide": [0, 1, 2]}, example_inputs=X)
    assert plan.notes == ("with them go left.weight [0-2]",)


def test_channels_that_take_all_others_along_are_said_to() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=3), nn.Conv2d(6, 2, 1))
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(structprune.OptionError, match=r"0\.weight \[0, 1\]: all others of the layer leave with them$"):
        structprune.plan_removal(model, {"0": [0, 1]}, example_inputs=x)
    plan = structprune.plan_removal(model, {"0": [0]}, example_inputs=x)
    assert structprune.prove(model, plan.apply(model), x) and plan.notes == ("with them go 0.weight [2, 4]",)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(h + self.attention(h, h, h, need_weights=False)[0])


def test_widths_that_one_number_says_go_together() -> None:
    model, x = Attention(), torch.randn(2, 5, 6)
    with pytest.raises(structprune.OptionError) as caught:
        structprune.plan_removal(model, {"embed": [0, 1]}, example_inputs=x)
    widths = "attention.in_proj_weight (0 of 16 asked for) and embed.weight (2 of 16 asked for)"
    assert f"\n  must lose the same share: {widths}" in str(caught.value)
    wanted = {"embed": range(8), "attention.in_proj_weight": range(8, 16)}  # the second head
    plan = structprune.plan_removal(model, wanted, example_inputs=x)
    assert structprune.prove(model, plan.apply(model), x)
    assert plan.shape_left("attention.in_proj_weight") == (24, 8)


def test_pieces_that_must_stay_equal_are_said_to() -> None:
    model = Halves(unequal)
    with pytest.raises(structprune.OptionError) as caught:
        structprune.plan_removal(model, {"wide": [1]}, example_inputs=X)
    assert "asked for are 1 of [0-5], 0 of [6-11]: ask for as many of each" in str(caught.value)
    plan = structprune.plan_removal(model, {"wide": [1, 8]}, example_inputs=X)
    assert structprune.prove(model, plan.apply(model), X)
